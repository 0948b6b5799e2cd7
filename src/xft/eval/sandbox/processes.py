"""Look at processes from outside and kill them. Runs in a bare interpreter, 3.9 or later."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
END_S = 30.0  # on a busy machine a fork bomb takes long to die
PATIENCE_S = 0.02
MANY_FILES, LONG_PATH, TOO_MUCH = 20_000, 4000, 1 << 60


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    group: int
    threads: int
    resident: int
    """Bytes."""


def descendants(pid: int) -> list[Process]:
    """Return the processes below one, parents before their children, and those that nobody has reaped."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            line = read(f"/proc/{entry}/stat")
            if not line:  # gone meanwhile
                continue
            _state, parent, group, *rest = line[line.rindex(b")") + 2 :].split()
            process = Process(int(entry), int(group), int(rest[14]), int(rest[18]) * PAGE)
            children.setdefault(int(parent), []).append(process)
    found: list[Process] = []
    queue = [pid]
    for parent_pid in queue:
        found += children.get(parent_pid, [])
        queue += [child.pid for child in children.get(parent_pid, [])]
    return found


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


def disk_use(folder: str, below: list[Process]) -> int:
    """Return the bytes of files below a folder, and of those that processes hold open without a name.

    More than can be counted in a moment is too much.
    """
    used, queue, seen = 0, [folder], 0
    for current in queue:
        with contextlib.suppress(OSError), os.scandir(current) as entries:
            for entry in entries:
                seen += 1
                if seen > MANY_FILES or len(entry.path) > LONG_PATH:
                    return TOO_MUCH
                with contextlib.suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    queue.append(entry.path)
    for process in below:
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{process.pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{process.pid}/fd/{descriptor}")
                    if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                        used += status.st_blocks * 512
    return used


def kill_below() -> int:
    """Kill and reap all descendants of this process, which must be a subreaper; return how many could not be killed.

    Whole groups first: that is one step for the kernel, and no fork slips through. SIGCHLD must be blocked.
    """
    began = time.monotonic()
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        waited = time.monotonic() - began
        if waited > PATIENCE_S:  # what was killed has not taken the rest with it
            below = descendants(os.getpid())
            for group in {each.group for each in below} - {os.getpgrp()}:
                kill(group, whole_group=True)
            for each in below:
                kill(each.pid)
            if waited > END_S:
                return len(below)
        signal.sigtimedwait({signal.SIGCHLD}, PATIENCE_S)


def kill(target: int, *, whole_group: bool = False) -> None:
    """Send SIGKILL to what may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        if whole_group:
            os.killpg(target, signal.SIGKILL)
        else:
            os.kill(target, signal.SIGKILL)
