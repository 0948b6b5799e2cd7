"""Several processes at one experiment: each stage once, nothing deleted in use, the same tables, whoever is killed.

The fast tests let threads stand for processes: a lock on a file tells apart who opened it, not which process did. Their
stages only write small files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_grid import command, grid_of, weights

from xft.errors import DivergedError, RunError
from xft.experiment import execute
from xft.experiment.collect import Results
from xft.experiment.config import load_grid
from xft.experiment.lines import Lines
from xft.graph import Node, fingerprints, run_folder
from xft.recipe import Recipe, shipped_recipes

METHODS = {
    "sft": {"row": "sft"}, "soup": {"row": "soup", "set": {"sft.soup": 2}}, "xft": {"row": "xft"},
    "delta": {"row": "xft", "set": {"upcycle.layout": "delta", "upcycle.rank": 2}},
}  # fmt: skip
CHOOSE = {"vary": {"tune.lr": [1e-4, 1e-3]}, "seeds": [101, 102]}


class Toys:
    """Runs experiments whose stages write small files, which depend on what the stage is; tells what was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: Counter[str] = Counter()
        """By content."""
        self.names: Counter[str] = Counter()
        self.before: Callable[[str], None] = lambda name: None
        """Called with a stage's name when its work begins."""
        self.counting = threading.Lock()
        real = execute.graph

        def graph(recipe: Recipe, out: Path) -> list[Node]:
            nodes = real(recipe, out)
            contents = fingerprints(nodes, recipe.seed)
            return [replace(node, work=self._work(node, out, contents[node.name])) for node in nodes]

        monkeypatch.setattr(execute, "graph", graph)
        monkeypatch.setattr(execute, "PAUSE", 0.02)
        monkeypatch.setattr("xft.stage.POLL_SECONDS", 0.005)
        monkeypatch.setattr("xft.stage.release_memory", lambda: None)  # it takes longer than all else here

    def _work(self, node: Node, out: Path, content: str) -> Any:
        read = [out / name / "model.safetensors" for name in node.after if name not in ("base", "data")]
        chance = int(content[:8], 16) / 2**32

        def do(folder: Path, _meter: object) -> None:
            with self.counting:
                self.made[content] += 1
                self.names[node.name] += 1
            self.before(node.name)
            time.sleep(0.03 * chance)
            for path in read:
                assert path.is_file(), f"{node.name}: {path} was deleted in use"
            if node.name == "data":
                for name in ("train", "heldout"):
                    (folder / f"{name}.jsonl").write_text(json.dumps({"instruction": content, "response": name}) + "\n")
            elif node.name.startswith("eval/"):
                (folder / "heldout").mkdir(exist_ok=True)
                (folder / "heldout/scores.json").write_text('{"benchmark": "heldout", "data_hash": "h"}')
                lines = [json.dumps({"pair": str(number), "loss": chance + number}) + "\n" for number in range(4)]
                (folder / "heldout/losses.jsonl").write_text("".join(lines))
            elif node.name != "base":
                (folder / "model.safetensors").write_text(content)

        return do

    def __call__(
        self, grid: Path, out: Path, say: Callable[[str], None] = lambda line: None, overrides: list[str] | None = None
    ) -> Results:
        return execute.run(
            load_grid(grid, overrides), out, command="xft experiment", redo=False, confirm=lambda _: False, say=say
        )

    def at_once(self, grids: list[Path], out: Path) -> list[Future[Results]]:
        """Run one experiment in as many threads as there are grids."""
        self.made.clear()
        self.names.clear()
        with ThreadPoolExecutor(len(grids)) as pool:
            return [pool.submit(self, grid, out) for grid in grids]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Toys:
    return Toys(monkeypatch)


def told(results: Results, place: Path) -> str:
    """Return all that the tables say, without the place that the grid was read from."""
    return json.dumps(asdict(results), sort_keys=True).replace(str(place), "")


def scores(results: Results) -> list[Any]:
    return [(line.name, line.status, line.key, line.scores) for line in (*results.screened, *results.lines)]


@pytest.mark.slow
def test_three_share_all_cells_and_each_stage_is_made_once(common: dict[str, Any], toys: Toys, tmp_path: Path) -> None:
    settings = {"methods": METHODS, "keep": "scores", "choose": CHOOSE}
    alone = toys(grid_of(common, tmp_path / "grid", **settings), tmp_path / "alone")
    once = toys.made.copy()
    places = [tmp_path / f"place-{number}" for number in range(3)]  # as three machines may have it
    grids = [grid_of(common, place, **settings, recipe="mine.yaml") for place in places]
    for place in places:
        shutil.copy(shipped_recipes()["tiny"], place / "mine.yaml")
    out = tmp_path / "shared"
    found = [future.result() for future in toys.at_once(grids, out)]
    assert toys.made == once
    assert set(once.values()) == {1}
    assert scores(found[0]) == scores(alone)
    assert len({told(results, place) for results, place in zip(found, places, strict=True)}) == 1
    assert weights(out) == set()
    assert [*out.rglob("*.partial"), *out.rglob("*.linking"), *out.rglob("*.new")] == []

    more = settings | {"methods": {**METHODS, "moe": {"row": "moe"}, "uniform": {"row": "uniform"}}}
    for future in toys.at_once([grid_of(common, tmp_path / "grid", **more)] * 3, out):
        assert {line.status for line in future.result().lines} == {"done"}
    assert set(toys.made.values()) == {1}
    assert weights(out) == set()


def test_what_no_longer_fits_is_made_anew_once(common: dict[str, Any], toys: Toys, tmp_path: Path) -> None:
    grid = grid_of(common, tmp_path / "grid", methods=METHODS)
    toys(grid, tmp_path / "out")
    grid = grid_of(common | {"eval.max_new_tokens": 9}, tmp_path / "grid", methods=METHODS)
    for future in toys.at_once([grid] * 3, tmp_path / "out"):
        assert {line.status for line in future.result().lines} == {"done"}
    assert toys.names == {"eval/sft": 2, "eval/soup": 2, "eval/xft": 4}


def test_what_is_held_is_put_off_and_the_rest_made_first(common: dict[str, Any], toys: Toys, tmp_path: Path) -> None:
    grid, out, said = grid_of(common, tmp_path / "grid", methods=METHODS), tmp_path / "out", list[str]()
    with ExitStack() as other:
        out.mkdir()
        (out / ".lock").touch()
        other.enter_context(run_folder(out / "runs/recipe/seed-1"))

        def say(line: str) -> None:
            said.append(line)
            if line.startswith("waiting"):
                other.close()

        results = toys(grid, out, say)
    assert {line.status for line in results.lines} == {"done"}
    heads = [line.split(", about")[0] for line in said if not line.startswith("  ")]
    assert heads == [
        "[1/8] delta, seed 1", "[3/8] soup, seed 1", "[5/8] delta, seed 2", "[6/8] sft, seed 2", "[7/8] soup, seed 2",
        "[8/8] xft, seed 2", "waiting for other processes, which are at what is left: sft, seed 1; xft, seed 1",
        "[2/8] sft, seed 1", "[4/8] xft, seed 1",
    ]  # fmt: skip


def test_one_that_is_stopped_leaves_its_work_to_the_others(common: dict[str, Any], toys: Toys, tmp_path: Path) -> None:
    stopping = threading.Lock()

    def stop_once(name: str) -> None:
        if name == "moe" and stopping.acquire(blocking=False):
            raise KeyboardInterrupt

    toys.before = stop_once
    grid = grid_of(common, tmp_path / "grid", methods=METHODS, keep="scores")
    ends = toys.at_once([grid] * 2, tmp_path / "out")
    (results,) = [end.result() for end in ends if end.exception() is None]
    assert {line.status for line in results.lines} == {"done"}
    assert sorted(toys.made.values())[-2:] == [1, 2]  # the one that was stopped
    assert weights(tmp_path / "out") == set()


def test_a_stage_that_fails_is_tried_by_one_and_again_at_the_next_start(
    common: dict[str, Any], toys: Toys, tmp_path: Path
) -> None:
    def diverge(name: str) -> None:
        if name == "sft":
            time.sleep(0.1)
            raise DivergedError("step 1: the loss is nan")

    toys.before = diverge
    methods = {name: METHODS[name] for name in ("sft", "soup", "xft")}
    grid, out = grid_of(common, tmp_path / "grid", methods=methods), tmp_path / "out"
    for end in toys.at_once([grid] * 2, out):
        failed = {(line.method, line.seed, line.reason) for line in end.result().failed}
        assert failed == {(name, seed, "step 1: the loss is nan") for name in ("sft", "soup") for seed in (1, 2)}
    assert toys.names["sft"] == 2  # one a seed
    toys.before = lambda name: None
    assert toys(grid, out).failed == ()


def test_more_than_ten_minutes_in_all_cells_together_are_asked_for_once_before_any_work(
    common: dict[str, Any], toys: Toys, tmp_path: Path
) -> None:
    grid, out = grid_of(common, tmp_path / "grid", choose=CHOOSE, keep="scores"), tmp_path / "out"
    toys(grid, out)
    for path in out.glob("*/**/sft/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_seconds": 101.0}))
    toys.names.clear()
    asked: list[str] = []

    def start(answer: bool) -> None:
        plan = load_grid(grid, ["tune.batch=2"])
        execute.run(plan, out, command="", redo=False, say=lambda _: None,
                    confirm=lambda question: bool(asked.append(question)) or answer)  # fmt: skip

    with pytest.raises(RunError, match=r"of work would be redone \(.*sft \(10:0\d\).* say so with --redo"):
        start(answer=False)
    assert toys.names == {}
    start(answer=True)
    assert toys.names["sft"] == 6
    assert len(asked) == 2


class Held:
    """Stands for a model and its trainer, which hold one another."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB."),
         "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB; lower tune.micro_batch or eval.batch"),
        (MemoryError(), "MemoryError; lower tune.micro_batch or eval.batch"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)  # fmt: skip
def test_a_librarys_error_is_the_failure_of_a_cell_and_the_others_are_made(
    error: Exception,
    reason: str,
    common: dict[str, Any],
    toys: Toys,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models: list[weakref.ref[Held]] = []
    kept = []

    def fail(name: str) -> None:
        kept.extend(model() for model in models)
        if name == "moe":
            model = Held()
            models.append(weakref.ref(model))
            raise error

    toys.before = fail
    results = toys(grid_of(common, tmp_path / "grid", methods=METHODS, seeds=[1]), tmp_path / "out")
    statuses = {line.method: (line.status, line.reason) for line in results.lines}
    assert statuses == {name: ("done", "") for name in ("sft", "soup")} | dict.fromkeys(
        ("xft", "delta"), ("failed", reason)
    )
    assert "in fail" in capsys.readouterr().err  # where it was raised
    assert kept == [None] * len(kept) != []


def test_other_work_is_refused_while_one_is_at_it(common: dict[str, Any], toys: Toys, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    shutil.copy(common["data"], data)
    mine = tmp_path / "grid/mine.yaml"
    grid = grid_of(common | {"data": str(data)}, tmp_path / "grid", recipe="mine.yaml")
    shutil.copy(shipped_recipes()["tiny"], mine)
    out, refused = tmp_path / "out", list[str]()

    def start_others(line: str) -> None:
        if refused:
            return
        for file, text in (
            (grid, grid.read_text().replace("- 2\n", "- 3\n")),  # another seed
            (mine, mine.read_text().replace("lr: 1.0e-3", "lr: 1.0e-4")),
            (data, data.read_text().replace("Add 3.", "Add three.")),
        ):
            before = file.read_text()
            assert text != before
            file.write_text(text)
            with pytest.raises(RunError, match=r"another process is at work here with another grid.* another folder"):
                toys(grid, out)
            file.write_text(before)
            refused.append(file.name)

    settled = [line.status for line in toys(grid, out, start_others).lines]
    assert refused == ["grid.yaml", "mine.yaml", "pairs.jsonl"]
    assert settled == ["done"] * 4
    mine.write_text(mine.read_text().replace("lr: 1.0e-3", "lr: 1.0e-4"))
    assert [line.status for line in toys(grid, out).lines] == ["done"] * 4  # nobody is at it any more


def test_the_time_left_is_at_the_pace_of_all_once_this_one_has_a_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said, noted = [1000.0], list[str](), [{"worked": True}, {"worked": False}]
    monkeypatch.setattr("xft.experiment.lines.time.monotonic", lambda: now[0])
    cells: list[Any] = [SimpleNamespace(name=name) for name in "abcd"]
    lines = Lines(said.append, SimpleNamespace(settled=lambda: noted), 12)  # type: ignore[arg-type]
    lines.number(cells)
    noted += [{"worked": True}] * 2  # by others
    lines.about(cells[0], "sft")
    lines.put_off(cells[0])
    lines.put_off(cells[1])  # of which nothing was said
    now[0] += 100
    noted += [{"worked": True}] * 2
    lines.worked += 1
    lines.about(cells[2])
    lines.about(cells[2], "failed")
    assert said == ["[1/12] a", "  sft", "  put off: another process is at what comes next",
                    "[3/12] c, about 2:30 left", "  failed"]  # fmt: skip


@pytest.fixture
def start() -> Iterator[Callable[[Path, Path, Path], subprocess.Popen[bytes]]]:
    """Start a process that writes what it says to a log; none outlives the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(grid: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            processes.append(subprocess.Popen(command(grid, out), stdout=subprocess.DEVNULL, stderr=file))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def cells(out: Path) -> list[Any]:
    lines = json.loads((out / "results.json").read_text())["lines"]
    return [(line["name"], line["status"], line["key"], line["scores"], line["stages"]) for line in lines]


@pytest.fixture(scope="module")
def whole(common: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A grid, and what one process makes of it."""
    place = tmp_path_factory.mktemp("whole")
    changes = {"methods": {name: METHODS[name] for name in ("sft", "xft", "soup")}, "keep": "scores"}
    grid = grid_of(common | {"tune.checkpoint_minutes": 0}, place / "grid", **changes)
    subprocess.run(command(grid, place / "out"), check=True, capture_output=True)
    return grid, cells(place / "out")


@pytest.mark.slow
def test_two_processes_make_each_stage_once_and_find_the_same(
    whole: tuple[Path, list[Any]], toys: Toys, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    grid, wanted = whole
    out, logs = tmp_path / "out", [tmp_path / "first.log", tmp_path / "second.log"]
    processes = [start(grid, out, log) for log in logs]
    while not (out / ".locks/session.json").exists():
        assert None in [process.poll() for process in processes]
        time.sleep(0.01)
    with pytest.raises(RunError, match="another process is at work here with another grid"):
        toys(grid, out, overrides=["tune.lr=0.5"])
    assert [process.wait() for process in processes] == [0, 0]
    assert cells(out) == wanted
    said = [line for log in logs for line in log.read_text().splitlines()]
    made = Counter(line.strip() for line in said if line.startswith("  ") and ":" not in line)
    once_a_seed = ("base", "data", "sft", "eval/sft", "upcycle", "moe", "merge/learned", "eval/xft", "soup/2",
                   "soup/mean", "eval/soup")  # fmt: skip
    assert made == dict.fromkeys(once_a_seed, 2)
    assert weights(out) == set()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "moe", "merge/learned"])
def test_killed_while_another_works_leaves_all_to_it(
    stage: str, whole: tuple[Path, list[Any]], start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    grid, wanted = whole
    out, logs = tmp_path / "out", [tmp_path / "first.log", tmp_path / "second.log"]
    processes = [start(grid, out, log) for log in logs]
    victim = None
    while victim is None:
        assert None in [process.poll() for process in processes]
        at_it = [f"  {stage}" in log.read_text().splitlines() for log in logs]
        victim = next((process for process, ready in zip(processes, at_it, strict=True) if ready), None)
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    (other,) = [process for process in processes if process is not victim]
    assert other.wait() == 0
    assert cells(out) == wanted
    assert weights(out) == set()
    assert [*out.rglob("*.partial"), *out.rglob("*.linking")] == []
