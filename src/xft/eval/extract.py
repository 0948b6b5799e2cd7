"""From a completion's text to a program. Pure: nothing is run, only parsed."""

from __future__ import annotations

import ast
import builtins
import dis
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from types import CodeType
from typing import Any

THOUGHTS = re.compile(r"\A.*</think>(?!['\"])", re.DOTALL)
"""What a model reasons before it answers; the mark within quotes is a program's."""
FENCE = re.compile(
    r"(?P<quotes>\"{3}|'{3})(?:(?!(?P=quotes)|^(?:async def|def|class) ).)*(?P=quotes)"
    r"|^[ \t]*(?:```|~~~)(?P<label>[^\n`]*)$",
    re.MULTILINE | re.DOTALL,
)
"""A string in three quotes, which may hold fences of its own, or a fence. Quotes that no definition may stand in were
never closed."""
CODE_START = re.compile(r"^(?:async def |def |class |import \w|from [\w.]+ import |@\w)", re.MULTILINE)
LINE_CUTS = 8
MAX_CUTS = 40

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = FUNCTIONS | ast.ClassDef
IMPORTS = ast.Import | ast.ImportFrom
ASSIGNMENTS = ast.Assign | ast.AnnAssign | ast.AugAssign
CALLABLES = ast.Lambda | ast.Name | ast.Attribute | ast.Call
"""Expressions that may give a function."""
READING = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
STORING = ("STORE_NAME", "STORE_GLOBAL")
"""What the interpreter does to read a global name, and to bind one."""


def extract_program(stub: str, entry_point: str, completion: str) -> str:
    """Return the first whole program in a completion of `stub`, "" when there is none: `find_program` without demo."""
    names = frozenset({entry_point})
    return without_demo(find_program(stub, names, completion), names)


def find_program(stub: str, names: Set[str], completion: str) -> str:
    """Return the first stretch of a completion of `stub` that defines all names, "" when there is none.

    Understands whole functions and classes or only the body, with or without fences (also an unclosed one), a repeated
    prompt, and talk around the code. Where the text stops being Python, the longest part before that is taken. What the
    stub imports and defines beside the names comes first, so that a whole function need not repeat it, and so does what
    earlier stretches define and this one lacks. A definition that only holds a place is taken when no other follows.
    """
    texts = [text for _, text in segments(completion) if text.strip()]
    placeholder = ""
    for number, text in enumerate(texts):
        for program in _readings(stub, names, text):
            if not any(_holds_a_place(node) for name, node in _definitions(program).items() if name in names):
                return _with_helpers(program, texts[:number])
            placeholder = placeholder or program
    return placeholder


def segments(answer: str) -> list[tuple[str, str]]:
    """Cut an answer at its fences: each fence's label and the text behind it; first "" and the text before any.

    Whatever a model thought before it answered is left out.
    """
    answer = THOUGHTS.sub("", answer, count=1)
    fences = [match for match in FENCE.finditer(answer) if match["label"] is not None]
    labels = ["", *(match["label"].strip().lower() for match in fences)]
    starts = [0, *(match.end() for match in fences)]
    ends = [*(match.start() for match in fences), len(answer)]
    return [(label, answer[start:end]) for label, start, end in zip(labels, starts, ends, strict=True)]


def without_demo(program: str, names: Set[str], read: Set[str] = frozenset()) -> str:
    """Drop what a program does behind its first definition of one of the names: examples, tests, a script.

    There only imports, definitions, and assignments to what they read stay, as with EvalPlus's sanitiser; `read` are
    names that others read, too.
    """
    body = _body(program)
    defined = (number for number, node in enumerate(body) if _name(node) in names and not _holds_a_place(node))
    end = next(defined, len(body)) + 1
    if all(isinstance(node, IMPORTS | DEFINITIONS) for node in body[end:]):
        return program  # as most do; to see what they read takes as long as all the rest
    return _drop(program, body, _passing(body[end:], names | read | _uses(body[:end], READING)))


def parse(source: str) -> ast.Module | None:
    """Parse Python, None when it is not; never warns."""
    found = _quietly(ast.parse, source)
    return found if isinstance(found, ast.Module) else None


def parseable_prefix(source: str) -> str:
    """Return the longest run of leading lines that parses, trailing newline included.

    Each failed parse says where to cut; after LINE_CUTS cuts in a row, whole top-level statements are cut. So the
    number of parses is bounded, whatever the text.
    """
    lines = source.split("\n")
    for cut in range(MAX_CUTS):
        text = "\n".join(lines)
        found = _quietly(ast.parse, text)
        if isinstance(found, ast.Module):
            return text.rstrip() + "\n" if text.strip() else ""
        line = (isinstance(found, SyntaxError) and found.lineno) or 1  # at which the parser gave up, from 1
        keep = min(line, len(lines)) - 1
        if cut >= LINE_CUTS:
            keep = min(keep, max((i for i, line in enumerate(lines) if line[:1].strip()), default=0))
        lines = lines[:keep]
    return ""


def _quietly(read: Callable[..., Any], *arguments: Any) -> Any:
    """Parse or compile without warnings; return the error when that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(*arguments)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return error


def _readings(stub: str, names: Set[str], segment: str) -> Iterator[str]:
    """Read one stretch of text as whole definitions and as a body, in the order that its looks suggest."""
    first = next((line for line in segment.split("\n") if line.strip()), "")
    whole = _definition(names).search(textwrap.dedent(segment)) or not first[:1].isspace()
    for reading in [_from_whole, _from_body] if whole else [_from_body, _from_whole]:
        yield from (program for program in reading(stub, names, segment) if _defines(program, names))


def _from_whole(stub: str, names: Set[str], segment: str) -> Iterator[str]:
    """Find whole definitions: at the start, behind talk, or after something that is no Python."""
    for text in dict.fromkeys((segment, textwrap.dedent(segment))):
        head = parseable_prefix(text)
        if not _defines(head, names) and (start := CODE_START.search(text)):
            head = parseable_prefix(text[start.start() :])
        yield _with_preamble(stub, names, head)
        places = [match.start() for match in _definition(names).finditer(text)]
        for place in places[:1] + places[1:][-1:]:  # the last one if the first only holds a place
            yield _with_preamble(stub, names, f"{head}\n{parseable_prefix(text[place:])}")


def _definition(names: Set[str]) -> re.Pattern[str]:
    """Return the pattern of a line that defines one of the names."""
    name = f"(?:{'|'.join(map(re.escape, sorted(names)))})"
    return re.compile(rf"^(?:(?:async )?def|class) {name}\b|^{name}\b[^=\n(]*=(?!=)", re.MULTILINE)


def _from_body(stub: str, names: Set[str], segment: str) -> Iterator[str]:
    """Join a body to the stub; one that lost its indentation gets it back when it returns something."""
    head = stub if stub.endswith("\n") else stub + "\n"
    yield parseable_prefix(head + segment)
    body = parseable_prefix(textwrap.dedent(segment).strip("\n"))
    nodes = _body(body)
    if any(isinstance(each, ast.Return) for node in nodes for each in ast.walk(node)) and not any(
        isinstance(node, DEFINITIONS) for node in nodes
    ):
        yield head + textwrap.indent(body, "    ")


def _with_preamble(stub: str, names: Set[str], program: str) -> str:
    """Put the stub's imports, wherever they stand, and its helpers before a program."""
    body = _body(f"{stub.rstrip()}\n") or _body(f"{stub.rstrip()}\n    pass\n")
    imports = [each for node in body for each in ast.walk(node) if isinstance(each, IMPORTS)]
    others = [node for node in body if not isinstance(node, IMPORTS | ast.Expr) and _name(node) not in names]
    return _future_first("\n".join([*map(ast.unparse, (*imports, *others)), program]))


def _with_helpers(program: str, earlier: Sequence[str]) -> str:
    """Put before a program what it reads and lacks, out of the stretches before it, the nearest first."""
    for text in reversed(earlier):
        body = _body(program)
        lacking = _uses(body, READING) - _uses(body, STORING) - vars(builtins).keys()
        if not lacking:
            break
        text = textwrap.dedent(text)
        nodes = _body(text)
        if lacking & _uses(nodes, STORING):
            program = _future_first(f"{_drop(text, nodes, _passing(nodes, lacking))}\n{program}")
    return program


def _future_first(program: str) -> str:
    """Move imports from `__future__` to the start, the one place where they may stand."""
    body = _body(program)
    future = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    return "\n".join([*map(ast.unparse, future), _drop(program, body, future)])


def _body(program: str) -> list[ast.stmt]:
    """Return a program's statements, none where it is not Python."""
    return tree.body if (tree := parse(program)) else []


def _definitions(program: str) -> dict[str, ast.stmt]:
    """Return what defines each name at a program's top, the last one where there are several.

    Where something is returned there, it is a function's body, and its assignments are no definitions.
    """
    body = _body(program)
    loose = [node for node in body if not isinstance(node, DEFINITIONS)]
    inside = any(isinstance(each, ast.Return) for node in loose for each in ast.walk(node))
    return {_name(node): node for node in body if not (inside and node in loose)}


def _name(node: ast.stmt) -> str:
    """Return the name of what a statement defines, "" when it defines nothing that can be called."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(target=ast.Name(id=name), value=value)
        ) if isinstance(value, CALLABLES):
            return name
    return ""


def _defines(program: str, names: Set[str]) -> bool:
    """Tell whether a program defines all names, a function as more than a stub, which documents and imports."""
    found = _definitions(program)
    return all(
        name in found and not (isinstance(node := found[name], FUNCTIONS) and all(map(_is_remark, node.body)))
        for name in names
    )


def _is_remark(node: ast.stmt) -> bool:
    return isinstance(node, IMPORTS) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _holds_a_place(node: ast.stmt) -> bool:
    """Tell whether a definition is one to be filled in: `pass`, `raise NotImplementedError`, methods of these."""
    match node:
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body) | ast.ClassDef(body=body):
            return all(map(_holds_a_place, body))
        case ast.Pass() | ast.Raise(exc=ast.Name("NotImplementedError") | ast.Call(ast.Name("NotImplementedError"))):
            return True
    return _is_remark(node)


def _passing(nodes: Sequence[ast.stmt], needed: Set[str]) -> list[ast.stmt]:
    """Return the statements that neither import nor define nor assign to what is needed."""
    wanted = needed | _uses([node for node in nodes if isinstance(node, DEFINITIONS)], READING)
    found = []
    for node in reversed(nodes):
        if isinstance(node, ASSIGNMENTS) and wanted & _named(
            node.targets if isinstance(node, ast.Assign) else [node.target]
        ):
            wanted |= _named([node])
        elif not isinstance(node, IMPORTS | DEFINITIONS):
            found.append(node)
    return found


def _named(nodes: Iterable[ast.AST]) -> set[str]:
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}


def _uses(nodes: Sequence[ast.stmt], operations: Sequence[str]) -> set[str]:
    """Return the global names that statements read or store, also within functions; none where they don't compile."""
    module = ast.Module(body=[*nodes], type_ignores=[])
    code = _quietly(compile, module, "program", "exec", 0, True)  # without this file's own import from `__future__`
    codes = [code] if isinstance(code, CodeType) else []
    found = set()
    for code in codes:  # grows
        found |= {str(step.argval) for step in dis.get_instructions(code) if step.opname in operations}
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
    return found


def _drop(program: str, body: Sequence[ast.stmt], dropped: Sequence[ast.stmt]) -> str:
    """Remove the lines of statements, but for those that another shares."""
    gone = _lines(dropped) - _lines(node for node in body if node not in dropped)
    lines = [line for number, line in enumerate(program.split("\n"), start=1) if number not in gone]
    return "\n".join(lines).rstrip() + "\n" if gone else program


def _lines(nodes: Iterable[ast.stmt]) -> set[int]:
    return {line for node in nodes for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
