"""What a process says while it works on an experiment: at which cell it is, and how long all will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from xft.experiment.plan import Cell
from xft.experiment.session import Session
from xft.progress import clock

MOST_SAID = 4
"""Cells that a line names."""


class Lines:
    """Says things about cells, each under a line with the cell's name."""

    def __init__(self, say: Callable[[str], None], session: Session, total: int) -> None:
        self.say, self.session, self.total = say, session, total
        self.numbers: dict[str, int] = {}
        """Of each cell, in the order of the work."""
        self.worked = 0
        """Cells on which this process has ended its work."""
        self.began, self.before = time.monotonic(), self._worked()
        self.cell = self.waiting = ""
        self.once: set[tuple[str, str]] = set()

    def number(self, cells: Sequence[Cell]) -> None:
        """Give cells the next numbers."""
        self.numbers |= {cell.name: number for number, cell in enumerate(cells, len(self.numbers) + 1)}

    def about(self, cell: Cell, line: str = "", *, once: bool = False) -> None:
        """Say something about a cell, `once` if it would be the same after the cell was put off."""
        if once and (cell.name, line) in self.once:
            return
        self.once.add((cell.name, line))
        if self.cell != cell.name:
            self.cell = cell.name
            left = self._left()
            self.say(
                f"[{self.numbers[cell.name]}/{self.total}] {cell.name}{f', about {clock(left)} left' if left else ''}"
            )
        if line:
            self.say(f"  {line}")

    def put_off(self, cell: Cell) -> None:
        """Say that another process is at what a cell needs, unless nothing was said about the cell."""
        if self.cell == cell.name:
            self.say("  put off: another process is at what comes next")
            self.cell = ""

    def wait_for(self, cells: Sequence[Cell]) -> None:
        """Say that other processes are at what is left, where that has changed."""
        more = f"; and {len(cells) - MOST_SAID} more" if len(cells) > MOST_SAID else ""
        line = "; ".join(cell.name for cell in cells[:MOST_SAID]) + more
        if line != self.waiting:
            self.waiting = line
            self.say(f"waiting for other processes, which are at what is left: {line}")

    def _left(self) -> float | None:
        """Return the seconds left at the pace of all processes since this one began; None before its own first cell."""
        if not self.worked:
            return None
        pace = (time.monotonic() - self.began) / max(self._worked() - self.before, self.worked)
        return pace * (self.total - len(self.session.settled()))

    def _worked(self) -> int:
        """Return how many cells have taken work in this session."""
        return sum(outcome["worked"] for outcome in self.session.settled())
