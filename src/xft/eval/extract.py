"""From a completion's text to a program. Pure: nothing is run, only parsed."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*$", re.MULTILINE)
CODE_START = re.compile(r"^(?:async def |def |class |import \w|from [\w.]+ import |@\w)", re.MULTILINE)
LINE_CUTS = 8
MAX_CUTS = 40

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def extract_program(stub: str, entry_point: str, completion: str) -> str:
    """Return the first whole program in a completion of `stub`, "" when there is none.

    Understands a whole function or only the body, with or without fences (also an unclosed one), a repeated prompt, and
    talk around the code. Where the text stops being Python, the longest part before that is taken. What the stub
    imports and defines beside the entry point comes first, so that a whole function need not repeat it.
    """
    for segment in FENCE.split(completion):
        if program := _program(stub, entry_point, segment):
            return program
    return ""


def parse(source: str) -> ast.Module | None:
    """Parse Python, None when it is not; never warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parseable_prefix(source: str) -> str:
    """Return the longest run of leading lines that parses, trailing newline included.

    Each failed parse says where to cut; after LINE_CUTS cuts in a row, whole top-level statements are cut. So the
    number of parses is bounded, whatever the text.
    """
    lines = source.split("\n")
    for cut in range(MAX_CUTS):
        text = "\n".join(lines)
        if parse(text) is not None:
            return text.rstrip() + "\n" if text.strip() else ""
        keep = min(_error_line(text), len(lines)) - 1
        if cut >= LINE_CUTS:
            keep = min(keep, max((i for i, line in enumerate(lines) if line[:1].strip()), default=0))
        lines = lines[:keep]
    return ""


def _error_line(source: str) -> int:
    """Return the line, from 1, at which the parser gave up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except SyntaxError as error:
            return max(error.lineno or 1, 1)
        except (ValueError, RecursionError, MemoryError):
            pass
    return 1


def _program(stub: str, entry_point: str, segment: str) -> str:
    """Read one stretch of text as a whole function or as a body, in the order that its looks suggest."""
    first = next((line for line in segment.split("\n") if line.strip()), "")
    whole = _definition(entry_point, textwrap.dedent(segment)) or not first[:1].isspace()
    readings = [_from_whole, _from_body] if whole else [_from_body, _from_whole]
    for reading in readings:
        if program := reading(stub, entry_point, segment):
            return program
    return ""


def _from_whole(stub: str, entry_point: str, segment: str) -> str:
    """Find the whole function: at the start, behind talk, or after something that is no Python."""
    for text in dict.fromkeys((segment, textwrap.dedent(segment))):
        head = parseable_prefix(text)
        if not _defines(head, entry_point) and (start := CODE_START.search(text)):
            head = parseable_prefix(text[start.start() :])
        if not _defines(head, entry_point):
            start = _definition(entry_point, text)
            head = f"{head}\n{parseable_prefix(text[start.start() :])}" if start else ""
        if _defines(head, entry_point):
            return _with_preamble(stub, entry_point, head)
    return ""


def _definition(entry_point: str, text: str) -> re.Match[str] | None:
    """Find the line that defines the entry point."""
    return re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", text, re.MULTILINE)


def _from_body(stub: str, entry_point: str, segment: str) -> str:
    """Join a body to the stub; one that lost its indentation gets it back when it returns something."""
    head = stub if stub.endswith("\n") else stub + "\n"
    program = parseable_prefix(head + segment)
    if _defines(program, entry_point):
        return program
    body = parseable_prefix(textwrap.dedent(segment).strip("\n"))
    tree = parse(body)
    if tree is None or any(isinstance(node, Definition | ast.ClassDef) for node in tree.body):
        return ""
    if any(isinstance(node, ast.Return) for node in ast.walk(tree)):
        program = head + textwrap.indent(body, "    ")
        return program if _defines(program, entry_point) else ""
    return ""


def _defines(program: str, entry_point: str) -> bool:
    """Tell whether a program's last definition of the entry point does more than a stub: document and import."""
    tree = parse(program)
    if tree is None:
        return False
    found = [node for node in tree.body if isinstance(node, Definition) and node.name == entry_point]
    return bool(found) and not all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in found[-1].body
    )


def _with_preamble(stub: str, entry_point: str, program: str) -> str:
    """Put the stub's imports, wherever they stand, and its helpers before a program; `__future__` stays first."""
    tree = parse(f"{stub.rstrip()}\n") or parse(f"{stub.rstrip()}\n    pass\n") or ast.Module(body=[], type_ignores=[])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [
        node
        for node in tree.body
        if node not in imports and not isinstance(node, ast.Expr) and getattr(node, "name", None) != entry_point
    ]
    preamble = [ast.unparse(node) for node in (*imports, *others)]
    lines = program.split("\n")
    future = [line for line in lines if line.startswith("from __future__ import ")]
    rest = [line for line in lines if not line.startswith("from __future__ import ")]
    return "\n".join([*future, *preamble, *rest])
