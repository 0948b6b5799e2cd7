"""Where the tests and the proof of completion go, per language. Pure: text in, files out.

The proof is a fresh random word that the program prints as its last act. It is put into the benchmark's own text of
tests, at its known shape; the candidate's text is never searched for a place. Where a language allows it, the answer is
a file of its own, so that a comment, a string or a mode that it leaves open can't swallow the tests; and what the tests
call (assertions, loading) is bound to names that the answer could not have changed before. What an answer can still do
is in docs/evaluation.md.
"""

from __future__ import annotations

import re

Files = dict[str, str]

CPP_NAMES = re.compile(r"\b[A-Za-z_]\w*\b")
CPP_STRINGS = re.compile(r'"(?:[^"\\\n]|\\.)*"' + r"|'(?:[^'\\\n]|\\.)*'")
CPP_ASSERT = (
    "#define assert(...) (static_cast<bool>(__VA_ARGS__) ? static_cast<void>(0) : "
    '(static_cast<void>(std::fprintf(stderr, "assertion failed: %s\\n", #__VA_ARGS__)), __builtin_trap()))\n'
)
CPP_END = '    std::cout.flush();\n    std::fflush(nullptr);\n    std::printf("\\n%s\\n", "{proof}");\n'

RUST_MACROS = """\
    macro_rules! assert_eq {
        ($left:expr, $right:expr $(,)?) => {
            match (&$left, &$right) {
                (left, right) => {
                    let equal = *left == *right;
                    if !equal { eprintln!("assertion failed: {} == {}", stringify!($left), stringify!($right)); }
                    [()][!equal as usize]
                }
            }
        };
    }
    macro_rules! vec { ($($item:tt)*) => { ::std::vec![$($item)*] }; }
"""

JAVA_END = """\
    boolean xftAssertions = false;
    assert xftAssertions = true;
    if (!xftAssertions) throw new AssertionError("assertions are off");
    System.out.println("\\n{proof}");
"""

JS_MAIN = """\
"use strict";
require("node:fs").rmSync(__filename);
const xft = {{
    modules: {{ "node:assert": Object.freeze(require("node:assert")) }},
    write: process.stdout.write.bind(process.stdout),
}};
const {entry} = require("./answer.js");
(function (require) {{
{tests}
}})((name) => xft.modules[name]);
xft.write("\\n{proof}\\n");
"""

PHP_MAIN = """\
<?php
unlink(__FILE__);
require __DIR__ . '/answer.php';
{tests}
while (ob_get_level() > 0) {{ ob_end_flush(); }}
echo "\\n{proof}\\n";
"""


class ShapeError(ValueError):
    """Say that tests don't have the shape of the benchmark's."""


def split(tests: str, pattern: str) -> tuple[str, ...]:
    """Take tests apart by a pattern that must match them as a whole."""
    match = re.fullmatch(pattern, tests, re.DOTALL)
    if match is None:
        raise ShapeError(f"the tests don't match {pattern}")
    return match.groups()


def cpp(code: str, entry: str, tests: str, proof: str) -> Files:
    """Undefine every macro named like a word of the tests; compare with std's operators; trap where assert would abort.

    `abort`, `exit` and `__assert_fail` are functions of the C library, which a program may replace by its own.
    """
    close, main, body = split(tests, r"(\s*\}\n)(int main\(\) \{\n)(.*)\}\s*")
    ours = f"    using std::operator==;\n{body}{CPP_END.format(proof=proof)}}}\n"
    words = sorted(set(CPP_NAMES.findall(CPP_STRINGS.sub("", main + ours + CPP_ASSERT))) - {"__VA_ARGS__", "define"})
    undefine = "".join(f"#undef {word}\n" for word in words)
    return {
        "answer.cpp": code,
        "program.cpp": f'#include "answer.cpp"\n{undefine}#undef NDEBUG\n{CPP_ASSERT}{close}{main}{ours}',
    }


def rust(code: str, entry: str, tests: str, proof: str) -> Files:
    """Give `main` its own `assert_eq!` and `vec!`, the innermost of those names; a failure needs no name at all."""
    close, main, body = split(tests, r"(\s*\}\s*)(fn main\(\) \{\n)(.*)\}\s*")
    return {"program.rs": f'{code}\n{close}{main}{RUST_MACROS}{body}    println!("\\n{proof}");\n}}\n'}


def java(code: str, entry: str, tests: str, proof: str) -> Files:
    """Ask the expected value whether it equals the answer, not the other way round; print only with assertions on."""
    head, tail = split(tests, r"(\s*\}\n\s*public static void main\(String\[\] args\) \{\n.*\n)(\s*\}\s*\}\s*)")
    lines = "\n".join(swap_equals(line) for line in head.split("\n"))
    return {"Problem.java": f"{code}\n{lines}{JAVA_END.format(proof=proof)}{tail}"}


def swap_equals(line: str) -> str:
    """Turn `assert(f(x).equals(y));` into `assert(y.equals(f(x)));`; other lines stay."""
    match = re.fullmatch(r"(\s*)assert\((\w+\(.*)\);", line)
    if match is None:
        return line
    indent, claim = match.groups()
    end = closing(claim, claim.index("("))
    if end < 0 or not claim.startswith(".equals(", end + 1):
        return line
    start = end + len(".equals(")
    if closing(claim, start) != len(claim) - 1:
        return line
    return f"{indent}assert({claim[start:]}.equals({claim[: end + 1]}));"


def closing(text: str, start: int) -> int:
    """Return the index of the parenthesis that closes the one at `start`, past strings; -1 when there is none."""
    depth = 0
    for match in re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'|[()]").finditer(text, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def javascript(code: str, entry: str, tests: str, proof: str) -> Files:
    """Load assert, freeze it and remove the file with the proof before the answer is loaded."""
    split(tests, r"(const assert = require\('node:assert'\);\n.*\ntest\(\);\s*)")
    return {
        "answer.js": f"{code}\nmodule.exports = {entry};\n",
        "program.js": JS_MAIN.format(entry=entry, tests=tests, proof=proof),
    }


def php(code: str, entry: str, tests: str, proof: str) -> Files:
    """Remove the file with the proof before the answer is loaded; functions of the tests exist by then."""
    split(tests, r"(function candidate\(.*\ntest\(\);\s*)")
    return {"answer.php": code, "program.php": PHP_MAIN.format(tests=tests, proof=proof)}


def swift(code: str, entry: str, tests: str, proof: str) -> Files:
    """Call the assertions by a name that the answer could not have known."""
    close, body = split(tests, r"(\s*\}\n)(.*)")
    check = f"check_{proof}"
    body = re.sub(r"^assert\(", f"{check}(", body, flags=re.MULTILINE)
    ours = (
        f"func {check}(_ holds: Bool, line: UInt = #line) {{\n"
        '    if !holds { Swift.fatalError("assertion failed in line \\(line)") }\n}\n'
    )
    return {"program.swift": f'{code}\n{close}{ours}{body}\nSwift.print("\\n{proof}")\n'}
