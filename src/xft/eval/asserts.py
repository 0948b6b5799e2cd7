"""Split asserts about a function into the calls it gets and what must hold of the answers.

The calls go to the candidate's process; what must hold is evaluated here, where no candidate runs: an expression over
the returned plain values, of the few kinds of syntax and the few functions below. Loops over ranges are unrolled.
What does anything else (random inputs, helpers, imports) can't be split.
"""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

SYNTAX = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.List, ast.Tuple, ast.Set, ast.Dict),
    *(ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator, ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop, ast.IfExp),
    *(ast.Call, ast.Subscript, ast.Slice, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.comprehension),
)
FUNCTIONS: Mapping[str, Any] = {
    each.__name__: each
    for each in (abs, all, any, bool, dict, float, frozenset, int, len, list, max, min, round, set, sorted, str)
} | {each.__name__: each for each in (sum, tuple, zip)}
MAX_CHECKS = 1000
MAX_SIZE = 1 << 20
"""Items of a product or a range, and bits of a number: an answer may be an operand."""


class CannotSplitError(ValueError):
    """What the tests do beyond asserting something of calls with known arguments."""


def _times(left: Any, right: Any) -> Any:
    for each, number in ((left, right), (right, left)):
        if isinstance(number, int) and hasattr(each, "__len__"):
            _fits(len(each) * number)
    _fits(_bits(left) + _bits(right))
    return left * right


def _power(left: Any, right: Any) -> Any:
    _fits(_bits(left) * right)
    return left**right


def _shifted(left: Any, right: Any) -> Any:
    _fits(_bits(left) + right)
    return left << right


def _modulo(left: Any, right: Any) -> Any:
    if not isinstance(left, int | float):  # a text's format may ask for any width
        raise TypeError
    return left % right


def _range(*bounds: Any) -> range:
    first, *last = bounds
    _fits(abs(last[0] - first) if last else first)
    return range(*bounds)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _fits(size: Any) -> None:
    if size > MAX_SIZE:
        raise OverflowError


BOUNDED: Mapping[type[ast.operator], Any] = {
    ast.Mult: _times, ast.Pow: _power, ast.LShift: _shifted, ast.Mod: _modulo,
}  # fmt: skip
"""What stands for the operators whose results may be much larger than their operands."""
GIVEN = {**FUNCTIONS, "range": _range} | {f"<{op.__name__}>": function for op, function in BOUNDED.items()}
"""What expressions can call, the operators by names that no source text has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One assert."""

    calls: tuple[tuple[Any, ...], ...]
    """The arguments of each call of the function, in order."""
    condition: CodeType
    names: Mapping[str, Any]
    """What the condition reads, beside the answers."""
    text: str

    def holds(self, answers: Sequence[Any]) -> bool:
        """Tell whether the assert holds of the answers; what raises an exception does not."""
        found = {f"answer_{index}": answer for index, answer in enumerate(answers)}
        try:
            return bool(eval(self.condition, {"__builtins__": {}, **GIVEN, **self.names, **found}))
        except Exception:
            return False


def split_asserts(source: str, functions: Sequence[str]) -> tuple[Check, ...]:
    """Split the asserts in a piece of source text; `functions` are the names that the candidate's function has there.

    Raises:
        CannotSplitError: with the reason.
    """
    checks: list[Check] = []
    for check in _walk(_parse(source).body, {}, frozenset(functions)):
        checks.append(check)
        if len(checks) > MAX_CHECKS:
            raise CannotSplitError("too many asserts")
    if not any(check.calls for check in checks):
        raise CannotSplitError("no assert calls the function")
    return tuple(checks)


def split_check(source: str, entry_point: str) -> tuple[Check, ...]:
    """Split the function `check(candidate)` of HumanEval's tests, and its one call.

    Raises:
        CannotSplitError: with the reason.
    """
    module = _parse(source)
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    others = [node for node in module.body if node not in found and not isinstance(node, ast.Assign)]
    calls = [ast.unparse(node) for node in others]
    if len(found) != 1 or calls != [f"check({entry_point})"] or len(found[0].args.args) != 1:
        raise CannotSplitError("more than the one function check(candidate)")
    return split_asserts(
        "\n".join(ast.unparse(node) for node in found[0].body), [found[0].args.args[0].arg, entry_point]
    )


def _parse(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise CannotSplitError(f"not Python: {error}") from None


def _walk(body: Sequence[ast.stmt], names: dict[str, Any], functions: frozenset[str]) -> Iterator[Check]:
    """Follow statements as Python would, with `names` known so far."""
    for node in body:
        match node:
            case ast.Assert():
                yield _check(node.test, names, functions)
            case ast.Assign(targets=[ast.Name(id=name)]):
                names[name] = _evaluate(node.value, names)
            case ast.For(target=ast.Name(id=name), orelse=[]):
                for value in _evaluate(node.iter, names):
                    names[name] = value
                    yield from _walk(node.body, names, functions)
            case ast.Expr(value=ast.Constant() | ast.Name()) | ast.Pass():
                pass
            case _:
                raise CannotSplitError(f"more than asserts: {ast.unparse(node)[:100]}")


def _check(test: ast.expr, names: dict[str, Any], functions: frozenset[str]) -> Check:
    """Take the calls out of an assert's condition."""
    calls: list[tuple[Any, ...]] = []

    class Answers(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            if not (isinstance(node.func, ast.Name) and node.func.id in functions):
                self.generic_visit(node)
                return node
            if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
                raise CannotSplitError("a call with keywords or a star")
            for argument in node.args:
                if isinstance(argument, ast.Name) and isinstance(names.get(argument.id), list | dict | set):
                    changeable.add(argument.id)
            calls.append(tuple(_evaluate(argument, names) for argument in node.args))
            return ast.Name(id=f"answer_{len(calls) - 1}", ctx=ast.Load())

    changeable: set[str] = set()
    text = ast.unparse(test)
    condition = ast.fix_missing_locations(ast.Expression(Answers().visit(copy.deepcopy(test))))
    known = {f"answer_{index}" for index in range(len(calls))}
    code = _compile(condition, known | set(names))
    kept = dict(names)
    for name in changeable:  # the candidate may have changed it, so it is not known from here on
        del names[name]
        if name in code.co_names:
            raise CannotSplitError(f"reads {name} after the candidate could change it")
    return Check(calls=tuple(calls), condition=code, names=kept, text=text)


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Compute a value that no answer has part in."""
    code = _compile(ast.fix_missing_locations(ast.Expression(node)), set(names))
    try:
        return eval(code, {"__builtins__": {}, **GIVEN, **names})
    except Exception as error:
        raise CannotSplitError(f"{ast.unparse(node)[:100]}: {type(error).__name__}") from None


def _compile(expression: ast.Expression, names: set[str]) -> CodeType:
    """Compile an expression of the syntax and the names allowed."""
    bound = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(expression):
        if not isinstance(node, SYNTAX):
            raise CannotSplitError(f"syntax that is not evaluated here: {type(node).__name__}")
        if isinstance(node, ast.Name) and node.id not in names | bound | GIVEN.keys():
            raise CannotSplitError(f"unknown name {node.id}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(ast.fix_missing_locations(_Bounded().visit(copy.deepcopy(expression))), "<assert>", "eval")


class _Bounded(ast.NodeTransformer):
    """Replace operators by the functions that stand for them."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if type(node.op) not in BOUNDED:
            return node
        name = ast.Name(id=f"<{type(node.op).__name__}>", ctx=ast.Load())
        return ast.Call(func=name, args=[node.left, node.right], keywords=[])
