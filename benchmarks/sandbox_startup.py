"""Measure what a candidate costs beside its own work: from the request to its first statement, and its tear-down.

    python benchmarks/sandbox_startup.py [--candidates N]

Both by the parent's clock, in milliseconds, for each level that works here, and for a plain process of the same
interpreter: no walls, no looks, only fork, exec and wait. Start and tear-down of the same candidate are added before
the median is taken. Needs an idle machine: the load is printed, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

from xft.errors import SandboxError
from xft.eval.sandbox import Call, Level, Returned, Sandbox

CODE = "import time\nbegan = time.monotonic()\ndef f(): return began"
Times = tuple[float, float]


def in_sandbox(box: Sandbox) -> Times:
    """Run a candidate; return the seconds of its start and of its tear-down."""
    seen: list[float] = []

    def judge(index: int, returned: Returned) -> None:
        seen.extend((returned.value, time.monotonic()))

    asked = time.monotonic()
    outcome = box.call(CODE, "f", [Call(arguments=(), seconds=30)], judge, memory_mb=512)
    over = time.monotonic()
    assert outcome.status == "passed", outcome
    return seen[0] - asked, over - seen[1]


def plain() -> Times:
    """Start an interpreter and wait for its end."""
    asked = time.monotonic()
    command = [sys.executable, "-S", "-s", "-B", "-P", "-c", "import time; print(time.monotonic(), flush=True)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        began = float(process.stdout.readline())
        heard = time.monotonic()
    return began - asked, time.monotonic() - heard


def row(name: str, measure: Callable[[], Times], count: int) -> str:
    """Measure one way of running candidates."""
    for _ in range(10):
        measure()
    times = [measure() for _ in range(count)]
    sums = sorted(1e3 * (start + end) for start, end in times)
    start, end = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    median, late = statistics.median(sums), sums[int(0.95 * count)]
    return f"{name:<26}{start:>8.2f}{end:>11.2f}{median:>9.2f}{late:>9.2f}{sums[0]:>9.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the start-up cost of candidates.")
    parser.add_argument("--candidates", type=int, default=200)
    count = parser.parse_args().candidates
    print(f"{count} candidates each, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, milliseconds")
    print(f"{'':<26}{'start':>8}{'tear-down':>11}{'both':>9}{'95%':>9}{'least':>9}")
    for level in get_args(Level):
        try:
            with Sandbox(level, allow_unsafe=True) as box:
                print(row(f"sandbox: {level}", partial(in_sandbox, box), count))
        except SandboxError as error:
            print(f"sandbox: {level}: not run: {error}")
    print(row("plain fork + exec python", plain, count))


if __name__ == "__main__":
    main()
