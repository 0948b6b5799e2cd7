"""An experiment on a toy model: each stage once, whatever shares it; killed, failed, emptied and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from toy_grid import command, grid_of, weights

from xft.errors import RunError, SandboxError
from xft.experiment import execute
from xft.experiment.collect import Results
from xft.experiment.config import Grid, load_grid
from xft.experiment.report import write_results
from xft.stage import Stage, read_manifest

DELTA = {"upcycle.layout": "delta", "upcycle.rank": 2}
DELTA_FOLDER = "upcycle.layout=delta,upcycle.rank=2"
DIVERGES = {"tune.clip": 0, "sft.lr": 1e30}


class Counted:
    """Runs experiments and counts how often each stage's work was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: Counter[str] = Counter()
        self.said: list[str] = []
        self.stop_at: str | None = None
        real = execute.run_stage

        def counting(place: Path, stage: Stage) -> dict[str, Any]:
            if stage.name == self.stop_at:
                raise KeyboardInterrupt
            manifest = real(place, stage)
            self.made[stage.name] += 1
            return manifest

        monkeypatch.setattr(execute, "run_stage", counting)

    def __call__(self, grid: Path | Grid, out: Path) -> Results:
        self.made.clear()
        self.said.clear()
        plan = load_grid(grid) if isinstance(grid, Path) else grid
        return execute.run(
            plan, out, command="xft experiment", redo=False, confirm=lambda _question: False, say=self.said.append
        )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_two_methods_and_two_seeds_share_what_they_can(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    methods = {"base": {"row": "base"}, "sft": {"row": "sft"}, "delta": {"row": "xft", "set": DELTA}}
    grid = grid_of(common, tmp_path / "grid", methods=methods)
    out = tmp_path / "out"
    results = counted(grid, out)
    stages = ("base", "data", "eval/base", "sft", "eval/sft", "upcycle", "moe", "merge/learned", "eval/xft")
    assert counted.made == dict.fromkeys(stages, 2)  # once a seed, though two folders have data of each
    first, second = (out / "runs" / name / "seed-1/data/train.jsonl" for name in ("recipe", DELTA_FOLDER))
    assert first.samefile(second)
    assert not (out / "runs/recipe/seed-1/merge/uniform").exists()

    assert [line.status for line in results.lines] == ["done"] * 6
    assert results.measures == ("heldout",)
    for line in results.lines:
        manifest = read_manifest(out / line.folder / "eval" / methods[line.method]["row"])
        assert manifest is not None
        assert line.key == manifest["key"] == line.stages[f"eval/{methods[line.method]['row']}"]
        losses = [json.loads(text)["loss"] for text in (out / line.items["heldout"]).read_text().splitlines()]
        assert line.scores["heldout"] == pytest.approx(sum(losses) / 4)
    by = {method.name: method for method in results.methods}
    for name in ("base", "delta"):
        scores = {line.seed: line.scores["heldout"] for line in results.lines if line.method == name}
        theirs = {line.seed: line.scores["heldout"] for line in results.lines if line.method == "sft"}
        found = by[name].differences["heldout"]
        assert found.seeds == pytest.approx([scores[seed] - theirs[seed] for seed in (1, 2)])
        first, second = found.seeds
        assert found.p == (0.5 if first * second > 0 else 1.0)
    assert by["base"].flops == by["base"].wall_seconds == 0
    run = out / "runs" / DELTA_FOLDER / "seed-1"
    parts = [read_manifest(run / place) or {} for place in ("upcycle", "moe", "merge/learned")]
    (cost,) = [line.cost for line in results.lines if (line.method, line.seed) == ("delta", 1)]
    assert cost is not None
    assert cost.flops == sum(part["flops"] or 0 for part in parts)
    assert cost.wall_seconds == pytest.approx(sum(part["wall_seconds"] for part in parts))

    written = json.loads((out / "results.json").read_text())
    assert [cell["key"] for cell in written["lines"]] == [line.key for line in results.lines]
    before = (out / "results.md").read_text()
    counted(grid, out)
    assert counted.made == {}
    assert (out / "results.md").read_text() == before
    write_results(load_grid(grid), out, "xft experiment")  # what --report-only does
    assert (out / "results.md").read_text() == before


def test_a_machine_that_can_not_score_is_found_before_any_cell(
    common: dict[str, Any], counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = {"instruction": "Write one().", "response": "def one():\n    return 1\n", "tests": "assert one() == 1"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    benchmarks = {"eval.benchmarks": [f"pairs:{tmp_path / 'problems.jsonl'}"]}
    monkeypatch.setattr("xft.eval.sandbox.sandbox.detect_level", lambda: ("unsafe", "no namespaces"))
    grid = grid_of(common | benchmarks, tmp_path / "grid", methods={"sft": {"row": "sft"}, "base": {"row": "base"}})
    with pytest.raises(SandboxError, match="no sandbox works here"):
        counted(grid, tmp_path / "out")
    assert not counted.made


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_and_makes_nothing_twice(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    grid, out = grid_of(common, tmp_path / "grid"), tmp_path / "out"
    counted.stop_at = "moe"
    with pytest.raises(KeyboardInterrupt):
        counted(grid, out)
    before = counted.made.copy()
    assert before == {"base": 1, "data": 1, "sft": 1, "eval/sft": 1, "upcycle": 1}
    state = write_results(load_grid(grid), out, "xft experiment")
    assert [line.status for line in state.lines] == ["done", "not run", "not run", "not run"]
    counted.stop_at = None
    results = counted(grid, out)
    assert before + counted.made == dict.fromkeys(
        ("base", "data", "sft", "eval/sft", "upcycle", "moe", "merge/learned", "eval/xft"), 2
    )
    assert [line.status for line in results.lines] == ["done"] * 4


def test_a_cell_that_diverges_is_told_and_the_others_are_made(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    methods = {"boom": {"row": "sft", "set": DIVERGES}, "sft": {"row": "sft"}}
    grid = grid_of(common, tmp_path / "grid", methods=methods, seeds=[1])
    out = tmp_path / "out"
    results = counted(grid, out)
    assert [(line.method, line.status) for line in results.lines] == [("boom", "failed"), ("sft", "done")]
    assert all("loss is nan" in line.reason for line in results.failed)
    assert "1 of 2 cells failed" in (out / "results.md").read_text()
    assert "the loss is nan" in (out / "report/index.html").read_text()
    counted(grid, out)
    assert counted.made == {}  # it was tried again, in vain; what had been made was not
    assert sum("failed" in line for line in counted.said) == 1


def test_methods_that_share_a_failing_stage_try_it_once(
    common: dict[str, Any], counted: Counted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from xft.errors import DivergedError

    tried = []
    real = execute.run_stage

    def failing(place: Path, stage: Stage) -> dict[str, Any]:
        if stage.name == "sft":
            tried.append(place)
            raise DivergedError("step 1: the loss is nan")
        return real(place, stage)

    monkeypatch.setattr(execute, "run_stage", failing)
    methods = {"sft": {"row": "sft"}, "soup": {"row": "soup", "set": {"sft.soup": 2}}}
    results = counted(grid_of(common, tmp_path / "grid", methods=methods, seeds=[1]), tmp_path / "out")
    assert [line.reason for line in results.lines] == ["step 1: the loss is nan"] * 2
    assert len(tried) == 1


def test_with_keep_scores_weights_go_and_come_back_only_when_they_are_needed(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    grid, out = grid_of(common, tmp_path / "grid", keep="scores", seeds=[1]), tmp_path / "out"
    counted(grid, out)
    assert weights(out) == set()
    losses = out / "runs/recipe/seed-1/eval/xft/heldout/losses.jsonl"
    before = losses.read_text(), losses.stat().st_mtime_ns
    counted(grid, out)
    assert counted.made == {}

    more = {"sft": {"row": "sft"}, "xft": {"row": "xft"}, "uniform": {"row": "uniform"}}
    grid = grid_of(common, tmp_path / "grid", keep="scores", seeds=[1], methods=more)
    results = counted(grid, out)
    assert counted.made == {"upcycle": 1, "moe": 1, "merge/uniform": 1, "eval/uniform": 1}
    assert (losses.read_text(), losses.stat().st_mtime_ns) == before
    assert [line.status for line in results.lines] == ["done"] * 3
    assert weights(out) == set()


@pytest.mark.slow
def test_weights_that_another_cell_still_needs_are_kept(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    methods = {"sft": {"row": "sft"}, "soup": {"row": "soup", "set": {"sft.soup": 2}}, "xft": {"row": "xft"}}
    grid, out = grid_of(common, tmp_path / "grid", keep="scores", seeds=[1], methods=methods), tmp_path / "out"
    counted.stop_at = "soup/2"
    with pytest.raises(KeyboardInterrupt):
        counted(grid, out)
    assert weights(out) == {"runs/recipe/seed-1/sft", "runs/sft.soup=2/seed-1/sft"}  # the soup needs it
    counted.stop_at = "upcycle"
    with pytest.raises(KeyboardInterrupt):
        counted(grid, out)
    assert counted.made == {"soup/2": 1, "soup/mean": 1, "eval/soup": 1}
    assert weights(out) == set()


@pytest.mark.slow
def test_settings_are_chosen_with_other_seeds_where_they_matter(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    methods = {"base": {"row": "base"}, "sft": {"row": "sft"}}
    choose = {"vary": {"tune.lr": [1e-9, 1e-2]}, "seeds": [101, 102]}
    grid = grid_of(common, tmp_path / "grid", methods=methods, seeds=[1], choose=choose)
    out = tmp_path / "out"
    results = counted(grid, out)
    assert counted.made == {"base": 3, "data": 3, "sft": 5, "eval/sft": 5, "eval/base": 1}
    chosen = json.loads((out / "choice.json").read_text())
    assert chosen["base"] == {"chosen": {}, "candidates": [], "flops": 0.0, "wall_seconds": 0.0}
    assert chosen["sft"]["chosen"] == {"tune.lr": 1e-2}
    tried = chosen["sft"]["candidates"]
    assert [set(each["scores"]) for each in tried] == [{"101", "102"}] * 2
    assert tried[0]["mean"] > tried[1]["mean"]  # a step of 1e-9 learns nothing
    assert results.choices["sft"].flops == pytest.approx(4 * (results.methods[1].flops or 0), rel=0.2)
    assert [line.settings["tune.lr"] for line in results.lines if line.method == "sft"] == [1e-2]
    pairs = {seed: set((out / f"{place}/data/heldout.jsonl").read_text().splitlines())
             for seed, place in ((1, "runs/recipe/seed-1"), (101, "screening/recipe/tune.lr=1e-09/seed-101"),
                                 (102, "screening/recipe/tune.lr=1e-09/seed-102"))}  # fmt: skip
    assert results.shared_items == len(pairs[1] & (pairs[101] | pairs[102]))
    counted(grid, out)
    assert counted.made == {}


def test_a_folder_that_holds_something_else_is_refused_and_untouched(
    common: dict[str, Any], counted: Counted, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else"):
        counted(grid_of(common, tmp_path / "grid"), out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_killed_anywhere_and_started_again_gives_the_same_scores(common: dict[str, Any], tmp_path: Path) -> None:
    grid = grid_of(common | {"tune.checkpoint_minutes": 0}, tmp_path / "grid", keep="scores")
    subprocess.run(command(grid, tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "killed"
    for stage in ("sft.partial", "moe.partial", "merge/learned", "runs/recipe/seed-2/moe"):
        process = subprocess.Popen(command(grid, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        place = out / stage if stage.startswith("runs") else out / "runs/recipe/seed-1" / stage
        while process.poll() is None and not place.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    again = subprocess.run(command(grid, out), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    trees = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "whole", out)]
    scores = [[(cell["method"], cell["seed"], cell["key"], cell["scores"]) for cell in tree["lines"]] for tree in trees]
    assert scores[0] == scores[1]
    assert weights(out) == set()
    assert list(out.rglob("*.partial")) == list(out.rglob("*.linking")) == []


@pytest.mark.slow
def test_the_command_prints_the_table_and_ends_with_1_where_a_cell_failed(
    common: dict[str, Any], tmp_path: Path
) -> None:
    methods = {"sft": {"row": "sft"}, "boom": {"row": "sft", "set": DIVERGES}}
    grid, out = grid_of(common, tmp_path / "grid", methods=methods, seeds=[1]), tmp_path / "out"
    done = subprocess.run(command(grid, out), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 of 2 cells failed: boom, seed 1" in done.stderr
    assert "Held-out loss" in done.stdout
    before = (out / "results.md").read_bytes()
    told = subprocess.run([*command(grid, out), "--report-only"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert (out / "results.md").read_bytes() == before
    nothing = subprocess.run(
        [*command(grid, tmp_path / "none"), "--report-only"], capture_output=True, text=True, check=False
    )
    assert nothing.returncode == 2
    assert "no experiment (it has no grid.yaml)" in nothing.stderr
