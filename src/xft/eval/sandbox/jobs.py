"""One candidate in the server: start it behind walls, look after it, leave nothing of it.

Runs in a bare interpreter, 3.9 or later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from . import candidate, commands, landlock, namespaces, processes, seccomp, sight
from .confine import (
    COMMAND_THREADS,
    FILE_MB,
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
ABOVE, ALL_FILES = 10, 1 << 16
"""The server's own channels keep out of the way of a candidate's two."""


class Walls:
    """What confines all candidates of this server, made ready once; also decides what they can import."""

    def __init__(self, level: str, base: str, libraries: Mapping[str, str], tools: Sequence[str]) -> None:
        self.level = level
        self.ruleset = -1
        self.user, self.group = os.getuid(), os.getgid()
        self.folder = namespaces.FOLDER if level == "namespaces" else os.path.join(base, "work")
        place = namespaces.LIBRARIES if level == "namespaces" else os.path.join(base, "libraries")
        links = {os.path.join(place, name): target for name, target in libraries.items()}
        own = [*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, *sight.home_of(sys.executable)]
        self.sight = sight.in_sight([*filter(os.path.isabs, own), *libraries.values(), *tools])
        if level == "namespaces":
            os.rmdir(base)  # out of reach from there
            os.environ.update(HOME="/tmp", TMPDIR="/tmp")
            self.kept = namespaces.enter_root(self.sight, links)
        else:
            self.version = landlock.abi() if level == "landlock" else 0
            os.mkdir(place)
            for link, target in links.items():
                os.symlink(target, link)
            self.sight.append(place)
            self.new_folder()
        if libraries:
            sys.path.append(place)

    def new_folder(self) -> None:
        """Make the working folder where it is not a candidate's own disk."""
        os.mkdir(self.folder, 0o700)
        if self.level == "landlock":
            self.ruleset = out_of_the_way(landlock.make_ruleset(self.folder, self.sight, self.version))

    def clear(self) -> None:
        """Empty the working folder where it is not gone with the candidate."""
        if self.level != "namespaces" and os.listdir(self.folder):
            if self.ruleset >= 0:
                os.close(self.ruleset)
            remove(self.folder)
            self.new_folder()

    def close_in(self, memory_mb: int, disk_mb: int, *, commands: bool) -> None:
        """Give up rights for good."""
        limits = {resource.RLIMIT_FSIZE: (disk_mb if commands else FILE_MB) << 20}
        if not commands:  # virtual machines reserve far more address space than they use
            limits[resource.RLIMIT_AS] = (memory_mb << 20) + memory_pages()[0] * processes.PAGE
        tasks = COMMAND_THREADS if commands else PROCESSES
        if self.level == "namespaces":  # where only the candidate's own processes are counted
            limits[resource.RLIMIT_NPROC] = tasks
        elif commands:
            limits[resource.RLIMIT_NPROC] = tasks + users_threads()
        elif self.level == "unsafe":
            limits[resource.RLIMIT_NPROC] = 0
        limit_resources(limits)
        if self.level == "unsafe":
            return
        drop_privileges()
        if self.level == "landlock":
            landlock.restrict(self.ruleset)
        version = self.version if self.level == "landlock" else None
        seccomp.filter_syscalls(seccomp.program(landlock=version, processes=commands))


class Job:
    """One candidate from its start until nothing is left of it."""

    def __init__(
        self,
        control: socket.socket,
        walls: Walls,
        channels: list[int],
        *,
        commands: bool,
        memory_mb: int,
        disk_mb: int,
    ) -> None:
        self.control = control
        self.walls = walls
        self.channels = channels
        self.commands = commands
        self.memory_mb = memory_mb
        self.disk_mb = disk_mb
        self.idle = memory_pages()[1] * processes.PAGE

    def work(self) -> None:
        """Start the candidate, look after it, clear up.

        Raises:
            EOFError: the parent is gone.
        """
        alone = self.walls.level == "namespaces"
        child = self.fork(namespaces.fork, self.init) if alone else self.fork(os.fork, self.confined)
        for channel in self.channels:
            os.close(channel)
        goes_on = self.wait(child)
        processes.kill(child, whole_group=True)
        processes.kill(child)
        if left := processes.kill_below():
            raise RuntimeError(f"{left} processes are still there {processes.END_S:.0f} s after SIGKILL")
        self.walls.clear()
        if not goes_on:
            raise EOFError("the parent is gone")
        self.say("done")

    def wait(self, child: int) -> bool:
        """Wait for the end of the candidate, and say why it came; False: as the parent is gone."""
        watch = os.pidfd_open(child)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        looked = time.monotonic()
        try:
            while True:
                ready = [number for number, _ in poll.poll(LOOK_S * 1000)]
                if self.control.fileno() in ready:
                    return bool(self.control.recv(MESSAGE))
                if watch in ready:
                    if self.walls.level != "namespaces":
                        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
                        assert ended is not None
                        killed = ended.si_code != os.CLD_EXITED
                        self.say(f"exit {ended.si_status if killed else ended.si_status << 8}")
                    return True
                if time.monotonic() - looked >= LOOK_S:
                    looked = time.monotonic()
                    if excess := self.excess():
                        self.say(f"excess {excess}")
                        return True
        finally:
            os.close(watch)

    def excess(self) -> str:
        """Say what the candidate's processes use too much of, if anything."""
        below = processes.descendants(os.getpid())
        if len(below) > PROCESSES + 2 or sum(each.threads for each in below) > COMMAND_THREADS:
            return f"failed more than {PROCESSES} processes or {COMMAND_THREADS} threads"
        limit = (self.memory_mb << 20) + self.idle
        if sum(each.resident for each in below) > limit and sum(map(processes.own_memory, below)) > limit:
            return f"memory all processes together use more than {self.memory_mb} MB"
        if self.walls.level != "namespaces":
            used = processes.disk_use(self.walls.folder, below)
            if used > self.disk_mb << 20:
                return f"failed more than {self.disk_mb} MB of files"
        return ""

    def say(self, text: str) -> None:
        """Tell the parent."""
        self.control.send(text.encode("utf-8", "replace"))

    # --- in the processes below ---

    def fork(self, fork: Callable[[], int], work: Callable[[], None]) -> int:
        """Do the work in a child; return its id."""
        child = fork()
        if not child:
            try:
                die_with_parent()
                os.setsid()
                with contextlib.suppress(OSError):  # what init starts has it from there
                    namespaces.put("/proc/self/oom_score_adj", b"1000")  # the first to go where memory is short
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                work()
                os._exit(0)
            except BaseException as error:
                fault(self.control, error)
            finally:
                os._exit(3)
        return child

    def init(self) -> None:
        """Reap until the candidate ends."""
        tasks = COMMAND_THREADS if self.commands else PROCESSES
        prctl(PR_SET_DUMPABLE, 1)  # else an ordinary user's own settings in /proc would not be theirs
        namespaces.settle(self.walls.user, self.walls.group, self.disk_mb, tasks, self.walls.kept)
        prctl(PR_SET_DUMPABLE, 0)
        child = self.fork(os.fork, self.confined)
        while True:
            ended, status = os.wait()
            if ended == child:
                self.say(f"exit {status}")
                return

    def confined(self) -> None:
        """Confine this process, as far as it will run what the candidate wrote, and let it run."""
        os.chdir(self.walls.folder)
        os.environ.update(HOME=self.walls.folder, TMPDIR=self.walls.folder)
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in zip([null, null, null, *self.channels], (0, 1, 2, INPUT, REPLIES)):  # noqa: B905
            os.dup2(source, target)
        self.control.set_inheritable(False)
        reader = Reader(INPUT)
        if not self.commands:
            self.close_in()
            prctl(PR_SET_DUMPABLE, 1)
        low = REPLIES + 1
        for needed in sorted({self.control.fileno(), self.walls.ruleset if self.commands else -1}):
            os.closerange(low, max(low, needed))
            low = max(low, needed + 1)
        os.closerange(low, ALL_FILES)
        self.say("ready")
        self.control.close()
        if self.commands:
            commands.serve(reader, REPLIES, self.close_in)
        else:
            candidate.serve(reader, REPLIES)

    def close_in(self) -> None:
        """Give up rights for good."""
        self.walls.close_in(self.memory_mb, self.disk_mb, commands=self.commands)


def out_of_the_way(descriptor: int) -> int:
    """Give a descriptor a number that candidates don't use."""
    higher = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE)
    os.close(descriptor)
    return higher


def fault(control: socket.socket, error: BaseException) -> None:
    """Tell the parent that the sandbox failed, as long as it can be told."""
    with contextlib.suppress(OSError):
        control.send(f"fault {type(error).__name__}: {error}".encode("utf-8", "replace")[:1000])


def memory_pages() -> tuple[int, int]:
    """Return the pages of address space and of memory of this process."""
    size, resident = processes.read("/proc/self/statm").split()[:2]
    return int(size), int(resident)


def users_threads() -> int:
    """Return how many threads this user has on the machine."""
    me, count = os.getuid(), 0
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == me:
                count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def remove(folder: str) -> None:
    """Remove a folder that a candidate may have filled with anything; `rm`, as it can do any depth."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
        if not os.path.lexists(folder):
            return
        subprocess.run([*command, "--", folder], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
