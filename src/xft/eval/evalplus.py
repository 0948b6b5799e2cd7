"""What HumanEval+ and MBPP+ share: EvalPlus's expected outputs, its comparison and its time rules (EvalPlus 0.3.1).

Expected outputs are what the canonical solutions return. They run in the sandbox, as the data may come from anyone, and
what they return is kept in xft's cache, for the data's hash and the minor version of Python.

Where this differs from EvalPlus, on purpose: values are compared in another process than the candidate's, so an object
that is no plain data is equal to nothing; a tolerance that one input needs does not stay for the next.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft.errors import DataError
from xft.eval.benchmark import Judgement, Problem
from xft.eval.functions import MEMORY_MB, REPLY_BYTES, call_within, shown
from xft.eval.sandbox.outcome import Call, Outcome, Returned
from xft.eval.sandbox.values import decode
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
            if wanted.exact and returned.encoded == wanted.encoded:
                return None
            found = "what can't be compared"
            try:
                if oracle(wanted.call.arguments, wanted.answer, returned.value, problem.tests.atol):
                    return None
                found = shown(returned.value)
            except Exception:  # whatever an odd answer does to the comparison, it is not the expected one
                pass
            asked = ", ".join(map(shown, wanted.call.arguments))
            return f"wrong answer to input {index}: ({asked}) gives {found}, not {shown(wanted.answer)}"

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


@dataclass(frozen=True, kw_only=True)
class Known:
    """One input with its expected output."""

    call: Call
    encoded: bytes
    """The expected output as `xft.eval.sandbox.values` encodes it."""

    @cached_property
    def answer(self) -> Any:
        """The expected output."""
        return decode(self.encoded)

    @cached_property
    def exact(self) -> bool:
        """Whether the same encoding is the same value; NaN and Opaque equal nothing."""
        return b"NaN" not in self.encoded and b'{"o":' not in self.encoded


class GroundTruth:
    """Expected outputs of a benchmark: computed when first asked for, then kept in a cache that processes can share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._locks: dict[Path, threading.Lock] = {}
        self._known: dict[Path, dict[str, list[Known]]] = {}

    def of(self, problem: Problem, sandbox: Sandbox) -> Mapping[str, Sequence[Known]]:
        """Return a problem's inputs with what is expected of each.

        Raises:
            DataError: the canonical solution fails.
            SandboxError: the sandbox failed.
        """
        python = f"py{sys.version_info[0]}.{sys.version_info[1]}"
        folder = cache_dir() / "ground-truth" / f"{self.name}-{problem.tests.digest[:16]}-{python}"
        path = folder / f"{problem.task_id.replace('/', '-')}.jsonl"
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock:
            if path not in self._known:
                known = _read(path, problem)
                if known is None:
                    outputs = {part: _compute(problem, part, sandbox) for part in PARTS}
                    _write(path, outputs)
                    known = {part: _known(problem, part, *outputs[part]) for part in PARTS}
                self._known[path] = known
            return self._known[path]


Outputs = tuple[list[bytes], list[float]]
"""Encoded answers, and the seconds that each took."""


def _compute(problem: Problem, part: str, sandbox: Sandbox) -> Outputs:
    """Run the canonical solution on one set of inputs."""
    answers: list[bytes] = []
    seconds: list[float] = []
    last = time.monotonic()

    def keep(index: int, returned: Returned) -> None:
        nonlocal last
        if index == 0:  # perhaps a second try
            answers.clear()
            seconds.clear()
        now = time.monotonic()
        answers.append(returned.encoded)
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
    return answers, seconds


def _known(problem: Problem, part: str, answers: Sequence[bytes], seconds: Sequence[float]) -> list[Known]:
    """Put inputs and outputs together."""
    return [
        Known(
            call=Call(
                arguments=arguments,
                seconds=min(max(LEAST_S, FACTOR * taken), MOST_S),
                reply_bytes=REPLY_BYTES + 4 * len(answer),
            ),
            encoded=answer,
        )
        for arguments, taken, answer in zip(problem.tests.inputs[part], seconds, answers, strict=True)
    ]


def _read(path: Path, problem: Problem) -> dict[str, list[Known]] | None:
    """Read what the cache has of a problem; None where that is nothing, or damaged."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        seconds = json.loads(head)
        if seconds["crc32"] != zlib.crc32(body):
            return None
        lines = iter(body.split(b"\n"))
        return {part: _known(problem, part, list(islice(lines, len(seconds[part]))), seconds[part]) for part in PARTS}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, outputs: Mapping[str, Outputs]) -> None:
    """Put outputs into the cache in one step, whoever else writes: a line of times, then a line for each answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"\n".join(answer for part in PARTS for answer in outputs[part][0])  # JSON holds no line ends
    head = {part: outputs[part][1] for part in PARTS} | {"crc32": zlib.crc32(body)}
    partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.partial")
    partial.write_bytes(json.dumps(head).encode() + b"\n" + body)
    partial.replace(path)
