"""What HumanEval+ and MBPP+ share: EvalPlus's expected outputs, its comparison and its time rules (EvalPlus 0.3.1).

Expected outputs are what the canonical solutions return. They run in the sandbox, as the data may come from anyone, and
what they return is kept in xft's cache, for the data's hash and the minor version of Python.

Where this differs from EvalPlus, on purpose: values are compared in another process than the candidate's, so an object
that is no plain data is equal to nothing; a tolerance that one input needs does not stay for the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft.errors import DataError
from xft.eval.benchmark import Judgement, Problem
from xft.eval.functions import MEMORY_MB, REPLY_BYTES, call_within
from xft.eval.sandbox.outcome import Call, Outcome, Returned
from xft.eval.sandbox.values import decode, encode
from xft.fetch import cache_dir

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

LEAST_S, FACTOR, MOST_S = 4.0, 4.0, 60.0
LIMITS: Mapping[str, Any] = {
    "call_seconds": LEAST_S,
    "call_factor": FACTOR,
    "seconds": MOST_S,
    "memory_mb": MEMORY_MB,
}
"""A call has max(call_seconds, call_factor x the canonical solution's time), all calls of a set together `seconds`."""
RTOL, FLOAT_ATOL = 1e-7, 1e-6
PARTS = ("base", "plus")
CANONICAL_S, CANONICAL_REPLY_BYTES = 600.0, 1 << 26
"""Limits of a call of a canonical solution, whose time sets those of the candidates."""

Oracle = Callable[[tuple[Any, ...], Any, Any, float], bool]
"""Says whether an answer is right, given arguments, expected answer, answer, and the problem's absolute tolerance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlusTests:
    """A problem's inputs, without the expected outputs."""

    inputs: Mapping[str, Sequence[tuple[Any, ...]]]
    """Arguments of each call, for each of PARTS."""
    atol: float
    digest: str
    """Hash of the data that they are from."""


def equal(arguments: tuple[Any, ...], expected: Any, answer: Any, atol: float) -> bool:
    """Compare as EvalPlus does: equal, or of one type and close; floats are always compared with a tolerance."""
    return bool(answer == expected) or close(expected, answer, atol)


def close(expected: Any, answer: Any, atol: float) -> bool:
    """Tell whether an answer has the expected type and, where there is a tolerance, nearly the expected numbers."""
    if atol == 0 and _floats(expected):
        atol = FLOAT_ATOL
    if atol == 0 or type(answer) is not type(expected):
        return False
    if isinstance(expected, list | tuple) and len(answer) != len(expected):
        return False
    import numpy

    return bool(numpy.allclose(answer, expected, rtol=RTOL, atol=atol))


def _floats(value: Any) -> bool:
    """Tell whether a value is a float, or a list, tuple or array of them."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float) or str(getattr(value, "dtype", "")) in ("float64", "float32")


def judge_plus(
    problem: Problem, code: str, sandbox: Sandbox, truth: Mapping[str, Sequence[Known]], oracle: Oracle
) -> Judgement:
    """Judge an answer on both sets of inputs, each in a process of its own; it passes when it passes both.

    Raises:
        SandboxError: the sandbox failed.
    """
    outcomes: dict[str, Outcome] = {}
    for part in PARTS:
        known = truth[part]

        def judge(index: int, returned: Returned, known: Sequence[Known] = known) -> str | None:
            wanted = known[index]
            try:
                right = oracle(wanted.call.arguments, wanted.answer, returned.value, problem.tests.atol)
            except Exception:  # whatever an odd answer does to the comparison, it is not the expected one
                right = False
            return None if right else f"wrong answer to input {index}"

        calls = [each.call for each in known]
        outcomes[part] = call_within(sandbox, code, problem.entry_point, calls, judge, seconds=MOST_S)
    failed = [part for part in PARTS if outcomes[part].status != "passed"]
    return Judgement(
        status=outcomes[failed[0]].status if failed else "passed",
        seconds=round(sum(outcome.seconds for outcome in outcomes.values()), 4),
        error=f"{failed[0]}: {outcomes[failed[0]].error}" if failed else "",
        parts={part: part not in failed for part in PARTS},
        strained=any(outcomes[part].strained for part in failed),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """One input with its expected output."""

    call: Call
    answer: Any


class GroundTruth:
    """Expected outputs of a benchmark: computed when first asked for, then kept in a cache that processes can share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._file: Path | None = None
        self._lines: dict[str, dict[str, Any]] = {}
        self._known: dict[str, dict[str, list[Known]]] = {}

    def of(self, problem: Problem, sandbox: Sandbox) -> Mapping[str, Sequence[Known]]:
        """Return a problem's inputs with what is expected of each.

        Raises:
            DataError: the canonical solution fails.
            SandboxError: the sandbox failed.
        """
        python = f"py{sys.version_info[0]}.{sys.version_info[1]}"
        path = cache_dir() / "ground-truth" / f"{self.name}-{problem.tests.digest[:16]}-{python}.jsonl"
        with self._lock:
            if self._file != path:
                self._file, self._lines, self._known = path, dict(_read(path)), {}
            lock = self._locks.setdefault(problem.task_id, threading.Lock())
        with lock:
            if problem.task_id not in self._known:
                line = self._lines.pop(problem.task_id, None)
                known = line and _known(problem, line)
                if not known:
                    line = _compute(problem, sandbox)
                    _append(path, line)
                    known = _known(problem, line)
                    if not known:
                        raise DataError(f"{problem.task_id}: the canonical solution's outputs can't be kept in {path}")
                self._known[problem.task_id] = known
            return self._known[problem.task_id]


def _compute(problem: Problem, sandbox: Sandbox) -> dict[str, Any]:
    """Run the canonical solution on all inputs; return the line of the cache."""
    line: dict[str, Any] = {"task_id": problem.task_id}
    for part in PARTS:
        answers: list[Any] = []
        seconds: list[float] = []
        last = time.monotonic()

        def keep(index: int, returned: Returned, answers: list[Any] = answers, seconds: list[float] = seconds) -> None:
            nonlocal last
            if index == 0:
                answers.clear()
                seconds.clear()
            now = time.monotonic()
            answers.append(returned.value)
            seconds.append(round(now - last, 4))
            last = now

        calls = [
            Call(arguments=arguments, seconds=CANONICAL_S, reply_bytes=CANONICAL_REPLY_BYTES)
            for arguments in problem.tests.inputs[part]
        ]
        outcome = sandbox.call(problem.stub + problem.canonical, problem.entry_point, calls, keep, memory_mb=MEMORY_MB)
        if outcome.status != "passed":
            raise DataError(
                f"{problem.task_id}: the canonical solution fails on {part} input {outcome.at} ({outcome.status}: "
                f"{outcome.error}); fetch the benchmark's data again"
            )
        line[part] = encode(answers).decode("utf-8", "surrogatepass")
        line[f"{part}_seconds"] = seconds
    return line


def _known(problem: Problem, line: Mapping[str, Any]) -> dict[str, list[Known]] | None:
    """Read a line of the cache; None when it does not fit the problem."""
    found: dict[str, list[Known]] = {}
    for part in PARTS:
        inputs = problem.tests.inputs[part]
        try:
            answers = decode(line[part].encode("utf-8", "surrogatepass"))
            seconds = [float(each) for each in line[f"{part}_seconds"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        if not isinstance(answers, list) or not len(answers) == len(seconds) == len(inputs):
            return None
        room = REPLY_BYTES + 4 * len(line[part])
        found[part] = [
            Known(
                call=Call(arguments=arguments, seconds=min(max(LEAST_S, FACTOR * taken), MOST_S), reply_bytes=room),
                answer=answer,
            )
            for arguments, taken, answer in zip(inputs, seconds, answers, strict=True)
        ]
    return found


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the lines of a cache file that are whole."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                yield str(line["task_id"]), line


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a cache file in one piece, whoever else writes; a line cut off by a kill spoils itself alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(line).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
