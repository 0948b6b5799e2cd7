"""The report in words and numbers: units, cells, the verdict, and the table for a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from xft.eval.metrics import Difference
from xft.recipe import folder_of
from xft.report.contents import Report, Result, Row, Score

NONE = "–"
NOT_RUN = "not run"
PLAIN = "base-completion"
"""The row of a base that goes on with a text: it is not given the pairs' instructions, so it has no held-out loss."""
COSTS = ("Tokens", "FLOPs", "Time", "Peak memory")
TITLES = {"humaneval": "HumanEval", "humaneval+": "HumanEval+", "mbpp": "MBPP", "mbpp+": "MBPP+", "ds1000": "DS-1000"}
TONES = {"better": "green", "worse": "red"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, what qualifies it, and a verdict word (`better`, `worse`, `can't tell`) where two are compared."""

    main: str
    detail: str = ""
    verdict: str = ""


def duration(seconds: float) -> str:
    """Write seconds as people say them: 12.3 min."""
    unit, size = time_unit(seconds)
    return f"{seconds / size:.1f} {unit}"


def time_unit(seconds: float) -> tuple[str, int]:
    """Return the unit that a time is told in, and its seconds."""
    units = (("d", 86400, 2), ("h", 3600, 1), ("min", 60, 1))
    return next(((unit, size) for unit, size, least in units if seconds >= least * size), ("s", 1))


def quantity(number: float) -> str:
    """Write a count: 812, 12.1k, 3.4M."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"


def memory(size: float) -> str:
    """Write bytes in decimal units: 1.8 GB."""
    for suffix, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= unit:
            return f"{size / unit:.1f} {suffix}"
    return f"{size:.0f} B"


def power(number: float, digits: int = 1) -> str:
    """Write a very large or very small number by its power of ten: 3.4e15."""
    if number == 0 or 0.01 <= abs(number) < 1e4 or not math.isfinite(number):
        return f"{number:.3g}"
    mantissa, exponent = f"{number:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def signed(value: float, digits: int) -> str:
    """Write a difference with its sign; nothing that rounds to zero has one."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def span(low: float, high: float, digits: int) -> str:
    """Write the interval of a difference: −3.0 to 5.4."""
    return f"{signed(low, digits).removeprefix('+')} to {signed(high, digits).removeprefix('+')}"


def title(benchmark: str) -> str:
    """Write a benchmark's name as its authors do; of a user's problems, that of their folder."""
    return TITLES.get(benchmark, folder_of(benchmark))


def measures(report: Report) -> list[tuple[str, str, str]]:
    """Name each measure of the score table, and head its two columns: the score, and its difference to SFT."""
    benchmarks = [(title(name), "pass@1", "vs SFT, points") for name in report.benchmarks]
    return [*benchmarks, ("Held-out loss", "nats a token", "vs SFT")]


def score_cells(report: Report) -> list[list[Cell]]:
    """Fill the score table: a list per row of `report.rows`, in the order of its head: the model, `measures`, COSTS."""
    return [_cells(row, report.benchmarks) for row in report.rows]


def _cells(row: Row, benchmarks: tuple[str, ...]) -> list[Cell]:
    cost = row.cost
    results = [row.results.get(name) for name in benchmarks]
    return [
        Cell(row.label),
        *(cell for result in results for cell in (_share(result), _gain(result.gain if result else None, 100, 1))),
        Cell(NONE, "no prompt for it") if row.name == PLAIN else _loss(row.loss),
        _gain(row.loss_gain, 1, 3),
        Cell(quantity(cost.tokens) if cost and cost.tokens is not None else NONE),
        Cell(power(cost.flops) if cost and cost.flops is not None else NONE),
        Cell(duration(cost.wall_seconds) if cost else NONE),
        Cell(memory(cost.peak_memory) if cost and cost.peak_memory is not None else NONE),
    ]


def _share(result: Result | None) -> Cell:
    if result is None:
        return Cell(NOT_RUN)
    score = result.solved
    parts = "".join(f", {name} {100 * share:.1f}%" for name, share in result.parts.items())
    return Cell(f"{100 * score.mean:.1f}%", f"{100 * score.low:.1f} to {100 * score.high:.1f}, n {score.n}{parts}")


def _loss(score: Score | None) -> Cell:
    if score is None:
        return Cell(NOT_RUN)
    return Cell(f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}, n {score.n}")


def _gain(gain: Difference | None, scale: float, digits: int) -> Cell:
    if gain is None:
        return Cell(NONE)
    return Cell(
        signed(scale * gain.mean, digits), span(scale * gain.low, scale * gain.high, digits), verdict=gain.verdict
    )


def verdict(report: Report) -> str:
    """Say what the run shows about XFT against SFT, and what else may have made a difference."""
    xft = report.row("xft")
    said = [_on_benchmark(name, result.gain) for name, result in xft.results.items() if result.gain]
    if xft.loss_gain:
        said.append(_on_loss(xft.loss_gain))
    if not said:
        missing = [row.label for row in (xft, report.row("sft")) if not (row.results or row.loss)]
        return (
            f"XFT against SFT: not compared yet, there are no scores for {' and '.join(missing) or 'the same items'}."
        )
    text = f"XFT against SFT: {'; '.join(said)}."
    if report.passes:
        text += " Passes over the pairs: SFT {}, the mixture {}; a difference may come of that.".format(*report.passes)
    return text


def _on_benchmark(name: str, gain: Difference) -> str:
    within = f"95% interval {span(100 * gain.low, 100 * gain.high, 1)}"
    return f"{gain.verdict} on {title(name)} (difference {signed(100 * gain.mean, 1)} points, {within})"


def _on_loss(gain: Difference) -> str:
    if gain.verdict == "can't tell":
        return (
            f"can't tell on held-out loss (difference {signed(gain.mean, 3)}, "
            f"95% interval {span(gain.low, gain.high, 3)})"
        )
    lower = gain.mean < 0
    low, high = (-gain.high, -gain.low) if lower else (gain.low, gain.high)
    return f"held-out loss {'lower' if lower else 'higher'} by {abs(gain.mean):.3f} (95% interval {span(low, high, 3)})"


def score_table(report: Report) -> Table:
    """Build the score table for a terminal: the page's cells, a score and its difference to SFT in one column."""
    table = Table(title=report.name, caption=verdict(report), title_justify="left", caption_justify="left")
    table.add_column("Model", overflow="fold")
    for column in (*(title(name) for name in report.benchmarks), "Held-out loss", *COSTS):
        table.add_column(column, justify="right", overflow="fold")
    measures = len(report.benchmarks) + 1
    for model, *cells in score_cells(report):
        pairs, costs = cells[: 2 * measures], cells[2 * measures :]
        scores = [_text(score, gain) for score, gain in zip(pairs[::2], pairs[1::2], strict=True)]
        table.add_row(model.main, *scores, *(_text(cell) for cell in costs))
    return table


def _text(score: Cell, gain: Cell | None = None) -> Text:
    text = Text(score.main, style="dim" if score.main in (NONE, NOT_RUN) else "")
    if score.detail:
        text.append(f"\n{score.detail}", style="dim")
    if gain and gain.verdict:
        text.append(f"\n{gain.main} vs SFT\n{gain.verdict}", style=TONES.get(gain.verdict, ""))
    return text
