"""Results -> results.json, a table in Markdown, one self-contained page, and the table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from xft.eval.over_seeds import Estimate, SeedDifference, least_p, seeds_for
from xft.experiment.cells import writing
from xft.experiment.collect import FAILED, Line, MethodResult, Results, collect
from xft.experiment.config import HELDOUT, Grid
from xft.experiment.plan import Plan, said
from xft.report import plots
from xft.report.contents import Cost
from xft.report.page import environment, write_page
from xft.report.render import brief
from xft.report.table import NONE, TONES, Cell, duration, memory, power, signed, span, time_unit, title
from xft.stage import write_json

RESULTS, TABLE, REPORT = "results.json", "results.md", "report"
LEVELS = (0.05, 0.01)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """How a measure is written."""

    name: str
    head: str
    """What its figures are."""
    points: str
    """What its differences are."""
    better: str
    scale: float
    digits: int
    sign: str

    @property
    def spoken(self) -> str:
        """Return the name as it stands within a sentence."""
        return self.name if self.sign else self.name.lower()

    def value(self, value: float) -> str:
        """Write a mean."""
        return f"{self.scale * value:.{self.digits}f}{self.sign}"

    def change(self, value: float) -> str:
        """Write a difference."""
        return signed(self.scale * value, self.digits)

    def within(self, low: float, high: float) -> str:
        """Write the interval of a difference."""
        return span(self.scale * low, self.scale * high, self.digits)

    def size(self, value: float) -> str:
        """Write the size of a difference, with digits enough; shares can not differ by more than 1."""
        if self.sign and value > 1:
            return "none"
        return f"{self.scale * value:.{max(2, self.digits)}g}"


def unit(measure: str) -> Unit:
    """Return how a measure is written."""
    if measure == HELDOUT:
        return Unit(name="Held-out loss", head="nats a token", points="nats a token", better="lower is better",
                    scale=1, digits=3, sign="")  # fmt: skip
    return Unit(name=title(measure), head="passed samples", points="points", better="higher is better",
                scale=100, digits=1, sign="%")  # fmt: skip


def write_results(grid: Grid, out: Path, command: str, plan: Plan | None = None) -> Results:
    """Write results.json, results.md and report/index.html into an experiment's folder; return what they say.

    `plan` is the one that cells are being made by, where they are: its recipe was read at the start.

    Raises:
        DataError, RunError: a file of a cell is damaged, or the report can't be written.
    """
    text = yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False)
    with writing(out):
        results = collect(plan or Plan(grid), out, text, command)
        write_json(out / RESULTS, asdict(results))
        (out / TABLE).write_text(markdown(results), encoding="utf-8")
        write_page(out / REPORT, render(results))
    return results


def verdict(results: Results) -> str:
    """Say in one sentence what the experiment shows."""
    by_word: dict[str, list[str]] = {"better": [], "worse": [], "can't tell": []}
    for method in results.methods:
        if found := method.differences.get(results.endpoint):
            by_word[found.difference.verdict].append(method.name)
    words = [f"{word}: {', '.join(names)}" for word, names in by_word.items() if names]
    against = f"{unit(results.endpoint).name}, against {results.baseline}"
    return f"{against}: {'; '.join(words)}." if words else f"{against}: nothing to compare yet."


def notes(results: Results) -> list[str]:
    """Say how the figures are to be read, as far as it depends on the experiment."""
    seeds = len(results.seeds)
    pairs = [
        method.differences[results.endpoint] for method in results.methods if results.endpoint in method.differences
    ]
    verdicts = sum(len(method.differences) + len(method.others) for method in results.methods)
    told = []
    if seeds == 1:
        told.append("One seed: the intervals cover the choice of problems, not the luck of training.")
    else:
        told.append(
            "Intervals (95%) cover the seeds and the choice of problems; differences are paired by seed and problem."
        )
        fewest = min((len(found.seeds) for found in pairs), default=seeds)
        floor = least_p(fewest)
        if short := [level for level in LEVELS if floor > level]:
            needed = " and ".join(f"{seeds_for(level)} for {100 * level:g}%" for level in short)
            told.append(
                f"The exact test over seeds has p = {floor:.3g} at least with {fewest} seed{'s' * (fewest > 1)}; "
                f"it needs {needed}. "
                "Verdicts rest on the intervals."
            )
        told.append("p is over the seeds, with these problems; only the intervals cover the choice of problems, too.")
    if verdicts > 1:
        told.append(f"{verdicts} verdicts, each at 5%: not adjusted for their number.")
    passes: dict[int, dict[str, None]] = {}
    for line in results.lines:
        if line.passes:
            passes.setdefault(line.passes, {})[line.method] = None
    if len(passes) > 1:
        listed = "; ".join(f"{number} of {', '.join(names)}" for number, names in sorted(passes.items()))
        told.append(f"Passes over the pairs: {listed}. A difference may come of that.")
    if several := [f"{tool} {', '.join(found)}" for tool, found in results.versions.items() if len(found) > 1]:
        told.append(f"Made with different versions: {'; '.join(several)}. A difference may come of that.")
    if results.chosen_by:
        told.append(
            f"Settings were chosen by {unit(results.chosen_by).spoken} with other seeds; of the {results.items} items "
            f"of the endpoint, {results.shared_items} were among those that the screening was decided by."
        )
    counts = {method.name: method.seeds for method in results.methods if method.seeds}
    if partly := [name for name, count in counts.items() if count < max(counts.values())]:
        told.append(
            f"Over fewer seeds than others: {', '.join(partly)}. Differences are over the seeds that both have, "
            "means are not."
        )
    if failed := sum(line.status == FAILED for line in results.lines):
        told.append(f"{failed} of {len(results.lines)} cells failed; a method's figures are over its other seeds.")
    if missing := sum(line.status not in ("done", FAILED) for line in results.lines):
        told.append(f"{missing} of {len(results.lines)} cells are not made yet.")
    return told


def markdown(results: Results) -> str:
    """Write the table, how to read it, and every cell with its command and hash."""
    heads = ["method", "settings"]
    for measure in results.measures:
        heads += [unit(measure).name, f"against {results.baseline}", "smallest visible"]
    heads += ["training FLOPs", "time", "peak memory", "seeds"]
    rows = []
    for method in results.methods:
        cells = [method.name, _settings(method.settings)]
        for measure in results.measures:
            mean, gain, smallest = _cells(method, measure)
            cells += [_bracket(mean), f"{_bracket(gain)} {gain.verdict}".strip(), _bracket(smallest)]
        rows.append([*cells, *(cell.main for cell in _costs(method)), f"{method.seeds} of {len(results.seeds)}"])
    parts = [f"# {results.name}", verdict(results), _pipes(heads, rows), *notes(results)]
    for other in results.against:
        parts += [f"## Against {other}", _pipes(*_against(results, other))]
    if results.choices and results.chosen_by:
        parts += ["## Screening", _pipes(*_screening(results))]
    if failed := [line for line in (*results.screened, *results.lines) if line.status == FAILED]:
        parts += ["## Failed cells", _pipes(["cell", "reason"], [[line.name, line.reason] for line in failed])]
    names = [unit(measure).name for measure in results.measures]
    parts += ["## Cells", _pipes(["method", "seed", *names, "training FLOPs", "time", "hash"],
                                 [_line_cells(line, results.measures) for line in results.lines])]  # fmt: skip
    commands = dict.fromkeys(line.command for line in (*results.screened, *results.lines))
    parts += ["## Commands", "All of it:", f"```\n{results.command}\n```", "Each run alone:",
              "```\n" + "\n".join(commands) + "\n```"]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def render(results: Results) -> str:
    """Render the page; everything from models, data and grids is escaped."""
    templates = environment()
    templates.filters.update(brief=brief, unit=unit, settings=_settings)
    done = [line for line in results.lines if line.status == "done"]
    failed = [line for line in (*results.screened, *results.lines) if line.status == FAILED]
    return templates.get_template("experiment/template.html").render(
        results=results,
        verdict=verdict(results),
        notes=notes(results),
        rows=[
            (method, [_cells(method, measure) for measure in results.measures], _costs(method))
            for method in results.methods
        ],
        labels=[
            f"{unit(measure).name}: {head}"
            for measure in results.measures
            for head in ("mean", f"against {results.baseline}", "smallest visible")
        ],
        forests=_forests(results),
        costs=_cost_plots(results),
        against=[(other, _against(results, other)) for other in results.against],
        by_seed=_by_seed(results) if len(results.seeds) > 1 else None,
        screening=_screening(results) if results.chosen_by else None,
        screening_cost=_screening_cost(results),
        failed=failed,
        lines=[(line, _line_cells(line, results.measures)) for line in results.lines],
        line_heads=["seed", *(unit(measure).name for measure in results.measures), "FLOPs", "time", "hash"],
        commands=list(dict.fromkeys(line.command for line in (*results.screened, *results.lines))),
        done=len(done),
    )


def results_table(results: Results) -> Table:
    """Build the table for a terminal."""
    table = Table(title=results.name, caption=verdict(results), title_justify="left", caption_justify="left")
    table.add_column("Method", overflow="fold")
    for column in (*(unit(measure).name for measure in results.measures), "FLOPs", "Time", "Peak memory", "Seeds"):
        table.add_column(column, justify="right", overflow="fold")
    for method in results.methods:
        scores = [_text(*_cells(method, measure), results.baseline) for measure in results.measures]
        costs = [Text(cell.main) for cell in _costs(method)]
        table.add_row(method.name, *scores, *costs, f"{method.seeds} of {len(results.seeds)}")
    return table


def _text(mean: Cell, gain: Cell, smallest: Cell, baseline: str) -> Text:
    text = Text(mean.main)
    text.append(f"\n{mean.detail}", style="dim")
    if gain.verdict:
        text.append(f"\n{gain.main} vs {baseline}\n{gain.verdict}", style=TONES.get(gain.verdict, ""))
        text.append(f"\nvisible from {smallest.main}", style="dim")
    return text


def _cells(method: MethodResult, measure: str) -> tuple[Cell, Cell, Cell]:
    """Write a method's mean, its difference to the baseline, and the smallest visible one with the p over seeds."""
    how, mean = unit(measure), method.estimates.get(measure)
    return (_mean(how, mean), *_difference(how, method.differences.get(measure)))


def _mean(how: Unit, mean: Estimate | None) -> Cell:
    if mean is None:
        return Cell(NONE)
    return Cell(
        how.value(mean.mean), f"{how.scale * mean.low:.{how.digits}f} to {how.scale * mean.high:.{how.digits}f}"
    )


def _difference(how: Unit, found: SeedDifference | None) -> tuple[Cell, Cell]:
    if found is None:
        return Cell(NONE), Cell(NONE)
    gain = found.difference
    relative = f", {signed(100 * found.relative, 1)}%" if found.relative is not None else ""
    return (
        Cell(how.change(gain.mean), how.within(gain.low, gain.high) + relative, verdict=gain.verdict),
        Cell(how.size(found.smallest), "" if found.p is None else f"p {found.p:.3g}"),
    )


def _costs(method: MethodResult) -> tuple[Cell, Cell, Cell]:
    return (
        Cell(NONE if method.flops is None else power(method.flops)),
        Cell(NONE if method.wall_seconds is None else duration(method.wall_seconds)),
        Cell(NONE if method.peak_memory is None else memory(method.peak_memory)),
    )


def _line_cells(line: Line, measures: Sequence[str]) -> list[str]:
    scores = [unit(measure).value(line.scores[measure]) if measure in line.scores else NONE for measure in measures]
    cost = line.cost or Cost(tokens=None, flops=None, wall_seconds=0.0, peak_memory=None)
    flops, time = (NONE, NONE) if cost.flops is None else (power(cost.flops), duration(cost.wall_seconds))
    return [line.method, str(line.seed), *scores, flops, time, brief(line.key) or line.status]


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={said(value)}" for key, value in settings.items())


def _forests(results: Results) -> list[tuple[Unit, Any]]:
    """Draw each measure's differences to the baseline."""
    drawn = []
    for measure in results.measures:
        how = unit(measure)
        marks = [_mark(method, measure) for method in results.methods if method.name != results.baseline]
        if any(mark.at for mark in marks):
            label = f"{how.name}: difference to {results.baseline} with 95% intervals, by method"
            drawn.append((how, plots.forest(marks, label=label, reference=0.0)))
    return drawn


def _cost_plots(results: Results) -> list[tuple[str, Any]]:
    """Draw the endpoint's differences to the baseline, which is at 0 itself, against the cost of training."""
    name = unit(results.endpoint).name
    drawn = []
    for what, write in (("training FLOPs", power), ("wall time", duration)):
        points = []
        for method in results.methods:
            cost = method.flops if what == "training FLOPs" else method.wall_seconds
            if cost is not None:
                points.append((cost, _mark(method, results.endpoint, baseline=results.baseline)))
        if sum(mark.at is not None for _, mark in points) > 1:
            label = f"{name}: difference to {results.baseline} against {what}, by method"
            whole = time_unit(max(place for place, _ in points))[1] if write is duration else 1
            figure = plots.scatter(points, label=label, height=320, write=write, unit=whole, reference=0.0)
            drawn.append((what, figure))
    return drawn


def _mark(method: MethodResult, measure: str, *, baseline: str | None = None) -> plots.Mark:
    found, scale = method.differences.get(measure), unit(measure).scale
    at = None
    if found:
        gain = found.difference
        at = (scale * gain.mean, scale * gain.low, scale * gain.high)
    elif method.name == baseline:
        at = (0.0, 0.0, 0.0)
    return plots.Mark(label=method.name, tone=plots.tone(method.row), at=at)


def _against(results: Results, other: str) -> tuple[list[str], list[list[str]]]:
    """Write the endpoint's differences to one of the grid's other methods to compare with."""
    how = unit(results.endpoint)
    rows = []
    for method in results.methods:
        if found := method.others.get(other):
            gain, smallest = _difference(how, found)
            rows.append([method.name, _bracket(gain), gain.verdict, smallest.main, smallest.detail.removeprefix("p ")])
    return ["method", f"{how.name}: difference to {other}", "verdict", "smallest visible", "p"], rows


def _by_seed(results: Results) -> tuple[list[str], list[list[str]]]:
    """Write each seed's difference to the baseline in the endpoint."""
    how = unit(results.endpoint)
    scores = {(line.method, line.seed): line.scores.get(results.endpoint) for line in results.lines}
    rows = []
    for method in results.methods:
        if method.name == results.baseline:
            continue
        cells = []
        for seed in results.seeds:
            ours, theirs = scores.get((method.name, seed)), scores.get((results.baseline, seed))
            cells.append(NONE if ours is None or theirs is None else how.change(ours - theirs))
        rows.append([method.name, *cells])
    return ["method", *(f"seed {seed}" for seed in results.seeds)], rows


def _screening(results: Results) -> tuple[list[str], list[list[str]]]:
    """Write all candidates with their scores, and which was chosen."""
    how = unit(results.chosen_by or HELDOUT)
    seeds = list(dict.fromkeys(str(line.seed) for line in results.screened))
    rows = []
    for method, choice in results.choices.items():
        for candidate in choice.candidates:
            scores = [how.value(candidate.scores[seed]) if seed in candidate.scores else FAILED for seed in seeds]
            mean = NONE if candidate.mean is None else how.value(candidate.mean)
            word = ""
            if candidate.settings == choice.chosen:
                edge = f", at the edge of what was tried: {', '.join(choice.at_edge)}" if choice.at_edge else ""
                word = "none worked; the first is taken" if candidate.mean is None else f"chosen{edge}"
            rows.append([method, _settings(candidate.settings), *scores, mean, word])
    return ["method", "tried", *(f"seed {seed}" for seed in seeds), f"mean {how.spoken}", "outcome"], rows


def _screening_cost(results: Results) -> str:
    flops = sum(choice.flops for choice in results.choices.values())
    seconds = sum(choice.wall_seconds for choice in results.choices.values())
    failed = sum(line.status == FAILED for line in results.screened)
    without = f", without {failed} failed cell{'s' * (failed > 1)}" if failed else ""
    return f"{power(flops)} FLOPs, {duration(seconds)}{without}"


def _bracket(cell: Cell) -> str:
    return f"{cell.main} [{cell.detail}]" if cell.detail else cell.main


def _pipes(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; a bar or a line's end in a cell would break it."""
    lines = [list(heads), ["---"] * len(heads), *map(list, rows)]
    return "\n".join("| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in line) + " |" for line in lines)
