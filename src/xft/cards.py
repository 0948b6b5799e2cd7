"""The README.md in a model's folder: what made it, from what, how to load it, under which licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xft import __version__
from xft.fetch import HUB_NAME
from xft.merge.methods import Coefficients
from xft.moe.mixture import Mixture
from xft.prove import Gap

CARD = "README.md"


def write_mixture_card(out: Path, config: dict[str, Any], *, tuned: bool) -> None:
    """Write the card of a mixture, whose config.json says how it was made."""
    options = config["xft"]
    state = "instruction-tuned" if tuned else "not tuned yet"
    (out / CARD).write_text(
        f"""{_head(options["base"], "mixture-of-experts")}
# A mixture of experts made by xft {__version__}

`{options["base"]}`, upcycled into {options["experts"]} experts a layer of which {options["active"]} are active
(router `{options["router"]}`; shared experts, if it has any, are included in both); {state}. `xft merge` makes
a dense model of the base's own architecture out of it.

It is of no class that transformers has, so xft must be imported first:

```python
import xft
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
```

Licence: {_licence(out)}.
""",
        encoding="utf-8",
    )


def write_merged_card(
    out: Path,
    mixture: Mixture,
    *,
    method: str,
    coefficients: Coefficients,
    prompt: str,
    seed: int,
    data: Sequence[str],
    tuned: bool,
    gap: Gap,
) -> None:
    """Write the card of a merged dense model; `data` names the pairs that it has learned from."""
    options = mixture.options
    state = "instruction-tuned as a mixture" if tuned else "not tuned as a mixture"
    places = coefficients.shares_LPR.shape[1]
    sets = f" x {places} matrices" if places > 1 else ""
    shared = ""
    if coefficients.shared_LP is not None:
        low, high = (round(float(bound), 4) for bound in coefficients.shared_LP.aminmax())
        shared = f"| weight of the shared expert | {low if low == high else f'{low} to {high}'} |\n"
    pairs = "\nPairs:\n\n" + "".join(f"- {name}\n" for name in data) if data else ""
    (out / CARD).write_text(
        f"""{_head(options["base"], "model-merging")}
# A dense model merged by xft {__version__}

Upcycled from `{options["base"]}` into {options["experts"]} experts, {state}, and merged back into the base's own
architecture (XFT, arXiv 2404.15247). It loads with plain transformers.

| | |
|---|---|
| merge method | {method} |
{shared}| against the mixture | {gap} |
| prompt style | {prompt} |
| seed | {seed} |
| coefficients | `coefficients.safetensors` (rows: layers{sets}, columns: routed experts) |
| what made it | `manifest.json` |
{pairs}
Licence: {_licence(out)}.

Scores: `eval/` and `report/index.html` of the run that made it; of a model made by itself, what `xft eval` wrote.
""",
        encoding="utf-8",
    )


def write_soup_card(out: Path, shares: Sequence[tuple[str, float]]) -> None:
    """Write the card of an average of dense models, given with their weights."""
    rows = "".join(f"| `{name}` | {share:.4g} |\n" for name, share in shares)
    (out / CARD).write_text(
        f"""{_head("", "model-soup")}
# An average of dense models made by xft {__version__}

| model | weight |
|---|---|
{rows}
It loads with plain transformers; config and tokenizer are the first model's. What made it: `manifest.json`.

Licence: {_licence(out)}.
""",
        encoding="utf-8",
    )


def write_export_card(out: Path, mixture: Mixture, format_name: str) -> None:
    """Write the card of a mixture in a stock format."""
    options = mixture.options
    (out / CARD).write_text(
        f"""{_head(options["base"], "mixture-of-experts")}
# A mixture of experts made by xft {__version__}, in the format {format_name}

`{options["base"]}`, upcycled into {options["experts"]} experts a layer of which {options["active"]} are active
(router `{options["router"]}`). It loads with plain transformers, and with what else reads {format_name}.
What made it: `manifest.json`.

Licence: {_licence(out)}.
""",
        encoding="utf-8",
    )


def write_adapters_card(out: Path, mixture: Mixture) -> None:
    """Write the card of a mixture's experts as adapters."""
    base = mixture.options["base"]
    name, revision = hub_model(base)
    given = f'"{name or "folder/of/the/base"}"' + (f', revision="{revision}"' if revision else "")
    (out / CARD).write_text(
        f"""{_head(base, "lora", library="peft")}
# {mixture.routed} LoRA adapters made by xft {__version__}

The routed experts of a mixture made of `{base}`, whose own weights were frozen. Each loads by itself:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({given})
model = PeftModel.from_pretrained(base, "this/folder/expert-0")
```

The router that mixes them token by token is not among them. What made it: `manifest.json`.

Licence: {_licence(out)}.
""",
        encoding="utf-8",
    )


def hub_model(base: str) -> tuple[str, str]:
    """Return the hub's name of a base and its revision, "" for what there is not."""
    name, _, revision = base.partition("@")
    return (name, revision) if HUB_NAME.match(name) and not Path(base).exists() else ("", "")


def _head(base: str, tag: str, library: str = "transformers") -> str:
    """Return the hub's metadata; a base that is no hub name is left out, since the hub would refuse it."""
    name, _ = hub_model(base)
    known = f"base_model: {name}\n" if name else ""
    return f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n{known}tags: [xft, code, {tag}]\n---\n"


def _licence(out: Path) -> str:
    licence = next((path.name for path in sorted(out.glob("LICENSE*"))), None)
    if licence:
        return f"see {licence} beside this file"
    return "that of the base model; check it before you pass the model on"
