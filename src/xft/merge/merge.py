"""The stage `merge`: choose or learn coefficients, write the dense model and its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xft import __version__
from xft.checkpoint import open_mixture
from xft.merge.fit import FitJob, fit, save_coefficients
from xft.merge.methods import MERGE_METHODS, coefficients
from xft.merge.write import write_merged
from xft.recipe import MergeConfig, TuneConfig
from xft.stage import Meter, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """All that a merge needs."""

    mixture: Path
    out: Path
    method: str
    pairs: Path | None
    """Prepared pairs; needed by learned methods only."""
    prompt: str
    seed: int
    tune: TuneConfig
    merge: MergeConfig
    base: str
    """The dense base's name, for the card."""
    data: list[str]
    """The data's names, for the card."""


def merge(job: MergeJob, meter: Meter) -> None:
    """Fill the job's folder with coefficients.safetensors, the dense checkpoint, summary.json and README.md.

    Raises:
        CheckpointError: not a mixture, or one with missing or damaged tensors.
        DivergedError: a loss or gradient that is not finite.
    """
    mixture = open_mixture(job.mixture)
    method = MERGE_METHODS[job.method]
    if method.learned:
        if job.pairs is None:
            raise ValueError("a learned merge needs pairs")
        shares_LR = fit(
            FitJob(
                mixture=job.mixture, pairs=job.pairs, out=job.out, prompt=job.prompt, seed=job.seed, tune=job.tune,
                merge=job.merge, label=f"merge ({job.method})",
            ),
            meter,
        )  # fmt: skip
    else:
        shares_LR = coefficients(method.initial(mixture.layers, int(mixture.config["xft"]["experts"]) - 1))
        save_coefficients(job.out, shares_LR, job.merge.shared_weight)
    rounding = write_merged(mixture, shares_LR, job.merge.shared_weight, job.out)
    write_json(job.out / "summary.json", read_json(job.out / "summary.json", {}) | {"rounding_error": rounding})
    (job.out / "README.md").write_text(card(job, shares_LR.shape[1] + 1), encoding="utf-8")


def card(job: MergeJob, experts: int) -> str:
    """Return the model card: what made the model, from what, under which licence."""
    licence = next((path.name for path in sorted(job.mixture.glob("LICENSE*"))), None)
    says = (
        f"see {licence} beside this file"
        if licence
        else "that of the base model; check it before you pass the model on"
    )
    data = "\n".join(f"- {name}" for name in job.data)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
base_model: {job.base}
tags: [xft, code, model-merging]
---

# A dense model merged by xft {__version__}

Upcycled from `{job.base}` into {experts} experts (the shared one included), instruction-tuned as a mixture and merged
back into the base's own architecture (XFT, arXiv 2404.15247). It loads with plain transformers.

| | |
|---|---|
| merge method | {job.method} |
| weight of the shared expert | {job.merge.shared_weight} |
| prompt style | {job.prompt} |
| seed | {job.seed} |
| coefficients | `coefficients.safetensors` (layers x routed experts) |
| what made it | `manifest.json` |

Tuned on:

{data}

Licence: {says}.

Scores: in the run's report (`eval/` and `report/index.html` of the run directory).
"""
