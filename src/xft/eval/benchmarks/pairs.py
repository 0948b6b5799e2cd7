"""`pairs:FILE`: problems of one's own, pairs with tests out of a file, as `xft synth` writes them.

A record has `instruction`, `response` (the reference) and `tests`, a list of asserts or their text, there or in its
`meta`; beside them there may be `setup`, what the tests import or define. The instruction is put to the model as it
stands.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft.data.sources import SUFFIXES, BadRecordError, read_records, to_example
from xft.errors import DataError
from xft.eval.benchmark import BENCHMARKS, Judgement, Problem, Request, Tool
from xft.eval.extract import find_program, parse, segments, without_demo
from xft.eval.functions import (
    END_STOPS,
    MEMORY_MB,
    SPECIAL_STOPS,
    FunctionBenchmark,
    judge_asserts,
    judge_beside,
    python,
)
from xft.prompts import PROMPTS
from xft.recipe import PAIRS, folder_of

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

SECONDS = 10.0
"""For all tests of a problem together."""
STOPS = (*SPECIAL_STOPS, "\nassert")
PROVED: dict[tuple[str, str, str], frozenset[str]] = {}
"""Names, data and sandbox levels of which this process has seen all references pass: a run scores many models.

With each, the problems that are judged in the candidate's process: whose arguments or answers, an iterator say, can't
leave it."""
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Pairs(FunctionBenchmark):
    """A file's records as problems. Asserts about one function are split; other tests run beside the candidate.

    Asserts that the reference passes only in the candidate's process run there too.
    """

    limits: Mapping[str, Any] = {"seconds": SECONDS, "memory_mb": MEMORY_MB}

    def __init__(self, file: str) -> None:
        self.name = folder_of(PAIRS + file)
        self.path = Path(file)
        self.beside: frozenset[str] = frozenset()

    def problems(self) -> Sequence[Problem]:
        """Read all records; read again only when the file has changed.

        Raises:
            DataError: the file can't be read, or a record is no problem; says where and why.
        """
        return self._read()[0]

    def data_hash(self) -> str:
        """Return the sha256 of the records."""
        return self._read()[1]

    def request(self, problem: Problem, style: str) -> Request:
        """Put the instruction as it stands; in the style `completion` let the model continue it as a comment.

        Raises:
            UnknownNameError: no such style.
        """
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=STOPS)
        PROMPTS[style]
        return Request(instruction=problem.instruction, prefix="", stop=END_STOPS)

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        """Return the first stretch, fenced or not, that defines what the tests call, "" when there is none.

        What follows the definitions is dropped, unless the reference has a script there, which the tests may need.
        """
        called = _called(problem.tests, problem.canonical)
        program = find_program(problem.stub, called, completion)
        program = program or find_program(problem.stub, {problem.entry_point}, completion)
        used = _used(problem.tests)
        scripted = without_demo(problem.canonical, called, used) != problem.canonical
        return program if scripted else without_demo(program, called, used)

    def assemble(self, problem: Problem, completion: str) -> str:
        """Return the program in an answer that was made elsewhere: as `extract`, since no prompt has begun it."""
        return self.extract(problem, completion, "completion")

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let Python judge every reference, once a process.

        Raises:
            DataError: a reference does not pass its tests.
            SandboxError: the sandbox failed; says nothing about the file.
        """
        proof = (self.name, self.data_hash(), str(sandbox.level))
        if proof not in PROVED:
            PROVED[proof] = self._prove(sandbox)
        self.beside = PROVED[proof]
        return [python(sandbox)]

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program against the record's tests; called from several threads at once.

        Raises:
            SandboxError: the sandbox failed; says nothing about the program.
        """
        judged = judge_beside if problem.task_id in self.beside else judge_asserts
        return judged(problem, code, sandbox, seconds=SECONDS)

    def _prove(self, sandbox: Sandbox) -> frozenset[str]:
        """See that every reference passes, and that no tests in the candidate's process pass whatever it defines.

        Return the problems whose references pass only in that process; what ran out of time does not become one.
        """
        problems = self.problems()
        failed: dict[str, str] = {}
        beside: set[str] = set()

        def judged(problem: Problem) -> Judgement:
            return judge_asserts(problem, problem.canonical, sandbox, seconds=SECONDS)

        with ThreadPoolExecutor(2) as pool:
            verdicts = list(pool.map(judged, problems))
        for problem, first in zip(problems, verdicts, strict=True):
            verdict = judged(problem) if first.strained else first
            if verdict.status in ("wrong", "failed") and not verdict.in_process:
                inside = judge_beside(problem, problem.canonical, sandbox, seconds=SECONDS)
                if inside.status == "passed":
                    verdict = inside
                    beside.add(problem.task_id)
            if verdict.status != "passed":
                failed[problem.task_id] = f"{verdict.status}: {verdict.error or 'no message'}"
            elif verdict.in_process:
                nothing = "".join(f"def {name}(*_, **__):\n    return object()\n" for name in _names(problem.canonical))
                if judge_beside(problem, nothing, sandbox, seconds=SECONDS).status == "passed":
                    failed[problem.task_id] = "its tests pass whatever the response does"
        if failed:
            first_id, said = next(iter(failed.items()))
            raise DataError(
                f"{self.path}: {len(failed)} of {len(problems)} responses are not proved by their tests, first that of "
                f"record {first_id.rpartition('/')[2]} ({said}); correct these records or leave them out"
            )
        return frozenset(beside)

    def _read(self) -> tuple[Sequence[Problem], str]:
        if not self.path.is_file() or not self.path.name.endswith(SUFFIXES):
            raise DataError(f"{self.path}: no such file of pairs; {PAIRS}FILE reads {', '.join(SUFFIXES)}")
        stat = self.path.stat()
        return _read(self.path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: Path, _modified: int, _size: int) -> tuple[Sequence[Problem], str]:
    """Return the problems of a file, and the sha256 of its records."""
    found: list[Problem] = []
    digest = hashlib.sha256()
    for number, (where, record) in enumerate(read_records(path), start=1):
        try:
            if isinstance(record, BadRecordError):
                raise record
            found.append(_problem(record, where, f"{path.name.partition('.')[0]}/{number}"))
        except BadRecordError as error:
            raise DataError(f"{where}: no problem with tests: {error}; correct it or leave it out") from None
        digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    if not found:
        raise DataError(f"{path}: no record in it; a problem has an instruction, a response and tests")
    return found, digest.hexdigest()


def _problem(record: Any, where: str, task_id: str) -> Problem:
    """Read one record.

    Raises:
        BadRecordError: it is no problem.
    """
    example = to_example(record, where, {})
    meta = example.meta.get("meta")
    holder = example.meta if example.meta.get("tests") or not isinstance(meta, dict) else meta
    tests, setup = holder.get("tests"), holder.get("setup", "")
    tests = [tests] if isinstance(tests, str) and tests else tests
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in (*tests, setup)):
        raise BadRecordError("no tests, a list of asserts or their text, in the record or its meta")
    text = "\n".join([setup, *tests] if setup else tests)
    if parse(text) is None:
        raise BadRecordError("its tests are not Python")
    for _, segment in segments(example.response):
        program = textwrap.dedent(segment).strip("\n") + "\n"
        if parse(program) is not None and (called := _called(text, program)):
            break
    else:
        raise BadRecordError("its response defines nothing that its tests use")
    return Problem(
        task_id=task_id,
        stub="".join(f"# {line}\n" for line in example.instruction.splitlines()),
        instruction=example.instruction,
        entry_point=next(name for name in _names(program) if name in called),
        canonical=program,
        tests=text,
    )


def _names(program: str) -> list[str]:
    """Return what a program defines at its top, in order."""
    tree = parse(program)
    return [node.name for node in tree.body if isinstance(node, DEFINITIONS)] if tree else []


@functools.lru_cache(maxsize=4096)
def _called(tests: str, program: str) -> frozenset[str]:
    """Return those of a program's functions and classes that the tests use."""
    return _used(tests).intersection(_names(program))


@functools.lru_cache(maxsize=4096)
def _used(tests: str) -> frozenset[str]:
    """Return the names in tests."""
    tree = parse(tests)
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)) if tree else frozenset()


BENCHMARKS.register_prefix(PAIRS)(Pairs)
