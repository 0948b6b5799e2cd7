"""BENCHMARKS: what a benchmark is. Each one owns its prompt, its stop rules, its extraction and its oracle.

To add a benchmark, write a module in `xft/eval/benchmarks/` and register it there; `tests/eval/test_benchmarks.py`
then checks its laws (canonical solutions pass, empty ones fail, ids are unique).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xft.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of a benchmark."""

    task_id: str
    stub: str
    """Source text shown to the model: imports, signature, docstring."""
    entry_point: str
    canonical: str
    """Reference solution, in the form of a completion of the stub."""
    tests: str
    """The benchmark's own checks; the model never sees them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a model is asked: an instruction, the first characters of its answer, and where to stop."""

    instruction: str | None
    """Goes into the prompt style; None: `prefix` alone is the text to continue (style `completion`)."""
    prefix: str
    """The answer's first characters, put into its mouth; not part of the completion."""
    stop: tuple[str, ...]
    """Generation ends where one of these appears; it is cut off."""


class Benchmark(Protocol):
    """A set of problems and its rules."""

    name: str

    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order; raises DataError or FetchError when they can't be had."""
        ...

    def data_hash(self) -> str:
        """Return the sha256 of the data that `problems` reads."""
        ...

    def request(self, problem: Problem, style: str) -> Request:
        """Say how a problem is put in the prompt style `completion`, or any of `xft.prompts.PROMPTS`."""
        ...

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        """Return the program in a completion, "" when there is none."""
        ...

    def program(self, problem: Problem, code: str) -> str:
        """Return the source that runs a candidate against the problem's tests, to its last line when it passes."""
        ...


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")

Sample = dict[str, Any]
"""A line of samples.jsonl: task_id, completion, code, finish ("stop", "length")."""
