"""BENCHMARKS: what a benchmark is. Each one owns its prompt, its stop rules, its extraction and its oracle.

To add a benchmark, write a module in `xft/eval/benchmarks/` and register it there; `tests/eval/benchmarks/test_laws.py`
then checks its laws (canonical solutions pass, empty ones fail, ids are unique).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from xft.registry import Registry

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of a benchmark."""

    task_id: str
    stub: str
    """Source text shown to the model: imports, signature, docstring."""
    entry_point: str
    instruction: str = ""
    """What the model is told, where that is no more than words of the data."""
    canonical: str = ""
    """Reference solution, in the form of a completion of the stub; "" where the benchmark has none."""
    tests: Any = None
    """The benchmark's own checks, in its own form; the model never sees them."""
    tool: str = "python"
    """The `Tool` that must work for the problem to be scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a model is asked: an instruction, the first characters of its answer, and where to stop."""

    instruction: str | None
    """Goes into the prompt style; None: `prefix` alone is the text to continue (style `completion`)."""
    prefix: str
    """The answer's first characters, put into its mouth; not part of the completion."""
    stop: tuple[str, ...]
    """Generation ends where one of these appears; it is cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A language or library that a benchmark's programs need, after it has proved itself on known programs."""

    name: str
    version: str = ""
    fault: str = ""
    """Why it can't be used, with the package to install; "" where it works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a benchmark says of one answer."""

    status: str
    """`passed`, or another `xft.eval.sandbox.Status`."""
    seconds: float
    error: str = ""
    """One line of printable text; partly the candidate's, so not to be trusted."""
    parts: Mapping[str, bool] = field(default_factory=dict)
    """Whether the benchmark's smaller sets of tests passed, such as `base` of HumanEval+."""
    in_process: bool = False
    """The tests shared the candidate's process, where code written to cheat can forge a pass."""
    strained: bool = False
    """Not passed, with a time limit nearly or wholly used up: to be judged again, alone, before it counts."""


class Benchmark(Protocol):
    """A set of problems and its rules."""

    name: str
    limits: Mapping[str, Any]
    """Time in seconds and memory in megabytes, as stored with the scores."""

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

    def assemble(self, problem: Problem, completion: str) -> str:
        """Return the program of a raw completion that was made elsewhere."""
        ...

    def sandbox(self, *, allow_unsafe: bool = False) -> Sandbox:
        """Return a sandbox with all that the benchmark's programs need; a context manager."""
        ...

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let each language or library prove itself on known programs."""
        ...

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program against the problem's tests; called from several threads at once.

        Raises:
            SandboxError: the sandbox failed; says nothing about the program.
        """
        ...


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", also=("pairs:FILE",))

Sample = dict[str, Any]
"""A line of samples.jsonl: task_id, sample (its number in the task), completion, code, finish (see `Answer`)."""
