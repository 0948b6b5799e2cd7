"""Progress with time left: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 15.0

Advance = Callable[..., None]
"""`advance(n, note="")`: n more units are done."""


@contextmanager
def track(label: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show the way from `done` to `total` on stderr."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True))
        with bar:
            task = bar.add_task(label, total=total, completed=done, note="")
            yield lambda n, note="": bar.update(task, advance=n, note=note)
    else:
        lines = _Lines(label, total, done)
        yield lines.advance
        lines.close()


class _Lines:
    """Print a line every few seconds."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done, self.first = label, max(total, 1), done, done
        self.started = self.printed = time.monotonic()

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        if time.monotonic() - self.printed >= LINE_SECONDS:
            self._print(note)

    def _print(self, note: str) -> None:
        self.printed = time.monotonic()
        elapsed = self.printed - self.started
        left = elapsed / max(self.done - self.first, 1) * (self.total - self.done)
        percent = 100 * self.done // self.total
        print(
            f"  {self.label}: {percent}%, {clock(elapsed)} so far, {clock(left)} left  {note}".rstrip(), file=sys.stderr
        )

    def close(self) -> None:
        print(f"  {self.label}: done in {clock(time.monotonic() - self.started)}", file=sys.stderr)


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
