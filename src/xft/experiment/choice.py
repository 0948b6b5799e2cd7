"""The screening's outcome: what was tried for each method, how it scored, what was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xft.experiment.config import HELDOUT
from xft.stage import read_json, write_json

CHOICE = "choice.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A combination of settings, tried with each seed of the screening."""

    settings: dict[str, Any]
    scores: dict[str, float]
    """By seed."""
    failures: dict[str, str]
    """The reason, by seed."""
    folders: tuple[str, ...]
    """The runs' directories, relative to the experiment's."""

    @property
    def mean(self) -> float | None:
        """Return the mean over the seeds; None where one has no score."""
        return None if self.failures else math.fsum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for a method."""

    chosen: dict[str, Any]
    candidates: tuple[Candidate, ...] = ()
    """All that were tried; none where there was nothing to choose."""
    flops: float = 0.0
    """Of all that was trained to find out, each run counted as if it were the only one."""
    wall_seconds: float = 0.0

    @property
    def at_edge(self) -> tuple[str, ...]:
        """Return the keys whose chosen value is the smallest or the largest tried: a better one may lie beyond."""
        edges = []
        for key, value in self.chosen.items():
            tried = _numbers([candidate.settings[key] for candidate in self.candidates])
            if len(set(tried)) > 1 and _numbers([value])[0] in (min(tried), max(tried)):
                edges.append(key)
        return tuple(edges)


def best(candidates: Sequence[Candidate], by: str) -> dict[str, Any]:
    """Return the settings with the lowest held-out loss, or the highest share of passed samples.

    Of equal ones the first; where none has a score with every seed, the first of all.
    """
    ranked = [(candidate.mean, candidate) for candidate in candidates if candidate.mean is not None]
    if not ranked:
        return candidates[0].settings
    return (min if by == HELDOUT else max)(ranked, key=lambda each: each[0])[1].settings


def write_choices(out: Path, choices: Mapping[str, Choice]) -> None:
    """Write what was chosen for each method, with all candidates' scores."""
    tree = {
        method: asdict(choice) | {"candidates": [asdict(each) | {"mean": each.mean} for each in choice.candidates]}
        for method, choice in choices.items()
    }
    write_json(out / CHOICE, tree)


def read_choices(out: Path) -> dict[str, Choice]:
    """Read what was chosen; nothing before it was."""
    return {
        method: Choice(
            chosen=tree["chosen"],
            candidates=tuple(
                Candidate(**{**each, "folders": tuple(each["folders"])})
                for each in ({key: part[key] for key in part if key != "mean"} for part in tree["candidates"])
            ),
            flops=tree["flops"],
            wall_seconds=tree["wall_seconds"],
        )
        for method, tree in read_json(out / CHOICE, {}).items()
    }


def _numbers(values: Sequence[Any]) -> list[float]:
    """Return the values as numbers; nothing where one is none, which has no order."""
    try:
        return [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError):
        return []
