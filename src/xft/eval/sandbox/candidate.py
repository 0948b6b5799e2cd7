"""What happens in the candidate's process once it is confined: run a program, or answer calls of its function.

Runs in a bare interpreter, 3.9 or later. Nothing here knows an expected value, and all of it is in the candidate's
hands as soon as its first line runs: what it writes counts only as an answer, or with the token that a program's end
returns.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from .frames import LARGE, Reader, write
from .values import decode, encode

MAX_TEXT = 2000
MANY = 1000
issubclass_ = issubclass  # candidates replace builtins
SIZED = (list, tuple, set, frozenset, dict, str, bytes)


def serve(reader: Reader, replies: int) -> None:
    """Do what the first message says."""
    message = reader.next()
    if message is None:
        return
    kind, payload = message
    if kind == b"P":
        run(payload, replies)
    else:
        answer(payload, reader, replies)


def run(payload: bytes, replies: int) -> None:
    """Run a program to its end and say how it went; only a program that gets there returns the token."""
    token, source = payload[:16], payload[16:].decode("utf-8", "surrogatepass")
    me = os.getpid()
    report, text = execute(source, new_module())
    if os.getpid() == me:  # a forked copy of the program may come here too
        write(replies, *((report, text) if report else (b"p", token)))


def answer(payload: bytes, reader: Reader, replies: int) -> None:
    """Execute the code, then answer the calls of its function that come in."""
    name, _, code = payload.partition(b"\n")
    module = new_module()
    me = os.getpid()
    report, text = execute(code.decode("utf-8", "surrogatepass"), module)
    function: Any = module.__dict__.get(name.decode())
    if not report and function is None:
        report, text = b"f", f"NameError: {name.decode()} is not defined".encode()
    if os.getpid() != me:
        return
    write(replies, report or b"c", text)
    if report:
        return
    while True:
        message = reader.next()
        if message is None:
            return
        room, sent = int.from_bytes(message[1][:4], "little"), message[1][4:]
        arguments = decode(sent)
        if len(sent) >= LARGE:
            write(replies, b"b")
        try:
            value = function(*arguments)
        except BaseException as error:
            if os.getpid() != me:
                return
            write(replies, *describe(error))
            continue
        if os.getpid() != me:
            return
        size = len(value) if type(value) in SIZED else 0
        if size > room:  # without writing it down first
            write(replies, b"l")
            continue
        if len(sent) >= LARGE or size >= MANY:
            write(replies, b"r")
        try:
            returned = encode(value)
        except MemoryError:
            write(replies, b"m", b"MemoryError")
            continue
        write(replies, b"v", returned)
        del value, arguments


def new_module() -> types.ModuleType:
    """Return the module that the code becomes.

    It is not called `__main__`: demonstrations under `if __name__ == "__main__"` are not run.
    """
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = sys.modules["__main__"] = module
    sys.argv = ["candidate"]
    return module


def execute(source: str, module: types.ModuleType) -> tuple[bytes, bytes]:
    """Execute source text; return a report of its failure, or nothing."""
    try:
        exec(compile(source.removeprefix("\ufeff"), "<candidate>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return describe(error)
    return b"", b""


def describe(error: BaseException) -> tuple[bytes, bytes]:
    """Name the error and the last line of the program that it passed through."""
    if issubclass_(type(error), MemoryError):
        return b"m", b"MemoryError"
    if issubclass_(type(error), SystemExit):
        return b"x", b"SystemExit before the end"
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<candidate>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        text = str(error)[: MAX_TEXT // 2]
    except BaseException:  # the candidate may raise what it likes, also from __str__
        text = ""
    text = f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")
    return b"f", text.encode("utf-8", "replace")[:MAX_TEXT]
