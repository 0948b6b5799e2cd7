"""Mutated programs: each differs from a program in one place, which a test that proves something should notice. Pure.

Python's are made of the syntax tree, within functions only, in four kinds: an operator, a constant, what is returned,
and which branch is taken.
"""

from __future__ import annotations

import ast
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from xft.synth.rules import parsed

Make = Callable[[], str | None]
"""Makes a mutant, or None where the place chosen can't be changed."""

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.FloorDiv, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip
"""What an operator becomes."""

MAX_TEXT = 30
"""Characters of a constant; longer ones are docstrings and messages."""

Change = Callable[[ast.AST], None]
"""Change a node in place."""


def select(kinds: Mapping[str, Sequence[Make]], original: str, count: int, seed: int) -> list[str]:
    """Make mutants, the kinds in turn, each kind in an order chosen by the seed; equal ones once."""
    choice = random.Random(seed)
    queues = [choice.sample(found, len(found)) for _, found in sorted(kinds.items())]
    made: dict[str, None] = {original: None}
    while len(made) <= count and any(queues):
        for queue in queues:
            if queue and len(made) <= count and (text := queue.pop()()):
                made[text] = None
    return list(made)[1:]


def mutants(program: str, count: int, seed: int) -> list[str]:
    """Return up to `count` different mutants, the kinds in turn, chosen by the seed.

    A program without functions has none. Some mutants may compute the same as the program.
    """
    tree = parsed(program)
    if tree is None:
        return []
    kinds: dict[str, list[Make]] = {}
    for place, (node, inside) in enumerate(_places(tree)):
        if inside:
            for kind, change in _changes(node):
                kinds.setdefault(kind, []).append(functools.partial(_applied, program, place, change))
    return select(kinds, ast.unparse(tree), count, seed)


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Walk a tree in a fixed order; say of each node whether it is in a function's body."""
    waiting = [(tree, False)]
    while waiting:
        node, inside = waiting.pop()
        yield node, inside
        for field, value in ast.iter_fields(node):
            body = inside or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body")
            children = value if isinstance(value, list) else [value]
            waiting += [(child, body) for child in children if isinstance(child, ast.AST)]


def _applied(program: str, place: int, change: Change) -> str | None:
    """Return a program with one place changed."""
    tree = ast.parse(program)
    change(next(node for number, (node, _) in enumerate(_places(tree)) if number == place))
    text = ast.unparse(ast.fix_missing_locations(tree))
    return text if parsed(text) is not None else None


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield what can be changed at a node, with its kind."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OPERATORS:
            yield "operator", _set_operator
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator) if (
            type(operator) in OPERATORS
        ):
            yield "operator", _set_operator
        case ast.Constant(value=bool() | int() | float() | complex()):
            yield "constant", _change_constant
        case ast.Constant(value=str() as text) if len(text) < MAX_TEXT:
            yield "constant", _change_constant
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return", _return_nothing
        case ast.If() | ast.While() | ast.IfExp():
            yield "branch", _negate


def _set_operator(node: ast.AST) -> None:
    if isinstance(node, ast.Compare):
        node.ops = [OPERATORS[type(node.ops[0])]()]  # type: ignore[list-item]
    else:
        assert isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign)
        node.op = OPERATORS[type(node.op)]()  # type: ignore[assignment]


def _change_constant(node: ast.AST) -> None:
    assert isinstance(node, ast.Constant)
    match node.value:
        case bool():
            node.value = not node.value
        case str():
            node.value += "x"
        case int() | float() | complex():
            node.value += 1


def _return_nothing(node: ast.AST) -> None:
    assert isinstance(node, ast.Return)
    node.value = ast.Constant(None)


def _negate(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.While | ast.IfExp)
    node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
