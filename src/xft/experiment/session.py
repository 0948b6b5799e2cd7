"""The processes that are at one experiment at the same time: what they agree on, and who makes what."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from xft.errors import BusyError, RunError
from xft.experiment.cells import LOCKS, is_done, read_outcomes, write_outcomes
from xft.experiment.plan import Cell
from xft.graph import run_folder
from xft.stage import Stage, locked, read_json, write_json

GRID, SESSION = "grid.yaml", "session.json"
START_SECONDS = 10.0
"""How long to wait for another process that is just starting."""


class Session:
    """What all processes that are at an experiment have noted, as far as it was read."""

    def __init__(self, out: Path, name: str) -> None:
        self.out, self.name = out, name
        self.outcomes = read_outcomes(out)

    def unsettled(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that no process of this session has done, or failed at; reads anew what they have noted."""
        self.outcomes = read_outcomes(self.out)
        return [cell for cell in cells if not self._is_ours(self.outcomes.get(cell.name, {}))]

    def note(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        """Write what became of a cell; `stage` is the key of one that failed."""
        write_outcomes(self.out, {cell.name: {**outcome, "recipe": cell.recipe_hash, "session": self.name}})

    def done(self, cell: Cell) -> bool:
        """Return whether a cell has been made."""
        return is_done(self.out, self.outcomes, cell)

    def failure(self, stage: Stage) -> str | None:
        """Return why a stage has failed in this session: cells that share it need not all try."""
        self.outcomes = read_outcomes(self.out)
        return next((outcome["reason"] for outcome in self.settled() if outcome.get("stage") == stage.key), None)

    def settled(self) -> list[Mapping[str, Any]]:
        """Return the outcomes that were noted in this session."""
        return [outcome for outcome in self.outcomes.values() if self._is_ours(outcome)]

    def _is_ours(self, outcome: Mapping[str, Any]) -> bool:
        return outcome.get("session") == self.name

    def making(self, stage: Stage) -> AbstractContextManager[None]:
        """Keep other processes from making a stage, in whatever cell.

        Raises:
            BusyError: one of them is making it.
        """
        return locked(self.out / LOCKS / stage.key)


@contextmanager
def joined(out: Path, grid: str, work: str) -> Iterator[Session]:
    """Take part in the session at an experiment's folder, or begin one.

    It ends with the last of its processes, however they end. All have the same `work`, a hash of it.

    Raises:
        BusyError: a process that shares nothing is at the folder.
        RunError: the folder holds something else, or a session with other work is on.
    """
    with contextlib.suppress(BusyError), run_folder(out, GRID):  # nobody is at it
        (out / LOCKS).mkdir(exist_ok=True)
        (out / GRID).write_text(grid, encoding="utf-8")
        write_json(out / LOCKS / SESSION, {"name": secrets.token_hex(8), "work": work})
    with run_folder(out, GRID, shared=True, wait=START_SECONDS):
        # Another process may have begun in between. What is written now stays: to begin, one must be alone.
        session = read_json(out / LOCKS / SESSION, {})
        if session.get("work") != work:
            raise RunError(
                f"{out}: another process is at work here with another grid, other overrides or other data; "
                "wait for it, or stop it first, or give another folder with --out"
            )
        yield Session(out, session["name"])
