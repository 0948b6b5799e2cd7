"""Compare two scored models on the problems that both answered: better, worse, or can't tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.errors import DataError
from xft.eval.metrics import Difference, mcnemar_p, paired_difference, smallest_difference
from xft.eval.score import read_verdicts
from xft.stage import read_json

SAME = ("prompt", "decoding", "limits", "sandbox", "python", "tools", "max_new_tokens", "dtype", "device")
"""Keys of scores.json that should be alike in a fair comparison."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How A did against B."""

    benchmark: str
    names: tuple[str, str]
    problems: int
    """Those that both answered."""
    only_one: int
    """Problems that only one answered; left out."""
    rates: tuple[float, float]
    wins: int
    """Problems on which A did better."""
    losses: int
    difference: Difference
    p: float | None
    """McNemar's exact p; None where a problem has several samples."""
    smallest: float
    """The difference of pass@1 that this many problems show with 80% probability."""
    unlike: tuple[str, ...]
    """Conditions in which the two scores differ."""

    def text(self) -> str:
        """Say it in a few lines."""
        a, b = self.names
        d = self.difference
        verdict = {"better": f"{a} is better than {b}", "worse": f"{a} is worse than {b}"}.get(d.verdict, "can't tell")
        lines = [
            f"{self.benchmark}, {self.problems} problems: A {a} {self.rates[0]:.1%}, B {b} {self.rates[1]:.1%}",
            f"A - B: {100 * d.mean:+.1f} points, 95% interval {100 * d.low:+.1f} to {100 * d.high:+.1f}; "
            f"A ahead on {self.wins}, B on {self.losses}"
            + (f", McNemar p = {self.p:.3g}" if self.p is not None else ""),
            f"verdict: {verdict}",
            f"the smallest difference that {self.problems} problems would show 4 times in 5: "
            f"{100 * self.smallest:.1f} points",
        ]
        if self.only_one:
            lines.append(f"left out: {self.only_one} problems that only one of them answered")
        lines += [f"not alike: {difference}" for difference in self.unlike]
        return "\n".join(lines)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two folders of one benchmark, each with scores.json and verdicts.jsonl.

    Faults of the sandbox count for neither. The interval is a paired bootstrap's over problems, widened to hold 0 where
    an exact test can't rule out chance.

    Raises:
        DataError: a folder was not scored, the benchmarks or their data differ, or no problem is shared.
    """
    folders = (first, second)
    scores = [_scores(folder) for folder in folders]
    for key, what in (("benchmark", "benchmarks"), ("data_hash", "versions of the benchmark's data")):
        if scores[0][key] != scores[1][key]:
            raise DataError(
                f"{first} and {second} have different {what} ({scores[0][key]}, {scores[1][key]}); "
                "only scores on the same problems can be compared"
            )
    rates = [_rates(folder) for folder in folders]
    shared = [task for task in rates[0] if task in rates[1]]
    if not shared:
        raise DataError(f"{first} and {second} have no problem in common")
    a, b = ([each[task] for task in shared] for each in rates)
    single = all(rate in (0.0, 1.0) for rate in (*a, *b))
    wins, losses = sum(x > y for x, y in zip(a, b, strict=True)), sum(x < y for x, y in zip(a, b, strict=True))
    return Comparison(
        benchmark=scores[0]["benchmark"],
        names=(str(first), str(second)),
        problems=len(shared),
        only_one=len(rates[0].keys() ^ rates[1].keys()),
        rates=(math.fsum(a) / len(a), math.fsum(b) / len(b)),
        wins=wins,
        losses=losses,
        difference=paired_difference(a, b),
        p=mcnemar_p(wins, losses) if single else None,
        smallest=smallest_difference(a, b),
        unlike=tuple(
            f"{key}: {scores[0].get(key)} and {scores[1].get(key)}"
            for key in SAME
            if scores[0].get(key) != scores[1].get(key)
        ),
    )


def _scores(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] | None = read_json(folder / "scores.json", None)
    if scores is None or not (folder / "verdicts.jsonl").is_file():
        raise DataError(
            f"{folder}: no scores.json and verdicts.jsonl here; give a benchmark's folder, such as OUT/humaneval"
        )
    return scores


def _rates(folder: Path) -> dict[str, float]:
    """Return the share of each problem's samples that passed."""
    passed: dict[str, list[bool]] = {}
    for verdict in read_verdicts(folder / "verdicts.jsonl"):
        passed.setdefault(verdict["task_id"], []).append(verdict["status"] == "passed")
    return {task: sum(each) / len(each) for task, each in passed.items()}
