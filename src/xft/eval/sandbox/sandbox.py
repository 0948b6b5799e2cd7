"""Run untrusted programs in confined processes and say how they ended: the sandbox's interface.

    run        a Python program with its tests inside
    call       a Python function, called here and there: its answers are compared in this process
    execute    files and commands: compilers and programs of other languages

The verdict. What a candidate prints and the code it exits with prove nothing: `sys.exit(0)`, `os._exit(0)`, `raise
SystemExit` and printed markers fail. A program of `run` passes when it gets to its end, where the runner returns a
random token. The process of `call` gets arguments and returns plain values; it never holds what is expected, and the
judge sees copies, so that nothing of the candidate's own runs where the verdict is made. A command of `execute` passes
when the last line it prints is the proof that the caller put into its tests.

Who does what. This process keeps the clock, reads without waiting and no more than it asked for, judges, and ends a
candidate at its first wrong answer. One warm server for each concurrent call (`warm.py`, a bare interpreter that runs
nothing of a candidate) forks candidates behind the walls, looks at their processes every 0.1 s, and kills and reaps all
that is left before the next one starts. A server dies with this process, and its candidate with it.

Levels, strongest first; the strongest that proves itself by keeping a program in is used.

    namespaces   For each candidate: own users, processes, network, IPC, host name, mounts. It sees the programs and
                 libraries of the system, its interpreter and tools, read-only; private disks at /tmp and /dev/shm;
                 its own processes. No network, no devices, no capabilities, and the filter of system calls.
    landlock     The same files in sight, enforced by Landlock; only the working folder can be written. The filter also
                 refuses new processes to Python candidates (threads are allowed), changes of owners, modes and times,
                 and what an older Landlock does not govern: signals before Linux 6.12, cutting a file short by its
                 name before 6.2, moving files between folders before 5.19. It sees the machine's list of processes.
                 Needs neither root nor namespaces, so it works in most containers.
    unsafe       Limits and killing only: a candidate can do what the user can do. Never chosen unasked.

Limits at every level: wall-clock seconds; megabytes of memory, as address space of a Python process beyond the bare
interpreter's and as resident sum of all processes; 64 MB a file and a disk, 512 MB for commands; 64 processes; 256 open
files; an empty environment, empty input, a fixed hash seed, no core dumps. Python candidates can import the standard
library, and what `libraries` or their own interpreter add.

What remains possible:

* Where tests are inside the program (`run`, `execute`) code that looks for the token or proof in its own process or
  files, and objects that equal everything, can forge a pass. Only `call` defends against that.
* Between two looks memory can be over the sum of several processes, or files over 512 MB at level landlock. There
  root's processes are not counted by the kernel either, so a fork bomb of `execute` has up to 0.1 s.
* At level landlock programs that need child processes or POSIX semaphores fail, and names and arguments of other
  processes can be read; before Linux 6.12 commands can abort (SIGABRT) other processes of the same user.
* Timing: a candidate can tell how long things take, and slow its neighbours down within its limits.
* The kernel's own faults.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from xft.errors import MissingExtraError, SandboxError
from xft.eval.sandbox.follow import Judge, follow_calls, follow_commands, follow_program
from xft.eval.sandbox.outcome import Call, Level, Outcome, Step
from xft.eval.sandbox.server import Fault, Run, Server
from xft.eval.sandbox.sight import home_of

DISK_MB = 64
COMMANDS_DISK_MB = 512
PROBE_S = 60.0
PAUSE_S = 0.3
"""Between a fault and the second try: the machine may be short of something for a moment."""


class Sandbox:
    """Run candidates at one level; `level` and `reason` say which and why.

    A context manager. Safe to use from several threads: each call has a warm server of its own while it lasts.

    Args:
        level: the strongest that works, unless asked for.
        python: interpreter of the candidates, with its site-packages; None: this one, with its standard library alone.
        libraries: installed distributions that candidates may import besides, such as `numpy`.
        preload: modules that the servers import before they fork candidates.
        allow_unsafe: accept level unsafe.

    Raises:
        SandboxError: the level asked for does not work here, or none does and `allow_unsafe` is not set.
    """

    def __init__(
        self,
        level: Level | None = None,
        *,
        python: Path | None = None,
        libraries: Sequence[str] = (),
        preload: Sequence[str] = (),
        allow_unsafe: bool = False,
    ) -> None:
        if level is not None and level not in get_args(Level):
            raise SandboxError(f"unknown sandbox level {level!r}; available: {', '.join(get_args(Level))}")
        self.level: Level
        if level is None:
            self.level, self.reason = detect_level()
        else:
            self.level, self.reason = level, "asked for"
            if level != "unsafe" and (fault := _disproof(level)):
                raise SandboxError(f"sandbox level {level} does not work here: {fault}")
        if self.level == "unsafe" and not allow_unsafe:
            raise SandboxError(
                f"no sandbox works here ({self.reason}); allow user namespaces or Landlock, or accept with "
                "allow_unsafe that generated programs run with all your rights"
            )
        self._start = functools.partial(
            Server, self.level, python=python, libraries=_files_of(libraries), preload=list(preload)
        )
        self._tools: set[str] = set()
        self._lock = threading.Lock()
        self._idle: list[Server] = []
        weakref.finalize(self, _close_all, self._idle)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers; a later call starts new ones."""
        with self._lock:
            idle = self._idle[:]
            self._idle.clear()
        _close_all(idle)

    def run(self, program: str, *, seconds: float, memory_mb: int) -> Outcome:
        """Run a Python program, its tests inside, to its end or its limits.

        Raises:
            SandboxError: the sandbox itself failed, twice.
            ValueError: a limit is not a positive number.
        """
        _positive(seconds=seconds, memory_mb=memory_mb)
        return self._twice(lambda run: follow_program(run, program, seconds=seconds), memory_mb)

    def call(self, code: str, entry_point: str, calls: Sequence[Call], judge: Judge, *, memory_mb: int) -> Outcome:
        """Execute code, then call its function for one call after the other, judging each answer here.

        The candidate's process gets the arguments and nothing else. `judge` is given the index of the call and what it
        returned; it answers None, or what is wrong, which ends the run. The code itself has CODE_S seconds.

        Raises:
            SandboxError: the sandbox itself failed, twice.
            ValueError: a limit is not a positive number.
        """
        _positive(memory_mb=memory_mb)
        return self._twice(lambda run: follow_calls(run, code, entry_point, calls, judge), memory_mb)

    def execute(self, files: Mapping[str, str], steps: Sequence[Step], *, proof: str, memory_mb: int) -> Outcome:
        """Write files into the working folder and run commands there; the last must end well and print `proof` last.

        Raises:
            SandboxError: the sandbox itself failed, twice.
            ValueError: a limit is not a positive number, or a file's name leads out of the folder.
        """
        _positive(memory_mb=memory_mb, **{f"seconds of {step.argv[0]}": step.seconds for step in steps})
        for name in files:
            if os.path.isabs(name) or ".." in name.split("/") or not name or "\0" in name:
                raise ValueError(f"not a file's name within a folder: {name!r}")
        tools = {folder for step in steps if os.path.isabs(step.argv[0]) for folder in home_of(step.argv[0])}
        with self._lock:
            self._tools |= tools
        return self._twice(lambda run: follow_commands(run, files, steps, proof=proof), memory_mb, commands=True)

    def _twice(self, follow: Callable[[Run], Outcome], memory_mb: int, *, commands: bool = False) -> Outcome:
        disk_mb = COMMANDS_DISK_MB if commands else DISK_MB
        for attempt in (1, 2):
            try:
                with (
                    self._server() as server,
                    Run(server, commands=commands, memory_mb=memory_mb, disk_mb=disk_mb) as run,
                ):
                    return follow(run)
            except Fault as fault:
                if attempt == 2:
                    raise SandboxError(f"the sandbox (level {self.level}) failed twice: {fault}") from None
                time.sleep(PAUSE_S)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _server(self) -> Iterator[Server]:
        """Lend a server that nobody else uses; one that failed is not used again."""
        with self._lock:
            tools = frozenset(self._tools)
            server = self._idle.pop() if self._idle else None
        if server and not server.tools >= tools:  # its candidates can't see them
            server.close()
            server = None
        server = server or self._start(tools=tools)
        try:
            yield server
        except Fault:
            server.close()
            raise
        except BaseException:
            self._give_back(server)
            raise
        self._give_back(server)

    def _give_back(self, server: Server) -> None:
        with self._lock:
            self._idle.append(server)


def _close_all(servers: list[Server]) -> None:
    """End servers."""
    while servers:
        servers.pop().close()


def _positive(**limits: float) -> None:
    """Refuse limits that are not positive numbers."""
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
            raise ValueError(f"{name} must be a positive number, got {limit!r}")


def _files_of(libraries: Sequence[str]) -> dict[str, str]:
    """Return the files and folders that distributions put beside each other, by name."""
    found = {}
    for name in libraries:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise MissingExtraError(f"candidates need the package {name}: pip install {name}") from None
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops or {name}:
            found[top] = os.path.realpath(str(distribution.locate_file(top)))
    return found


@functools.cache
def detect_level() -> tuple[Level, str]:
    """Try the levels, strongest first; return the first that confines a program, and why not a stronger one."""
    faults: list[str] = []
    for level in get_args(Level)[:-1]:
        fault = _disproof(level)
        if not fault:
            return level, "; ".join([*faults, f"{level}: proved by trying"])
        faults.append(f"{level}: {fault}")
    return "unsafe", "; ".join(faults)


PROBE = """
import os, socket
for attempt in (
    socket.socket, lambda: open({path!r}), lambda: open({path!r}, "w"), lambda: os.unlink({path!r}),
    lambda: os.kill({pid}, 0),
):
    try:
        attempt()
    except OSError:
        pass
    else:
        raise AssertionError("not confined")
"""


@functools.cache
def _disproof(level: Level) -> str:
    """Say why a level does not confine programs here; "" when it does."""
    with tempfile.TemporaryDirectory(prefix="xft-") as folder:
        Path(folder, "private").touch()
        probe = PROBE.format(path=str(Path(folder, "private")), pid=os.getpid())
        try:
            server = Server(level, python=None, libraries={}, tools=(), preload=())
            try:
                with Run(server, commands=False, memory_mb=1024, disk_mb=DISK_MB) as run:
                    outcome = follow_program(run, probe, seconds=PROBE_S)
            finally:
                server.close()
        except Fault as fault:
            return str(fault)
    return "" if outcome.status == "passed" else outcome.error
