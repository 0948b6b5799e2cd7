"""What the benchmarks of Python functions share: the sandbox, its proof, and judging by calls."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import reprlib
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xft.eval.asserts import CannotSplitError, Check, split_asserts, split_check
from xft.eval.benchmark import Judgement, Problem, Tool
from xft.eval.extract import extract_program
from xft.eval.sandbox.outcome import Call, Outcome, Returned

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

LIBRARIES = ("numpy",)
"""What candidates may import beside the standard library."""
MEMORY_MB = 4096
IMPORT_SECONDS = 60.0
"""For all libraries, on a busy machine."""
PROOFS = 3
REPLY_BYTES = 1 << 20
"""Room for an answer, beside that for the right one."""
FENCE_STOP = ("\n```\n",)
"""EvalPlus's stop for an answer in an opened fence: a fence with a label doesn't close it, but begins the program."""
END_STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>")
SPECIAL_STOPS = (*END_STOPS, "\nif __name__", "\ndef main(", "\nprint(")
"""EvalPlus's stops for plain continuation, in both benchmarks."""
SHOWN = 100
"""Characters of a value in a message."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class FunctionBenchmark(ABC):
    """A benchmark whose problems ask for one Python function."""

    name: str
    limits: Mapping[str, Any]

    @abstractmethod
    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order."""

    @abstractmethod
    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program against the problem's tests."""

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        """Return the program in a completion, "" when there is none; the same rules serve all styles."""
        return extract_program(problem.stub, problem.entry_point, completion)

    def assemble(self, problem: Problem, completion: str) -> str:
        """Return the program of a raw completion that was made elsewhere: it follows the prompt."""
        return problem.stub + completion

    def sandbox(self, *, allow_unsafe: bool = False) -> Sandbox:
        """Return a sandbox whose candidates may import LIBRARIES."""
        from xft.eval.sandbox import Sandbox

        return Sandbox(libraries=LIBRARIES, allow_unsafe=allow_unsafe)

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let Python judge a few canonical solutions, and as many programs that are wrong.

        Raises:
            SandboxError: the sandbox failed; says nothing about Python.
        """
        tool = python(sandbox)
        if tool.fault:
            return [tool]
        usable = [problem for problem in self.problems() if problem.tool == "python"]
        for problem in usable[:: max(1, len(usable) // PROOFS)][:PROOFS]:
            right = self.judge(problem, problem.stub + problem.canonical, sandbox)
            if right.status != "passed":
                said = f"{right.status}: {right.error or 'no message'}"
                fault = f"the canonical solution of {problem.task_id} does not pass ({said}); check {tool.version}"
                return [replace(tool, fault=fault)]
            wrong = self.judge(problem, f"def {problem.entry_point}(*_):\n    return object\n", sandbox)
            if wrong.status == "passed":
                fault = f"a wrong solution of {problem.task_id} passes; check the benchmark's data"
                return [replace(tool, fault=fault)]
        return [tool]


def python(sandbox: Sandbox) -> Tool:
    """Return Python, which is at fault where candidates can't import LIBRARIES.

    Raises:
        SandboxError: the sandbox failed; says nothing about Python.
    """
    libraries = [f"{each} {importlib.metadata.version(each)}" for each in LIBRARIES]
    version = ", ".join([platform.python_version(), *libraries])
    imports = "".join(f"import {each}\n" for each in LIBRARIES)
    outcome = sandbox.run(imports, seconds=IMPORT_SECONDS, memory_mb=MEMORY_MB)
    said = f"{outcome.status}: {outcome.error or 'no message'}"
    fault = "" if outcome.status == "passed" else f"{', '.join(LIBRARIES)} can't be imported ({said}); check {version}"
    return Tool(name="python", version=version, fault=fault)


def call_within(
    sandbox: Sandbox,
    code: str,
    entry_point: str,
    calls: Sequence[Call],
    judge: Callable[[int, Returned], str | None],
    *,
    seconds: float,
) -> Outcome:
    """Call a candidate's function with a limit for all calls together, beside each one's own.

    Raises:
        SandboxError: the sandbox failed.
    """
    deadline, late = 0.0, False

    def in_time(index: int, returned: Returned) -> str | None:
        nonlocal deadline, late
        now = time.monotonic()
        if index == 0:
            deadline = now + seconds
        late = now > deadline
        return f"no end within {seconds:g} s" if late else judge(index, returned)

    outcome = sandbox.call(code, entry_point, calls, in_time, memory_mb=MEMORY_MB)
    return replace(outcome, status="timeout", strained=True) if late else outcome


def call_checks(sandbox: Sandbox, code: str, entry_point: str, checks: Sequence[Check], *, seconds: float) -> Outcome:
    """Make the calls of split asserts and see whether each holds.

    Raises:
        SandboxError: the sandbox failed.
    """
    calls = [
        Call(arguments=arguments, seconds=seconds, reply_bytes=REPLY_BYTES)
        for check in checks
        for arguments in check.calls
    ]
    owners = [check for check in checks for _ in check.calls]
    last = [index + 1 == len(owners) or owners[index + 1] is not owner for index, owner in enumerate(owners)]
    answers: list[Any] = []

    def judge(index: int, returned: Returned) -> str | None:
        if index == 0 or last[index - 1]:
            answers.clear()
        answers.append(returned.value)
        if last[index] and not owners[index].holds(answers):
            return f"does not hold: {owners[index].text}"
        return None

    return call_within(sandbox, code, entry_point, calls, judge, seconds=seconds)


def shown(value: Any) -> str:
    """Return a value as text for a message, cut short, whatever it is."""
    try:
        return textwrap.shorten(_SHORT.repr(value), SHOWN, placeholder="...")
    except Exception:  # an int of too many digits, say
        return f"<{type(value).__name__}>"


@functools.lru_cache(maxsize=4096)
def split_tests(tests: str, entry_point: str) -> tuple[Check, ...]:
    """Return the split asserts of a problem; none where they can't be split."""
    try:
        return split_check(tests, entry_point) if "def check(" in tests else split_asserts(tests, [entry_point])
    except CannotSplitError:
        return ()


def judge_asserts(problem: Problem, code: str, sandbox: Sandbox, *, seconds: float) -> Judgement:
    """Run a program against a problem's asserts, outside its process where they can be split.

    Raises:
        SandboxError: the sandbox failed.
    """
    if checks := split_tests(problem.tests, problem.entry_point):
        return judgement(call_checks(sandbox, code, problem.entry_point, checks, seconds=seconds))
    return judge_beside(problem, code, sandbox, seconds=seconds)


def judge_beside(problem: Problem, code: str, sandbox: Sandbox, *, seconds: float) -> Judgement:
    """Run a program and a problem's tests in one process, where the program could meddle with them.

    Raises:
        SandboxError: the sandbox failed.
    """
    outcome = sandbox.run(f"{code}\n{problem.tests}\n", seconds=seconds, memory_mb=MEMORY_MB)
    return judgement(outcome, in_process=True)


def judgement(outcome: Outcome, *, in_process: bool = False) -> Judgement:
    """Return what one run says of an answer."""
    return Judgement(
        status=outcome.status,
        seconds=outcome.seconds,
        error=outcome.error,
        in_process=in_process,
        strained=outcome.strained,
    )
