"""The warm server: a bare interpreter that forks candidates, one at a time. It never runs their code.

Runs in Python 3.9 or later, without site-packages unless a benchmark's own interpreter has them. It holds nothing of a
candidate: the parent sends the program, the calls and the token through pipes that only pass through here.

    server          waits for jobs; looks at the candidate's processes; kills and reaps what is left
    └── supervisor  level namespaces only: makes the namespaces
        └── init    process 1 in there; when it ends the kernel kills all the rest
            └── candidate    confined, then runs the code; at the other levels it is the server's own child

Messages to the parent: `hello {...}`, `ready` (the candidate starts), `exit STATUS`, `excess STATUS TEXT`, `fault
TEXT`, `done` (nothing is left). The candidate has no part in them. From the parent: a job with its two pipes, `end`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from . import candidate, commands, landlock, namespaces, processes, seccomp
from .confine import (
    COMMAND_THREADS,
    FILE_MB,
    OPEN_FILES,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PROCESSES,
    die_with_parent,
    drop_privileges,
    limit_resources,
    prctl,
)
from .frames import Reader

LOOK_S = 0.1
MESSAGE = 1 << 16
INPUT, REPLIES = 3, 4
ABOVE = 10
"""The server's own channel keeps out of the way of a candidate's two."""


def main() -> None:
    """Serve one job after the other until the parent is gone."""
    base, settings = sys.argv[2], json.loads(sys.argv[3])
    control = socket.socket(fileno=fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD_CLOEXEC, ABOVE))
    os.close(int(sys.argv[1]))
    try:
        for folder in settings["path"]:
            sys.path.append(folder)
        for name in settings["preload"]:
            importlib.import_module(name)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_DUMPABLE, 0)
        gc.collect()
        gc.freeze()
        control.send(b"hello")
        while True:
            message, channels, _, _ = socket.recv_fds(control, MESSAGE, 2)
            if not message:
                break
            if message == b"end":  # of a job that had just come to its own
                continue
            Job(control, base, channels, **settings["job"], **json.loads(message)).work()
    except BaseException as error:
        fault(control, error)
    finally:
        processes.kill_below()
        remove(base)
        os._exit(0)


def fault(control: socket.socket, error: BaseException) -> None:
    """Tell the parent that the sandbox failed, as long as it can be told."""
    with contextlib.suppress(OSError):
        control.send(f"fault {type(error).__name__}: {error}".encode("utf-8", "replace")[:1000])


class Job:
    """One candidate from its start until nothing is left of it."""

    def __init__(
        self,
        control: socket.socket,
        base: str,
        channels: list[int],
        *,
        level: str,
        keep: list[str],
        commands: bool,
        memory_mb: int,
        disk_mb: int,
    ) -> None:
        self.control = control
        self.base = base
        self.channels = channels
        self.level = level
        self.keep = keep
        self.commands = commands
        self.memory_mb = memory_mb
        self.disk_mb = disk_mb
        self.threads = COMMAND_THREADS if commands else PROCESSES
        self.folder = namespaces.FOLDER if level == "namespaces" else os.path.join(base, "work")
        self.idle_kb = resident_kb()

    def work(self) -> None:
        """Start the candidate, look after it, clear up."""
        if self.level != "namespaces":
            os.mkdir(self.folder, 0o700)
        child = self.fork(self.supervise if self.level == "namespaces" else self.confined)
        for channel in self.channels:
            os.close(channel)
        watch = os.pidfd_open(child)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        goes_on = True
        try:
            while True:
                ready = [number for number, _ in poll.poll(LOOK_S * 1000)]
                if self.control.fileno() in ready:
                    goes_on = bool(self.control.recv(MESSAGE))
                    break
                if watch in ready:
                    if self.level != "namespaces":
                        self.say(f"exit {os.waitpid(child, 0)[1]}")
                    break
                if not ready and self.look():
                    break
        finally:
            os.close(watch)
            processes.kill(child)
        left = processes.kill_below()
        if left:
            raise RuntimeError(f"{left} processes are still there {processes.END_S:.0f} s after SIGKILL")
        if self.level != "namespaces":
            remove(self.folder)
        if not goes_on:
            raise EOFError("the parent is gone")
        self.say("done")

    def say(self, text: str) -> None:
        """Tell the parent."""
        self.control.send(text.encode("utf-8", "replace"))

    def look(self) -> bool:
        """Report whether the candidate's processes use too much of something."""
        below = processes.descendants(os.getpid())
        if len(below) > PROCESSES or sum(each.threads for each in below) > COMMAND_THREADS:
            self.say(f"excess failed more than {PROCESSES} processes or {COMMAND_THREADS} threads")
            return True
        limit = (self.memory_mb << 20) + (self.idle_kb << 10)
        if sum(each.resident for each in below) > limit and sum(map(processes.own_memory, below)) > limit:
            self.say(f"excess memory all processes together use more than {self.memory_mb} MB")
            return True
        return False

    # --- in the processes below ---

    def fork(self, work: Callable[[], None]) -> int:
        """Do the work in a child; return its id."""
        child = os.fork()
        if not child:
            try:
                work()
                os._exit(0)
            except BaseException as error:
                fault(self.control, error)
            finally:
                os._exit(3)
        return child

    def supervise(self) -> None:
        """Make the namespaces and wait for what goes on in them."""
        die_with_parent()
        namespaces.enter_namespaces()
        os.waitpid(self.fork(self.init), 0)

    def init(self) -> None:
        """Reap until the candidate ends."""
        die_with_parent()
        os.setsid()
        namespaces.isolate_files(self.disk_mb, self.threads, self.keep)
        child = self.fork(self.confined)
        while True:
            ended, status = os.wait()
            if ended == child:
                self.say(f"exit {status}")
                return

    def confined(self) -> None:
        """Confine this process, as far as it will run what the candidate wrote, and let it run."""
        die_with_parent()
        os.setsid()
        os.chdir(self.folder)
        os.environ.update(HOME=self.folder, TMPDIR=self.folder)
        control = self.control.fileno()
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in zip([null, null, null, *self.channels], (0, 1, 2, INPUT, REPLIES)):  # noqa: B905
            os.dup2(source, target)
        os.closerange(REPLIES + 1, control)
        os.closerange(control + 1, OPEN_FILES)
        reader = Reader(INPUT)
        if not self.commands:
            self.confine()
            prctl(PR_SET_DUMPABLE, 1)
        self.say("ready")
        self.control.close()
        if self.commands:
            commands.serve(reader, REPLIES, self.confine)
        else:
            candidate.serve(reader, REPLIES)

    def confine(self) -> None:
        """Give up rights for good."""
        limits = {resource.RLIMIT_FSIZE: (self.disk_mb if self.commands else FILE_MB) << 20}
        if not self.commands:  # virtual machines reserve far more address space than they use
            limits[resource.RLIMIT_AS] = (self.memory_mb << 20) + address_space()
        if self.level == "namespaces":  # where only the candidate's own processes are counted
            limits[resource.RLIMIT_NPROC] = self.threads
        elif self.commands:
            limits[resource.RLIMIT_NPROC] = self.threads + users_threads()
        elif self.level == "unsafe":
            limits[resource.RLIMIT_NPROC] = 0
        limit_resources(limits)
        if self.level == "unsafe":
            return
        drop_privileges()
        version = None
        if self.level == "landlock":
            version = landlock.abi()
            landlock.restrict_files(self.folder, version)
        seccomp.filter_syscalls(seccomp.program(landlock=version, processes=self.commands))


def resident_kb() -> int:
    """Return what this process has in memory."""
    return int(processes.read("/proc/self/statm").split()[1]) * processes.PAGE >> 10


def address_space() -> int:
    """Return the bytes of address space of this process."""
    return int(processes.read("/proc/self/statm").split()[0]) * processes.PAGE


def users_threads() -> int:
    """Return how many threads this user has on the machine."""
    me, count = os.getuid(), 0
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == me:
                count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def remove(folder: str) -> None:
    """Remove a folder that a candidate may have filled with anything."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:  # rm, as it can do any depth
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], **quiet)
        subprocess.run(["rm", "-rf", "--", folder], **quiet)
