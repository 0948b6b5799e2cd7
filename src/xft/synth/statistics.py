"""What a run of synthesis made and cost, and what more pairs would."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from xft.progress import clock
from xft.synth.config import SynthConfig
from xft.synth.teacher import Usage


@dataclass
class Tally:
    """Counts, filled in as tasks end."""

    tasks: int = 0
    pairs: int = 0
    surplus: int = 0
    """Pairs that were good and no longer wanted."""
    reasons: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    check_seconds: float = 0.0
    """Wall-clock time spent on running programs and on nothing else."""


def statistics(tally: Tally, usage: Usage, config: SynthConfig, seeds: dict[str, Any]) -> dict[str, Any]:
    """Return a run's statistics, and the forecast for the pairs wanted."""
    seconds = usage.seconds + tally.check_seconds
    cost = (usage.prompt_tokens * config.input_price + usage.completion_tokens * config.output_price) / 1e6
    spent = {
        "tasks": tally.tasks,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": seconds,
        "cost": cost,
    }
    per_pair = {name: round(value / tally.pairs, 6) for name, value in spent.items()} if tally.pairs else None
    forecast = {name: round(value * config.pairs, 3) for name, value in per_pair.items()} if per_pair else None
    return {
        "tasks": tally.tasks,
        "pairs": tally.pairs,
        "surplus": tally.surplus,
        "yield": round(tally.pairs / max(tally.tasks, 1), 4),
        "checks": dict(sorted(tally.checks.items())),
        "rejected": dict(tally.reasons.most_common()),
        "languages": dict(tally.languages.most_common()),
        "licenses": dict(tally.licenses.most_common()),
        "seeds": seeds,
        "teacher": {**asdict(usage), "seconds": round(usage.seconds, 1)},
        "check_seconds": round(tally.check_seconds, 1),
        "cost": round(cost, 6),
        "per_pair": per_pair,
        "forecast": {"pairs": config.pairs, **forecast} if forecast else None,
    }


def summary(made: dict[str, Any]) -> str:
    """Say a run's statistics in a few lines."""
    lines = [f"{made['pairs']} pairs of {made['tasks']} tasks ({made['yield']:.0%})"]
    if made["rejected"]:
        worst = list(made["rejected"].items())[:3]
        lines[0] += "; rejected most: " + ", ".join(f"{reason} ({count})" for reason, count in worst)
    if made["seeds"]["skipped"]:
        worst = list(made["seeds"]["skipped"].items())[:3]
        lines.append("seeds left out: " + ", ".join(f"{reason} ({count})" for reason, count in worst))
    teacher = made["teacher"]
    lines.append(
        f"teacher: {teacher['answers']} answers, {teacher['prompt_tokens']:,} + {teacher['completion_tokens']:,} tokens"
        + (
            f", of which {teacher['found']} answers with {teacher.get('found_tokens', 0):,} tokens were in the store"
            if teacher["found"]
            else ""
        )
        + (f", {teacher['uncounted']} without counts" if teacher["uncounted"] else "")
        + (f", cost {made['cost']:.4g}" if made["cost"] else "")
    )
    if made["pairs"]:
        each, forecast = made["per_pair"], made["forecast"]
        lines.append(
            f"a pair: {each['seconds']:.1f} s, {each['tasks']:.1f} tasks; forecast for {forecast['pairs']} pairs: "
            f"{clock(forecast['seconds'])}, {forecast['tasks']:.0f} tasks, "
            f"{forecast['prompt_tokens'] + forecast['completion_tokens']:,.0f} tokens"
            + (f", cost {forecast['cost']:.4g}" if forecast["cost"] else "")
        )
    return "\n".join(lines)
