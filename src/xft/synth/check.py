"""The execution check: the teacher's solution must pass the teacher's tests, and the tests must be worth something.

The teacher writes the tests from the exercise and the solution's outline, without its bodies, so that they state what
the exercise demands and not what the solution happens to do. A test counts when it passes and fails on a mutated
solution. A pair whose solution and tests disagree gets one more request, with the error.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from xft.eval.sandbox import Outcome
from xft.synth.config import CheckConfig
from xft.synth.methods.method import Frame
from xft.synth.mutate import mutants
from xft.synth.rules import code_in, fault_of, parsed, sections
from xft.synth.store import Store
from xft.synth.task import Draft, Reject, Steps, ask
from xft.synth.templates import render

MOST_TESTS = 20
"""Tests that are looked at; further ones are left out."""
SHOWN_FAILURES = 3
MUTANT_SECONDS = 2.0
"""Least limit of a mutated program; mutants often loop for ever."""
REASONS = {
    "timeout": "time limit", "memory": "memory limit", "exited": "solution ends the program", "failed": "tests fail",
    "wrong": "tests fail",
}  # fmt: skip


class Runner(Protocol):
    """What runs a program: the sandbox."""

    def run(self, program: str, *, seconds: float, memory_mb: int) -> Outcome:
        """Run a Python program to its end or its limits."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Tests in Python."""

    setup: str
    """What the tests need: imports and values."""
    tests: tuple[str, ...]

    def program(self, code: str, tests: Sequence[str] | None = None) -> str:
        """Return a solution with tests below it, all of them by default."""
        return "\n\n".join([code, self.setup, *(self.tests if tests is None else tests)]) + "\n"

    @property
    def text(self) -> str:
        """Return the tests as they stand in a file."""
        return "\n".join([*([self.setup] if self.setup else []), *self.tests])


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What running said."""

    reason: str
    """Why the pair is not kept; "" when it is."""
    error: str = ""
    counting: tuple[str, ...] = ()
    """The tests that fail on a mutated solution."""
    mutants: int = 0
    killed: int = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Runs solutions and tests; the same ones are run once, whatever they use: a verdict is kept with the answers."""

    runner: Runner
    level: str
    config: CheckConfig
    store: Store

    def judge(self, code: str, suite: Suite) -> Verdict:
        """Run a solution with its tests, and the tests on mutated solutions.

        Raises:
            SandboxError: the sandbox itself failed; says nothing about the solution.
        """
        limits = self.config.model_dump(include={"tests", "mutants", "seconds", "memory_mb", "libraries"})
        key = Store.key(kind="verdict", code=code, suite=asdict(suite), limits=limits, level=self.level)
        known = self.store.get(key)
        if known is None:
            known = asdict(self._judge(code, suite))
            self.store.put(key, known)
        return Verdict(**{**known, "counting": tuple(known["counting"])})

    def _judge(self, code: str, suite: Suite) -> Verdict:
        outcome = self._run(suite.program(code), self.config.seconds)
        if outcome.status != "passed":
            error = self._named(code, suite) if outcome.status == "failed" else ""
            return Verdict(reason=REASONS[outcome.status], error=error or outcome.error or outcome.status)
        again = self._run(suite.program(code), self.config.seconds)
        if again.status != "passed":
            return Verdict(reason="passes only at times", error=again.error or again.status)
        seconds = min(self.config.seconds, max(MUTANT_SECONDS, 5 * outcome.seconds))
        counting: set[str] = set()
        tried = killed = 0
        for mutant in mutants(code, self.config.mutants, seed=0):
            noticed = self._run(suite.program(mutant), seconds).status != "passed"
            if noticed and self._run(suite.program(mutant, []), seconds).status != "passed":
                continue  # it fails whatever is tested
            tried += 1
            killed += noticed
            if not noticed:
                continue
            counting |= {
                test
                for test in suite.tests
                if test not in counting and self._run(suite.program(mutant, [test]), seconds).status != "passed"
            }
        kept = tuple(test for test in suite.tests if test in counting)
        few = len(kept) < self.config.tests
        error = f"{len(kept)} of {len(suite.tests)} tests fail on a mutated solution" if few else ""
        return Verdict(
            reason="tests prove too little" if few else "", error=error, counting=kept, mutants=tried, killed=killed
        )

    def _named(self, code: str, suite: Suite) -> str:
        """Say which tests fail, each with its error; "" when none does alone."""
        alone = [(test, self._run(suite.program(code, [test]), self.config.seconds)) for test in suite.tests]
        failed = [f"{test}: {outcome.error or outcome.status}" for test, outcome in alone if outcome.status != "passed"]
        return "\n".join(failed[:SHOWN_FAILURES])

    def _run(self, program: str, seconds: float) -> Outcome:
        outcome = self.runner.run(program, seconds=seconds, memory_mb=self.config.memory_mb)
        if outcome.strained:  # the machine may have been busy
            outcome = self.runner.run(program, seconds=seconds, memory_mb=self.config.memory_mb)
        return outcome


def check(draft: Draft, frame: Frame, bench: Bench) -> Steps[Draft | Reject]:
    """Ask for tests, run them, ask for a repair where they disagree with the solution."""
    config = frame.config.check
    code = code_in(draft.response, "python")
    outline = outline_of(code)
    if not outline:
        return _rejected(draft, "nothing to test: no function or class")
    prompt = render("tests", instruction=draft.instruction, outline=outline, count=config.tests + 1)
    answer = yield from ask(frame.work_out(prompt))
    suite = suite_in(answer.text, code)
    verdict = yield from _judged(code, suite, bench)
    if not verdict.reason:
        return _passed(draft, verdict, "passed")
    if not config.repair:
        return _rejected(draft, verdict.reason, verdict.error, suite)
    prompt = render(
        "repair", instruction=draft.instruction, solution=code, tests=suite.text or "(none)",
        error=verdict.error or verdict.reason, count=config.tests,
    )  # fmt: skip
    answer = yield from ask(frame.work_out(prompt))
    reason, _ = fault_of(answer)
    if reason:
        return _rejected(draft, f"repair: {reason}", verdict.error, suite)
    parts = sections(answer.text, ("Solution", "Tests"))
    solution = parts.get("Solution", draft.response)  # one that only corrects the tests
    code = code_in(solution, "python")
    if parsed(code) is None or not outline_of(code):
        return _rejected(draft, "repair: no solution in the answer", verdict.error, suite)
    suite = suite_in(parts.get("Tests", ""), code) if "Tests" in parts else suite
    verdict = yield from _judged(code, suite, bench)
    if verdict.reason:
        return _rejected(draft, f"repair: {verdict.reason}", verdict.error, suite)
    return _passed(replace(draft, response=solution), verdict, "repaired")


def _judged(code: str, suite: Suite, bench: Bench) -> Steps[Verdict]:
    wanted = bench.config.tests
    if len(suite.tests) < wanted:
        return Verdict(reason="too few tests", error=f"{len(suite.tests)} usable tests, {wanted} are needed")
    (verdict,) = yield [lambda: bench.judge(code, suite)]
    assert isinstance(verdict, Verdict)
    return verdict


def _passed(draft: Draft, verdict: Verdict, status: str) -> Draft:
    said: dict[str, Any] = {"status": status, "mutants": verdict.mutants, "killed": verdict.killed}
    return replace(draft, meta={**draft.meta, "tests": list(verdict.counting), "check": said})


def _rejected(draft: Draft, reason: str, error: str = "", suite: Suite | None = None) -> Reject:
    parts = [draft.instruction, draft.response, *([suite.text] if suite else [])]
    return Reject(reason=f"check: {reason}", detail=error, document=draft.document, text="\n\n".join(parts))


def outline_of(code: str) -> str:
    """Return a program's functions and classes without their bodies, with their docstrings; "" without any."""
    tree = parsed(code)
    return "\n".join(_outlined(tree.body, "")) if tree else ""


def _outlined(body: Sequence[ast.stmt], indent: str) -> list[str]:
    lines: list[str] = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            lines += [f"{indent}class {node.name}:", *(_outlined(node.body, indent + "    ") or [f"{indent}    ..."])]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Expr(ast.Constant(...))] if ast.get_docstring(node) is None else node.body[:1]
            node.decorator_list = []
            lines += [f"{indent}{line}" for line in ast.unparse(ast.fix_missing_locations(node)).split("\n")]
    return lines


def suite_in(text: str, code: str) -> Suite:
    """Read the tests in an answer: each `assert`, and each function `test...` without parameters, once.

    What the answer defines or imports that the solution defines is left out: teachers like to repeat it, or import it
    from a module of their fancy.
    """
    tree = parsed(code_in(text, "python") or text)
    own = parsed(code) or ast.Module([], [])
    known = {"*", *(name for node in own.body for name in _names(node) if not isinstance(node, ast.Import))}
    setup: list[str] = []
    tests: dict[str, None] = {}
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assert):
            tests[ast.unparse(node)] = None
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not ast.unparse(node.args):
            if any(isinstance(inner, ast.Assert) for inner in ast.walk(node)):
                tests[f"{ast.unparse(node)}\n{node.name}()"] = None
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.FunctionDef | ast.ClassDef) and not (
            known & set(_names(node))
        ):
            setup.append(ast.unparse(node))
    return Suite(setup="\n".join(setup), tests=tuple(tests)[:MOST_TESTS])


def _names(node: ast.stmt) -> list[str]:
    """Return what a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
    return []
