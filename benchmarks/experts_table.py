"""Print the table of docs/experts.md: every layout with every router that it takes, counted on the meta device.

python benchmarks/experts_table.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

import xft  # noqa: F401  (registers the mixture classes)
from xft.cost import Cost, count
from xft.errors import RecipeError
from xft.export import STOCK
from xft.families import FAMILIES
from xft.moe.layouts import LAYOUTS, Layout, layout_of
from xft.moe.routers import ROUTERS
from xft.recipe import UpcycleConfig

CONTEXT = 512
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of SmolLM2-135M."""
HEAD = (
    "| mixture | starts as the base | parameters, and memory of weights and gradients | parameters that a token uses "
    "| FLOPs a token | stock runtime |\n|---|---|---|---|---|---|"
)


def mixtures() -> Iterator[dict[str, Any]]:
    """Yield settings for every layout with every router, in the sizes that their authors use."""
    for layout in LAYOUTS:
        for name, router in ROUTERS.items():
            given = {"layout": layout, "router": name}
            if layout == "split":
                yield given | ({"experts": 34, "active": 6, "parts": 4, "shared": 2} if router.shared else
                               {"experts": 32, "active": 4, "parts": 4})  # fmt: skip
            elif name == "slices":
                yield given | {"experts": 8, "active": 1}
            else:
                yield given | {"experts": 8, "active": 6 if router.shared else 2}
    yield {"layout": "split", "router": "deepseek", "experts": 66, "active": 8, "parts": 4, "shared": 2}


def cost_of(config: dict[str, Any]) -> Cost:
    """Count a model from its config.json."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    model.tie_weights()
    return count(model)


def runtime_of(layout: Layout) -> str:
    """Name the stock classes that can hold a mixture; adapters go one by one to PEFT."""
    if not layout.copies:
        return "PEFT, each expert"
    return ", ".join(name for name, stock in STOCK.items() if layout.config.router in stock.rules) or "–"


def rows() -> Iterator[str]:
    """Yield the table's rows: sizes and costs as multiples of the dense model's."""
    llama, dense = FAMILIES["llama"], cost_of(SMOLLM2)
    for settings in mixtures():
        config = UpcycleConfig.model_validate(settings)
        try:
            layout = layout_of(config, llama)
        except RecipeError:  # docs/experts.md says which routers `split` refuses, and why
            continue
        options = config.model_dump() | {"base": "", "base_dtype": "float32", "base_fingerprint": ""}
        cost = cost_of(SMOLLM2 | {"model_type": llama.moe_type, "xft": options})
        flops = cost.forward_flops(1, 1, CONTEXT) / dense.forward_flops(1, 1, CONTEXT)
        ratios = (cost.parameters / dense.parameters, cost.active / dense.active, flops)
        said = " ".join(f"{key}={value}" for key, value in settings.items())
        starts = "yes" if layout.preserves_dense(torch.float32) else "no"
        yield f"| `{said}` | {starts} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {runtime_of(layout)} |"


if __name__ == "__main__":
    print(HEAD, *rows(), sep="\n")
