"""Run one candidate program in its own confined process and say how it ended.

The verdict. A candidate passes when it reaches the last line of its program, tests included, and returns the random
token of this run over a channel of its own. Exit codes and output prove nothing: `sys.exit(0)`, `os._exit(0)`,
`raise SystemExit` and printed markers fail. Output is thrown away, input is empty, `__name__` is "candidate".

The parent (this module) keeps the clock, counts processes and memory, and kills everything from outside. The
candidate's side is `xft/eval/runner.py`.

Levels, strongest first; the strongest that proves itself is used.

    namespaces   Own users, processes, network, IPC, mounts. No network, no other processes in sight, all files
                 read-only but the working folder (a private 64 MB disk), no devices, no capabilities, and the filter of
                 system calls. Whatever the candidate starts dies with it.
    seccomp      A filter of system calls alone: no sockets, no tracing, no new processes (threads are allowed), no
                 signals to others, no file opened for writing, created, changed or removed; no capabilities.
    unsafe       Limits and killing only. The candidate can do what the user can do, but start processes; root's
                 candidate can do even that, and a root's fork bomb may outrun the killing. Never chosen unasked.

At every level: a wall-clock limit (seconds, from the moment the candidate starts), CPU seconds, address space a process
(megabytes, also for the resident sum of all processes), 64 MB a file, 64 open files, 64 processes, no core dump, an
empty environment, a fresh folder that is removed, the standard library only, a fixed hash seed.

Not defended in this version:

* Forging from inside. HumanEval's tests run in the candidate's process, so code that walks frames can find the token,
  and objects whose `__eq__` is always true satisfy the tests. The next version compares in the parent.
* Reading. The candidate can read what the user can read (the benchmark's answers too); it has no network to send it by.
* The kernel's own faults, and side channels.
* Memory over the sum, and processes over 64 where the user is root, between two looks 0.1 s apart. Root's processes
  are not counted by the kernel; from Linux 6.14 on a PID namespace has 364 at most.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from xft.errors import SandboxError

Level = Literal["namespaces", "seccomp", "unsafe"]
Status = Literal["passed", "failed", "timeout", "memory", "exited"]

START_S = 30.0
END_S = 10.0
LOOK_S = 0.1
MAX_PROCESSES = 64
MAX_PROOF = 1 << 14
MAX_ERROR = 300
RUNNER = Path(__file__).with_name("runner.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a candidate ended."""

    status: Status
    """failed: an assertion or another exception; exited: it ended before its last line."""
    seconds: float
    """Wall-clock time from the candidate's start."""
    error: str = ""
    """One line of printable text; written by the candidate where it failed, so not to be trusted."""


class Sandbox:
    """Run candidates at one level; `level` and `reason` say which and why.

    Raises:
        SandboxError: the level asked for does not work here, or none does and `allow_unsafe` is not set.
    """

    def __init__(self, level: Level | None = None, *, allow_unsafe: bool = False) -> None:
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
                f"no sandbox works here ({self.reason}); allow user namespaces or seccomp, or accept with allow_unsafe "
                "that generated programs run with all your rights"
            )

    def run(self, program: str, *, timeout_s: float, memory_mb: int) -> Outcome:
        """Run a program to its end or its limits.

        Raises:
            SandboxError: the sandbox itself failed, twice.
            ValueError: a limit is not a positive number.
        """
        for name, limit in (("timeout_s", timeout_s), ("memory_mb", memory_mb)):
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
                raise ValueError(f"{name} must be a positive number, got {limit!r}")
        try:
            return _run_once(program, self.level, timeout_s, memory_mb)
        except (_Fault, OSError):
            pass
        try:
            return _run_once(program, self.level, timeout_s, memory_mb)
        except (_Fault, OSError) as fault:
            raise SandboxError(f"the sandbox (level {self.level}) failed twice: {fault}") from None


@functools.cache
def detect_level() -> tuple[Level, str]:
    """Try the levels, strongest first; return the first that confines a program, and why not a stronger one."""
    faults: list[str] = []
    for level in ("namespaces", "seccomp"):
        fault = _disproof(level)
        if not fault:
            return level, "; ".join([*faults, f"{level}: proved by trying"])
        faults.append(f"{level}: {fault}")
    return "unsafe", "; ".join(faults)


PROBE = """
import os, socket
for attempt in (socket.socket, lambda: open({target!r}, "w"), lambda: os.kill({pid}, 0)):
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
        probe = PROBE.format(target=str(Path(folder, "written")), pid=os.getpid())
        try:
            outcome = _run_once(probe, level, START_S, 1024)
        except (_Fault, OSError) as fault:
            return str(fault)
    return "" if outcome.status == "passed" else outcome.error


# --- one run ----------------------------------------------------------------------------------------------------------


class _Fault(Exception):
    """The sandbox failed, not the candidate."""


@dataclass(kw_only=True)
class _Traces:
    """What is known of a run once it is over."""

    control: bytes = b""
    proof: bytes = b""
    seconds: float = 0.0
    killed: tuple[Status, str] | None = None
    """Why the parent ended it."""


def _run_once(program: str, level: Level, timeout_s: float, memory_mb: int) -> Outcome:
    """Start the runner, follow it, kill what is left, and judge."""
    token = secrets.token_hex(16)
    cpu_s = math.ceil(timeout_s) + 1
    reading, writing = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="xft-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as job,
        os.fdopen(reading, "rb", buffering=0) as proof,
    ):
        job.write(f"{token}\n{program}".encode("utf-8", "surrogatepass"))
        job.seek(0)
        settings = [level, folder, str(int(memory_mb)), str(cpu_s), str(writing)]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", str(RUNNER), *settings],
                stdin=job,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(writing,),
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        assert process.stdout is not None
        with process.stdout as control:
            try:
                traces = _follow(process.pid, control.fileno(), proof.fileno(), timeout_s, memory_mb)
            finally:
                _end(process)
    return _judge(traces, token)


def _environment(folder: str) -> dict[str, str]:
    """Return all of the candidate's environment."""
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"}


def _follow(pid: int, control: int, proof: int, timeout_s: float, memory_mb: int) -> _Traces:
    """Read both channels until the candidate has ended, or the clock or a look at its processes ends it."""
    traces = _Traces()
    started: float | None = None
    spawned = look = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ, "control")
        selector.register(proof, selectors.EVENT_READ, "proof")
        while True:
            now = time.monotonic()
            if started is None and now - spawned > START_S:
                raise _Fault(f"the candidate's process did not start within {START_S:.0f} s")
            if started is not None and now - started >= timeout_s:
                traces.seconds = now - started
                traces.killed = ("timeout", f"no end within {timeout_s:g} s")
                return traces
            if now - look >= LOOK_S:
                look = now
                traces.killed = _excess(pid, memory_mb) if started is not None else None
            left = LOOK_S if started is None else min(LOOK_S, started + timeout_s - now)
            for key, _ in [] if traces.killed else selector.select(max(left, 0.0)):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                elif key.data == "proof":
                    traces.proof = (traces.proof + data)[:MAX_PROOF]
                else:
                    traces.control += data
                    if started is None and b"ready\n" in traces.control:
                        started = time.monotonic()
            over = control not in selector.get_map() or b"\nexit " in b"\n" + traces.control
            if over or traces.killed:
                traces.seconds = time.monotonic() - (started or spawned)
                traces.proof = (traces.proof + _rest(proof))[:MAX_PROOF]
                return traces


def _rest(channel: int) -> bytes:
    """Return what a pipe holds, without waiting for more."""
    os.set_blocking(channel, False)
    try:
        return os.read(channel, 1 << 16)
    except BlockingIOError:
        return b""


def _judge(traces: _Traces, token: str) -> Outcome:
    """Turn the traces of a run into a verdict."""
    *lines, last = traces.control.decode("utf-8", "replace").split("\n")
    faults = [line.removeprefix("fault ") for line in lines if line not in ("ready",) and not line.startswith("exit ")]
    exits = [int(line.removeprefix("exit ")) for line in lines if line.startswith("exit ")]
    if faults or last or "ready" not in lines or not (exits or traces.killed):
        raise _Fault(_clean((faults or [last])[-1]) or "the candidate's supervisor ended without a word")

    def outcome(status: Status, error: str = "") -> Outcome:
        return Outcome(status=status, seconds=round(traces.seconds, 3), error=_clean(error))

    if traces.proof == f"passed {token}".encode():
        return outcome("passed")
    if traces.killed:
        return outcome(*traces.killed)
    said, _, text = traces.proof.decode("utf-8", "replace").partition(" ")
    for status in ("failed", "memory", "exited"):
        if said == status:
            return outcome(status, text)
    if os.WIFSIGNALED(exits[0]):
        number = os.WTERMSIG(exits[0])
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return outcome("timeout" if number == signal.SIGXCPU else "exited", f"killed by {name}")
    return outcome("exited", f"ended with code {os.waitstatus_to_exitcode(exits[0])} before the end of the tests")


def _clean(text: str) -> str:
    """Keep one line of printable text, cut to MAX_ERROR characters."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_ERROR]


# --- processes --------------------------------------------------------------------------------------------------------


def _excess(pid: int, memory_mb: int) -> tuple[Status, str] | None:
    """Say what a candidate's processes use too much of, if anything."""
    below = _descendants(pid)
    if len(below) > MAX_PROCESSES:
        return "failed", f"more than {MAX_PROCESSES} processes"
    if sum(process.resident for process in below) > memory_mb * (1 << 20):
        return "memory", f"all processes together use more than {memory_mb} MB"
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Process:
    """A line of the process table."""

    pid: int
    group: int
    alive: bool
    resident: int
    """Bytes."""


def _descendants(pid: int) -> list[_Process]:
    """Return the living processes below one, parents before their children."""
    page = os.sysconf("SC_PAGE_SIZE")
    children: dict[int, list[_Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:  # gone meanwhile
                continue
            state, parent, group, *rest = stat[stat.rindex(b")") + 2 :].split()
            alive = state not in (b"Z", b"X")
            process = _Process(pid=int(entry), group=int(group), alive=alive, resident=int(rest[18]) * page)
            children.setdefault(int(parent), []).append(process)
    found: list[_Process] = []
    queue = [pid]
    for parent_pid in queue:
        found += children.get(parent_pid, [])
        queue += [child.pid for child in children.get(parent_pid, [])]
    return [process for process in found if process.alive]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill all below the supervisor, which goes by itself when nothing is left.

    Whole groups first: that is one step for the kernel, and no fork slips through. The supervisor stays, as only below
    it orphans can be found.

    Raises:
        SandboxError: something can't be killed; not worth a second try.
    """
    deadline = time.monotonic() + END_S
    while not _gone(process, 0.05):
        below = _descendants(process.pid)
        for group in {each.group for each in below} - {process.pid}:
            _kill(os.killpg, group)
        for each in below:
            _kill(os.kill, each.pid)
        if not below:
            process.kill()
        if time.monotonic() > deadline:
            raise SandboxError(
                f"{len(below)} processes below {process.pid} are still there {END_S:.0f} s after SIGKILL"
            )


def _gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait a moment for a process."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(send: Callable[[int, int], None], target: int) -> None:
    """Send SIGKILL to what may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        send(target, signal.SIGKILL)
