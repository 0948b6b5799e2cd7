"""The stage `merge`: choose or learn coefficients, write the dense model and its card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from xft.cards import write_merged_card
from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError, RunError
from xft.memory import release_memory
from xft.merge.combine import Options
from xft.merge.fit import FitJob, fit
from xft.merge.methods import (
    MERGE_METHODS,
    Coefficients,
    MergeMethod,
    equal_coefficients,
    save_coefficients,
    shared_out,
)
from xft.merge.write import Differences, write_merged
from xft.moe.mixture import Mixture, fingerprint
from xft.prove import Gap, gap
from xft.recipe import MergeConfig, TuneConfig
from xft.stage import Meter, read_json, write_json
from xft.tune.callbacks import METRICS

COEFFICIENTS = "coefficients.safetensors"


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
    base: Path | None = None
    """The dense parent; needed by methods that combine differences from it."""


def merge(job: MergeJob, meter: Meter) -> Gap:
    """Fill the job's folder with coefficients.safetensors, the dense checkpoint, summary.json and README.md.

    Returns how far the merged model is from the mixture.

    Raises:
        CheckpointError: not a mixture, one with missing or damaged tensors, or a base that is not its parent.
        RunError: the method needs the dense base, or the mixture's training log, and it is not there.
        DivergedError: a loss or gradient that is not finite.
    """
    mixture, method = Mixture(job.mixture), MERGE_METHODS[job.method]
    differences = None
    if method.differences:
        if job.base is None:
            raise RunError(f"{job.method} combines differences from the dense base; give it with --base")
        parent = Checkpoint(job.base)
        if mixture.options.get("base_fingerprint", own := fingerprint(parent)) != own:
            raise CheckpointError(
                f"{job.base}: not the model that {job.mixture} was upcycled from, {mixture.options['base']!r}; "
                f"{job.method} combines differences from that one"
            )
        options = Options(density=job.merge.density, scale=job.merge.scale, seed=job.seed)
        differences = Differences(combine=method.differences, base=parent, options=options)
    coefficients = _coefficients(job, mixture, meter)
    release_memory()  # learning's trainer is a cycle, which would hold its model beside all that is read from here on
    save_coefficients(job.out / COEFFICIENTS, coefficients)
    rounding = write_merged(mixture, coefficients, job.out, differences)
    lost = gap(job.mixture, job.out, job.seed)
    summary = read_json(job.out / "summary.json", {}) | {"rounding_error": rounding, "gap": asdict(lost)}
    write_json(job.out / "summary.json", summary)
    heeded = coefficients if method.shared_weight else replace(coefficients, shared_LP=None)
    write_merged_card(
        job.out, mixture, method=_described(job, method), coefficients=heeded, prompt=job.prompt, seed=job.seed,
        data=job.data, tuned=(job.mixture / METRICS).is_file(), gap=lost,
    )  # fmt: skip
    return lost


def _coefficients(job: MergeJob, mixture: Mixture, meter: Meter) -> Coefficients:
    source = MERGE_METHODS[job.method].weights
    if source == "learned":
        if job.pairs is None:
            raise ValueError("a learned merge needs pairs")
        return fit(
            FitJob(
                mixture=job.mixture, pairs=job.pairs, out=job.out, prompt=job.prompt, seed=job.seed, tune=job.tune,
                merge=job.merge, label=f"merge ({job.method})",
            ),
            meter,
        )  # fmt: skip
    shared_weight, parts = job.merge.shared_weight if mixture.layout.weighs_shared else None, mixture.settings.parts
    coefficients = equal_coefficients(len(mixture.mixed_layers), mixture.routed, shared_weight, parts)
    if source == "load":
        return replace(coefficients, shares_LPR=shared_out(_loads(mixture)[:, None], parts))
    return coefficients


def _loads(mixture: Mixture) -> Tensor:
    """Return each routed expert's share of its layer's tokens, (L, R), the mean over the steps of the training.

    Raises:
        RunError: the training's log is not there.
    """
    path = mixture.folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    loads = [line["experts"]["load"] for line in map(json.loads, lines) if line.get("experts")]
    if not loads:
        raise RunError(f"{path}: no log of the experts' load; this method merges what `xft tune` has tuned")
    return torch.tensor(loads).mean(0)


def _described(job: MergeJob, method: MergeMethod) -> str:
    """Return the method's name with the options that it heeds."""
    options = ", ".join(f"{name} {getattr(job.merge, name)}" for name in method.options)
    return f"{job.method} ({options})" if options else job.method
