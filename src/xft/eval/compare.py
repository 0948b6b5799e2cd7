"""Compare two scored models on the items that both have: better, worse, or can't tell."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.errors import DataError
from xft.eval.metrics import Difference, mcnemar_p, paired_difference, paired_rates, smallest_difference
from xft.eval.score import read_verdicts
from xft.stage import read_json

SAME = (
    *("prompt", "decoding", "temperature", "top_p", "seed", "samples_per_problem", "max_new_tokens", "stop", "batch"),
    *("limits", "sandbox", "python", "tools", "dtype", "device"),
    *("backend", "endpoint", "sent", "attention"),
)
"""Keys of scores.json that should be alike in a fair comparison."""
LOSSES = "losses.jsonl"
"""What a folder of held-out losses has in place of verdicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How A did against B."""

    benchmark: str
    names: tuple[str, str]
    losses: bool
    """Whether the values are held-out losses (nats a token, lower is better), not shares of samples that passed."""
    items: int
    """Those that both have: problems, or held-out responses."""
    only_one: int
    """Items that only one has; left out."""
    means: tuple[float, float]
    ahead: tuple[int, int]
    """Items on which A did better, and B."""
    difference: Difference
    p: float | None
    """McNemar's exact p; None for losses, and where a problem has several samples."""
    smallest: float
    """The difference that this many items show with 80% probability."""
    unlike: tuple[str, ...]
    """Conditions in which the two scores differ."""

    def text(self) -> str:
        """Say it in a few lines."""
        a, b = self.names
        d = self.difference
        verdict = {"better": f"{a} is better than {b}", "worse": f"{a} is worse than {b}"}.get(d.verdict, "can't tell")
        what = "held-out responses" if self.losses else "problems"
        unit, scale, digits = ("nats a token", 1, 3) if self.losses else ("points", 100, 1)
        first, second = (f"{scale * mean:.{digits}f}{'' if self.losses else '%'}" for mean in self.means)
        mean, low, high = (f"{scale * value:+.{digits}f}" for value in (d.mean, d.low, d.high))
        lines = [
            f"{self.benchmark}, {self.items} {what}: A {a} {first}, B {b} {second}",
            f"A - B: {mean} {unit}, 95% interval {low} to {high}; A ahead on {self.ahead[0]}, B on {self.ahead[1]}"
            + (f", McNemar p = {self.p:.3g}" if self.p is not None else ""),
            f"verdict: {verdict}",
            f"so few {what} can show no difference at all"
            if self.smallest > 1 and not self.losses
            else f"the smallest difference that {self.items} {what} would show 4 times in 5: "
            f"{scale * self.smallest:.{digits}f} {unit}",
        ]
        if self.only_one:
            lines.append(f"left out: {self.only_one} {what} that only one of them has")
        lines += [f"not alike: {difference}" for difference in self.unlike]
        return "\n".join(lines)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two folders of one benchmark, or of held-out losses, as `xft eval` wrote them.

    Faults of the sandbox count for neither. The interval is a paired bootstrap's over items, widened to hold 0 where an
    exact test can't rule out chance.

    Raises:
        DataError: a folder was not scored, the benchmarks or their data differ, or no item is shared.
    """
    folders = (first, second)
    scores = [read_scores(folder) for folder in folders]
    for key, what in (("benchmark", "benchmarks"), ("data_hash", "versions of the data")):
        if scores[0].get(key) != scores[1].get(key):
            raise DataError(
                f"{first} and {second} have different {what} ({scores[0].get(key)}, {scores[1].get(key)}); "
                "only scores on the same problems can be compared"
            )
    losses = (first / LOSSES).is_file()
    values = [read_losses(folder) if losses else read_rates(folder) for folder in folders]
    shared = [item for item in values[0] if item in values[1]]
    if not shared:
        raise DataError(f"{first} and {second} have no problem in common")
    a, b = ([each[item] for item in shared] for each in values)
    higher, lower = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    single = not losses and all(each.get("samples_per_problem") == 1 for each in scores)
    return Comparison(
        benchmark=scores[0]["benchmark"],
        names=(str(first), str(second)),
        losses=losses,
        items=len(shared),
        only_one=len(values[0].keys() ^ values[1].keys()),
        means=(math.fsum(a) / len(a), math.fsum(b) / len(b)),
        ahead=(lower, higher) if losses else (higher, lower),
        difference=paired_difference(a, b, higher_is_better=False) if losses else paired_rates(a, b),
        p=mcnemar_p(higher, lower) if single else None,
        smallest=smallest_difference(a, b, bounded=not losses),
        unlike=tuple(
            f"{key}: {_said(scores[0].get(key))} and {_said(scores[1].get(key))}"
            for key in SAME
            if scores[0].get(key) != scores[1].get(key)
        ),
    )


def _said(value: Any) -> Any:
    return "unknown" if value is None else value


def read_scores(folder: Path) -> dict[str, Any]:
    """Return the scores of a folder of one benchmark, or of held-out losses.

    Raises:
        DataError: it was not scored.
    """
    scores: dict[str, Any] | None = read_json(folder / "scores.json", None)
    if scores is None or not any((folder / name).is_file() for name in ("verdicts.jsonl", LOSSES)):
        raise DataError(
            f"{folder}: no scores.json with verdicts.jsonl or {LOSSES} here; give a benchmark's folder, such as "
            "OUT/humaneval or OUT/heldout"
        )
    if "benchmark" not in scores:
        raise DataError(f"{folder}: its scores.json does not say of which data; score the model again")
    return scores


def read_rates(folder: Path) -> dict[str, float]:
    """Return the share of each problem's samples that passed."""
    passed: dict[str, list[bool]] = {}
    for verdict in read_verdicts(folder / "verdicts.jsonl"):
        passed.setdefault(verdict["task_id"], []).append(verdict["status"] == "passed")
    return {task: sum(each) / len(each) for task, each in passed.items()}


def read_losses(folder: Path) -> dict[str, float]:
    """Return each held-out response's loss, by `losses_by_pair`."""
    try:
        lines = [json.loads(line) for line in (folder / LOSSES).read_text(encoding="utf-8").splitlines()]
        return losses_by_pair(lines)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / LOSSES}: damaged ({error!r}); score the model again") from None


def losses_by_pair(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Name each loss by its pair's digest, and a number where a pair is there several times.

    Its place would not do: which pairs are too long depends on the prompt and the tokenizer.
    """
    seen: Counter[str] = Counter()
    losses: dict[str, float] = {}
    for line in lines:
        pair = str(line["pair"])
        losses[f"{pair} {seen[pair]}"] = float(line["loss"])
        seen[pair] += 1
    return losses
