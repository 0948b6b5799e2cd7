"""The parent's handle on a warm server, and on the candidate that runs there."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from xft.eval.sandbox.frames import HEADER, frame
from xft.eval.sandbox.outcome import Level, Status

PRELOAD_S = 600.0
START_S = 60.0
END_S = 60.0
GRACE_S = 0.5
"""What arrived before the deadline may take as long to be read, and no longer."""
CHUNK = 1 << 18
HERE = Path(__file__).parent

BOOT = """
import importlib, sys, types
if sys.version_info < (3, 9):
    sys.exit("candidates need an interpreter of Python 3.9 or later, not " + sys.executable)
sys.path[:] = [folder for folder in sys.path if folder]
package = types.ModuleType("xft_sandbox")
package.__path__ = [sys.argv.pop(1)]
sys.modules[package.__name__] = package
importlib.import_module("xft_sandbox.warm").main()
"""


class Fault(Exception):
    """The sandbox failed, not the candidate."""


class Ended(Exception):
    """The candidate is over and has said all; carries the status and the error."""

    def __init__(self, status: Status, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class TooLong(Exception):
    """A message of the candidate is longer than allowed."""


class Server:
    """A warm server's process."""

    def __init__(
        self,
        level: Level,
        *,
        python: Path | None,
        libraries: Mapping[str, str],
        tools: Collection[str],
        preload: Sequence[str],
    ) -> None:
        self.tools = frozenset(tools)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.base = tempfile.mkdtemp(prefix="xft-")
        settings = {
            "level": level,
            "libraries": dict(libraries),
            "tools": sorted(tools),
            "preload": list(preload),
        }
        flags = ["-s", "-B"] if python else ["-s", "-B", "-S"]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            arguments = [str(HERE), str(theirs.fileno()), self.base, json.dumps(settings)]
            try:
                self.process = subprocess.Popen(
                    [str(python or sys.executable), *flags, "-c", BOOT, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self.errors,
                    pass_fds=(theirs.fileno(),),
                    cwd=self.base,
                    env=environment(self.base),
                    start_new_session=True,
                )
            except OSError as error:
                self.control.close()
                self.errors.close()
                os.rmdir(self.base)
                raise Fault(str(error)) from None
        try:
            if (said := self.hear(PRELOAD_S)) != "hello":
                raise Fault(f"the sandbox's server did not start: {said}")
        except BaseException:
            self.close()
            raise

    def hear(self, seconds: float) -> str:
        """Return the server's next message."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise Fault(f"the sandbox's server said nothing for {seconds:.0f} s")
        try:
            said = self.control.recv(1 << 16).decode("utf-8", "replace")
        except ConnectionResetError:
            said = ""
        if not said:
            self.errors.seek(0)
            last = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise Fault("the sandbox's server is gone" + "".join(f": {line}" for line in last))
        if said.startswith("fault "):
            raise Fault(said.removeprefix("fault "))
        return said

    def close(self) -> None:
        """End the server; it kills what is below it and removes its folder."""
        self.control.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        with contextlib.suppress(OSError):
            os.rmdir(self.base)


def environment(folder: str) -> dict[str, str]:
    """Return all of the candidate's environment.

    One thread a process, also for numeric libraries; and no address space set aside for the memory of each thread.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONHASHSEED": "0",
        "MALLOC_ARENA_MAX": "2",
        **threads,
    }


class Run:
    """A candidate on a server, from its start until nothing is left of it; a context manager."""

    def __init__(self, server: Server, *, commands: bool, memory_mb: int, disk_mb: int) -> None:
        self.server = server
        self.outgoing = bytearray()
        self.incoming = bytearray()
        self.ended: tuple[Status, str] | None = None
        self.done = False
        self.full = False
        read_input, self.input = os.pipe()
        self.replies, write_replies = os.pipe()
        try:
            job: dict[str, Any] = {"commands": commands, "memory_mb": int(memory_mb), "disk_mb": disk_mb}
            socket.send_fds(server.control, [json.dumps(job).encode()], [read_input, write_replies])
        except OSError as error:
            self._close()
            raise Fault(f"the sandbox's server is gone: {error}") from None
        finally:
            os.close(read_input)
            os.close(write_replies)
        os.set_blocking(self.input, False)
        os.set_blocking(self.replies, False)
        self.poll = select.poll()
        self.poll.register(server.control, select.POLLIN)
        self.started = time.monotonic()

    def __enter__(self) -> Run:
        try:
            if (said := self.server.hear(START_S)) != "ready":
                raise Fault(f"the candidate did not start: {said}")
        except BaseException:
            self._close()
            raise
        self.started = time.monotonic()
        self.poll.register(self.replies, select.POLLIN)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if not self.done:
                self.server.control.send(b"end")
            while not self.done:
                self._heard(self.server.hear(END_S))
        except OSError as fault:
            raise Fault(f"the sandbox's server is gone: {fault}") from None
        finally:
            self._close()

    def seconds(self) -> float:
        """Return the time since the candidate started."""
        return time.monotonic() - self.started

    def send(self, kind: bytes, payload: bytes) -> None:
        """Put a message to the candidate into the queue; it goes off while the next one is waited for."""
        self.outgoing += frame(kind, payload)

    def next(self, deadline: float, cap: int) -> tuple[bytes, bytes] | None:
        """Return the candidate's next message; None when there is none before the deadline (monotonic time).

        Raises:
            Ended: there is none, and there will be none.
            TooLong: its payload has more than `cap` bytes.
        """
        while True:
            if message := self._message(cap):
                return message
            if self.ended and not self._read():
                raise Ended(*self.ended)
            if self.outgoing and not self.full:
                self._write()
            left = deadline - time.monotonic()
            ready = self.poll.poll(max(left, 0) * 1000)
            for number, _ in ready:
                if number == self.replies:
                    self._read()
                elif number == self.input:
                    self._write()
                else:
                    self._heard(self.server.hear(END_S))
            if left <= 0 and (not ready or left < -GRACE_S):
                return None

    def _message(self, cap: int) -> tuple[bytes, bytes] | None:
        if len(self.incoming) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self.incoming)
        if length > cap:
            raise TooLong
        end = HEADER.size + length
        if len(self.incoming) < end:
            return None
        payload = bytes(memoryview(self.incoming)[HEADER.size : end])
        del self.incoming[:end]
        return kind, payload

    def _read(self) -> bool:
        """Read what the candidate wrote; False: there is nothing now."""
        if self.replies < 0:
            return False
        try:
            data = os.read(self.replies, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self.poll.unregister(self.replies)
            os.close(self.replies)
            self.replies = -1
        self.incoming += data
        return bool(data)

    def _write(self) -> None:
        """Write what the candidate can take now; say when it can't take all."""
        full = False
        try:
            while self.outgoing:
                with memoryview(self.outgoing) as view:
                    written = os.write(self.input, view[:CHUNK])
                del self.outgoing[:written]
        except BlockingIOError:
            full = True
        except BrokenPipeError:  # the candidate closed it
            self.outgoing.clear()
        if full and not self.full:
            self.poll.register(self.input, select.POLLOUT)
        elif self.full and not full:
            self.poll.unregister(self.input)
        self.full = full

    def _heard(self, said: str) -> None:
        """Take in what the server said."""
        word, _, text = said.partition(" ")
        if word == "done":
            self.done = True
            self.ended = self.ended or ("exited", "ended before the end")
        elif word == "exit":
            self.ended = self.ended or how_it_ended(int(text))
        elif word == "excess":
            status, _, error = text.partition(" ")
            self.ended = ("memory" if status == "memory" else "failed", error)
        else:
            raise Fault(f"the sandbox's server said {said!r}")

    def _close(self) -> None:
        for channel in (self.input, self.replies):
            if channel >= 0:
                os.close(channel)
        self.input = self.replies = -1


def how_it_ended(status: int) -> tuple[Status, str]:
    """Say what a wait status means for a candidate that did not say anything else."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return "exited", f"ended with code {code} before the end"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return "exited", f"killed by {name}"
