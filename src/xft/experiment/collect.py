"""An experiment's folder -> Results: scores paired by seed and item, intervals, costs, failures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.eval.over_seeds import Estimate, SeedDifference, Values, compare_over_seeds, estimate_over_seeds
from xft.experiment.cells import (
    is_done,
    read_cost,
    read_data_hash,
    read_mean,
    read_outcomes,
    read_values,
    scored,
)
from xft.experiment.choice import Choice, read_choices
from xft.experiment.config import HELDOUT, Grid
from xft.experiment.plan import Cell, Plan
from xft.report.contents import Cost
from xft.stage import MANIFEST, read_json

FAILED, NOT_RUN = "failed", "not run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A cell: a method with a seed."""

    name: str
    """The method, what it tries in a screening, the seed."""
    method: str
    seed: int
    status: str
    """done, failed, or not run."""
    reason: str
    """Of a failure."""
    settings: Mapping[str, Any]
    """All keys in which its recipe differs from the file."""
    passes: int
    """How often its model was trained on the pairs."""
    folder: str
    """The run directory, relative to the experiment's."""
    scores: Mapping[str, float]
    """The mean of each measure."""
    items: Mapping[str, str]
    """The file with each item's value, relative to the experiment's folder."""
    cost: Cost | None
    key: str
    """The hash of all that its scores depend on; "" until it is done."""
    stages: Mapping[str, str]
    """The key of each stage that was made for it."""
    command: str
    """What makes this run alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """A method over all seeds that it has scores of."""

    name: str
    row: str
    settings: Mapping[str, Any]
    """Its own keys, and those chosen for it."""
    seeds: int
    """Seeds that are done."""
    estimates: Mapping[str, Estimate]
    """By measure."""
    differences: Mapping[str, SeedDifference]
    """To the baseline, by measure; over the seeds that both have."""
    others: Mapping[str, SeedDifference]
    """To the grid's `against`, by method, in the endpoint."""
    flops: float | None
    """Mean over the seeds, as the times are."""
    wall_seconds: float | None
    tokens: float | None
    peak_memory: float | None
    """The largest, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything that the tables and the page say."""

    name: str
    recipe: str
    base: str
    grid: str
    """The resolved grid, as YAML text."""
    baseline: str
    against: tuple[str, ...]
    """Other methods that all are compared with."""
    endpoint: str
    measures: tuple[str, ...]
    """The endpoint first."""
    seeds: tuple[int, ...]
    methods: tuple[MethodResult, ...]
    lines: tuple[Line, ...]
    """Those of the experiment proper."""
    screened: tuple[Line, ...]
    choices: Mapping[str, Choice]
    chosen_by: str | None
    items: int
    """Distinct items of the endpoint that were scored."""
    shared_items: int
    """Those of them that the screening was decided by, too."""
    command: str
    devices: tuple[str, ...]
    versions: Mapping[str, tuple[str, ...]]
    """Of each tool those that made what is done; several where it was made at several times."""

    @property
    def failed(self) -> tuple[Line, ...]:
        """Cells of the experiment proper that failed."""
        return tuple(line for line in self.lines if line.status == FAILED)


def collect(plan: Plan, out: Path, grid_text: str, command: str) -> Results:
    """Read what the cells left.

    Raises:
        DataError, RunError: a file is damaged; the message names it.
    """
    grid, outcomes = plan.grid, read_outcomes(out)
    # A choice of an earlier grid may be there: of methods that are no more, or where nothing is chosen any more.
    choices = {name: choice for name, choice in read_choices(out).items() if grid.choose and name in grid.methods}
    cells = plan.confirmation({name: choice.chosen for name, choice in choices.items()})
    done = [cell for cell in cells if is_done(out, outcomes, cell)]
    benchmarks = [entry.name for entry in cells[0].recipe.eval.benchmarks]
    measures = tuple(dict.fromkeys([grid.endpoint, HELDOUT, *benchmarks]))
    tries = [
        cell
        for method, choice in choices.items()
        for candidate in choice.candidates
        for cell in plan.screening(method, candidate.settings)
    ]
    values = {measure: _values(out, done, measure) for measure in measures}
    lines = tuple(_line(out, grid, outcomes, cell, measures) for cell in cells)
    by = grid.choose.by if grid.choose and tries else None
    manifests = [manifest for cell in done for manifest in _manifests(out, cell).values()]
    items = {item for cell in done for item in _items(out, cell, grid.endpoint)}
    decisive = {item for cell in tries if is_done(out, outcomes, cell) for item in _items(out, cell, by or "")}
    return Results(
        name=grid.name,
        recipe=grid.recipe,
        base=cells[0].recipe.base,
        grid=grid_text,
        baseline=grid.baseline,
        against=tuple(grid.against),
        endpoint=grid.endpoint,
        measures=tuple(measure for measure in measures if values[measure]),
        seeds=tuple(grid.seeds),
        methods=tuple(_method(grid, name, choices, values, lines) for name in grid.methods),
        lines=lines,
        screened=tuple(_line(out, grid, outcomes, cell, [by or HELDOUT]) for cell in tries),
        choices=choices,
        chosen_by=by,
        items=len(items),
        shared_items=len(items & decisive),
        command=command,
        devices=tuple(dict.fromkeys(filter(None, (manifest.get("device") for manifest in manifests)))),
        versions=_versions(manifests),
    )


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A method's values of one measure."""

    values: Mapping[int, Mapping[str, float]]
    """By seed, then by item."""
    hashes: Mapping[int, str]
    """Of the items, by seed."""


def _values(out: Path, cells: Sequence[Cell], measure: str) -> dict[str, _Scored]:
    """Return each method's values; nothing for one without any."""
    found: dict[str, tuple[dict[int, Mapping[str, float]], dict[int, str]]] = {}
    for cell in cells:
        if values := read_values(out, cell, measure):
            by_seed, hashes = found.setdefault(cell.method, ({}, {}))
            hashes[cell.seed] = read_data_hash(out, cell, measure)
            by_seed[cell.seed] = dict(zip(_names(out, cell, measure, values), values.values(), strict=True))
    return {method: _Scored(values=values, hashes=hashes) for method, (values, hashes) in found.items()}


def _method(
    grid: Grid,
    name: str,
    choices: Mapping[str, Choice],
    values: Mapping[str, Mapping[str, _Scored]],
    lines: Sequence[Line],
) -> MethodResult:
    estimates: dict[str, Estimate] = {}
    differences: dict[str, SeedDifference] = {}
    others: dict[str, SeedDifference] = {}
    for measure, methods in values.items():
        ours, share = methods.get(name), measure != HELDOUT
        if ours is None:
            continue
        estimates[measure] = estimate_over_seeds(
            list(ours.values.values()), bounds=(0.0, 1.0) if share else None
        )  # fmt: skip
        # Only what is shown, since a comparison takes a second of many problems.
        shown = (grid.baseline, *(grid.against if measure == grid.endpoint else ()))
        found = {other: _compared(ours, methods.get(other), share) for other in shown if other != name}
        told = {other: difference for other, difference in found.items() if difference}
        if grid.baseline in told:
            differences[measure] = told.pop(grid.baseline)
        others |= told
    costs = [line.cost for line in lines if line.method == name and line.cost]
    chosen = choices[name].chosen if name in choices else {}
    return MethodResult(
        name=name,
        row=grid.methods[name].row,
        settings={**grid.methods[name].set, **chosen},
        seeds=sum(line.method == name and line.status == "done" for line in lines),
        estimates=estimates,
        differences=differences,
        others=others,
        flops=_mean([cost.flops for cost in costs]),
        wall_seconds=_mean([cost.wall_seconds for cost in costs]),
        tokens=_mean([cost.tokens for cost in costs]),
        peak_memory=max((cost.peak_memory for cost in costs if cost.peak_memory is not None), default=None),
    )


def _compared(ours: _Scored, theirs: _Scored | None, share: bool) -> SeedDifference | None:
    """Compare two methods over the seeds on which both have scored the same, and items have the same names."""
    if not theirs:
        return None
    same = [seed for seed in ours.values if ours.hashes[seed] == theirs.hashes.get(seed)]
    both = [seed for seed in same if ours.values[seed].keys() & theirs.values[seed].keys()]
    if not both:
        return None
    pair = _shared([ours.values[seed] for seed in both], [theirs.values[seed] for seed in both])
    return compare_over_seeds(*pair, higher_is_better=share, bounds=(-1.0, 1.0) if share else None)


def _shared(a: Values, b: Values) -> tuple[Values, Values]:
    """Keep the items that both have, seed by seed; a fault of the sandbox may have cost one of them an item."""
    keys = [[item for item in ours if item in theirs] for ours, theirs in zip(a, b, strict=True)]
    kept = ([{item: one[item] for item in items} for one, items in zip(each, keys, strict=True)] for each in (a, b))
    return next(kept), next(kept)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _line(
    out: Path, grid: Grid, outcomes: Mapping[str, Mapping[str, Any]], cell: Cell, measures: Sequence[str]
) -> Line:
    outcome, done = outcomes.get(cell.name, {}), is_done(out, outcomes, cell)
    failed = outcome.get("status") == FAILED and outcome.get("recipe") == cell.recipe_hash
    scores = {measure: score for measure in measures if done and (score := read_mean(out, cell, measure)) is not None}
    files = {
        measure: str(scored(Path(), cell, measure) / f"{'losses' if measure == HELDOUT else 'verdicts'}.jsonl")
        for measure in scores
    }
    return Line(
        name=cell.name,
        method=cell.method,
        seed=cell.seed,
        status="done" if done else FAILED if failed else NOT_RUN,
        reason=str(outcome["reason"]) if failed else "",
        settings=cell.changes,
        passes=cell.passes,
        folder=cell.folder,
        scores=scores,
        items=files,
        cost=read_cost(out, cell) if done else None,
        key=str(outcome["key"]) if done else "",
        stages=_stage_keys(out, cell) if done else {},
        command=cell.command(grid.recipe),
    )


def _stage_keys(out: Path, cell: Cell) -> dict[str, str]:
    """Return the key of each finished stage in a cell's run, those of other rows' models excepted."""
    return {place: str(manifest["key"]) for place, manifest in _manifests(out, cell).items()}


def _manifests(out: Path, cell: Cell) -> dict[str, dict[str, Any]]:
    """Return the manifest of each finished stage that made a cell's scores."""
    places = ["base", "data", *cell.made_by, f"eval/{cell.row}"]
    manifests = {place: read_json(out / cell.folder / place / MANIFEST, {}) for place in places}
    return {place: manifest for place, manifest in manifests.items() if "key" in manifest}


def _versions(manifests: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return all versions of each tool."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for tool, version in manifest.get("versions", {}).items():
            found.setdefault(tool, {})[version] = None
    return {tool: tuple(versions) for tool, versions in found.items()}


def _items(out: Path, cell: Cell, measure: str) -> set[str]:
    """Return the names of a measure's items, "" being none."""
    return set(_names(out, cell, measure, read_values(out, cell, measure) or {})) if measure else set()


def _names(out: Path, cell: Cell, measure: str, values: Mapping[str, float]) -> list[str]:
    """Return what tells a measure's items from all others, also of other seeds: a problem's name, a pair's digest."""
    if measure == HELDOUT:
        return list(values)
    data = read_data_hash(out, cell, measure)
    return [f"{measure} {data} {item}" for item in values]
