"""JavaScript: tests are calls of node:assert; outline and mutants are made by patterns over the text, without a parser.

What the patterns get wrong costs a mutant or a pair, and keeps none: a mutant that does not run by itself is left out.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Iterator

from xft.eval.languages import LANGUAGES
from xft.eval.sandbox import Outcome, Sandbox, Step
from xft.synth.mutate import Make, select
from xft.synth.rules import code_in
from xft.synth.testing.testing import MOST_TESTS, TESTINGS, Suite, Testing

SKIPPED = r"""(?P<skipped>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`|//[^\n]*|/\*.*?\*/)"""
"""Strings and comments."""
TOKEN = re.compile(SKIPPED + r"|(?P<open>[\[({])|(?P<close>[\])}])|(?P<end>[;\n])|.", re.DOTALL)
HEAD = re.compile(
    r"^(?P<text>\s*(?:(?:export\s+(?:default\s+)?)?(?:"
    r"(?:async\s+)?function\s*\*?\s*(?P<function>\w+)\s*\([^)]*\)|class\s+(?P<class>\w+)[^{\n]*|"
    r"(?:const|let|var)\s+(?P<value>\w+)\s*=\s*(?:async\s*)?(?:\([^)]*\)|\w+)\s*=>)|"
    r"(?:(?:static|async|get|set)\s+)*(?!if\b|for\b|while\b|switch\b|catch\b|function\b)\w+\s*\([^)]*\)(?=\s*\{)))",
    re.MULTILINE,
)
"""Where a function, a class, a method or an arrow function begins."""
NOT_MINE = re.compile(r"(?:import\b|(?:const|let|var)\s+[\w{},\s]+=\s*(?:await\s+)?(?:require|import)\b)")
SWAPS = {
    "===": "!==", "!==": "===", "==": "!=", "!=": "==", "<=": "<", "<": "<=", ">=": ">", ">": ">=", "&&": "||",
    "||": "&&", "+": "-", "-": "+", "*": "+", "%": "*", "true": "false", "false": "true",
}  # fmt: skip
SITE = re.compile(
    SKIPPED + r"|(?P<return>\breturn\s+(?!undefined\b)(?P<value>[^;\n{}]+))|=>|\+\+|--|\+=|-=|\*\*|"
    r"(?P<operator>===|!==|==|!=|<=|>=|&&|\|\||[<>+*%-]|\btrue\b|\bfalse\b)|(?P<constant>\b\d{1,15}\b)",
    re.DOTALL,
)
ASSERT = 'const assert = require("node:assert");\n'


def outline(code: str) -> str:
    """Return the heads of a program's functions, classes and methods."""
    return "\n".join(head["text"].strip("\n") for head in HEAD.finditer(code))


def suite(text: str, code: str) -> Suite:
    """Read the statements in an answer that begin with `assert`, and what else it defines."""
    known = {name for head in HEAD.finditer(code) for name in head.group("function", "class", "value") if name}
    setup: list[str] = []
    tests: dict[str, None] = {}
    for statement in statements(code_in(text, "javascript") or text):
        head = HEAD.match(statement)
        if re.match(r"assert\b", statement):
            tests[statement] = None
        elif re.match(r"(?:const|let|var|function|class)\b", statement) and not (
            NOT_MINE.match(statement) or (head and known & set(head.group("function", "class", "value")))
        ):
            setup.append(statement)
    return Suite(setup="\n".join(setup), tests=tuple(tests)[:MOST_TESTS])


def statements(text: str) -> Iterator[str]:
    """Split a text at the semicolons and line ends outside of brackets; comments are left out."""
    depth, current = 0, ""
    for token in TOKEN.finditer(text):
        if token["skipped"] and token["skipped"].startswith("/"):
            continue
        current += token[0]
        depth += bool(token["open"]) - bool(token["close"])
        if depth <= 0 and token["end"]:
            if current.strip(" ;\n"):
                yield current.strip()
            current = ""
    if current.strip():
        yield current.strip()


def mutants(program: str, count: int, seed: int) -> list[str]:
    """Return up to `count` different mutants: an operator, a number, a truth value or what is returned is changed."""
    kinds: dict[str, list[Make]] = {}
    for site in SITE.finditer(program):
        if site["return"]:
            if _balanced(site["value"]):
                kinds.setdefault("return", []).append(_replaced(program, site.span("value"), "undefined"))
            for inner in SITE.finditer(program, *site.span("value")):
                _change(kinds, program, inner)
        else:
            _change(kinds, program, site)
    return select(kinds, program, count, seed)


def _change(kinds: dict[str, list[Make]], program: str, site: re.Match[str]) -> None:
    if site["operator"]:
        kinds.setdefault("operator", []).append(_replaced(program, site.span(), SWAPS[site[0]]))
    if site["constant"]:
        kinds.setdefault("constant", []).append(_replaced(program, site.span(), str(int(site[0]) + 1)))


def _replaced(program: str, span: tuple[int, int], text: str) -> Make:
    return functools.partial("{}{}{}".format, program[: span[0]], text, program[span[1] :])


def _balanced(text: str) -> bool:
    return all(text.count(opening) == text.count(closing) for opening, closing in ("()", "[]"))


def run(sandbox: Sandbox, code: str, suite: Suite, seconds: float, memory_mb: int) -> Outcome:
    """Run a solution with tests below it, and with the proof that its end was reached."""
    proof = secrets.token_hex(16)
    own = "" if re.search(r"\b(?:const|let|var)\s+assert\b", code) else ASSERT
    program = "\n\n".join([own + code, suite.setup, *suite.tests, f'console.log("\\n{proof}");']) + "\n"
    step = Step(argv=[LANGUAGES["js"].toolchain.programs["node"], "program.js"], seconds=seconds)
    return sandbox.execute({"program.js": program}, [step], proof=proof, memory_mb=memory_mb)


TESTINGS.register("javascript")(
    Testing(
        form="call of `assert.deepStrictEqual` from `node:assert`, which is loaded already",
        outline=outline,
        suite=suite,
        mutants=mutants,
        run=run,
        fault=lambda: LANGUAGES["js"].toolchain.fault,
    )
)
