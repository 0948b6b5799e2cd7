"""Report -> one self-contained HTML page: no script, no request, nothing that depends on when it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from xft.report import plots, table
from xft.report.collect import collect
from xft.report.contents import Curve, Data, Experts, Fit, Merge, Report, Result, Row, Score, Stage
from xft.report.page import environment, write_page

CURVE_NAMES = {"sft": "SFT", "moe": "MoE", "merge/learned": "Merge"}
CURVE_TONES = {"sft": "sft", "moe": "moe", "merge/learned": "xft"}

RESULTS = (
    *("pass_at_1", "pass_at_k", "interval", "parts", "statuses", "truncated", "no_code", "wall_seconds", "model"),
    *("rejected", "infrastructure", "missing", "not_run", "in_process", "model_digest"),
)
"""What scores.json holds beside the conditions of scoring."""


def write_report(run: Path) -> Path:
    """Write `report/index.html` into a run directory, whole or not at all, and return its path.

    Raises:
        RunError: a file of the run is damaged, or the page can't be written.

    """
    return write_page(run / "report", render(collect(run)))


def render(report: Report) -> str:
    """Render the page; everything from models, data and recipes is escaped."""
    templates = environment()
    templates.filters.update(brief=brief, mean=_mean)
    measures = table.measures(report)
    return templates.get_template("report/template.html").render(
        report=report,
        verdict=table.verdict(report),
        rows=list(zip(report.rows, table.score_cells(report), strict=True)),
        unknown=(table.NONE, table.NOT_RUN),
        forests=_forests(report),
        measures=measures,
        labels=[f"{name}, {head}" for name, *heads in measures for head in heads],
        curves=_curves(report.curves),
        experts=_experts(report.experts) if report.experts else None,
        merge=_merge(report.merge) if report.merge else None,
        fits=_fits(report.data) if report.data else [],
        versions=_versions(report.stages),
        seeds=sorted({stage.seed for stage in report.stages if stage.seed is not None}),
        scoring=[_scoring(report, name) for name in report.benchmarks if any(name in r.results for r in report.rows)],
    )


def _forests(report: Report) -> list[tuple[str, str, Markup]]:
    """Draw each score that some row has: its name, its unit, its plot."""
    drawn = []
    for name in report.benchmarks:
        solved = [(row, row.results[name].solved if name in row.results else None) for row in report.rows]
        if any(score for _, score in solved):
            label = f"{table.title(name)} pass@1 with 95% intervals, by model"
            figure = plots.forest(_marks(solved), label=label, percent=True, reference=_of_sft(solved))
            drawn.append((f"{table.title(name)} pass@1", "higher is better", figure))
    loss = [(row, row.loss) for row in report.rows]
    if any(score for _, score in loss):
        label = "Held-out loss with 95% intervals, by model"
        figure = plots.forest(_marks(loss), label=label, percent=False, reference=_of_sft(loss))
        drawn.append(("Held-out loss", "nats a token, lower is better", figure))
    return drawn


def _marks(scores: Sequence[tuple[Row, Score | None]]) -> list[plots.Mark]:
    return [
        plots.Mark(
            label=row.label, tone=plots.tone(row.name), at=(score.mean, score.low, score.high) if score else None
        )
        for row, score in scores
    ]


def _of_sft(scores: Sequence[tuple[Row, Score | None]]) -> float | None:
    return next((score.mean for row, score in scores if row.name == "sft" and score), None)


def _curves(curves: tuple[Curve, ...]) -> dict[str, Any] | None:
    """Draw loss and the weights' gradient norm; the merge's steps follow the mixture's, as they were run."""
    if not curves:
        return None
    moe_end = max((curve.step[-1] for curve in curves if curve.name == "moe"), default=0.0)
    loss, norm = [], []
    for curve in curves:
        x = [step + moe_end for step in curve.step] if curve.name == "merge/learned" else curve.step
        line = plots.Line(tone=CURVE_TONES[curve.name], name=CURVE_NAMES[curve.name], x=x, y=curve.loss)
        loss.append(line)
        if curve.name != "merge/learned":  # its gradient is the coefficients', on another scale than the weights'
            norm.append(replace(line, y=curve.grad_norm))
    return {
        "loss": plots.curves(loss, label="Training loss by step", height=260),
        "grad_norm": plots.curves(norm, label="Gradient norm by step", height=260, log=True) if norm else None,
        "smoothed": any(plots.window(len(curve.step)) > 1 for curve in curves),
        "merge_follows": moe_end > 0 and len(loss) > len(norm),
    }


def _experts(experts: Experts) -> dict[str, Any]:
    dead = plots.Line(tone="moe", x=experts.step, y=experts.dead)
    shares = [share for layer in experts.load for share in layer]
    return {
        "load": plots.load_map(
            experts.load, label="Share of tokens by routed expert and layer", first=experts.first_layer
        ),
        "least": min(shares),
        "most": max(shares),
        "shared": experts.shared_weight if any(experts.shared_weight) else None,
        "first_shared": experts.first_shared_weight,
        "dead": plots.curves([dead], label="Dead experts by step", height=110, whole=True, smooth=False)
        if any(experts.dead)
        else None,
        "ever_dead": int(max(experts.dead)),
        "now_dead": int(experts.dead[-1]),
        "routed": len(experts.load[0]),
        "layers": len(experts.load),
    }


def _merge(merge: Merge) -> dict[str, Any]:
    moved = plots.Line(tone="xft", x=merge.step, y=merge.movement)
    routed = len(merge.coefficients[0])
    return {
        "map": plots.coefficient_map(
            merge.coefficients,
            merge.sets_per_layer,
            label="Merge coefficients by routed expert and layer",
            first=merge.first_layer,
        ),
        "sets": merge.sets_per_layer,
        "movement": plots.curves(
            [moved], label="Movement of the coefficients by step", height=180, smooth=False, percent=True
        )
        if merge.step
        else None,
        "largest": max(abs(routed * value - 1) for row in merge.coefficients for value in row),
        "shared_weight": merge.shared_weight,
        "routed": routed,
        "parts": merge.parts,
        "divergence": merge.divergence,
    }


def _fits(data: Data) -> list[tuple[str, Fit]]:
    """List what the token limit did, once where the stages agree and otherwise with their names."""
    if len(set(data.fits.values())) == 1:
        return [("", next(iter(data.fits.values())))]
    return [(CURVE_NAMES[place], fit) for place, fit in data.fits.items()]


def _versions(stages: tuple[Stage, ...]) -> list[tuple[str, str]]:
    """List each tool's version; more than one where the stages ran with different ones."""
    seen: dict[str, dict[str, None]] = {}
    for stage in stages:
        for tool, version in stage.versions.items():
            seen.setdefault(tool, {})[version] = None
    return [(tool, ", ".join(versions)) for tool, versions in seen.items()]


def _scoring(report: Report, name: str) -> dict[str, Any]:
    """Describe how a benchmark was scored: the conditions that all rows share, and each row's answers by verdict."""
    results = {row.label: row.results[name] for row in report.rows if name in row.results}
    settings = [_flat(result.settings) for result in results.values()]
    return {
        "benchmark": name,
        "conditions": [
            (key.replace("_", " "), brief(value) if "hash" in key else value)
            for key, value in settings[0].items()
            if all(other.get(key) == value for other in settings)
        ],
        "answers": [(label, _outcome(result)) for label, result in results.items()],
    }


def _outcome(result: Result) -> str:
    """Say what became of a row's answers."""
    counts = sorted(result.outcomes.items(), key=lambda item: (item[0] != "passed", -item[1], item[0]))
    said = [f"{count} {status}" for status, count in counts]
    if result.truncated:
        said.append(f"{result.truncated} cut at the token limit")
    scores = result.settings
    if scores.get("in_process"):
        said.append(f"{scores['in_process']} judged in the candidate's process")
    for tool, left_out in (scores.get("not_run") or {}).items():
        said.append(f"{left_out['answers']} not run ({tool}: {left_out['reason']})")
    if "wall_seconds" in scores:
        said.append(f"scored in {table.duration(float(scores['wall_seconds']))}")
    if "model_digest" in scores:
        said.append(f"model {brief(str(scores['model_digest']))}")
    return ", ".join(said)


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Keep conditions, not results; the keys of a group stand for themselves."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if key in RESULTS:
            continue
        if isinstance(value, Mapping):
            flat.update(_flat(value))
        elif isinstance(value, list) and value:
            flat[key] = "  ".join(json.dumps(each) for each in value)
        elif isinstance(value, str | int | float) and value != "":
            flat[key] = str(value)
    return flat


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def brief(digest: str) -> str:
    """Return as much of a digest as tells it from others."""
    return digest.removeprefix("sha256:")[:12]
