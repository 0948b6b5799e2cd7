"""From a completion's text to a program without its tests, per language. Pure: nothing is run.

The tests of languages with braces begin with the one that closes the function, so a whole function is followed by an
opening that it closes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xft.eval.extract import segments
from xft.eval.generate.backend import first_stop

if TYPE_CHECKING:
    from xft.eval.languages.language import Language

LONGEST = 100_000
"""Characters of a stretch that are read; what is longer is no answer to these problems."""

MARKS = re.compile(r"[;{}]|\breturn\b")
TOKEN = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)|[{}]|\b(?:class|interface|enum|record)\s+\w+"
    r"|\"(?:[^\"\\\n]|\\.){0,400}\"|'(?:[^'\\\n]|\\.){0,400}'",
    re.DOTALL,
)
JAVA_IMPORT = re.compile(r"^[ \t]*import\s[^;\n]*;[ \t]*$", re.MULTILINE)
JAVA_PACKAGE = re.compile(r"^[ \t]*package\s[^;\n]*;[ \t]*$", re.MULTILINE)
JAVA_PUBLIC_TYPE = re.compile(r"\bpublic\s+(?=(?:(?:abstract|final|sealed)\s+)*(?:class|interface|enum|record)\b)")
RUST_USE = re.compile(r"\buse\s[^;]{0,1000};")
PHP_OPEN = re.compile(r"\A\s*<\?(?:php\b)?")


def from_continuation(stub: str, completion: str, stops: Sequence[str]) -> str:
    """Return the stub with its continuation up to the first stop; "" when nothing was written."""
    written = completion[: first_stop(completion, stops)]
    return stub + written if written.strip() else ""


def from_chat(language: Language, stub: str, entry: str, text: str) -> str:
    """Return the program in an answer, "" when there is none: the stretch between fences that defines the function.

    Understands a whole function, with or without the stub's preamble, a class around it, a `main` of its own, or only
    the body; talk before and after fences; a fence that was opened before the answer began, or is never closed.
    """
    found = [(label, segment[:LONGEST]) for label, segment in segments(text) if segment.strip()]
    for _, segment in found:
        answer = segment.strip("\n") + "\n"
        if match := re.search(language.definition.replace("NAME", re.escape(entry)), answer):
            return language.join(stub, answer, match.start())
    # Before the body may be talk: what is indented is none, nor what has a label or the marks of code.
    _, body = min(
        found,
        key=lambda each: (not each[1].strip("\n")[0].isspace(), not (each[0] or MARKS.search(each[1]))),
        default=("", ""),
    )
    return _from_body(stub, body.strip("\n"), closed=language.closed_by_tests) if body else ""


def cpp(stub: str, answer: str, at: int) -> str:
    """Put the stub's includes before the answer, and its types when the answer lacks them; set its `main` aside."""
    preamble = _before_comment(stub).split("\n")
    includes = [line for line in preamble if line.startswith("#")]
    types = "\n".join(line for line in preamble if not line.startswith("#"))
    answer = re.sub(r"\bmain(?=\s*\()", "answer_main", answer)
    return "\n".join([*includes, *_missing(types, answer), answer + "namespace {"])


def rust(stub: str, answer: str, at: int) -> str:
    """Put those of the stub's imports before the answer that it doesn't make; set its `main` aside."""
    imported = " ".join(RUST_USE.findall(answer))
    uses = [
        line
        for line in _before_comment(stub).split("\n")
        if line.strip() and not re.search(rf"\b{re.escape(line.rstrip('; ').rsplit('::')[-1])}\b", imported)
    ]
    answer = re.sub(r"\bfn(\s+)main(?=\s*\()", r"fn\1answer_main", answer)
    return "\n".join([*uses, answer + "mod answer_end {"])


def java(stub: str, answer: str, at: int) -> str:
    """Make `Problem` inherit from the answer's class, or hold the answer's methods when it has none."""
    owner = enclosing_type(answer, at)
    imports = dict.fromkeys([*JAVA_IMPORT.findall(_before_comment(stub)), *JAVA_IMPORT.findall(answer)])
    answer = JAVA_PACKAGE.sub("", JAVA_IMPORT.sub("", answer))
    answer = re.sub(r"\bvoid(\s+)main(?=\s*\()", r"void\1answerMain", JAVA_PUBLIC_TYPE.sub("", answer)).strip("\n")
    if owner == "Problem":
        owner, answer = "Answer", re.sub(r"\bProblem\b", "Answer", answer)
    head = [*imports, answer, f"class Problem extends {owner} {{"] if owner else [*imports, "class Problem {", answer]
    return "\n".join([*head, "    static {"])


def javascript(stub: str, answer: str, at: int) -> str:
    """Take the answer as it is."""
    return answer


def php(stub: str, answer: str, at: int) -> str:
    """Begin with the mark that begins PHP."""
    return "<?php" + (PHP_OPEN.sub("", answer, count=1) if PHP_OPEN.match(answer) else "\n" + answer)


def swift(stub: str, answer: str, at: int) -> str:
    """Put the stub's types before the answer when it lacks them."""
    return "\n".join([*_missing(_before_comment(stub), answer), answer + "do {"])


def enclosing_type(source: str, at: int) -> str:
    """Name the innermost class around a place in Java, "" when there is none."""
    open_types: list[str] = []
    name = ""
    for match in TOKEN.finditer(source):
        if match.start() >= at:
            break
        token = match[0]
        if token == "{":
            open_types.append(name)
            name = ""
        elif token == "}":
            del open_types[-1:]
        elif token[0].isalpha():
            name = token.split()[-1]
    return next((name for name in reversed(open_types) if name), "")


def _from_body(stub: str, body: str, *, closed: bool) -> str:
    """Join a body to the stub, up to the brace that closes the function; add that brace unless the tests do."""
    depth = 0
    for match in TOKEN.finditer(body):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            body = body[: match.start()].rstrip()
            break
    return f"{stub}{body}\n" + ("" if closed else "}\n")


def _before_comment(stub: str) -> str:
    """Return what stands in a stub before the comment that describes the problem."""
    lines = stub.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip().startswith("//")), 0)
    return "\n".join(lines[:end]).strip()


def _missing(types: str, answer: str) -> list[str]:
    """Return the stub's types, unless the answer has them too."""
    heads = re.findall(r"^(?:union|enum|extension|struct) \w+", types, re.MULTILINE)
    return [types] if types.strip() and not any(re.search(rf"\b{head}\b", answer) for head in heads) else []
