"""Run commands one after the other, each confined by itself, and report how they end. Not confined itself.

Runs in a bare interpreter, 3.9 or later. The commands can't reach this process: they are below it, without its rights.
"""

from __future__ import annotations

import json
import os
import select
import stat
import time
from collections.abc import Callable

from .confine import OPEN_FILES
from .frames import Reader, write

KEPT_OUTPUT = 1 << 20
KEPT_ERRORS = 1 << 14
REPORTED = 1 << 16
DRAIN_S = 1.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def serve(reader: Reader, replies: int, confine: Callable[[], None]) -> None:
    """Write the files, then run the steps that come in."""
    while True:
        message = reader.next()
        if message is None:
            return
        kind, payload = message
        if kind == b"F":
            for name, text in json.loads(payload).items():
                os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
                with open(name, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                    file.write(text)
        else:
            argv = json.loads(payload)
            if argv[0].startswith("./") and "/" not in argv[0][2:]:
                make_executable(argv[0][2:])
            step(argv, replies, confine)


def make_executable(name: str) -> None:
    """Do what level landlock does not let a linker do, to a file of the working folder and not where a link leads."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    if stat.S_ISREG(os.fstat(file).st_mode):
        os.fchmod(file, 0o700)
    os.close(file)


def step(argv: list[str], replies: int, confine: Callable[[], None]) -> None:
    """Run one command; report its wait status and the ends of its output and errors."""
    read_output, write_output = os.pipe()
    read_errors, write_errors = os.pipe()
    read_fault, write_fault = os.pipe()
    os.set_inheritable(write_fault, False)
    child = os.fork()
    if not child:
        try:
            os.dup2(write_output, 1)
            os.dup2(write_errors, 2)
            confine()
            os.closerange(3, write_fault)
            os.closerange(write_fault + 1, OPEN_FILES)
            path = PATH if "/" not in argv[0] or argv[0].startswith("./") else f"{PATH}:{os.path.dirname(argv[0])}"
            os.execvpe(argv[0], argv, {**os.environ, "PATH": path})
        except BaseException as error:
            os.write(write_fault, f"{argv[0]}: {error}".encode("utf-8", "replace"))
        finally:
            os._exit(127)
    for used in (write_output, write_errors, write_fault):
        os.close(used)
    fault = os.read(read_fault, 1000)  # ends when the command has replaced the child
    os.close(read_fault)
    write(replies, b"s", fault)
    kept = {read_output: bytearray(), read_errors: bytearray()}
    limits = {read_output: KEPT_OUTPUT, read_errors: KEPT_ERRORS}
    status = drain(child, kept, limits)
    head = json.dumps({"status": status}).encode()
    output, errors = bytes(kept[read_output][-REPORTED:]), bytes(kept[read_errors])
    os.close(read_output)
    os.close(read_errors)
    parts = (head, errors, output)
    write(replies, b"e", b"".join(len(part).to_bytes(4, "little") + part for part in parts))


def drain(child: int, kept: dict[int, bytearray], limits: dict[int, int]) -> int:
    """Read what a command writes until it has ended, keeping the last of it; return its wait status."""
    opened = set(kept)
    poll = select.poll()
    for channel in opened:
        os.set_blocking(channel, False)
        poll.register(channel, select.POLLIN)
    ended = os.pidfd_open(child)
    poll.register(ended, select.POLLIN)
    deadline = None
    while opened:
        if deadline is None:
            ready = [channel for channel, _ in poll.poll()]
            if ended in ready:  # what it left running may hold the pipes: read what is there, and no more
                poll.unregister(ended)
                deadline = time.monotonic() + DRAIN_S
        else:
            ready = [channel for channel, _ in poll.poll(0)]
            if not ready or time.monotonic() > deadline:
                break
        for channel in ready:
            if channel == ended:
                continue
            data = os.read(channel, 1 << 16)
            if not data:
                opened.discard(channel)
                poll.unregister(channel)
            buffer = kept[channel]
            buffer += data
            if len(buffer) > 2 * limits[channel]:
                del buffer[: -limits[channel]]
    os.close(ended)
    return os.waitpid(child, 0)[1]
