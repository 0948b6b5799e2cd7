"""The stage `merge`: choose or learn coefficients, write the dense model and its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xft.cards import write_merged_card
from xft.merge.fit import FitJob, fit, save_coefficients
from xft.merge.methods import MERGE_METHODS, coefficients
from xft.merge.write import write_merged
from xft.moe.mixture import Mixture
from xft.recipe import MergeConfig, TuneConfig
from xft.stage import Meter, read_json, write_json
from xft.tune.callbacks import METRICS


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
    data: list[str]
    """The data's names, for the card."""


def merge(job: MergeJob, meter: Meter) -> None:
    """Fill the job's folder with coefficients.safetensors, the dense checkpoint, summary.json and README.md.

    Raises:
        CheckpointError: not a mixture, or one with missing or damaged tensors.
        DivergedError: a loss or gradient that is not finite.
    """
    mixture = Mixture(job.mixture)
    method = MERGE_METHODS[job.method]
    shared_weight = job.merge.shared_weight if mixture.rule.shared else 0.0
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
        shares_LR = coefficients(method.initial(mixture.layers, mixture.routed))
        save_coefficients(job.out, shares_LR, shared_weight)
    rounding = write_merged(mixture, shares_LR, shared_weight, job.out)
    write_json(job.out / "summary.json", read_json(job.out / "summary.json", {}) | {"rounding_error": rounding})
    write_merged_card(
        job.out, mixture, method=job.method, shared_weight=shared_weight, prompt=job.prompt, seed=job.seed,
        data=job.data, tuned=(job.mixture / METRICS).is_file(),
    )  # fmt: skip
