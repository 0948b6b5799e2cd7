"""MBPP (Austin et al., 2021): functions to write from one sentence and an assertion; and MBPP+ (EvalPlus v0.2.0).

`mbpp` is the paper's test split, tasks 11 to 510, as BigCode's harness uses it. `mbpp+` has the 378 tasks of the
sanitized set that EvalPlus kept; its part `base` is what EvalPlus reports as MBPP. The two are not to be compared.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xft.errors import DataError
from xft.eval.benchmark import BENCHMARKS, Judgement, Problem, Request, Tool
from xft.eval.data import Rows, find_data, read_rows
from xft.eval.evalplus import LIMITS, PARTS, GroundTruth, Oracle, PlusTests, close, equal, judge_plus
from xft.eval.extract import parse
from xft.eval.functions import FENCE_STOP, MEMORY_MB, SPECIAL_STOPS, FunctionBenchmark, judge_asserts
from xft.prompts import PROMPTS

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

INSTRUCTION = "{description} Your code should satisfy the following assertion:\n```python\n{assertion}\n```"
STUB = '"""\n{description}\n{assertion}\n"""\n'
STOPS = (*SPECIAL_STOPS, '\n"""', "\nassert")
SECONDS = 20.0
"""For all asserts together; the canonical solution of Mbpp/123 computes for 3 s."""
TEST_SPLIT = range(11, 511)
LEFT_OUT: Mapping[str, Sequence[tuple[str, int]]] = {"Mbpp/255": [("plus", each) for each in (85, 86, 90, 96, 100)]}
"""Inputs of MBPP+ that are not used: the right answers to these are millions of items long, 60 MB to 1 GB each."""
NODE_TASKS = ("Mbpp/367", "Mbpp/927")
NODE = Tool(name="class Node", fault="the tests of Mbpp/367 need a class Node that MBPP's data do not define")


class Mbpp(FunctionBenchmark):
    """MBPP's test split; its asserts are split, so the candidate's process gets the calls alone."""

    name = "mbpp"
    limits: Mapping[str, Any] = {"seconds": SECONDS, "memory_mb": MEMORY_MB}

    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order.

        Raises:
            DataError: the data are missing or malformed.
        """
        data = self._data()
        found: list[Problem] = []
        for number, row in enumerate(data.rows, start=1):
            try:
                if problem := self._problem(row, data.digest):
                    found.append(problem)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(f"{data.where}: line {number} is not a problem of {self.name}: {error!r}") from None
        return found

    def data_hash(self) -> str:
        """Return the sha256 of the test split's rows: the same for JSON lines and Parquet."""
        digest = hashlib.sha256()
        for problem in self.problems():
            row = [problem.task_id, problem.stub, problem.canonical, problem.tests]
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def request(self, problem: Problem, style: str) -> Request:
        """Ask in the words of XFT and Magicoder; in the style `completion` let the model continue EvalPlus's docstring.

        Raises:
            UnknownNameError: no such style.
        """
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=STOPS)
        PROMPTS[style]
        description, assertion = _parts(problem.stub)
        return Request(
            instruction=INSTRUCTION.format(description=description, assertion=assertion),
            prefix="```python\n",
            stop=FENCE_STOP,
        )

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let Python prove itself; a task that the data leave incomplete is never scored.

        Raises:
            SandboxError: the sandbox failed; says nothing about Python.
        """
        return [*super().tools(sandbox), NODE]

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program against the problem's asserts; called from several threads at once.

        Raises:
            SandboxError: the sandbox failed; says nothing about the program.
        """
        return judge_asserts(problem, code, sandbox, seconds=SECONDS)

    def _data(self) -> Rows:
        return read_rows(
            find_data(
                self.name,
                ("mbpp.jsonl", "mbpp.jsonl.gz"),
                hub="google-research-datasets/mbpp",
                patterns=("full/test-*.parquet", "**/mbpp.jsonl"),
                remedy=" (from https://github.com/google-research/google-research/tree/master/mbpp)",
            )
        )

    def _problem(self, row: Mapping[str, Any], digest: str) -> Problem | None:
        if int(row["task_id"]) not in TEST_SPLIT:
            return None
        task_id = f"Mbpp/{row['task_id']}"
        return Problem(
            task_id=task_id,
            stub=STUB.format(description=row["text"].strip(), assertion=row["test_list"][0].strip()),
            entry_point=_entry_point(row["test_list"][0], row["code"]),
            canonical=row["code"].replace("\r\n", "\n"),
            tests="\n".join(each.strip() for each in (row["test_setup_code"], *row["test_list"]) if each.strip()),
            tool=NODE.name if task_id in NODE_TASKS else "python",
        )


@functools.cache
def _entry_point(assertion: str, code: str) -> str:
    """Name the function that an assertion calls and the solution defines."""
    solution, test = parse(code), parse(assertion.strip())
    if solution is None or test is None:
        raise ValueError("code or test is not Python")
    defined = {node.name for node in solution.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    called = {node.func.id for node in ast.walk(test) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    (name,) = defined & called
    return name


def _parts(stub: str) -> tuple[str, str]:
    """Return a stub's description and its assertion."""
    lines = stub.strip().strip('"').strip().split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith("assert "))
    return "\n".join(lines[:first]).strip(), "\n".join(lines[first:]).strip()


class MbppPlus(Mbpp):
    """The sanitized tasks with about 35 times the inputs."""

    name = "mbpp+"
    limits = LIMITS

    def __init__(self) -> None:
        self._truth = GroundTruth(self.name)

    def data_hash(self) -> str:
        """Return the sha256 of the data's rows."""
        return self._data().digest

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let Python prove itself.

        Raises:
            SandboxError: the sandbox failed; says nothing about Python.
        """
        return FunctionBenchmark.tools(self, sandbox)

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
                ("MbppPlus.jsonl.gz", "MbppPlus.jsonl"),
                hub="evalplus/mbppplus",
                patterns=("**/MbppPlus*.jsonl.gz", "**/MbppPlus*.jsonl"),
                remedy=" (v0.2.0, from https://github.com/evalplus/mbppplus_release/releases)",
            )
        )

    def _problem(self, row: Mapping[str, Any], digest: str) -> Problem | None:
        task_id = str(row["task_id"])
        left_out = LEFT_OUT.get(task_id, ())
        convert = ARGUMENTS.get(int(task_id.rpartition("/")[2]), tuple)
        inputs = {
            part: [convert(each) for index, each in enumerate(row[f"{part}_input"]) if (part, index) not in left_out]
            for part in PARTS
        }
        _parts(row["prompt"])
        return Problem(
            task_id=task_id,
            stub=row["prompt"],
            entry_point=row["entry_point"],
            canonical=row["canonical_solution"],
            tests=PlusTests(inputs=inputs, atol=float(row["atol"]), digest=digest),
        )


# --- arguments that JSON can't hold, as EvalPlus reads them -----------------------------------------------------------

Convert = Callable[[list[Any]], tuple[Any, ...]]


def _list_of_tuples(value: list[list[Any]]) -> list[tuple[Any, ...]]:
    return [tuple(item) for item in value]


def _tuple_of_tuples(value: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(item) for item in value)


def _deep_tuple(value: Any) -> Any:
    return tuple(_deep_tuple(item) for item in value) if isinstance(value, list) else value


def _lists_within_to_tuples(value: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _sets(value: list[Any]) -> list[Any]:
    return [set(item) if item and isinstance(item, list) else {} for item in value]


def _every(convert: Callable[[Any], Any]) -> Convert:
    return lambda arguments: tuple(convert(each) for each in arguments)


def _first(convert: Callable[[Any], Any]) -> Convert:
    return lambda arguments: (convert(arguments[0]), *arguments[1:])


def _second(convert: Callable[[Any], Any]) -> Convert:
    return lambda arguments: (arguments[0], convert(arguments[1]), *arguments[2:])


_TAKES: Sequence[tuple[Convert, Sequence[int]]] = (
    (
        _every(tuple),
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ),
    (_every(_list_of_tuples), (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_every(_tuple_of_tuples), (259, 401, 445)),
    (_every(_deep_tuple), (580, 615, 791)),
    (_every(_lists_within_to_tuples), (278,)),
    (_every(_sets), (115,)),
    (_every(complex), (252,)),
    (_first(_list_of_tuples), (75, 413, 444, 753)),
    (_first(tuple), (250, 307, 405, 446, 617, 720, 763, 808)),
    (_first(lambda value: {key: tuple(item) for key, item in value.items()}), (722,)),
    (_second(tuple), (106, 750)),
    (lambda arguments: (float(arguments[0]), complex(arguments[1])), (124,)),
)
ARGUMENTS: Mapping[int, Convert] = {number: convert for convert, numbers in _TAKES for number in numbers}

# --- oracles of single tasks ------------------------------------------------------------------------------------------


def _same_set(arguments: tuple[Any, ...], expected: Any, answer: Any, atol: float) -> bool:
    """The order of the answer, and how often an item stands in it, do not matter."""
    return set(answer) == set(expected) or close(expected, answer, atol)


def _as_found(arguments: tuple[Any, ...], expected: Any, answer: Any, atol: float) -> bool:
    """A match and None count as True and False; so does anything else that is not None."""
    found = expected is not None
    return answer is found if isinstance(answer, bool) else (answer is not None) == found


def _surface(arguments: tuple[Any, ...], expected: Any, answer: Any, atol: float) -> bool:
    """Mbpp/581: the height may also be read as that of the pyramid, not of its sides."""
    base, height = arguments
    side = math.sqrt((base / 2) ** 2 + height**2)
    return equal(arguments, expected, answer, atol) or abs(answer - round(base**2 + 4 * (base * side) / 2)) <= atol


def _digit_distance(arguments: tuple[Any, ...], expected: Any, answer: Any, atol: float) -> bool:
    """Mbpp/558: the shorter number may also be filled up with zeros in front."""
    width = max(len(str(number)) for number in arguments)
    one, other = (str(number).zfill(width) for number in arguments)
    distance = sum(abs(int(a) - int(b)) for a, b in zip(one, other, strict=True))
    return equal(arguments, expected, answer, atol) or bool(answer == distance)


ORACLES: Mapping[str, Oracle] = {
    "digit_distance_nums": _digit_distance,
    "surface_Area": _surface,
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), _as_found),
    **dict.fromkeys(
        (
            *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"),
            *("intersection_array", "find_dissimilar", "Diff"),
        ),
        _same_set,
    ),
}
"""Oracles of single tasks, by entry point. EvalPlus has two more, for tasks that v0.2.0 no longer holds."""

BENCHMARKS.register(Mbpp.name)(Mbpp())
BENCHMARKS.register(MbppPlus.name)(MbppPlus())
