"""Run answers in other languages than Python on MultiPL-E's problems.

To compile and run a program takes a second, so an answer is tried only on the problems whose function's name it
defines, and only in languages that this machine can run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from xft.curate.contamination import References, Tried
from xft.curate.step import blocks_of, named_language
from xft.data.example import Example
from xft.eval.benchmark import BENCHMARKS
from xft.eval.benchmarks.multipl_e import MultiplE

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

NAME = re.compile(r"\w+")


class Languages:
    """The problems by their function's name."""

    def __init__(self, references: References, sandbox: Sandbox) -> None:
        self.references, self.sandbox = references, sandbox
        self.by_name: dict[str, list[int]] = defaultdict(list)
        for number, reference in enumerate(references.all):
            if can_run(reference.benchmark):
                self.by_name[reference.problem.entry_point].append(number)

    def tried(self, record: Example) -> Tried:
        """Run an answer on the tests of the problems whose function it defines.

        Raises:
            SandboxError: the sandbox failed; says nothing about the answer.
        """
        named = self.by_name.keys() & set(NAME.findall(record.response))
        spoken = {block.language for block in blocks_of(record)} - {""}
        numbers = [
            number
            for name in sorted(named)
            for number in self.by_name[name]
            if not spoken or language_of(self.references.all[number].benchmark) in spoken
        ]
        return Tried(passed=frozenset(number for number in numbers if self._solves(number, record.response)))

    def _solves(self, number: int, response: str) -> bool:
        reference = self.references.all[number]
        benchmark, problem = BENCHMARKS[reference.benchmark], reference.problem
        assert isinstance(benchmark, MultiplE)
        if not re.search(benchmark.language.definition.replace("NAME", re.escape(problem.entry_point)), response):
            return False
        program = benchmark.extract(problem, response, "chat")
        judgement = benchmark.judge(problem, program, self.sandbox)
        if judgement.strained:  # the machine was busy
            judgement = benchmark.judge(problem, program, self.sandbox)
        return judgement.status == "passed"


def can_run(name: str) -> bool:
    """Tell whether a benchmark is one of MultiPL-E's, in a language that is installed here."""
    benchmark = BENCHMARKS[name]
    return isinstance(benchmark, MultiplE) and not benchmark.language.toolchain.fault


def language_of(name: str) -> str:
    """Return the language of one of MultiPL-E's benchmarks, as records' code is said to be in it; "" of others."""
    benchmark = BENCHMARKS[name]
    return named_language(benchmark.language.fence) if isinstance(benchmark, MultiplE) else ""


def toolchains(names: Iterable[str]) -> dict[str, str]:
    """Return what this machine runs answers with, by benchmark: findings depend on it."""
    found = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        if isinstance(benchmark, MultiplE):
            toolchain = benchmark.language.toolchain
            found[name] = "none" if toolchain.fault else toolchain.version
    return found
