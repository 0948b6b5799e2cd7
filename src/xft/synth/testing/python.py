"""Python: tests are `assert` statements, or functions `test...` without parameters; mutants are of the syntax tree."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Sequence

from xft.eval.sandbox import Outcome, Sandbox
from xft.synth.mutate import mutants
from xft.synth.rules import code_in, parsed
from xft.synth.testing.testing import MOST_TESTS, TESTINGS, Suite, Testing

SETUP = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
"""What tests may need above them. Bare calls are left out: teachers print, and call their tests."""
SHOWN = 200
"""Characters of a wrong result."""
GOT = re.compile(r"^AssertionError: got (.*?)(?: \(line \d+\))?$", re.DOTALL)


def outline(code: str) -> str:
    """Return a program's functions and classes without their bodies, with their docstrings; "" without any."""
    tree = parsed(code)
    return "\n".join(_outlined(tree.body, "")) if tree else ""


def _outlined(body: Sequence[ast.stmt], indent: str) -> list[str]:
    lines: list[str] = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            lines += [f"{indent}class {node.name}:", *(_outlined(node.body, indent + "    ") or [f"{indent}    ..."])]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Expr(ast.Constant(...))] if ast.get_docstring(node) is None else node.body[:1]
            node.decorator_list = []
            lines += [f"{indent}{line}" for line in ast.unparse(ast.fix_missing_locations(node)).split("\n")]
    return lines


def suite(text: str, code: str) -> Suite:
    """Read the tests in an answer: each `assert`, and each function `test...` without parameters, once.

    What the answer defines or imports that the solution defines is left out: teachers like to repeat it, or import it
    from a module of their fancy.
    """
    tree = _beginning(code_in(text, "python") or text)
    own = parsed(code) or ast.Module([], [])
    known = {"*", *(name for node in own.body for name in _names(node) if not isinstance(node, ast.Import))}
    setup: list[str] = []
    tests: dict[str, None] = {}
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assert):
            if not _never_holds(node):
                tests[ast.unparse(ast.Assert(node.test))] = None  # without a message, which would hide the result
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not ast.unparse(node.args):
            if any(isinstance(inner, ast.Assert) for inner in ast.walk(node)):
                tests[f"{ast.unparse(node)}\n{node.name}()"] = None
        elif isinstance(node, SETUP) and not (known & set(_names(node))):
            setup.append(ast.unparse(node))
    return Suite(setup="\n".join(setup), tests=tuple(tests)[:MOST_TESTS])


def _beginning(text: str) -> ast.Module | None:
    """Parse as many lines from the first on as can be: a teacher that goes on listing tests is cut off within one."""
    lines = text.split("\n")
    return next((tree for end in range(len(lines), 0, -1) if (tree := parsed("\n".join(lines[:end])))), None)


def _never_holds(test: ast.Assert) -> bool:
    """Tell whether a result is compared with an exception; teachers mean that it is raised."""
    match test.test:
        case ast.Compare(comparators=[ast.Name(id=name) | ast.Call(func=ast.Name(id=name))]):
            return isinstance(known := getattr(builtins, name, None), type) and issubclass(known, BaseException)
    return False


def _names(node: ast.stmt) -> list[str]:
    """Return what a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
    return []


def run(sandbox: Sandbox, code: str, suite: Suite, seconds: float, memory_mb: int) -> Outcome:
    """Run a solution with tests below it; a comparison that fails says what it got, for the repair."""
    program = "\n\n".join([code, suite.setup, *map(_telling, suite.tests)]) + "\n"
    return sandbox.run(program, seconds=seconds, memory_mb=memory_mb)


def _telling(test: str) -> str:
    match ast.parse(test).body:
        case [ast.Assert(test=ast.Compare(left=left), msg=None) as node]:
            node.msg = ast.parse(f"'got ' + repr({ast.unparse(left)})[:{SHOWN}]", mode="eval").body
            return ast.unparse(node)
    return test


def expecting(test: str, error: str) -> str | None:
    """Compare with what the solution gave, where a call is compared with a value and both can be written down.

    What it gave stands in the error, after "got".
    """
    got = GOT.search(error)
    match ast.parse(test).body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]) as compare)] if got and any(
            isinstance(node, ast.Call) for node in ast.walk(left)
        ):
            try:
                ast.literal_eval(right)
                ast.literal_eval(got[1])
            except (ValueError, TypeError, SyntaxError):
                return None
            compare.comparators = [ast.parse(got[1], mode="eval").body]
            return ast.unparse(ast.Assert(compare))
    return None


TESTINGS.register("python")(
    Testing(form="`assert` statement", outline=outline, suite=suite, mutants=mutants, run=run, expecting=expecting)
)
