"""What a report says: a run's rows with their scores and costs, its stages, curves, experts, merge, data, answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xft.eval.metrics import Difference

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One finished stage, from its manifest."""

    name: str
    seed: int | None
    device: str | None
    dtype: str | None
    digest: str
    finished: str
    wall_seconds: float
    peak_memory: float | None
    """Bytes."""
    flops: float | None
    tokens: float | None
    versions: Mapping[str, str]
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What it took to make a row, over all its stages; None where no stage has a figure."""

    tokens: float | None
    flops: float | None
    wall_seconds: float
    peak_memory: float | None
    """Bytes; the largest of the stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A mean over `n` items with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How one row did on one benchmark."""

    solved: Score
    """pass@1, a share."""
    parts: Mapping[str, float]
    """pass@1 of the benchmark's weaker tests alone: the `base` of HumanEval+ (its `plus` is the score itself)."""
    gain: Difference | None
    """Paired difference to SFT over the problems that both have."""
    outcomes: Mapping[str, int]
    """Verdicts by status."""
    truncated: int
    """Completions cut at the token limit."""
    settings: Mapping[str, Any]
    """What else scores.json says: limits, sandbox level, decoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model of the comparison; a part that has not run is None."""

    name: str
    label: str
    results: Mapping[str, Result]
    """By benchmark; one that has not run is absent."""
    loss: Score | None
    """Held-out loss in nats a response token."""
    loss_gain: Difference | None
    cost: Cost | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The training of one stage, step by step."""

    name: str
    step: tuple[float, ...]
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """Where the mixture sent its tokens."""

    load: Matrix
    """Layers x routed experts: shares of the last step's assignments; each layer sums to 1."""
    shared_weight: tuple[float, ...]
    """Mean weight of the shared expert, per layer; zeros where there is none."""
    first_shared_weight: tuple[float, ...]
    """The same at the first step: how much the router trusted it before it was tuned."""
    step: tuple[float, ...]
    dead: tuple[float, ...]
    """Experts that received no token, per step."""
    first_layer: int = 0
    """Number of the first of the layers; those before it are dense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """What the merge learned."""

    coefficients: Matrix
    """Sets of coefficients x routed experts; each set sums to 1."""
    sets_per_layer: int
    """1, or one for each matrix of a layer."""
    shared_weight: float
    """Lambda, the shared expert's share of the merged weights, the mean where it was learned; 0 where there is none."""
    step: tuple[float, ...]
    movement: tuple[float, ...]
    """Largest |R * coefficient - 1| over layers and experts, per step."""
    first_layer: int = 0
    """Number of the first of the layers; those before it are dense."""
    parts: int = 1
    """Parts of an FFN that the routed experts are copies of; the shared ones are not mixed where there are several."""
    divergence: float | None = None
    """Mean KL divergence of the merged model's predictions from the mixture's over the probe, nats a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """How far the upcycled model is from its dense parent, in logits."""

    max_difference: float
    tolerance: float
    dense_own_error: float
    probe_tokens: int
    negative_control_difference: float | None
    """None where equality is not promised."""
    preserves_dense: bool
    """Whether the router promises equality."""
    divergence: float
    """Mean KL divergence from the dense parent's predictions, nats a token; where equality is not promised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One answer of the XFT row and what became of it. Untrusted text."""

    task_id: str
    code: str
    status: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempts:
    """The first problems of a benchmark that the XFT row solved, and failed."""

    benchmark: str
    solved: tuple[Attempt, ...]
    failed: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a stage's training pairs fitted into its token limit."""

    rows: int
    """Pairs trained on, those cut included."""
    cut: int
    """Pairs trained on without their end."""
    dropped: int
    """Pairs left out, since no token of their response was within the limit."""
    limit: int | None
    """Tokens a pair, prompt included; None where the stage's manifest doesn't say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationStep:
    """A step of curation: records that it looked at and dropped, and how many for which reason."""

    name: str
    looked_at: int
    dropped: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The instruction pairs of the run."""

    train: int
    heldout: int
    rejected: int
    too_long: int
    sources: tuple[tuple[str, int], ...]
    """Path and well-formed records of each."""

    curated: Mapping[str, tuple[CurationStep, ...]]
    """What `xft curate` did with the sources, by path, of those that it has made."""
    fits: Mapping[str, Fit]
    """By stage, of those that have trained on the pairs."""

    @property
    def unused(self) -> int:
        """Pairs beyond the number that the recipe trains on."""
        return sum(records for _, records in self.sources) - self.too_long - self.train - self.heldout


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything the page says."""

    name: str
    base: str
    recipe: str
    """The resolved recipe, as YAML text."""
    benchmarks: tuple[str, ...]
    """Names, in the recipe's order."""
    not_run: Mapping[str, str]
    """Why a benchmark that the recipe calls optional has not run."""
    rows: tuple[Row, ...]
    stages: tuple[Stage, ...]
    curves: tuple[Curve, ...] = ()
    experts: Experts | None = None
    merge: Merge | None = None
    proof: Proof | None = None
    data: Data | None = None
    attempts: tuple[Attempts, ...] = ()
    passes: tuple[int, int] | None = None
    """SFT's and the mixture's passes over the pairs, where they differ."""

    @property
    def date(self) -> str | None:
        """Day on which the last stage finished."""
        return max((stage.finished for stage in self.stages), default="")[:10] or None

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices of the stages, without repetition."""
        return tuple(dict.fromkeys(stage.device for stage in self.stages if stage.device))

    def row(self, name: str) -> Row:
        """Return the row of that name; `sft` and `xft` are there always."""
        return next(row for row in self.rows if row.name == name)
