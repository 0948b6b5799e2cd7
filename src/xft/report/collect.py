"""Run directory -> Report: read what the stages left, compare the rows, add up their costs.

A stage that has not run leaves its part of the report empty; a file that is there but damaged stops with its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError, safe_open

from xft.errors import RunError
from xft.eval.compare import losses_by_pair
from xft.eval.metrics import Difference, paired_difference, paired_rates
from xft.recipe import folder_of
from xft.report.contents import (
    Attempt,
    Attempts,
    Cost,
    CurationStep,
    Curve,
    Data,
    Experts,
    Fit,
    Matrix,
    Merge,
    Proof,
    Report,
    Result,
    Row,
    Score,
    Stage,
)

T = TypeVar("T")
Compare = Callable[[Sequence[float], Sequence[float]], Difference]

LOWER: Compare = partial(paired_difference, higher_is_better=False)
"""Of two losses the lower one is better."""

RECIPE, NOT_RUN = "recipe.yaml", "not-run.json"
SHOWN = 3
"""Solved, and failed, problems of each benchmark shown with their code."""

STAGES = ("base", "data", "sft", "upcycle", "moe", "merge/learned", "merge/uniform")
LABELS = {"base": "Base", "sft": "SFT", "soup": "SFT soup", "moe": "MoE", "uniform": "Uniform merge", "xft": "XFT"}
COST_OF = {
    "sft": ("sft",),
    "moe": ("upcycle", "moe"),
    "uniform": ("upcycle", "moe", "merge/uniform"),
    "xft": ("upcycle", "moe", "merge/learned"),
}
"""The stages that make each row of every run; the base costs nothing."""


def collect(run: Path) -> Report:
    """Read a run directory.

    Raises:
        RunError: it is not a run directory, or a file in it is damaged; the message names the file.

    """
    recipe = run / RECIPE
    if not recipe.is_file():
        raise RunError(f"{run}: not a run directory, it has no {RECIPE}; `xft run` makes one")
    with _naming(recipe):
        text = recipe.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        if "seeds" in tree:
            raise RunError(
                f"{run}: the run of a data recipe; its report is the data card, {run / 'curate' / 'README.md'}"
            )
        name, base = str(tree["name"]), str(tree["base"])
        scoring = tree.get("eval") or {}
        styles = [str(style) for style in scoring.get("base_prompts") or []]
        benchmarks = tuple(_benchmark_name(entry) for entry in scoring.get("benchmarks", ["humaneval"]))
        upcycle = tree.get("upcycle") or {}
        first, parts = int(upcycle.get("dense_layers", 0)), int(upcycle.get("parts", 1))
        also = [str(method) for method in (tree.get("merge") or {}).get("also") or []]
        souped = int((tree.get("sft") or {}).get("soup", 1))
        branched = upcycle.get("experts_from") == "soup"
    rows = _row_names(run, styles, also, souped)
    makers = {row: made_by(row, souped, branched) for row in rows}
    made = dict.fromkeys(place for row in rows for place in makers[row])
    places = (*dict.fromkeys([*STAGES, *made]), *(f"eval/{row}" for row in rows))
    stages = {place: stage for place in places if (stage := stage_at(run, place))}
    return Report(
        name=name,
        base=base,
        recipe=text,
        benchmarks=benchmarks,
        not_run={name: reason for name in benchmarks if (reason := _not_run(run, rows, name))},
        rows=tuple(_row(run, row, benchmarks, [stages.get(place) for place in makers[row]]) for row in rows),
        stages=tuple(stages.values()),
        curves=tuple(curve for place in ("sft", "moe", "merge/learned") if (curve := _curve(run, place))),
        experts=_experts(run / "moe" / "metrics.jsonl", first),
        merge=_merge(run / "merge" / "learned", first, parts),
        proof=_json(run / "upcycle" / "proof.json", _proof),
        data=_json(run / "data" / "summary.json", lambda tree: _data(tree, _fits(run, stages))),
        attempts=tuple(each for name in benchmarks if (each := _attempts(run, name))),
        passes=_passes(stages, branched),
    )


def _benchmark_name(entry: Any) -> str:
    return folder_of(str(entry["name"] if isinstance(entry, dict) else entry))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a message that names it."""
    try:
        yield
    except KeyError as error:
        raise RunError(f"{path}: damaged, {error} is missing; {_remedy(path)}") from error
    except (OSError, ValueError, TypeError, AttributeError, IndexError, yaml.YAMLError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: damaged ({reason}); {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    return f"start the run again, which writes {RECIPE}" if path.name == RECIPE else "delete its folder and run again"


def _json(path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
    """Build something from a JSON file; None when there is no file."""
    if not path.is_file():
        return None
    with _naming(path):
        return build(json.loads(path.read_text(encoding="utf-8")))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a JSONL file, nothing when there is no file; the message of a damaged line has its number."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"line {number}: not an object")
            yield record


def stage_at(run: Path, place: str) -> Stage | None:
    """Read a stage's manifest; None when it has not finished."""

    def build(manifest: dict[str, Any]) -> Stage:
        return Stage(
            name=place,
            seed=manifest.get("seed"),
            device=manifest.get("device"),
            dtype=manifest.get("dtype"),
            digest=str(manifest["digest"]),
            finished=str(manifest["finished"]),
            wall_seconds=float(manifest["wall_seconds"]),
            peak_memory=_number(manifest.get("peak_memory_bytes")),
            flops=_number(manifest.get("flops")),
            tokens=_number(manifest.get("tokens")),
            versions={str(tool): str(version) for tool, version in (manifest.get("versions") or {}).items()},
            config=dict(manifest.get("config") or {}),
        )

    return _json(run / place / "manifest.json", build)


def _passes(stages: Mapping[str, Stage], branched: bool) -> tuple[int, int] | None:
    """Return how often SFT and the mixture were trained on the pairs, where that is known and differs."""
    sft, mixture = (stages[place].config.get("epochs") if place in stages else None for place in ("sft", "moe"))
    if sft is None or mixture is None:
        return None
    made = int(mixture) + (int(sft) if branched else 0)  # its experts are SFT runs
    return (int(sft), made) if int(sft) != made else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a value is {number}")
    return number


def _row_names(run: Path, styles: list[str], also: list[str], souped: int) -> list[str]:
    """Order the rows: the base, the base in other prompts (the recipe's, then any found), and what was made of it."""
    found = sorted(path.name for path in run.glob("eval/base-*") if path.is_dir() and "." not in path.name)
    bases = dict.fromkeys([*(f"base-{style}" for style in styles), *found])
    made = [row for name in COST_OF for row in ((name, "soup") if name == "sft" and souped > 1 else (name,))]
    return ["base", *bases, *made, *also]


def _not_run(run: Path, rows: list[str], benchmark: str) -> str | None:
    """Say why a benchmark has not run, as the first row that was to run it noted."""
    notes = (_json(run / "eval" / row / benchmark / NOT_RUN, lambda tree: str(tree["reason"])) for row in rows)
    return next((note for note in notes if note), None)


def _row(run: Path, name: str, benchmarks: tuple[str, ...], stages: list[Stage | None]) -> Row:
    here, reference = run / "eval" / name, run / "eval" / "sft"
    compared = name != "sft"
    results = {each: _result(here / each, reference / each if compared else None) for each in benchmarks}
    prompted = name.startswith("base-")
    return Row(
        name=name,
        label=LABELS.get(name) or (f"Base ({name.removeprefix('base-')})" if prompted else f"Merge ({name})"),
        results={each: result for each, result in results.items() if result},
        loss=_json(here / "heldout" / "scores.json", lambda tree: _score(tree, "mean", "n")),
        loss_gain=_gain(_losses(here), _losses(reference), LOWER) if compared else None,
        cost=None if prompted or name == "base" else cost_of(stages),
    )


def made_by(row: str, souped: int, branched: bool) -> tuple[str, ...]:
    """Return the stages that make a row's model, none for the base's rows.

    `souped` counts a soup's members; `branched` tells whether the mixture is made of them.
    """
    if row == "base" or row.startswith("base-"):
        return ()
    soup = ("sft", *(f"soup/{number}" for number in range(2, souped + 1)), "soup/mean")
    if row == "soup":
        return soup
    own = COST_OF.get(row) or ("upcycle", "moe", f"merge/{row}")
    return (*soup, *own) if branched and "upcycle" in own else own


def _result(folder: Path, reference: Path | None) -> Result | None:
    def build(tree: dict[str, Any]) -> Result:
        return Result(
            solved=_score(tree, "pass_at_1", "problems"),
            parts={
                part: _finite(each["pass_at_1"]) for part, each in (tree.get("parts") or {}).items() if part != "plus"
            },
            gain=_gain(_verdicts(folder), _verdicts(reference), paired_rates) if reference else None,
            outcomes={str(key): int(n) for key, n in tree["statuses"].items()},
            truncated=int(tree["truncated"]),
            settings=tree,
        )

    return _json(folder / "scores.json", build)


def _score(tree: Mapping[str, Any], key: str, count: str) -> Score:
    low, high = tree["interval"]
    return Score(mean=_finite(tree[key]), low=_finite(low), high=_finite(high), n=int(tree[count]))


def _checked(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Read a whole JSONL file in which each record has these keys."""
    with _naming(path):
        records = list(_lines(path))
        for number, record in enumerate(records, start=1):
            if missing := [key for key in keys if key not in record]:
                raise ValueError(f"line {number} has no {missing[0]!r}")
        return records


def _final_verdicts(folder: Path) -> list[dict[str, Any]]:
    """Read the verdicts once scoring is over; until then they are neither all there nor in order.

    A fault of the sandbox is none.
    """
    if not (folder / "scores.json").is_file():
        return []
    verdicts = _checked(folder / "verdicts.jsonl", "task_id", "status")
    return [verdict for verdict in verdicts if verdict["status"] != "infrastructure"]


def _verdicts(folder: Path) -> dict[str, float]:
    """Map each problem to the share of its samples that passed."""
    passes: dict[str, list[float]] = {}
    for verdict in _final_verdicts(folder):
        passes.setdefault(str(verdict["task_id"]), []).append(float(verdict["status"] == "passed"))
    return {task: sum(values) / len(values) for task, values in passes.items()}


def _losses(row: Path) -> dict[str, float]:
    path = row / "heldout" / "losses.jsonl"
    records = _checked(path, "pair", "loss")
    with _naming(path):
        return {pair: _finite(loss) for pair, loss in losses_by_pair(records).items()}


def _gain(ours: dict[str, float], theirs: dict[str, float], compare: Compare) -> Difference | None:
    """Compare item by item over the items that both have; None when there are none."""
    shared = [item for item in ours if item in theirs]
    return compare([ours[item] for item in shared], [theirs[item] for item in shared]) if shared else None


def cost_of(stages: list[Stage | None]) -> Cost | None:
    """Add stages up; None unless all have finished."""
    done = [stage for stage in stages if stage]
    if not done or len(done) < len(stages):
        return None
    peaks = [stage.peak_memory for stage in done if stage.peak_memory is not None]
    return Cost(
        tokens=_sum([stage.tokens for stage in done]),
        flops=_sum([stage.flops for stage in done]),
        wall_seconds=sum(stage.wall_seconds for stage in done),
        peak_memory=max(peaks, default=None),
    )


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _curve(run: Path, place: str) -> Curve | None:
    path = run / place / "metrics.jsonl"
    with _naming(path):
        points = [(float(r["step"]), float(r["loss"]), float(r["grad_norm"])) for r in _lines(path)]
    if not points:
        return None
    step, loss, grad_norm = zip(*points, strict=True)
    return Curve(name=place, step=step, loss=loss, grad_norm=grad_norm)


def _experts(path: Path, first_layer: int) -> Experts | None:
    with _naming(path):
        first, last, step, dead = None, None, [], []
        for record in _lines(path):
            if experts := record.get("experts"):
                first, last = first or experts, experts
                step.append(float(record["step"]))
                dead.append(float(experts["dead"]))
        if first is None or last is None:
            return None
        load = _matrix(last["load"])
        shared_weight, first_shared_weight = (
            tuple(_finite(weight) for weight in experts["shared_weight"]) for experts in (last, first)
        )
        if not len(shared_weight) == len(first_shared_weight) == len(load):
            raise ValueError(f"load has {len(load)} layers, shared_weight {len(shared_weight)}")
        return Experts(
            load=load,
            shared_weight=shared_weight,
            first_shared_weight=first_shared_weight,
            step=tuple(step),
            dead=tuple(dead),
            first_layer=first_layer,
        )


def _matrix(rows: Any) -> Matrix:
    matrix = tuple(tuple(_finite(value) for value in row) for row in rows)
    if not matrix or not matrix[0] or len({len(row) for row in matrix}) > 1:
        raise ValueError("expected a row of equal length per layer")
    return matrix


def _merge(folder: Path, first_layer: int, parts: int) -> Merge | None:
    path = folder / "coefficients.safetensors"
    if not path.is_file():
        return None
    with _naming(path), safe_open(path, "np") as file:
        coefficients = _matrix(file.get_tensor("coefficients"))
        weights = file.get_tensor("shared_weight") if "shared_weight" in file.keys() else [0.0]  # noqa: SIM118
        shared_weight = sum(map(_finite, weights)) / len(weights)
        sets = int((file.metadata() or {}).get("sets_per_layer", 1))
    metrics = folder / "metrics.jsonl"
    with _naming(metrics):
        points = [(float(record["step"]), float(record["movement"])) for record in _lines(metrics)]
    return Merge(
        coefficients=coefficients,
        sets_per_layer=sets,
        shared_weight=shared_weight,
        step=tuple(step for step, _ in points),
        movement=tuple(movement for _, movement in points),
        first_layer=first_layer,
        parts=parts,
        divergence=_json(folder / "summary.json", _divergence),
    )


def _divergence(tree: dict[str, Any]) -> float | None:
    return float(tree["gap"]["divergence"]) if "gap" in tree else None  # runs of earlier versions have none


def _proof(tree: dict[str, Any]) -> Proof:
    control = tree["negative_control_difference"]
    return Proof(
        max_difference=float(tree["max_difference"]),
        tolerance=float(tree["tolerance"]),
        dense_own_error=float(tree["dense_own_error"]),
        probe_tokens=int(tree["probe_tokens"]),
        negative_control_difference=None if control is None else float(control),
        preserves_dense=bool(tree.get("preserves_dense", True)),
        divergence=float(tree.get("divergence", 0.0)),
    )


def _fits(run: Path, stages: Mapping[str, Stage]) -> dict[str, Fit]:
    """Read how many pairs each stage that trains the weights cut or dropped."""

    def build(place: str, tree: dict[str, Any]) -> Fit:
        limit = (stages[place].config.get("tune") or {}).get("max_length") if place in stages else None
        return Fit(
            rows=int(tree["rows"]),
            cut=int(tree["cut"]),
            dropped=int(tree["dropped"]),
            limit=None if limit is None else int(limit),
        )

    fits = {place: _json(run / place / "summary.json", partial(build, place)) for place in ("sft", "moe")}
    return {place: fit for place, fit in fits.items() if fit}


def _data(tree: dict[str, Any], fits: Mapping[str, Fit]) -> Data:
    return Data(
        train=int(tree["train"]),
        heldout=int(tree["heldout"]),
        rejected=int(tree["rejected"]),
        too_long=int(tree.get("too_long", 0)),
        sources=tuple((str(source["path"]), int(source["records"])) for source in tree["sources"]),
        curated={
            str(source["path"]): tuple(map(_curation_step, source["curated"]))
            for source in tree["sources"]
            if source.get("curated")
        },
        fits=fits,
    )


def _curation_step(tree: Mapping[str, Any]) -> CurationStep:
    reasons = {str(reason): int(count) for reason, count in tree["reasons"].items()}
    return CurationStep(
        name=str(tree["step"]), looked_at=int(tree["in"]), dropped=int(tree["dropped"]), reasons=reasons
    )


def _attempts(run: Path, benchmark: str) -> Attempts | None:
    """Pick the first solved and the first failed problems, in the benchmark's order."""
    folder = run / "eval" / "xft" / benchmark
    verdicts = {(v["task_id"], v.get("sample", 0)): v for v in _final_verdicts(folder)}
    solved: list[Attempt] = []
    failed: list[Attempt] = []
    for sample in _checked(folder / "samples.jsonl", "task_id", "completion", "code") if verdicts else []:
        verdict = verdicts.get((sample["task_id"], sample.get("sample", 0)))
        kept = solved if verdict and verdict["status"] == "passed" else failed
        if verdict and len(kept) < SHOWN:
            kept.append(
                Attempt(
                    task_id=str(sample["task_id"]),
                    code=str(sample["code"] or sample["completion"]),
                    status=str(verdict["status"]),
                    error=str(verdict.get("error") or ""),
                )
            )
    return Attempts(benchmark=benchmark, solved=tuple(solved), failed=tuple(failed)) if solved or failed else None
