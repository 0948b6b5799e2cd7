"""Random programs: chains of operations, the instructions that ask for them, their code and their tests.

A combination is the set of a program's operations, whatever their order and parameters; operations of equal code, such
as reversing a list and reversing a string, count as one. A hash assigns each combination of several operations to a
split once and for all: training and the pre-training corpus share one, the two sets of problems have one each. So no
problem's combination is ever trained on, however much data are made. Single operations are always trained on: problems
are new combinations of known parts.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.miniature.operations import KINDS, OPERATIONS, Operation

SPLITS = {"screen": range(3), "confirm": range(3, 6), "train": range(6, 24)}
"""Shares of the combinations, in 24ths."""
DEPTHS = {1: 3, 2: 5, 3: 5, 4: 3}
"""How often a program has so many steps, relatively; problems have two at least."""
TESTS = 6
INPUTS = 24
"""Inputs tried, of which the tests are chosen."""

OTHERS = 5
"""Other steps tried in the place of each."""

VARIABLES = {
    "numbers": ("numbers", "values", "items"),
    "text": ("text", "string", "line"),
    "words": ("words", "names", "tokens"),
    "scores": ("scores", "counts", "table"),
}
"""Names of variables by kind; pairs have the first."""
VERBS = ("apply", "build", "convert", "derive", "evaluate", "extract", "make", "process", "reduce", "transform")
NOUNS = ("data", "entries", "input", "result", "sequence", "output")
SHORT = ("solve", "compute", "run", "work", "handle", "answer", "task", "f", "g", "func")
NAMES = (*(f"{verb}_{noun}" for verb in VERBS for noun in NOUNS), *SHORT)
OPENINGS = (
    "Write a Python function `{name}` that takes {kind} and returns the result of these steps: {steps}.",
    "Implement `{name}`. Given {kind}, {steps}, and return the result.",
    "Define a function called `{name}`. Starting from {kind}, {steps}. Return what you get.",
    "I have {kind} and need a Python function `{name}` for it: {steps}.",
    "`{name}` should take {kind}, {steps}, and return the outcome. Write it.",
)
BACKWARDS = (
    "Write a Python function `{name}` that takes {kind} and returns the result of these steps, last one first: {steps}."
)
JOINTS = (", then ", ", and then ", "; after that ", "; next ")
# fmt: off
TERMS = (
    "apple", "river", "stone", "green", "tree", "sea", "note", "rest", "ant", "stream", "area",
    "Oslo", "Tree", "are", "test", "eat", "street", "rose", "tea", "so", "road", "roast",
    "Peter", "Anna", "toast", "otter", "letters", "Sea", "bee", "red", "star",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Step:
    """An operation with its parameter."""

    operation: Operation
    k: Any


@dataclass(frozen=True, slots=True)
class Program:
    """A chain of steps, each of which takes what the one before gives."""

    steps: tuple[Step, ...]

    @property
    def source(self) -> str:
        """Return the kind of the input."""
        return self.steps[0].operation.source

    @property
    def split(self) -> str:
        """Return the split that the combination belongs to."""
        codes = sorted({step.operation.code for step in self.steps})
        if len(codes) == 1:
            return "train"
        part = hashlib.sha256("\n".join(codes).encode()).digest()[0] % 24
        return next(split for split, parts in SPLITS.items() if part in parts)

    def code(self, name: str, choose: Callable[[str], str] = lambda kind: VARIABLES[kind][0], doc: str = "") -> str:
        """Return the function; `choose` names the variable of a kind."""
        variable = argument = choose(self.source)
        lines = [f'    """{doc}"""'] if doc else []
        for step in self.steps[:-1]:
            before, variable = variable, variable if step.operation.target == step.operation.source else (
                choose(step.operation.target)
            )  # fmt: skip
            lines.append(f"    {variable} = {step.operation.code.format(x=before, k=step.k)}")
        last = self.steps[-1]
        lines.append(f"    return {last.operation.code.format(x=variable, k=last.k)}")
        return f"def {name}({argument}):\n" + "\n".join(lines) + "\n"

    def run(self, arguments: Sequence[Any]) -> list[Any]:
        """Compute what the program returns for each argument."""
        space: dict[str, Any] = {}
        exec(self.code("f"), space)
        return [space["f"](argument) for argument in arguments]


def draw_program(rng: random.Random, depths: dict[int, int], operations: Sequence[Operation]) -> Program:
    """Draw a chain of operations; one that ends early is drawn again."""
    depth = rng.choices(list(depths), list(depths.values()))[0]
    while True:
        kind, steps = rng.choice(list(KINDS)), list[Step]()
        while len(steps) < depth and kind in KINDS:
            last = len(steps) + 1 == depth
            fitting = [each for each in operations if each.source == kind and (last or each.target != "total")]
            turning = [each for each in fitting if each.target != kind]
            one = rng.choice(turning if turning and rng.random() < 0.35 else fitting)
            steps.append(Step(one, rng.choice(one.values)))
            kind = one.target
        if len({step.operation.name for step in steps}) == depth:
            return Program(tuple(steps))


def draw_instruction(rng: random.Random, program: Program, name: str) -> str:
    """Ask for a program in one of many ways."""
    phrases = [rng.choice(step.operation.phrases).format(k=step.k) for step in program.steps]
    opening, joint = rng.choice(OPENINGS), rng.choice(JOINTS)
    if len(phrases) > 1 and rng.random() < 0.2:
        opening, phrases = BACKWARDS, phrases[::-1]
        joint = "; before that "
    return opening.format(name=name, kind=KINDS[program.source], steps=joint.join(phrases))


def draw_input(rng: random.Random, kind: str) -> Any:
    """Draw a value of a kind; now and then it is empty."""
    size = rng.choice((0, 1, 3, 4, 5, 5, 6, 6, 7, 8))
    if kind == "numbers":
        return [rng.choice((rng.randint(-9, 20), rng.randint(0, 9))) for _ in range(size)]
    terms = [rng.choice((*TERMS, str(rng.randint(1, 99)))) for _ in range(size)]
    if kind == "text":
        return " ".join(terms)
    return terms if kind == "words" else {term: rng.randint(0, 9) for term in terms}


def similar_steps(rng: random.Random, step: Step) -> list[Step]:
    """Return what could stand in a step's place: other parameters, and other operations with any of theirs."""
    one = step.operation
    fitting = [each for each in OPERATIONS.values() if (each.source, each.target) == (one.source, one.target)]
    others = [Step(each, rng.choice(each.values)) for each in fitting if each is not one]
    return others + [replace(step, k=k) for k in one.values if k != step.k]


def near_miss(rng: random.Random, program: Program) -> Program:
    """Return a program that differs in one step: left out, with another parameter, or another operation."""
    steps, choices = program.steps, []
    for place, step in enumerate(steps):
        if step.operation.source == step.operation.target and len(steps) > 1:
            choices.append((*steps[:place], *steps[place + 1 :]))
        if others := similar_steps(rng, step):
            choices.append((*steps[:place], rng.choice(others), *steps[place + 1 :]))
    if not choices:  # one step that nothing is similar to
        others = [Step(each, each.values[0]) for each in OPERATIONS.values() if each.source == program.source]
        choices.append((rng.choice(others),))
    return Program(rng.choice(choices))


def tests_of(rng: random.Random, program: Program) -> list[tuple[Any, Any]] | None:
    """Return inputs with what the program makes of them; None for a program that is no good problem.

    A good one gives several answers, and each step matters: without it, or it and its neighbours, some answer differs,
    and so with a few others in its place.
    """
    inputs = [draw_input(rng, program.source) for _ in range(INPUTS)]
    answers = program.run(inputs)
    chosen: dict[str, int] = {}
    for number, answer in enumerate(answers):  # different answers first
        chosen.setdefault(repr(answer), number)
    numbers = list(chosen.values())[:TESTS]
    numbers += [number for number in range(INPUTS) if number not in numbers][: TESTS - len(numbers)]
    kept = [(inputs[number], answers[number]) for number in sorted(numbers)]
    if all(value == answer for value, answer in kept):
        return None
    if len(chosen) < 3 or any(len(repr(part)) > 120 for pair in kept for part in pair):
        return None
    for first, step in enumerate(program.steps):
        for end in range(first + 1, len(program.steps) + 1):
            rest = program.steps[:first] + program.steps[end:]
            fits = step.operation.source == program.steps[end - 1].operation.target
            if rest and fits and agrees(Program(rest), kept):
                return None
        for other in rng.sample(others := similar_steps(rng, step), min(OTHERS, len(others))):
            if agrees(Program((*program.steps[:first], other, *program.steps[first + 1 :])), kept):
                return None
    return kept


def agrees(program: Program, tests: Sequence[tuple[Any, Any]]) -> bool:
    """Tell whether a program passes the tests."""
    return program.run([value for value, _ in tests]) == [answer for _, answer in tests]


def normal_form(code: str) -> str:
    """Return the syntax tree of a function without its names, parameters and docstring."""
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    known = {function.name: "f"}
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            known.setdefault(node.arg, f"v{len(known)}")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.setdefault(node.id, f"v{len(known)}")

    class Rename(ast.NodeTransformer):
        def visit_arg(self, node: ast.arg) -> ast.arg:
            return ast.arg(known[node.arg])

        def visit_Name(self, node: ast.Name) -> ast.Name:
            return ast.Name(known.get(node.id, node.id), node.ctx)

    function.name = "f"
    return ast.dump(Rename().visit(function))
