"""Steps about code: DeepSeek-Coder-V2's rules for source files, and whether it parses."""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Annotated, Any

from pydantic import Field

from xft.curate.step import blocks_of, step
from xft.data.example import Example
from xft.errors import MissingExtraError
from xft.eval.extract import parse as parse_python
from xft.recipe import Section

TAG = re.compile(r"<(script\b|style\b|!--|)", re.I)
TAG_ENDS = {
    "script": re.compile(r"</script\s*+>", re.I), "style": re.compile(r"</style\s*+>", re.I), "!--": re.compile("-->"),
    "": re.compile(">"),
}  # fmt: skip
GRAMMARS = {
    "bash": ("tree_sitter_bash", "language"),
    "c": ("tree_sitter_c", "language"),
    "c-sharp": ("tree_sitter_c_sharp", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "html": ("tree_sitter_html", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "json": ("tree_sitter_json", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "ruby": ("tree_sitter_ruby", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "swift": ("tree_sitter_swift", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}
"""Module and function of each grammar; Python is parsed by Python itself, which accepts less than its grammar does."""


class SourceFileOptions(Section):
    """DeepSeek-Coder-V2 (arXiv 2406.11931, section 2), whose numbers are the defaults."""

    max_mean_line: Annotated[float, Field(gt=0)] = 100
    """Most characters of a line on average."""
    max_line: Annotated[int, Field(ge=1)] = 1000
    """Most characters of the longest line."""
    min_alphabetic: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Least share of letters among the characters."""
    min_visible: Annotated[float, Field(ge=0, le=1)] = 0.2
    """HTML: least share of text outside tags."""
    min_visible_characters: Annotated[int, Field(ge=0)] = 100
    """HTML: least characters of such text."""
    min_data: Annotated[int, Field(ge=0)] = 50
    """JSON, YAML: least characters."""
    max_data: Annotated[int, Field(ge=1)] = 5000
    """JSON, YAML: most characters."""


@step("source-file", SourceFileOptions)
def source_file(record: Example, options: SourceFileOptions) -> str | None:
    """Code that people wrote and read, judged by its lines and letters; prose is not looked at."""
    for block in blocks_of(record):
        if reason := _file_fault(block.code, block.language, options):
            return reason
    return None


def _file_fault(code: str, language: str, options: SourceFileOptions) -> str | None:
    lengths = [len(line) for line in code.splitlines()] or [0]
    if sum(lengths) / len(lengths) > options.max_mean_line:
        return f"lines over {options.max_mean_line:g} characters on average"
    if max(lengths) > options.max_line:
        return f"a line over {options.max_line} characters"
    letters = sum(map(str.isalpha, code)) / max(len(code), 1)
    if letters < options.min_alphabetic:
        return f"under {options.min_alphabetic:.0%} letters"
    if "<?xml version=" in code[:100] and language not in ("xslt", "xsl"):
        return "XML"
    if language == "html":
        visible = len(" ".join(text_of_html(code).split()))
        if visible < options.min_visible * len(code) or visible < options.min_visible_characters:
            return "HTML with little visible text"
    if language in ("json", "yaml") and not options.min_data <= len(code) <= options.max_data:
        return f"{language.upper()} outside {options.min_data} to {options.max_data} characters"
    return None


def text_of_html(code: str) -> str:
    """Return what stands outside tags, comments, scripts and styles; in time that grows with the length alone."""
    ends, shown, at = dict(TAG_ENDS), [], 0
    while begin := TAG.search(code, at):
        shown.append(code[at : begin.start()])
        at = begin.end()
        for kind in dict.fromkeys((begin[1].lower(), "")):
            if kind in ends:
                if end := ends[kind].search(code, at):
                    at = end.end()
                    break
                del ends[kind]  # there is none further on either
        else:
            shown.append(begin[0])
    return " ".join([*shown, code[at:]])


MAX_OPEN = 5000
"""Tags of HTML beyond four for each that is closed."""


class ParseOptions(Section):
    """Which code must parse."""

    languages: list[str] | None = None
    """Languages to check; by default all that there is a parser for."""
    require: bool = False
    """Reject records with no code that can be checked."""


@step("parse", ParseOptions)
def parses(record: Example, options: ParseOptions) -> str | None:
    """Code that its language's parser accepts whole: Python's own, tree-sitter's for the others.

    Raises:
        MissingExtraError: tree-sitter or a grammar is not installed.
    """
    tree_sitter()
    checked = False
    for block in blocks_of(record):
        if options.languages is not None and block.language not in options.languages:
            continue
        if block.language == "python":
            good = parse_python(block.code) is not None
        elif block.language in GRAMMARS:
            good = not _too_slow(block.code, block.language) and _accepts(block.code, block.language)
        else:
            continue
        checked = True
        if not good:
            return f"{block.language} does not parse"
    return "no code to parse" if options.require and not checked else None


def _accepts(code: str, language: str) -> bool:
    return not _parser(language).parse(code.encode("utf-8", "replace")).root_node.has_error


def _too_slow(code: str, language: str) -> bool:
    """Tell whether HTML has what its parser takes the square of its length for: it would not be accepted either.

    A comment without an end is looked for from each place where one begins; tags that none closes are piled up.
    """
    if language != "html":
        return False
    return code.rfind("<!--") > code.rfind("-->") or code.count("<") > MAX_OPEN + 4 * code.count("</")


def tree_sitter() -> Any:
    """Return the module tree_sitter.

    Raises:
        MissingExtraError: it is not installed.
    """
    return _import("tree_sitter")


@cache
def _parser(language: str) -> Any:
    module, function = GRAMMARS[language]
    library = tree_sitter()
    return library.Parser(library.Language(getattr(_import(module), function)()))


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(f"the step parse needs {module}: pip install 'xft[data]'") from None
