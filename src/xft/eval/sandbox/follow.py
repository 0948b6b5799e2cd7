"""Follow a candidate from the parent: keep its clock, judge what it says, end it."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from xft.eval.sandbox.frames import LARGE
from xft.eval.sandbox.outcome import Call, Outcome, Returned, Status, Step, UnreadableError
from xft.eval.sandbox.server import Ended, Run, TooLong, how_it_ended

STRAINED = 0.8
CODE_S = 10.0
"""Limit for executing the code itself, before the first call."""
TRANSFER_S = 30.0
"""Limit for taking in large arguments and for writing down large answers, which a call's own clock leaves out."""
AHEAD, AHEAD_BYTES = 32, 1 << 20
"""So many calls, or bytes of arguments, are sent ahead of the answers."""
MAX_ERROR = 300
MAX_REPORT = 4096
MAX_ENDING = 1 << 17
MAX_ROOM = 1 << 30
OUT_OF_TURN = "wrote to the channel of the verdict"
TOO_LONG: tuple[Status, str] = ("wrong", "too long an answer")
TELLING = re.compile(r"[Ee]rror|Exception|Assertion|panicked")
REPORTS: dict[bytes, Status] = {b"f": "failed", b"m": "memory", b"x": "exited"}

Judge = Callable[[int, Returned], str | None]


def clean(text: str) -> str:
    """Keep one line of printable text, cut to MAX_ERROR characters."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 10 * MAX_ERROR])
    return " ".join(printable.split())[:MAX_ERROR]


class _Clock:
    """The time that one thing may take."""

    def __init__(self, seconds: float, what: str) -> None:
        self.start(seconds, what)

    def start(self, seconds: float, what: str) -> None:
        """Start anew."""
        self.seconds = seconds
        self.what = what
        self.began = time.monotonic()
        self.ended = 0.0

    @property
    def deadline(self) -> float:
        """When it is over, in monotonic time."""
        return self.began + self.seconds

    def stop(self) -> None:
        """Count no more time."""
        self.ended = time.monotonic()

    @property
    def strained(self) -> bool:
        """Whether the limit is nearly or wholly used up."""
        return (self.ended or time.monotonic()) - self.began >= STRAINED * self.seconds


class _Follower:
    """What following has in common: a run, a clock, the index of the call or step."""

    def __init__(self, run: Run, seconds: float, what: str) -> None:
        self.run = run
        self.clock = _Clock(seconds, what)
        self.at = -1

    def outcome(self, status: Status, error: str = "") -> Outcome:
        """Say how it ended."""
        strained = status != "passed" and self.clock.strained
        at = -1 if status == "passed" else self.at
        return Outcome(
            status=status, seconds=round(self.run.seconds(), 4), error=clean(error), at=at, strained=strained
        )

    def next(
        self, cap: int, *, too_long: tuple[Status, str] = ("exited", OUT_OF_TURN)
    ) -> tuple[bytes, bytes] | Outcome:
        """Return the next message, or the outcome where the candidate has ended or is out of time."""
        try:
            message = self.run.next(self.clock.deadline, cap)
        except Ended as end:
            return self.outcome(end.status, end.error)
        except TooLong:
            return self.outcome(*too_long)
        if message is None:
            return self.outcome("timeout", f"no end of {self.clock.what} within {self.clock.seconds:g} s")
        return message


def follow_program(run: Run, program: str, *, seconds: float) -> Outcome:
    """Follow a program to its end."""
    follower = _Follower(run, seconds, "the program")
    token = secrets.token_bytes(16)
    run.send(b"P", token + program.encode("utf-8", "surrogatepass"))
    message = follower.next(MAX_REPORT)
    if isinstance(message, Outcome):
        return message
    kind, text = message
    if kind == b"p" and secrets.compare_digest(text, token):
        return follower.outcome("passed")
    if kind in REPORTS:
        return follower.outcome(REPORTS[kind], text.decode("utf-8", "replace"))
    return follower.outcome("exited", OUT_OF_TURN)


def follow_calls(run: Run, code: str, entry_point: str, calls: Sequence[Call], judge: Judge) -> Outcome:
    """Send one call after the other, judge the answers as they come, stop at the first wrong one."""
    follower = _Follower(run, CODE_S, "the code itself")
    run.send(b"C", entry_point.encode() + b"\n" + code.encode("utf-8", "surrogatepass"))
    coming, sent = iter(calls), deque[Call]()
    message = follower.next(MAX_REPORT)
    if isinstance(message, Outcome):
        return message
    if message[0] in REPORTS:
        return follower.outcome(REPORTS[message[0]], message[1].decode("utf-8", "replace"))
    if message[0] != b"c":
        return follower.outcome("exited", OUT_OF_TURN)
    while True:
        while len(sent) < AHEAD and len(run.outgoing) < AHEAD_BYTES and (call := next(coming, None)):
            run.send(b"A", _room(call).to_bytes(4, "little") + call.encoded)
            sent.append(call)
        if not sent:
            return follower.outcome("passed")
        call = sent.popleft()
        follower.at += 1
        if len(call.encoded) >= LARGE:
            follower.clock.start(TRANSFER_S, "taking in the arguments")
            message = follower.next(MAX_REPORT)
            if isinstance(message, Outcome):
                return message
            if message[0] != b"b":
                return follower.outcome("exited", OUT_OF_TURN)
        follower.clock.start(call.seconds, f"call {follower.at}")
        message = follower.next(_room(call), too_long=TOO_LONG)
        strained = follower.clock.strained
        if not isinstance(message, Outcome) and message[0] == b"r":
            follower.clock.start(TRANSFER_S, "writing down the answer")
            message = follower.next(_room(call), too_long=TOO_LONG)
        outcome = message if isinstance(message, Outcome) else _judged(follower, message, judge)
        if outcome:
            return replace(outcome, strained=strained or outcome.strained)


def _room(call: Call) -> int:
    return min(int(call.reply_bytes), MAX_ROOM)


def _judged(follower: _Follower, message: tuple[bytes, bytes], judge: Judge) -> Outcome | None:
    """Judge one answer; None: it is right."""
    kind, payload = message
    if kind in REPORTS:
        return follower.outcome(REPORTS[kind], payload.decode("utf-8", "replace"))
    if kind == b"l":
        return follower.outcome(*TOO_LONG)
    if kind != b"v":
        return follower.outcome("exited", OUT_OF_TURN)
    follower.clock.stop()
    try:
        error = judge(follower.at, Returned(encoded=payload))
    except UnreadableError:
        error = "an answer that can't be read"
    return None if error is None else follower.outcome("wrong", error)


def follow_commands(run: Run, files: Mapping[str, str], steps: Sequence[Step], *, proof: str) -> Outcome:
    """Write the files, then run one command after the other."""
    follower = _Follower(run, TRANSFER_S, "writing the files")
    run.send(b"F", json.dumps(dict(files)).encode())
    output = ""
    for step in steps:
        follower.at += 1
        run.send(b"S", json.dumps(list(step.argv)).encode())
        started = follower.next(MAX_REPORT)
        if isinstance(started, Outcome):
            return started
        if started[1]:
            return follower.outcome("failed", started[1].decode("utf-8", "replace"))
        follower.clock.start(step.seconds, step.argv[0].rsplit("/", 1)[-1])
        ended = follower.next(MAX_ENDING)
        if isinstance(ended, Outcome):
            return ended
        try:
            status, errors, output = _ending(ended[1])
        except (ValueError, TypeError, KeyError):
            return follower.outcome("exited", OUT_OF_TURN)
        if status:
            return follower.outcome("failed", _failure(status, errors or (output if step.compile else "")))
        follower.clock.start(TRANSFER_S, "starting a command")
    if output.rstrip("\n").rsplit("\n", 1)[-1] == proof:
        return follower.outcome("passed")
    return follower.outcome("exited", "ended with code 0 before the end of the tests")


def _ending(payload: bytes) -> tuple[int, str, str]:
    """Return the wait status, errors and output that a step reports."""
    parts = []
    while payload:
        length = int.from_bytes(payload[:4], "little")
        parts.append(payload[4 : 4 + length].decode("utf-8", "replace"))
        payload = payload[4 + length :]
    head, errors, output = parts
    return int(json.loads(head)["status"]), errors, output


def _failure(status: int, said: str) -> str:
    """Say what is known of a command that failed: the line that names the error, among those it wrote."""
    lines = [line for line in said.splitlines() if line.strip()]
    named = [line for line in lines if TELLING.search(line)]
    return (named[:1] or lines[-1:] or [how_it_ended(status)[1]])[0]
