"""Make an experiment's cells, each as a run of the stages that its row needs; interrupted and resumed at will.

A stage that another cell has made already is linked, not made again.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xft.errors import XftError
from xft.experiment.cells import GRID, is_done, read_cost, read_mean, read_outcomes, write_outcomes
from xft.experiment.choice import Candidate, Choice, best, write_choices
from xft.experiment.collect import Results
from xft.experiment.config import Grid
from xft.experiment.plan import RUNS, SCREENING, Cell, Combination, Plan
from xft.experiment.report import write_results
from xft.graph import Node, ancestors, bring_up_to_date, fingerprints, run_folder
from xft.pipeline import graph, look_up_names
from xft.progress import clock
from xft.stage import Stage, drop_files, read_manifest, run_stage

WEIGHTS = "model*.safetensors"
WRITE_SECONDS = 30.0
"""At least so long between two tables of what is known so far."""


def run(
    grid: Grid, out: Path, *, command: str, redo: bool, confirm: Callable[[str], bool], say: Callable[[str], None]
) -> Results:
    """Bring an experiment's folder up to date; return what is known then.

    Meanwhile results.json, results.md and report/index.html tell what is known so far.

    Raises:
        RecipeError, UnknownNameError: a cell's recipe is wrong; found before anything is written.
        RunError: another process is at it, or `out` holds something else.
    """
    bench = _Bench(grid, out, command, redo, confirm, say)
    candidates = bench.candidates()
    bench.check({name: tries[0] for name, tries in candidates.items()})
    with run_folder(out, GRID):
        (out / GRID).write_text(yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
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
        self.outcomes = read_outcomes(out)
        """What became of each cell, by its name."""
        self.graphs: dict[tuple[str, str], list[Node]] = {}
        """By run directory and the recipe's hash."""
        self.cells: list[Cell] = []
        """All of this start, those of the screening first."""
        self.failed: dict[str, XftError] = {}
        """What went wrong in this start, by the stage's key: methods that share a stage do not all try it again."""
        self.seconds: list[float] = []
        """What each cell took on which there was work."""
        self.written = time.monotonic()
        self.total = self.number = 0

    def check(self, chosen: Mapping[str, Combination]) -> None:
        """Make the plan of the experiment proper, so that what is wrong in it is found before any work."""
        for cell in self.plan.confirmation(chosen):
            self._needs(cell)

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
        tried = {
            method: [self.plan.screening(method, combination) for combination in combinations]
            for method, combinations in candidates.items()
            if len(combinations) > 1
        }
        self.work([cell for each in tried.values() for cells in each for cell in cells])
        choices = {method: self._choice(candidates[method], tried.get(method, [])) for method in candidates}
        write_choices(self.out, choices)
        return choices

    def _choice(self, combinations: list[Combination], tried: list[list[Cell]]) -> Choice:
        if not tried or self.grid.choose is None:
            return Choice(chosen=combinations[0])
        by = self.grid.choose.by
        found = []
        for combination, cells in zip(combinations, tried, strict=True):
            scores = {str(cell.seed): read_mean(self.out, cell, by) for cell in cells if self._done(cell)}
            failures = {str(cell.seed): self.outcomes[cell.name]["reason"] for cell in cells if not self._done(cell)}
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
        """Make cells, one after another; a failure is noted, and the others are made."""
        self.cells += cells
        for cell in cells:
            left = statistics.fmean(self.seconds) * (self.total - self.number) if self.seconds else None
            self.number += 1
            self.say(f"[{self.number}/{self.total}] {cell.name}{f', about {clock(left)} left' if left else ''}")
            began = time.monotonic()
            worked = self._make_cell(cell)
            write_outcomes(self.out, self.outcomes)
            self._drop_weights()
            if worked:
                self.seconds.append(time.monotonic() - began)
            if time.monotonic() - self.written > WRITE_SECONDS:
                write_results(self.grid, self.out, self.command, self.plan)
                self.written = time.monotonic()

    def _done(self, cell: Cell) -> bool:
        return is_done(self.outcomes, cell)

    def _make_cell(self, cell: Cell) -> bool:
        """Bring a cell up to date, note what became of it, and return whether a stage was worked on."""
        folder, target = self.out / cell.folder, f"eval/{cell.row}"
        worked: list[str] = []

        def make(place: Path, stage: Stage) -> dict[str, Any]:
            if twin := self._twin(place, stage):
                return _link(twin, place)
            worked.append(stage.name)
            return self._make_stage(place, stage)

        try:
            with run_folder(folder):
                bring_up_to_date(
                    ancestors(self._graph(cell), target), folder, cell.recipe, redo=self.redo, confirm=self.confirm,
                    say=lambda line: None if line.startswith("[") else self.say(f"  {line}"), make=make,
                )  # fmt: skip
            outcome = {"status": "done", "key": (read_manifest(folder / target) or {})["key"]}
        except XftError as error:
            self.say(f"  failed: {error}")
            outcome = {"status": "failed", "reason": str(error)}
        self.outcomes[cell.name] = outcome | {"recipe": cell.recipe_hash}
        return bool(worked)

    def _make_stage(self, place: Path, stage: Stage) -> dict[str, Any]:
        if error := self.failed.get(stage.key):
            raise error
        self.say(f"  {stage.name}")
        try:
            return run_stage(place, stage)
        except XftError as error:
            self.failed[stage.key] = error
            raise

    def _twin(self, place: Path, stage: Stage) -> Path | None:
        """Return a finished folder of the same stage in another cell, with all its files."""
        for folder in (*self.out.glob(f"{RUNS}/*/*"), *self.out.glob(f"{SCREENING}/*/*/*")):
            manifest = read_manifest(folder / stage.name) if folder / stage.name != place else None
            if manifest and manifest["key"] == stage.key and not manifest.get("dropped"):
                return folder / stage.name
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
        needed = {content for cell in self.cells if not self._done(cell) for _, content in self._needs(cell)}
        for cell in self.cells:
            for name, content in self._needs(cell) if self._done(cell) else ():
                if content not in needed:
                    drop_files(self.out / cell.folder / name, WEIGHTS)


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
