"""Does a record hold a benchmark's problem? By runs of ten words, by the solution's form, by what the answer computes.

A problem's statement matches when a share of its ten-word runs is in the record, or when the instruction has a share
of its words, rare ones weighing more. Its solution matches by ten-word runs, by the form of a function with all names
left out (`ast`), or by passing the benchmark's tests (`functional`, see `functional.py`).

    leak    the statement's runs, or statement and solution
    common  the solution under another statement: generic code, which the benchmark happens to ask for
    clean   nothing of this

Few asserts prove little: among a thousand problems one is passed by chance, such as a test of parity for some
property of three numbers. So a pass of fewer than ENOUGH asserts counts only where a word or two of the statement is in
the instruction. And a solution that has the form or the text of a problem's but fails its tests is no match: benchmarks
have problems that differ from common ones by a sign, such as the odd numbers of a list instead of the even ones.

Where a benchmark's data are not at hand, the shipped hashes of HumanEval's and MBPP's ten-word runs are used; they do
not say which problem a run is of, so any shared run counts as a leak.
"""

from __future__ import annotations

import ast
import builtins
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xft.curate.config import DecontaminateConfig
from xft.curate.step import blocks_of
from xft.data.example import Example
from xft.data.overlap import load_fingerprints, tengrams
from xft.errors import DataError, FetchError, MissingExtraError
from xft.eval.benchmark import Problem
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.extract import parse
from xft.fetch import local_only

SHIPPED = ("humaneval", "mbpp")
"""Benchmarks whose ten-word runs come with the package."""
SAME_TASKS = {"humaneval+": "humaneval"}
"""Benchmarks that have the problems of another one, with more inputs."""
GRAM = 3
MIN_SHAPES = 12
"""Solutions with fewer different shapes are left out of the comparison by form: anybody's code has them."""
ENOUGH, HINT = 5, 0.1
"""Asserts that prove a solution by themselves; share of the statement's words that must stand beside fewer."""
WORD = re.compile(r"[a-z]+")
NOT_STATED = re.compile(r"^\s*(?:import |from |>>>|assert ).*$", re.M)
"""Lines of a stub that are code, and say nothing about the task."""
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of to in is are be it its if for and or not with that this which from by as at on you your i we can "
        "will should given write return returns function functions python code program input output def list int str "
        "string number numbers using use check find get assert true false none example implement create task your",
    )
)
"""Words of nearly every statement."""
BUILTINS = frozenset(dir(builtins))
NAMELESS = (ast.Load, ast.Store, ast.Del, ast.Expr, ast.arguments)
Class = Literal["leak", "common"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A problem that a record matches."""

    benchmark: str
    task: str
    """"" where only the shipped hashes were compared."""
    kind: Class
    methods: tuple[str, ...]
    """Of `ngrams` (statement), `ngrams-solution`, `ast`, `functional`."""
    statement: float
    """Weighted share of the statement's words in the instruction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What is compared of one problem."""

    benchmark: str
    problem: Problem
    words: frozenset[str]
    statement_runs: frozenset[int]
    solution_runs: frozenset[int]
    shapes: frozenset[tuple[str, ...]]
    asserts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What came of an answer's functions on the tests of problems, which are told by their numbers."""

    passed: frozenset[int] = frozenset()
    """Some function passes."""
    refuted: frozenset[tuple[int, int]] = frozenset()
    """Functions, by their line in the answer's code, that give a wrong answer, each with the problem."""
    failed: frozenset[int] = frozenset()
    """Every function that could be called like the entry point gives a wrong answer."""

    def __or__(self, other: Tried) -> Tried:
        return Tried(
            passed=self.passed | other.passed, refuted=self.refuted | other.refuted, failed=self.failed | other.failed
        )


NOTHING_TRIED = Tried()


class References:
    """All problems of the benchmarks whose data are at hand, and the shipped hashes of the others."""

    def __init__(self, references: Sequence[Reference], shipped: Mapping[str, frozenset[int]]) -> None:
        self.all, self.shipped = references, shipped
        self.by_statement_run: dict[int, list[int]] = {}
        self.by_solution_run: dict[int, list[int]] = {}
        self.by_task: dict[tuple[str, str], list[int]] = {}
        postings: dict[tuple[str, ...], list[int]] = {}
        frequency: Counter[str] = Counter()
        for number, reference in enumerate(references):
            for run in reference.statement_runs:
                self.by_statement_run.setdefault(run, []).append(number)
            for run in reference.solution_runs:
                self.by_solution_run.setdefault(run, []).append(number)
            if len(reference.shapes) >= MIN_SHAPES:
                for shape in reference.shapes:
                    postings.setdefault(shape, []).append(number)
            frequency.update(reference.words)
            self.by_task.setdefault(_task(reference), []).append(number)
        self.by_shape = {shape: np.array(numbers, np.int32) for shape, numbers in postings.items()}
        self.weights = {word: math.log((1 + len(references)) / count) for word, count in frequency.items()}
        self.totals = [math.fsum(self.weights[word] for word in reference.words) or 1.0 for reference in references]
        self.sizes = np.array([len(reference.shapes) for reference in references])

    def same_tasks(self, numbers: Iterable[int]) -> list[int]:
        """Return these problems and those of other benchmarks with the same tasks: the plus sets'."""
        return [same for number in numbers for same in self.by_task[_task(self.all[number])]]

    def statement_score(self, number: int, words: frozenset[str]) -> float:
        """Return the weighted share of a problem's words among others."""
        return math.fsum(self.weights[word] for word in self.all[number].words & words) / self.totals[number]

    def run_shares(self, runs: set[int]) -> dict[int, tuple[float, float]]:
        """Return for each problem the shares of its statement's and of its solution's runs that are among some runs."""
        stated = Counter(number for run in runs for number in self.by_statement_run.get(run, ()))
        solved = Counter(number for run in runs for number in self.by_solution_run.get(run, ()))
        return {
            number: (
                stated[number] / max(1, len(self.all[number].statement_runs)),
                solved[number] / max(1, len(self.all[number].solution_runs)),
            )
            for number in sorted(stated.keys() | solved.keys())
        }

    def form_overlaps(self, shapes: frozenset[tuple[str, ...]]) -> NDArray[np.float64]:
        """Return for each problem how much its solution has the form of a function: Jaccard, of shapes."""
        known = [self.by_shape[shape] for shape in shapes if shape in self.by_shape]
        if len(shapes) < MIN_SHAPES or not known:
            return np.zeros(len(self.all))
        shared = np.bincount(np.concatenate(known), minlength=len(self.all))
        overlaps: NDArray[np.float64] = shared / (self.sizes + len(shapes) - shared)
        return overlaps


def _task(reference: Reference) -> tuple[str, str]:
    """Return what the plus sets' problems share with their base's; MultiPL-E's names are those of all its languages."""
    return reference.problem.tool, reference.problem.task_id


def load_references(config: DecontaminateConfig) -> tuple[References, dict[str, str]]:
    """Return the references, and for each benchmark that could not be compared whole the reason.

    Raises:
        UnknownNameError: no such benchmark.
    """
    references: list[Reference] = []
    faults: dict[str, str] = {}
    for name in selected(config):
        try:
            references += [reference_of(name, problem) for problem in problems_of(name)]
        except (DataError, FetchError, MissingExtraError) as error:
            faults[name] = str(error)
    shipped = {name: load_fingerprints(name) for name in SHIPPED if name in faults}
    return References(references, shipped), faults


def selected(config: DecontaminateConfig) -> list[str]:
    """Return the benchmarks to compare with, and those that have their problems too.

    Raises:
        UnknownNameError: no such benchmark.
    """
    wanted = sorted(BENCHMARKS) if config.benchmarks is None else config.benchmarks  # modules register in any order
    names = dict.fromkeys(name for each in wanted for name in (SAME_TASKS.get(each, each), each))
    for name in names:
        BENCHMARKS[name]
    return list(names)


def problems_of(name: str) -> Sequence[Problem]:
    """Return a benchmark's problems; its data are looked for in the folder XFT_DATA, never fetched.

    Raises:
        DataError: the data are not there.
    """
    if not os.environ.get("XFT_DATA"):
        raise DataError(f"{name}: no folder with its data; set --data-dir or XFT_DATA")
    with local_only():
        return BENCHMARKS[name].problems()


def benchmark_digests(config: DecontaminateConfig) -> dict[str, str]:
    """Return the hash of each benchmark's data, "fingerprints" where only those are compared."""
    found = {}
    for name in selected(config):
        try:
            problems_of(name)
            with local_only():
                found[name] = BENCHMARKS[name].data_hash()
        except (DataError, FetchError, MissingExtraError):
            found[name] = "fingerprints" if name in SHIPPED else "none"
    return found


def benchmark_inputs(config: DecontaminateConfig) -> dict[str, str]:
    """Return all of the machine that findings depend on: the benchmarks' data, and what runs answers.

    Tells the user which benchmarks are compared in part.
    """
    from xft.curate.languages import toolchains

    digests = benchmark_digests(config)
    warn_of_partial(digests)
    tools = toolchains(digests) if config.functional else {}
    return {f"benchmark {name}": digest for name, digest in digests.items()} | {
        f"runs {name}": version for name, version in tools.items() if digests[name] != "none"
    }


def warn_of_partial(digests: dict[str, str]) -> None:
    """Say which benchmarks are not compared whole."""
    partly = [name for name, digest in digests.items() if digest == "fingerprints"]
    lacking = [name for name, digest in digests.items() if digest == "none"]
    if partly or lacking:
        said = [f"{', '.join(partly)}: by ten-word runs only"] if partly else []
        said += [f"{', '.join(lacking)}: not at all"] if lacking else []
        print(
            f"benchmarks whose data are not at hand are compared in part ({'; '.join(said)}); --data-dir has them all",
            file=sys.stderr,
        )


def coverage(config: DecontaminateConfig) -> dict[str, str]:
    """Return by what each benchmark is compared, or why it is not."""
    from xft.curate.languages import can_run, language_of
    from xft.eval.functions import FunctionBenchmark

    references, faults = load_references(config)
    found = {}
    for name in selected(config):
        if name in faults:
            found[name] = "shipped ten-word runs" if name in SHIPPED else "nothing, its data are not at hand"
            continue
        forms = any(len(each.shapes) >= MIN_SHAPES for each in references.all if each.benchmark == name)
        ways = ["ngrams", *(["ast"] if forms else [])]
        if config.functional and isinstance(BENCHMARKS[name], FunctionBenchmark):
            ways.append(f"functional (by {SAME_TASKS[name]}'s tests)" if name in SAME_TASKS else "functional")
        elif config.functional and language_of(name):
            same = "functional (functions of the same name)"
            ways.append(same if can_run(name) else f"not run: no {language_of(name)} here")
        found[name] = ", ".join(ways)
    return found


def reference_of(benchmark: str, problem: Problem) -> Reference:
    """Take from a problem what is compared."""
    whole = solution_of(problem)
    tree = parse(whole)
    own = units_of(tree, problem.entry_point) if tree else []
    return Reference(
        benchmark=benchmark,
        problem=problem,
        words=words_of(NOT_STATED.sub("", problem.stub)),
        statement_runs=frozenset(tengrams(problem.stub)),
        solution_runs=frozenset(tengrams(problem.canonical)),
        shapes=max((unit.shapes for unit in own), key=len, default=frozenset()),
        asserts=problem.tests.count("assert ") if isinstance(problem.tests, str) else ENOUGH,
    )


def solution_of(problem: Problem) -> str:
    """Return the reference solution as a whole program, as far as the benchmark has one."""
    return problem.canonical if parse(problem.canonical) is not None else problem.stub + problem.canonical


def words_of(text: str) -> frozenset[str]:
    """Return the words of a statement that tell something, names taken apart, plurals made singular."""
    found = (word.removesuffix("s") if len(word) > 3 else word for word in WORD.findall(text.lower()))
    return frozenset(word for word in found if word not in STOP_WORDS and len(word) > 1)


# --- the form of code -------------------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A function, or what is outside functions."""

    line: int
    """Where the function is defined; 0 outside."""
    shapes: frozenset[tuple[str, ...]]


def units_of(tree: ast.Module, only: str = "") -> list[Unit]:
    """Return each function of a program, or the one asked for, and what is outside functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    functions = [node for node in functions if node.name == only] or functions
    loose = [
        node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
    ]
    units = [Unit(node.lineno, shapes_of([*node.args.args, *node.body])) for node in functions]
    return [*units, *([Unit(0, shapes_of(loose))] if len(loose) > 1 else [])]


def shapes_of(nodes: Iterable[ast.AST]) -> frozenset[tuple[str, ...]]:
    """Return the runs of nodes in the order in which they are written, names and docstrings left out."""
    tokens: list[str] = []
    pending = list(reversed([node for node in nodes if not _is_docstring(node)]))
    while pending:
        node = pending.pop()
        if not isinstance(node, NAMELESS):
            tokens.append(_token(node))
        children = [
            child
            for name, value in ast.iter_fields(node)
            if name not in ("annotation", "returns", "decorator_list", "type_params", "ctx")
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST) and not _is_docstring(child)
        ]
        pending += reversed(children)
    return frozenset(zip(*(tokens[start:] for start in range(GRAM)), strict=False))


def _token(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name):
            return name if name in BUILTINS else "name"
        case ast.Attribute(attr=name):
            return f".{name}"
        case ast.Constant(value=bool() | int() | None as value):
            return repr(value)[:20]
        case ast.Constant(value=value):
            return type(value).__name__
        case _:
            return type(node).__name__


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def python_of(record: Example) -> str:
    """Return the Python code of a response, all pieces together, or all that parse, "" where none does."""
    pieces = [block.code for block in blocks_of(record) if block.language == "python"]
    whole = "\n".join(pieces)
    return whole if parse(whole) is not None else "\n".join(piece for piece in pieces if parse(piece) is not None)


# --- the verdict ------------------------------------------------------------------------------------------------------


def classify(
    record: Example, references: References, config: DecontaminateConfig, tried: Tried = NOTHING_TRIED
) -> list[Finding]:
    """Return the problems that a record matches."""
    runs = runs_of(record)
    shipped = [
        Finding(benchmark=name, task="", kind="leak", methods=("ngrams",), statement=0.0)
        for name, known in references.shipped.items()
        if not runs.isdisjoint(known)
    ]
    if not references.all:
        return shipped
    found: dict[int, set[str]] = {}
    for number, shares in references.run_shares(runs).items():
        for method, share in zip(("ngrams", "ngrams-solution"), shares, strict=True):
            if share >= config.ngrams:
                found.setdefault(number, set()).add(method)
    tree = parse(python_of(record))
    refuted = {(line, same) for line, number in tried.refuted for same in references.same_tasks([number])}
    for unit in units_of(tree) if tree else ():
        for number in np.flatnonzero(references.form_overlaps(unit.shapes) >= config.ast).tolist():
            if (unit.line, number) not in refuted:
                found.setdefault(number, set()).add("ast")
    for number in references.same_tasks(tried.failed):
        found.get(number, set()).discard("ngrams-solution")
    words = words_of(record.instruction)
    for passed in tried.passed:
        for number in references.same_tasks([passed]):
            if references.all[passed].asserts >= ENOUGH or references.statement_score(number, words) >= HINT:
                found.setdefault(number, set()).add("functional")
    findings = [
        _finding(references, number, methods, references.statement_score(number, words), config)
        for number, methods in sorted(found.items())
        if methods
    ]
    return [*findings, *shipped]


def runs_of(record: Example) -> set[int]:
    """Return the hashes of a record's runs of ten words."""
    return tengrams(f"{record.instruction}\n{record.response}")


def _finding(
    references: References, number: int, methods: set[str], statement: float, config: DecontaminateConfig
) -> Finding:
    leak = "ngrams" in methods or statement >= config.statement
    reference = references.all[number]
    return Finding(
        benchmark=reference.benchmark,
        task=reference.problem.task_id,
        kind="leak" if leak else "common",
        methods=tuple(sorted(methods)),
        statement=round(statement, 4),
    )


def verdict(findings: Sequence[Finding]) -> Class | None:
    """Return the class of a record; None: clean."""
    kinds: set[Any] = {finding.kind for finding in findings}
    return "leak" if "leak" in kinds else "common" if kinds else None
