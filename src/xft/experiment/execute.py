"""Make an experiment's cells, each as a run of the stages that its row needs; interrupted and resumed at will.

A stage that another cell has made already is linked, not made again. Several processes share the cells: each takes what
no other is at, and notes in cells.json what became of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xft.errors import BusyError, RunError, XftError
from xft.eval.evaluate import require_scoring
from xft.experiment.cells import read_cost, read_mean, writing
from xft.experiment.choice import Candidate, Choice, best, read_choices, write_choices
from xft.experiment.collect import FAILED, Results
from xft.experiment.config import Grid
from xft.experiment.lines import Lines
from xft.experiment.plan import RUNS, SCREENING, Cell, Combination, Plan
from xft.experiment.report import write_results
from xft.experiment.session import Session, joined
from xft.graph import (
    Node,
    ancestors,
    ask_before_redoing,
    bring_up_to_date,
    fingerprints,
    outdated,
    run_folder,
    run_to_add_to,
)
from xft.memory import release_memory
from xft.pipeline import graph, look_up_names
from xft.stage import Stage, drop_files, read_manifest, run_stage

WEIGHTS = "model*.safetensors"
WRITE_SECONDS = 30.0
"""At least so long between two tables of what is known so far."""
PAUSE = 2.0
"""Seconds between two looks at whether other processes have made what cells here need."""


def run(
    grid: Grid, out: Path, *, command: str, redo: bool, confirm: Callable[[str], bool], say: Callable[[str], None]
) -> Results:
    """Bring an experiment's folder up to date, together with all processes that are at it; return what is known then.

    Meanwhile results.json, results.md and report/index.html tell what is known so far.

    Raises:
        RecipeError, UnknownNameError: a cell's recipe is wrong; found before anything is written.
        RunError: other processes are at it with other work, `out` holds something else, or redoing needs a user's word.
    """
    bench = _Bench(grid, out, command, redo, confirm, say)
    candidates = bench.candidates()
    work = bench.check(candidates)
    with joined(out, yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False), work) as session:
        bench.ask(candidates)
        bench.begin(session)
        bench.require_scoring(candidates)
        choices = bench.choose(candidates)
        bench.work(bench.plan.confirmation({name: choice.chosen for name, choice in choices.items()}))
        return write_results(grid, out, command, bench.plan)


class _Bench:
    """The state of one start."""

    def __init__(
        self,
        grid: Grid,
        out: Path,
        command: str,
        redo: bool,
        confirm: Callable[[str], bool],
        say: Callable[[str], None],
    ) -> None:
        self.command = command
        self.grid, self.out, self.redo, self.confirm, self.say = grid, out, redo, confirm, say
        self.plan = Plan(grid)
        self.session: Session
        self.lines: Lines
        self.graphs: dict[tuple[str, str], list[Node]] = {}
        """By run directory and the recipe's hash."""
        self.cells: list[Cell] = []
        """All of this start, those of the screening first."""
        self.written = time.monotonic()
        self.total = 0

    def check(self, candidates: Mapping[str, list[Combination]]) -> str:
        """Make the plan, so that what is wrong in it is found before any work; return a hash of all it comes to."""
        cells = self.plan.confirmation({method: tries[0] for method, tries in candidates.items()})
        tried = [(method, each) for method, tries in candidates.items() if len(tries) > 1 for each in tries]
        cells += [self.plan.screening(method, combination)[0] for method, combination in tried]
        contents = {cell.name: self._needs(cell)[-1][1] for cell in cells}
        # What matters of the recipe is in the contents; its path may differ from process to process.
        tree = [self.grid.model_dump(mode="json", exclude={"recipe"}), contents]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    def ask(self, candidates: Mapping[str, list[Combination]]) -> None:
        """Ask once, before any work, for all that will be redone; what will be chosen is taken to be what was.

        Raises:
            RunError: it took more than ten minutes, and the user has not agreed.
        """
        before = {method: choice.chosen for method, choice in read_choices(self.out).items()}
        likely = {method: before[method] if before.get(method) in tries else tries[0]
                  for method, tries in candidates.items()}  # fmt: skip
        tried = [cell for cells in self._tried(candidates).values() for each in cells for cell in each]
        stale: dict[str, dict[str, Any]] = {}  # by key: what cells share is made once
        for cell in [*tried, *self.plan.confirmation(likely)]:
            folder = self.out / cell.folder
            if folder.is_dir():
                with contextlib.suppress(RunError), run_folder(folder, shared=True):  # told when the cell is taken
                    nodes = ancestors(self._graph(cell), f"eval/{cell.row}")
                    found, _ = outdated(nodes, folder, cell.seed)
                    stale |= {manifest["key"]: manifest for manifest in found.values()}
        ask_before_redoing(stale.values(), self.out, self.redo, self.confirm, self.say)

    def begin(self, session: Session) -> None:
        """Start the work, and the clock."""
        self.session, self.lines = session, Lines(self.say, session, self.total)

    def require_scoring(self, candidates: Mapping[str, list[Combination]]) -> None:
        """Try what scoring needs, if any cell is left; the benchmarks are the same for all combinations."""
        cells = self.plan.confirmation({method: tries[0] for method, tries in candidates.items()})
        left = [cell for cell in cells if not self.session.done(cell)]
        require_scoring({entry.name: entry for cell in left for entry in cell.recipe.eval.benchmarks}.values())

    def candidates(self) -> dict[str, list[Combination]]:
        """Return the combinations that make a difference to each method; one alone where nothing is to be chosen."""
        tries = list(self.plan.combinations())
        found: dict[str, list[Combination]] = {}
        found |= {method: self._distinct(method, tries) if tries else [{}] for method in self.grid.methods}
        screened = sum(len(each) for each in found.values() if len(each) > 1)
        self.total = len(found) * len(self.grid.seeds)
        self.total += screened * len(self.grid.choose.seeds) if self.grid.choose else 0
        return found

    def _distinct(self, method: str, tries: list[Combination]) -> list[Combination]:
        distinct: dict[str, Combination] = {}
        for combination in tries:
            distinct.setdefault(self._needs(self.plan.screening(method, combination)[0])[-1][1], combination)
        return [{}] if len(distinct) == 1 < len(tries) else list(distinct.values())

    def choose(self, candidates: Mapping[str, list[Combination]]) -> dict[str, Choice]:
        """Try the combinations out; return what was chosen for each method, which is written too."""
        tried = self._tried(candidates)
        self.work([cell for each in tried.values() for cells in each for cell in cells])
        choices = {method: self._choice(candidates[method], tried.get(method, [])) for method in candidates}
        with writing(self.out):
            write_choices(self.out, choices)
        return choices

    def _tried(self, candidates: Mapping[str, list[Combination]]) -> dict[str, list[list[Cell]]]:
        """Return the cells that try each combination out, of the methods for which there is something to choose."""
        return {
            method: [self.plan.screening(method, combination) for combination in combinations]
            for method, combinations in candidates.items()
            if len(combinations) > 1
        }

    def _choice(self, combinations: list[Combination], tried: list[list[Cell]]) -> Choice:
        if not tried or self.grid.choose is None:
            return Choice(chosen=combinations[0])
        by = self.grid.choose.by
        found = []
        for combination, cells in zip(combinations, tried, strict=True):
            scores = {str(cell.seed): read_mean(self.out, cell, by) for cell in cells if self.session.done(cell)}
            failed = [cell for cell in cells if not self.session.done(cell)]
            failures = {
                str(cell.seed): self.session.outcomes[cell.name].get("reason", "its scores are gone") for cell in failed
            }
            failures |= {seed: f"{by} was not scored" for seed, score in scores.items() if score is None}
            found.append(
                Candidate(
                    settings=combination, scores={seed: score for seed, score in scores.items() if score is not None},
                    failures=failures, folders=tuple(cell.folder for cell in cells),
                )
            )  # fmt: skip
        costs = [cost for cells in tried for cell in cells if (cost := read_cost(self.out, cell))]
        return Choice(
            chosen=best(found, by), candidates=tuple(found), flops=sum(cost.flops or 0.0 for cost in costs),
            wall_seconds=sum(cost.wall_seconds for cost in costs),
        )  # fmt: skip

    def work(self, cells: Sequence[Cell]) -> None:
        """Make cells, until this or another process has done each or failed at it."""
        self.cells += cells
        self.lines.number(cells)
        while left := self.session.unsettled(cells):
            busy = [cell for cell in left if not self._take(cell)]
            if len(busy) == len(left):
                self.lines.wait_for(busy)
                time.sleep(PAUSE)

    def _take(self, cell: Cell) -> bool:
        """Bring a cell up to date and note what became of it; return False where another process is in the way."""
        if not self.session.unsettled([cell]):
            return True
        folder, target = self.out / cell.folder, f"eval/{cell.row}"
        worked = False

        def make(place: Path, stage: Stage) -> dict[str, Any]:
            nonlocal worked
            if linked := self._link_twin(place, stage):
                return linked
            worked = True
            return self._make_stage(cell, place, stage)

        try:
            nodes = ancestors(self._graph(cell), target)
            with run_to_add_to(nodes, folder, cell.recipe.seed):
                bring_up_to_date(
                    nodes, folder, cell.recipe, redo=True, confirm=self.confirm,  # asked before
                    say=lambda line: None if line.startswith("[") else self.lines.about(cell, line, once=True),
                    make=make, hold=self.session.making,
                )  # fmt: skip
                key = (read_manifest(folder / target) or {})["key"]
            self.lines.about(cell)
            self.session.note(cell, {"status": "done", "key": key, "worked": worked})
        except BusyError:
            self.lines.put_off(cell)
            return False
        except Exception as error:
            self.lines.about(cell, f"failed: {_reason(error)}")
            if not isinstance(error, XftError):  # a library's; or a bug, which is to be seen
                traceback.print_exc()
            traceback.clear_frames(error.__traceback__)  # they hold a model, which may leave no room for the next one
            release_memory()
            if self.session.unsettled([cell]):  # else `_make_stage` has noted it
                self.session.note(cell, {"status": FAILED, "reason": _reason(error), "worked": worked})
        self.lines.worked += worked
        self._drop_weights()
        if time.monotonic() - self.written > WRITE_SECONDS:
            # What another process has put aside, to make it anew, is back for the last table; that one tells of damage.
            with contextlib.suppress(FileNotFoundError, XftError):
                write_results(self.grid, self.out, self.command, self.plan)
            self.written = time.monotonic()
        return True

    def _make_stage(self, cell: Cell, place: Path, stage: Stage) -> dict[str, Any]:
        if reason := self.session.failure(stage):
            raise RunError(reason)
        self.lines.about(cell, stage.name)
        try:
            return run_stage(place, stage)
        except BusyError:
            raise
        except Exception as error:  # noted before another process can try the stage
            self.session.note(cell, {"status": FAILED, "reason": _reason(error), "stage": stage.key, "worked": True})
            raise

    def _link_twin(self, place: Path, stage: Stage) -> dict[str, Any] | None:
        """Link a finished folder of the same stage in another cell, if there is one with all its files.

        Raises:
            BusyError: another process is at that cell, and may put the folder aside.
        """
        for run in (*self.out.glob(f"{RUNS}/*/*"), *self.out.glob(f"{SCREENING}/*/*/*")):
            twin = run / stage.name
            if twin != place and _is_whole(twin, stage.key):
                with run_folder(run, shared=True):
                    if _is_whole(twin, stage.key):
                        return _link(twin, place)
        return None

    def _graph(self, cell: Cell) -> list[Node]:
        key = cell.folder, cell.recipe_hash
        if key not in self.graphs:
            look_up_names(cell.recipe)
            self.graphs[key] = graph(cell.recipe, self.out / cell.folder)
        return self.graphs[key]

    def _needs(self, cell: Cell) -> list[tuple[str, str]]:
        """Return the stages that a cell needs, each with the hash of what its content depends on; its scores last."""
        nodes = ancestors(self._graph(cell), f"eval/{cell.row}")
        return list(fingerprints(nodes, cell.seed).items())

    def _drop_weights(self) -> None:
        """Delete the weights of finished cells which no other cell needs, if the grid says so."""
        if self.grid.keep == "all":
            return
        with writing(self.out):
            unsettled = self.session.unsettled(self.cells)  # one that was done before may be being made anew
            done = [cell for cell in self.cells if cell not in unsettled and self.session.done(cell)]
            needed = {content for cell in self.cells if cell not in done for _, content in self._needs(cell)}
            for cell in done:
                for name, content in self._needs(cell):
                    if content not in needed:
                        drop_files(self.out / cell.folder / name, WEIGHTS)


def _reason(error: Exception) -> str:
    """Say why a cell failed; of a library's error the type, too, and where memory was short what to do."""
    if isinstance(error, XftError):
        return str(error)
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError) or any(words in text for words in ("out of memory", "can't allocate memory")):
        return f"{text.rstrip('.: ')}; lower tune.micro_batch or eval.batch"
    return text


def _is_whole(folder: Path, key: str) -> bool:
    """Return whether a folder is a finished stage with all its files."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest["key"] == key and not manifest.get("dropped")


def _link(twin: Path, place: Path) -> dict[str, Any]:
    """Make a stage's folder out of links to another's files, which nothing changes once they are written."""
    linking = place.with_name(place.name + ".linking")
    shutil.rmtree(linking, ignore_errors=True)
    shutil.copytree(twin, linking, symlinks=True, copy_function=_link_file)
    shutil.rmtree(place.with_name(place.name + ".partial"), ignore_errors=True)
    linking.rename(place)
    return read_manifest(place) or {}


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
