"""Look at processes from outside and kill them. Runs in a bare interpreter, 3.9 or later."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
END_S = 10.0


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    group: int
    alive: bool
    threads: int
    resident: int
    """Bytes."""


def descendants(pid: int) -> list[Process]:
    """Return the living processes below one, parents before their children."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = read(f"/proc/{entry}/stat")
            if not stat:  # gone meanwhile
                continue
            state, parent, group, *rest = stat[stat.rindex(b")") + 2 :].split()
            alive = state not in (b"Z", b"X")
            process = Process(int(entry), int(group), alive, int(rest[14]), int(rest[18]) * PAGE)
            children.setdefault(int(parent), []).append(process)
    found: list[Process] = []
    queue = [pid]
    for parent_pid in queue:
        found += children.get(parent_pid, [])
        queue += [child.pid for child in children.get(parent_pid, [])]
    return [process for process in found if process.alive]


def own_memory(process: Process) -> int:
    """Return resident bytes, those shared with other processes divided among them."""
    for line in read(f"/proc/{process.pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) << 10
    return process.resident


def read(path: str) -> bytes:
    """Return a file of /proc; nothing where it is gone or closed to us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def kill_below() -> int:
    """Kill and reap all descendants of this process, which must be a subreaper; return how many could not be killed.

    Whole groups first: that is one step for the kernel, and no fork slips through.
    """
    deadline = time.monotonic() + END_S
    pause = 0.0005
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        below = descendants(os.getpid())
        for group in {each.group for each in below} - {os.getpgrp()}:
            kill(group, whole_group=True)
        for each in below:
            kill(each.pid)
        if time.monotonic() > deadline:
            return len(below)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def kill(target: int, *, whole_group: bool = False) -> None:
    """Send SIGKILL to what may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        if whole_group:
            os.killpg(target, signal.SIGKILL)
        else:
            os.kill(target, signal.SIGKILL)
