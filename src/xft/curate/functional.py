"""Does an answer solve a benchmark's problem? Its functions are run on the problem's inputs, in the sandbox.

A function is tried on every problem whose entry point takes as many arguments, by the first assert of each problem, all
in one run; and on the problem that has its name in any case. Where that holds, all of the problem's asserts must. For
MBPP+'s own problems, whose tests are no asserts, the benchmark judges the function under its entry point's name.

A function that answers the first assert wrongly is refuted: it is no solution, however much it looks like one. One that
could not be run, or lacks something, or is late, says nothing.

Time is counted as computing time in the candidate's own process, so that a busy machine changes no result; the limits
in wall-clock time are for what sleeps.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xft.curate.contamination import Reference, References, Tried, python_of, words_of
from xft.data.example import Example
from xft.eval.asserts import Check
from xft.eval.benchmark import BENCHMARKS
from xft.eval.extract import parse
from xft.eval.functions import MEMORY_MB, FunctionBenchmark, split_tests
from xft.eval.sandbox.outcome import Call, Returned

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

FIRST_S, ALL_S = 0.2, 1.0
"""Seconds of computing for a call of the first assert, and of all; of MBPP's own solutions, that of 123 takes 3."""
CALLS = 10
"""All calls of a function together have so many times the time of one."""
WALL = 5
"""Seconds of waiting for each second of computing."""
MAX_FUNCTIONS = 8
"""Functions of one answer that are tried, the last ones: helpers stand before what needs them."""
MAX_ENDS = 2
"""So many calls may end the process before a function is given up."""
REPLY_BYTES = 1 << 16
SELECT = "\0select"
PROBE = f"""
def __xft_probe__(*arguments, _now={{}}):
    import random, signal, time

    if arguments[0] == {SELECT!r}:
        _now.update(function=eval(arguments[1]), seconds=arguments[2], left={CALLS} * arguments[2])
        return None
    if _now["left"] <= 0:
        return (None, None)

    class Late(BaseException):
        pass

    def late(*_):
        raise Late

    began = time.process_time()
    random.seed(0)
    try:
        signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, _now["seconds"])
        answer = _now["function"](*arguments)
    except (Late, NameError, ImportError, RecursionError, MemoryError, OSError):
        return (None, None)
    except BaseException:
        return (False, None)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _now["left"] -= time.process_time() - began
    large = answer.bit_length() > 4096 if isinstance(answer, int) else hasattr(answer, "__len__") and len(answer) > 4096
    return (None, None) if large else (True, answer)
"""
"""Calls the function that was selected last, as long as its time lasts; draws at random are the same in each call.

Gives True and the answer; False for an error, which is an answer too; None where there is none for another reason.
"""
Reply = tuple[bool | None, Any]
ASYNC = re.compile(r"\b(?:async|await)[ \t]+(?=[\w(\[])")
"""A coroutine without these words is a function that computes the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Probe:
    """Some of a problem's asserts, with the calls that they need."""

    reference: int
    checks: tuple[Check, ...]
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, reference: int, checks: Sequence[Check], seconds: float) -> _Probe:
        """Prepare the calls."""
        calls = tuple(_call(arguments, seconds) for check in checks for arguments in check.calls)
        return cls(reference=reference, checks=tuple(checks), calls=calls)

    def holds(self, answers: Sequence[Reply]) -> bool | None:
        """Tell whether the asserts hold of a function that gave these answers; None: these do not tell."""
        if any(fine is None for fine, _ in answers):
            return None
        if not all(fine for fine, _ in answers):
            return False
        values = [value for _, value in answers]
        for check in self.checks:
            own, values = values[: len(check.calls)], values[len(check.calls) :]
            if not check.holds(own):
                return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class _Function:
    """A function of an answer, or a method of a class."""

    node: ast.FunctionDef
    call: str
    """Expression of what is called; "" where that can't be done."""
    bound: bool = False
    """The first argument is given."""


def _functions(tree: ast.Module) -> Iterator[_Function]:
    """Yield what an answer defines in its outermost scope, in order."""
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                yield _Function(node=node, call=node.name)
            case ast.ClassDef():
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                made = not any(
                    each.name == "__init__" and len(each.args.args) - len(each.args.defaults) > 1 for each in methods
                )  # without arguments
                for method in methods:
                    if method.args.args and not method.decorator_list and not method.name.startswith("__"):
                        call = f"{node.name}().{method.name}" if made else ""
                        yield _Function(node=method, call=call, bound=True)


class Functional:
    """The problems that have calls to try."""

    def __init__(self, references: References, sandbox: Sandbox) -> None:
        self.references, self.sandbox = references, sandbox
        self.by_arity: dict[int, list[_Probe]] = defaultdict(list)
        self.by_name: dict[str, list[int]] = defaultdict(list)
        seen: set[str] = set()
        for number, reference in enumerate(references.all):
            checks = () if reference.problem.task_id in seen else asserts_of(reference)
            if checks:
                seen.add(reference.problem.task_id)
                self.by_arity[len(checks[0].calls[0])].append(_Probe.of(number, checks[:1], FIRST_S))
                self.by_name[reference.problem.entry_point].append(number)

    def tried(self, record: Example) -> Tried:
        """Run an answer's functions on the problems that take as many arguments.

        Raises:
            SandboxError: the sandbox failed; says nothing about the answer.
        """
        written = python_of(record)
        plain = ASYNC.sub("", written) if "async def " in written else written
        tree = parse(plain)
        functions = list(_functions(tree)) if tree else []
        can_run = [function for function in functions if function.call][-MAX_FUNCTIONS:]
        if tree is None or not can_run:
            return Tried()
        code = definitions(tree)
        told = dict(self._told(code, can_run, words_of(record.instruction)))
        wanted: dict[tuple[int, str], None] = {}
        for function in can_run:
            wanted |= {(number, function.call): None for number in self.by_name.get(function.node.name, ())}
        wanted |= {(number, function.call): None for (function, number), holds in told.items() if holds}
        passed = frozenset(number for number, name in wanted if self._solves(number, name, code))
        if plain != written:  # a coroutine may need what it waits for
            return Tried(passed=passed)
        wrong = {(function, number) for (function, number), holds in told.items() if holds is False}
        open_ = {
            probe.reference
            for function in functions
            for probe in self._fitting(function)
            if (function, probe.reference) not in wrong
        }
        return Tried(
            passed=passed,
            refuted=frozenset((function.node.lineno, number) for function, number in wrong),
            failed=frozenset({number for _, number in wrong} - open_ - passed),
        )

    def _solves(self, number: int, name: str, code: str) -> bool:
        """Tell whether a function passes all tests of a problem."""
        reference = self.references.all[number]
        if isinstance(reference.problem.tests, str):
            probe = _Probe.of(number, asserts_of(reference), ALL_S)
            return probe.holds(self._answers(code, name, probe.calls, ALL_S)) is True
        program = f"{code}\n{reference.problem.entry_point} = {name}\n"
        return BENCHMARKS[reference.benchmark].judge(reference.problem, program, self.sandbox).status == "passed"

    def _told(
        self, code: str, functions: Sequence[_Function], words: frozenset[str]
    ) -> Iterator[tuple[tuple[_Function, int], bool | None]]:
        """Yield whether problems' first asserts hold of a function; those with the instruction's words come first."""
        for function in functions:
            probes = sorted(
                self._fitting(function), key=lambda probe: -self.references.statement_score(probe.reference, words)
            )
            calls = [call for probe in probes for call in probe.calls]
            answers = self._answers(code, function.call, calls, FIRST_S)
            for probe in probes:
                own, answers = answers[: len(probe.calls)], answers[len(probe.calls) :]
                yield (function, probe.reference), probe.holds(own)

    def _answers(self, code: str, name: str, calls: Sequence[Call], seconds: float) -> list[Reply]:
        """Return for each call what the function came to."""
        answers: list[Reply] = []
        known = 0

        def keep(index: int, returned: Returned) -> str | None:
            if index == 0:  # the sandbox may begin anew
                del answers[known:]
            else:
                fine, value = returned.value
                answers.append((fine if isinstance(fine, bool) else None, value))
            return None

        for _ in range(MAX_ENDS):
            known = len(answers)
            left = calls[known:]
            if not left:
                break
            select = _call((SELECT, name, seconds), seconds)
            outcome = self.sandbox.call(code + PROBE, "__xft_probe__", [select, *left], keep, memory_mb=MEMORY_MB)
            if outcome.status == "passed" or outcome.at < 1:
                break
            answers.append((None, None))  # the call that ended the process
        return answers + [(None, None)] * (len(calls) - len(answers))

    def _fitting(self, function: _Function) -> Iterator[_Probe]:
        """Yield the problems whose entry point could be called like this function."""
        taken = function.node.args
        most = len(taken.posonlyargs) + len(taken.args) - function.bound
        if any(default is None for default in taken.kw_defaults) or most == 0:
            return
        for arity in range(most - len(taken.defaults), most + 1):
            yield from self.by_arity.get(arity, ())


def _call(arguments: tuple[Any, ...], seconds: float) -> Call:
    return Call(arguments=arguments, seconds=WALL * seconds, reply_bytes=REPLY_BYTES)


def asserts_of(reference: Reference) -> tuple[Check, ...]:
    """Return a problem's asserts that call its function, from the first that does; none where they can't be split."""
    problem = reference.problem
    if not isinstance(BENCHMARKS[reference.benchmark], FunctionBenchmark):
        return ()
    tests = problem.tests
    if not isinstance(tests, str):  # the plus sets: MBPP's statement has one assert, HumanEval's has none
        tests = "\n".join(line for line in problem.stub.splitlines() if line.startswith("assert "))
    return tuple(check for check in split_tests(tests, problem.entry_point) if check.calls)


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
