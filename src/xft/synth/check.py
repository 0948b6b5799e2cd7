"""The execution check: the teacher's solution must pass the teacher's tests, and the tests must be worth something.

The teacher writes the tests from the exercise and the solution's outline, without its bodies, so that they state what
the exercise demands and not what the solution happens to do. A test counts when it passes and fails on a mutated
solution.

Where solution and tests disagree, small teachers have more often missed the expected value than the solution. So fresh
solutions can vote: what most of them, the first included, give for every test's call replaces what the tests expected
(after CodeT, arXiv 2207.10397). After that, one more request with the error may repair either.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from typing import Any

from xft.eval.sandbox import Outcome, Sandbox
from xft.synth.config import CheckConfig
from xft.synth.methods.method import Frame
from xft.synth.rules import code_in, fault_of, sections
from xft.synth.store import Store
from xft.synth.task import Draft, Reject, Steps, ask
from xft.synth.templates import render, title
from xft.synth.testing import TESTINGS, Suite

SHOWN_FAILURES = 3
MUTANT_SECONDS = 2.0
"""Least limit of a mutated program; mutants often loop for ever."""
REASONS = {
    "timeout": "time limit", "memory": "memory limit", "exited": "solution ends the program", "failed": "tests fail",
    "wrong": "tests fail",
}  # fmt: skip


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

    sandbox: Sandbox
    level: str
    config: CheckConfig
    store: Store

    def judge(self, language: str, code: str, suite: Suite) -> Verdict:
        """Run a solution with its tests, and the tests on mutated solutions.

        Raises:
            SandboxError: the sandbox itself failed; says nothing about the solution.
        """
        limits = self.config.model_dump(include={"tests", "mutants", "seconds", "memory_mb", "libraries"})
        key = Store.key(
            kind="verdict of tests that stand alone",
            language=language,
            code=code,
            suite=asdict(suite),
            limits=limits,
            level=self.level,
        )
        known = self.store.get(key)
        if known is None:
            known = asdict(self._judge(language, code, suite))
            self.store.put(key, known)
        return Verdict(**{**known, "counting": tuple(known["counting"])})

    def _judge(self, language: str, code: str, suite: Suite) -> Verdict:
        outcome = self._run(language, code, suite, self.config.seconds)
        if outcome.status != "passed":
            error = self._named(language, code, suite) if outcome.status == "failed" else ""
            return Verdict(reason=REASONS[outcome.status], error=error or outcome.error or outcome.status)
        again = self._run(language, code, suite, self.config.seconds)
        if again.status != "passed":
            return Verdict(reason="passes only at times", error=again.error or again.status)
        seconds = min(self.config.seconds, max(MUTANT_SECONDS, 5 * outcome.seconds))
        counting: set[str] = set()
        tried = killed = 0
        for mutant in TESTINGS[language].mutants(code, self.config.mutants, 0):
            noticed = self._run(language, mutant, suite, seconds).status != "passed"
            if noticed and self._run(language, mutant, replace(suite, tests=()), seconds).status != "passed":
                continue  # it fails whatever is tested
            tried += 1
            killed += noticed
            if not noticed:
                continue
            counting |= {
                test
                for test in suite.tests
                if test not in counting
                and self._run(language, mutant, replace(suite, tests=(test,)), seconds).status != "passed"
            }
        kept = tuple(test for test in suite.tests if test in counting and self._holds(language, code, suite, test))
        if not self._holds(language, code, suite, *kept):  # one disturbs another
            kept = ()
        few = len(kept) < self.config.tests
        error = f"{len(kept)} of {len(suite.tests)} tests fail on a mutated solution" if few else ""
        return Verdict(
            reason="tests prove too little" if few else "", error=error, counting=kept, mutants=tried, killed=killed
        )

    def _holds(self, language: str, code: str, suite: Suite, *tests: str) -> bool:
        """Tell whether a solution passes these tests, whatever the others may have done before them."""
        alone = replace(suite, tests=tests)
        return not tests or self._run(language, code, alone, self.config.seconds).status == "passed"

    def disputed(self, language: str, code: str, suite: Suite) -> Suite | None:
        """Return the tests as they stand when they expect what the solution gives; None where one fails otherwise."""
        key = self._key("disputed", language, code, suite)
        known = self.store.get(key)
        if known is None:
            known = {"tests": self._disputed(language, code, suite)}
            self.store.put(key, known)
        return None if known["tests"] is None else replace(suite, tests=tuple(known["tests"]))

    def _disputed(self, language: str, code: str, suite: Suite) -> list[str] | None:
        tests: list[str] = []
        for test in suite.tests:
            outcome = self._run(language, code, replace(suite, tests=(test,)), self.config.seconds)
            right = test if outcome.status == "passed" else TESTINGS[language].expecting(test, outcome.error or "")
            if right is None:
                return None
            tests.append(right)
        return list(dict.fromkeys(tests))  # of two that expected different results of one call, one is left

    def agrees(self, language: str, code: str, suite: Suite) -> bool:
        """Tell whether a solution passes all tests."""
        key = self._key("agrees", language, code, suite)
        known = self.store.get(key)
        if known is None:
            known = {"agrees": self._run(language, code, suite, self.config.seconds).status == "passed"}
            self.store.put(key, known)
        return bool(known["agrees"])

    def _key(self, kind: str, language: str, code: str, suite: Suite) -> str:
        limits = self.config.model_dump(include={"seconds", "memory_mb", "libraries"})
        return Store.key(kind=kind, language=language, code=code, suite=asdict(suite), limits=limits, level=self.level)

    def _named(self, language: str, code: str, suite: Suite) -> str:
        """Say which tests fail, each with its error; "" when none does alone."""
        alone = [
            (test, self._run(language, code, replace(suite, tests=(test,)), self.config.seconds))
            for test in suite.tests
        ]
        failed = [f"{test}: {outcome.error or outcome.status}" for test, outcome in alone if outcome.status != "passed"]
        return "\n".join(failed[:SHOWN_FAILURES])

    def _run(self, language: str, code: str, suite: Suite, seconds: float) -> Outcome:
        run = TESTINGS[language].run
        outcome = run(self.sandbox, code, suite, seconds, self.config.memory_mb)
        if outcome.strained:  # the machine may have been busy
            outcome = run(self.sandbox, code, suite, seconds, self.config.memory_mb)
        return outcome


def check(draft: Draft, frame: Frame, bench: Bench) -> Steps[Draft | Reject]:
    """Ask for tests, run them, ask for a repair where they disagree with the solution."""
    config, language = frame.config.check, draft.language
    testing = TESTINGS[language]
    words = {"instruction": draft.instruction, "language": language, "title": title(language), "form": testing.form}
    code = code_in(draft.response, language)
    outline = testing.outline(code)
    if not outline:
        return _rejected(draft, "nothing to test: no function or class")
    prompt = render("tests", **words, outline=outline, count=config.tests + 1)
    answer = yield from ask(frame.work_out(prompt))
    if answer.finish in ("refused", "broken"):  # one that is only too long has tests up to where it was cut off
        return _rejected(draft, f"tests: {fault_of(answer)[0]}", answer.text)
    suite = testing.suite(answer.text, code)
    verdict = yield from _judged(language, code, suite, bench)
    if not verdict.reason:
        return _passed(draft, verdict, suite, "passed")
    if config.votes and verdict.reason == REASONS["failed"]:
        agreed, votes = yield from _voted(
            language, code, suite, frame, bench, render("solve", **words, outline=outline)
        )
        if agreed:
            voted = yield from _judged(language, code, agreed, bench)
            if not voted.reason:
                return _passed(draft, voted, agreed, "agreed", votes=votes)
    if not config.repair:
        return _rejected(draft, verdict.reason, verdict.error, suite)
    prompt = render(
        "repair", **words, solution=code, tests=suite.text or "(none)", error=verdict.error or verdict.reason,
        count=config.tests,
    )  # fmt: skip
    answer = yield from ask(frame.work_out(prompt))
    reason, _ = fault_of(answer)
    if reason:
        return _rejected(draft, f"repair: {reason}", verdict.error, suite)
    parts = sections(answer.text, ("Solution", "Tests"))
    solution = parts.get("Solution", draft.response)  # one that only corrects the tests
    code = code_in(solution, language)
    if not testing.outline(code):
        return _rejected(draft, "repair: no solution in the answer", verdict.error, suite)
    suite = testing.suite(parts["Tests"], code) if "Tests" in parts else suite
    verdict = yield from _judged(language, code, suite, bench)
    if verdict.reason:
        return _rejected(draft, f"repair: {verdict.reason}", verdict.error, suite)
    return _passed(replace(draft, response=solution), verdict, suite, "repaired")


def _voted(
    language: str, code: str, suite: Suite, frame: Frame, bench: Bench, prompt: str
) -> Steps[tuple[Suite | None, str]]:
    """Let fresh solutions vote; return the tests that the majority passes, if the first solution is in it."""
    (suite_now,) = yield [lambda: bench.disputed(language, code, suite)]
    if suite_now is None:
        return None, ""
    asked = bench.config.votes
    answers = yield [frame.think_again(prompt, sample=number) for number in range(asked)]
    codes = [code_in(answer.text, language) for answer in answers if not fault_of(answer)[0]]
    votes = yield [functools.partial(bench.agrees, language, other, suite_now) for other in codes]
    agreeing = 1 + sum(votes)
    return (suite_now if 2 * agreeing > asked + 1 else None), f"{agreeing} of {asked + 1}"


def _judged(language: str, code: str, suite: Suite, bench: Bench) -> Steps[Verdict]:
    wanted = bench.config.tests
    if len(suite.tests) < wanted:
        return Verdict(reason="too few tests", error=f"{len(suite.tests)} usable tests, {wanted} are needed")
    (verdict,) = yield [lambda: bench.judge(language, code, suite)]
    assert isinstance(verdict, Verdict)
    return verdict


def _passed(draft: Draft, verdict: Verdict, suite: Suite, status: str, **more: str) -> Draft:
    said: dict[str, Any] = {"status": status, "mutants": verdict.mutants, "killed": verdict.killed, **more}
    tests = {"tests": list(verdict.counting)} | ({"setup": suite.setup} if suite.setup else {})
    return replace(draft, meta={**draft.meta, **tests, "check": said})


def _rejected(draft: Draft, reason: str, error: str = "", suite: Suite | None = None) -> Reject:
    parts = [draft.instruction, draft.response, *([suite.text] if suite else [])]
    return Reject(reason=f"check: {reason}", detail=error, document=draft.document, text="\n\n".join(parts))
