"""Does an answer solve a benchmark's problem? Its functions are run on the problem's inputs, in the sandbox.

A function is tried on every problem whose entry point takes as many arguments, by one call or few of each problem, all
in one run; on the problem that has its name in any case. Where these calls agree, the benchmark itself judges the whole
answer, the function under the entry point's name. So what counts is the benchmark's own verdict.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xft.curate.contamination import Reference, python_of
from xft.data.example import Example
from xft.eval.asserts import CannotSplitError, Check, split_asserts, split_check
from xft.eval.benchmark import BENCHMARKS
from xft.eval.extract import parse
from xft.eval.functions import MEMORY_MB, REPLY_BYTES, FunctionBenchmark
from xft.eval.sandbox.outcome import Call, Returned

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

CALL_S = 1.0
"""Limit for a call that only looks for candidates."""
MAX_FUNCTIONS = 8
"""Functions of one answer that are tried, the last ones: helpers stand before what needs them."""
MAX_STUCK = 3
"""So many calls of an answer may end its process before it is given up."""
PROBE = """
def __xft_probe__(name, *arguments):
    try:
        return (True, globals()[name](*arguments))
    except Exception:
        return (False, None)
"""
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, slots=True)
class _Probe:
    """A problem's first check, to see whether a closer look is worth it."""

    reference: int
    check: Check


class Functional:
    """The problems that have calls to try."""

    def __init__(self, references: Sequence[Reference], sandbox: Sandbox) -> None:
        self.references, self.sandbox = references, sandbox
        self.by_arity: dict[int, list[_Probe]] = defaultdict(list)
        self.by_name: dict[str, list[int]] = defaultdict(list)
        seen: set[str] = set()
        for number, reference in enumerate(references):
            check = None if reference.problem.task_id in seen else first_check(reference)
            if check:
                seen.add(reference.problem.task_id)
                self.by_arity[len(check.calls[0])].append(_Probe(reference=number, check=check))
                self.by_name[reference.problem.entry_point].append(number)

    def passed(self, record: Example) -> list[int]:
        """Return the problems whose tests an answer passes.

        Raises:
            SandboxError: the sandbox failed; says nothing about the answer.
        """
        tree = parse(python_of(record))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)] if tree else []
        functions = functions[-MAX_FUNCTIONS:]
        if tree is None or not functions:
            return []
        code = definitions(tree)
        wanted: dict[tuple[int, str], None] = {}
        for function in functions:
            wanted |= {(number, function.name): None for number in self.by_name.get(function.name, ())}
        wanted |= dict.fromkeys(self._agreeing(code, functions))
        return sorted({number for number, name in wanted if self._solves(number, name, code)})

    def _solves(self, number: int, name: str, code: str) -> bool:
        """Let the benchmark judge the function under its entry point's name."""
        reference = self.references[number]
        entry = reference.problem.entry_point
        program = f"{code}\n{entry} = {name}\n" if name != entry else code
        benchmark = BENCHMARKS[reference.benchmark]
        judgement = benchmark.judge(reference.problem, program, self.sandbox)
        if judgement.strained:  # the machine may have been busy
            judgement = benchmark.judge(reference.problem, program, self.sandbox)
        return judgement.status == "passed"

    def _agreeing(self, code: str, functions: Sequence[ast.FunctionDef]) -> Iterator[tuple[int, str]]:
        """Yield the problems whose first check holds of a function."""
        tried = [(probe, function.name) for function in functions for probe in self._fitting(function)]
        calls = [(at, arguments) for at, (probe, _) in enumerate(tried) for arguments in probe.check.calls]
        answers: dict[int, list[Any]] = defaultdict(list)
        begin = stuck = 0
        while begin < len(calls) and stuck < MAX_STUCK:
            some = calls[begin:]

            def keep(index: int, returned: Returned, some: Any = some) -> str | None:
                answers[some[index][0]].append(returned.value)
                return None

            outcome = self.sandbox.call(
                code + PROBE,
                "__xft_probe__",
                [
                    Call(arguments=(tried[at][1], *arguments), seconds=CALL_S, reply_bytes=REPLY_BYTES)
                    for at, arguments in some
                ],
                keep,
                memory_mb=MEMORY_MB,
            )
            if outcome.status == "passed" or outcome.at < 0:
                break
            begin += outcome.at + 1
            stuck += 1
        for at, (probe, name) in enumerate(tried):
            got = answers[at]
            whole = len(got) == len(probe.check.calls) and all(
                isinstance(each, tuple) and each[0] is True for each in got
            )
            if whole and probe.check.holds([each[1] for each in got]):
                yield probe.reference, name

    def _fitting(self, function: ast.FunctionDef) -> Iterator[_Probe]:
        """Yield the problems whose entry point could be called like this function."""
        taken = function.args
        most = len(taken.posonlyargs) + len(taken.args)
        if any(default is None for default in taken.kw_defaults) or most == 0:
            return
        for arity in range(most - len(taken.defaults), most + 1):
            yield from self.by_arity.get(arity, ())


def first_check(reference: Reference) -> Check | None:
    """Return the first assert of a problem that calls its function and can be split; None where there is none."""
    problem = reference.problem
    if not isinstance(BENCHMARKS[reference.benchmark], FunctionBenchmark):
        return None
    try:
        if not isinstance(problem.tests, str):  # the plus sets: MBPP's statement has one assert, HumanEval's has none
            asserts = [line for line in problem.stub.splitlines() if line.startswith("assert ")]
            checks = split_asserts("\n".join(asserts), [problem.entry_point])
        elif "def check(" in problem.tests:
            checks = split_check(problem.tests, problem.entry_point)
        else:
            checks = split_asserts(problem.tests, [problem.entry_point])
    except CannotSplitError:
        return None
    return next((check for check in checks if check.calls), None)


def definitions(tree: ast.Module) -> str:
    """Return a program's imports, functions, classes and constants: what runs nothing, whatever is installed."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        match node:
            case ast.ImportFrom(module="__future__"):
                kept.insert(0, node)
            case ast.Import() | ast.ImportFrom():
                kept.append(_forgiving(node))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                kept.append(node)
            case ast.Assign() | ast.AnnAssign() if not any(isinstance(part, ast.Call) for part in ast.walk(node)):
                kept.append(_forgiving(node))
    return ast.unparse(ast.fix_missing_locations(ast.Module(body=kept, type_ignores=[]))) + "\n"


def _forgiving(node: ast.stmt) -> ast.stmt:
    """Let a statement fail without harm."""
    handler = ast.ExceptHandler(type=ast.Name(id="Exception", ctx=ast.Load()), name=None, body=[ast.Pass()])
    return ast.Try(body=[node], handlers=[handler], orelse=[], finalbody=[])
