"""Ten problems of our own in the exact form that MultiPL-E has in each language, and answers to them.

The answers are in `fixtures/languages/NAME.txt`: `## problem right|wrong what`, then a continuation of the prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "fixtures" / "languages"


@dataclass(frozen=True)
class Spec:
    name: str
    about: str
    parameters: tuple[tuple[str, str], ...]
    returns: str
    cases: tuple[tuple[tuple[Any, ...], Any], ...]


@dataclass(frozen=True)
class Answer:
    problem: str
    right: bool
    what: str
    text: str


SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "bound", "Return x, or the nearer end of the range from low to high when x is outside.",
            (("x", "int"), ("low", "int"), ("high", "int")), "int",
            (((5, 1, 9), 5), ((-4, 1, 9), 1), ((12, 1, 9), 9), ((9, 9, 9), 9)),
        ),
        Spec(
            "count_letter", "Count how often a letter is in a text; upper and lower case differ.",
            (("text", "str"), ("letter", "str")), "int",
            ((("banana", "a"), 3), (("", "a"), 0), (("Aa", "a"), 1), (("xyz", "q"), 0)),
        ),
        Spec(
            "alternate_sum", "Add the first value, take off the second, add the third, and so on.",
            (("values", "ints"),), "int",
            ((([1, 2, 3],), 2), (([],), 0), (([10],), 10), (([5, -5],), 10)),
        ),
        Spec(
            "squeeze", "Leave only one of each run of equal letters.",
            (("text", "str"),), "str",
            ((("aabbb",), "ab"), (("",), ""), (("abab",), "abab"), (("a\nb \"\\\"",), "a\nb \"\\\"")),
        ),
        Spec(
            "is_square", "Tell whether n is the square of a whole number.",
            (("n", "int"),), "bool",
            (((16,), True), ((15,), False), ((0,), True), ((-4,), False)),
        ),
        Spec(
            "digits_of", "List the decimal digits of n, which is at least 0, from left to right.",
            (("n", "int"),), "ints",
            (((507,), [5, 0, 7]), ((0,), [0]), ((10,), [1, 0])),
        ),
        Spec(
            "interleave", "Take values from a and b in turn; when one ends, the rest of the other follows.",
            (("a", "ints"), ("b", "ints")), "ints",
            ((([1, 3], [2, 4]), [1, 2, 3, 4]), (([], [7]), [7]), (([1, 2, 3], [9]), [1, 9, 2, 3]), (([], []), [])),
        ),
        Spec(
            "initials", "Give the first letter of each word as a capital; words are not empty.",
            (("words", "strs"),), "strs",
            (((["red", "Blue"],), ["R", "B"]), (([],), []), ((["x"],), ["X"])),
        ),
        Spec(
            "midpoint", "Return the number half-way between a and b.",
            (("a", "float"), ("b", "float")), "float",
            (((1.0, 2.0), 1.5), ((-3.0, 3.0), 0.0), ((2.5, 2.5), 2.5)),
        ),
        Spec(
            "steps_to_one", "Halve n while it is even, else take 1 off; count the steps until it is 1.",
            (("n", "int"),), "int",
            (((1,), 0), ((8,), 3), ((7,), 4), ((10,), 4)),
        ),
    )
}  # fmt: skip

KINDS = ("int", "float", "bool", "str", "ints", "strs")
TYPES = {
    language: dict(zip(KINDS, names.split(), strict=True))
    for language, names in {
        "cpp": "long float bool std::string std::vector<long> std::vector<std::string>",
        "java": "long float boolean String ArrayList<Long> ArrayList<String>",
        "rust": "isize f64 bool String Vec<isize> Vec<String>",
        "swift": "Int Double Bool String [Int] [String]",
    }.items()
}
JAVA_IMPORTS = ("util", "lang.reflect", "org.javatuples", "security", "math", "io", "util.stream")


def problem(language: str, name: str) -> tuple[str, str, str]:
    """Return prompt, name of the function, and tests."""
    return {"cpp": _cpp, "java": _java, "js": _js, "php": _php, "rust": _rust, "swift": _swift}[language](SPECS[name])


def answers(language: str) -> list[Answer]:
    """Read a language's answers."""
    text = (FOLDER / f"{language}.txt").read_text()
    parts = re.split(r"^## (\w+) (right|wrong) (.*)\n", text, flags=re.MULTILINE)[1:]
    return [
        Answer(name, verdict == "right", what.strip(), body)
        for name, verdict, what, body in zip(*(iter(parts),) * 4, strict=True)
    ]


def _quoted(text: str) -> str:
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _plain(value: Any, opening: str, closing: str) -> str:
    """Write a value as languages without types do."""
    if isinstance(value, list):
        return opening + ", ".join(_plain(item, opening, closing) for item in value) + closing
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else str(value)


def _cpp(spec: Spec) -> tuple[str, str, str]:
    def literal(value: Any, kind: str) -> str:
        if isinstance(value, list):
            item = {"ints": "long", "strs": "std::string"}[kind]
            inner = ", ".join(f"({item}){_plain(one, '', '')}" for one in value)
            return f"({TYPES['cpp'][kind]}({{{inner}}}))" if value else f"({TYPES['cpp'][kind]}())"
        return f"({value}f)" if kind == "float" else f"({_plain(value, '', '')})"

    types = TYPES["cpp"]
    signature = ", ".join(f"{types[kind]} {name}" for name, kind in spec.parameters)
    head = f"#include<assert.h>\n#include<bits/stdc++.h>\n// {spec.about}\n"
    stub = f"{head}{types[spec.returns]} {spec.name}({signature}) {{\n"
    lines = "".join(
        f"    assert(candidate({_arguments(spec, given, literal)}) == {literal(wanted, spec.returns)});\n"
        for given, wanted in spec.cases
    )
    return stub, spec.name, f"}}\nint main() {{\n    auto candidate = {spec.name};\n{lines}}}\n"


def _java(spec: Spec) -> tuple[str, str, str]:
    def literal(value: Any, kind: str) -> str:
        if isinstance(value, list):
            item, end = {"ints": ("long", "l"), "strs": ("String", "")}[kind]
            inner = ", ".join(f"({item}){_plain(one, '', '')}{end}" for one in value)
            return f"(new {TYPES['java'][kind]}(Arrays.asList({inner})))"
        return f"({_plain(value, '', '')}{dict(int='l', float='f').get(kind, '')})"

    types = TYPES["java"]
    first, *others = spec.name.split("_")
    name = first + "".join(word.capitalize() for word in others)
    imports = "".join(f"import {'' if part.startswith('org') else 'java.'}{part}.*;\n" for part in JAVA_IMPORTS)
    signature = ", ".join(f"{types[kind]} {parameter}" for parameter, kind in spec.parameters)
    head = f"{imports}class Problem {{\n    // {spec.about}\n"
    stub = f"{head}    public static {types[spec.returns]} {name}({signature}) {{\n"
    equal = " == {}" if spec.returns in ("int", "float", "bool") else ".equals({})"
    lines = "".join(
        f"    assert({name}({_arguments(spec, given, literal)}){equal.format(literal(wanted, spec.returns))});\n"
        for given, wanted in spec.cases
    )
    return stub, name, f"    }}\n    public static void main(String[] args) {{\n{lines}    }}\n\n}}\n"


def _js(spec: Spec) -> tuple[str, str, str]:
    def literal(value: Any, kind: str) -> str:
        return _plain(value, "[", "]")

    stub = f"//{spec.about}\nfunction {spec.name}({', '.join(name for name, _ in spec.parameters)}){{\n"
    lines = "".join(
        f"  assert.deepEqual(candidate({_arguments(spec, given, literal)}),{literal(wanted, '')});\n"
        for given, wanted in spec.cases
    )
    head = f"const assert = require('node:assert');\n\n\nfunction test() {{\n  let candidate = {spec.name};\n"
    return stub, spec.name, f"{head}{lines}}}\n\ntest();"


def _php(spec: Spec) -> tuple[str, str, str]:
    def literal(value: Any, kind: str) -> str:
        return _plain(value, "array(", ")")

    stub = f"<?php\n// {spec.about}\nfunction {spec.name}({', '.join(f'${name}' for name, _ in spec.parameters)}) {{\n"
    lines = "".join(
        f"    if (candidate({_arguments(spec, given, literal)}) !== {literal(wanted, '')}) "
        '{ throw new Exception("Test failed!"); }\n'
        for given, wanted in spec.cases
    )
    head = f"function candidate(...$args) {{\n    return {spec.name}(...$args);\n}}\n\nfunction test(): void {{\n"
    return stub, spec.name, f"{head}{lines}}}\n\ntest();"


def _rust(spec: Spec) -> tuple[str, str, str]:
    def literal(value: Any, kind: str) -> str:
        if isinstance(value, list):
            inner = ", ".join(literal(one, "") for one in value)
            return f"vec![{inner}]" if value else f"Vec::<{dict(ints='isize', strs='String')[kind]}>::new()"
        return f"String::from({_quoted(value)})" if isinstance(value, str) else _plain(value, "", "")

    types = TYPES["rust"]
    signature = ", ".join(f"{name}: {types[kind]}" for name, kind in spec.parameters)
    stub = f"/// {spec.about}\nfn {spec.name}({signature}) -> {types[spec.returns]} {{\n"
    lines = "".join(
        f"    assert_eq!(candidate({_arguments(spec, given, literal)}), {literal(wanted, spec.returns)});\n"
        for given, wanted in spec.cases
    )
    return stub, spec.name, f"}}\n\nfn main() {{\n    let candidate = {spec.name};\n{lines}}}\n"


def _swift(spec: Spec) -> tuple[str, str, str]:
    def literal(value: Any, kind: str) -> str:
        return f"[] as {TYPES['swift'][kind]}" if value == [] else _plain(value, "[", "]")

    types = TYPES["swift"]
    signature = ", ".join(f"{name}: {types[kind]}" for name, kind in spec.parameters)
    stub = f"\n/// {spec.about}\nfunc {spec.name}({signature}) -> {types[spec.returns]} {{\n"
    lines = "\n".join(
        f"assert({spec.name}({_arguments(spec, given, literal, labels=True)}) == {literal(wanted, spec.returns)})"
        for given, wanted in spec.cases
    )
    pairs = "    if left.count != right.count {\n        return false\n    }\n    for (l, r) in zip(left, right) {\n"
    pairs += "        if l != r {\n            return false\n        }\n    }\n    return true\n}\n            \n"
    return stub, spec.name, f"}}\n\n\nfunc ==(left: [(Int, Int)], right: [(Int, Int)]) -> Bool {{\n{pairs}{lines}"


def _arguments(spec: Spec, given: tuple[Any, ...], literal: Any, *, labels: bool = False) -> str:
    return ", ".join(
        (f"{name}: " if labels else "") + literal(value, kind)
        for (name, kind), value in zip(spec.parameters, given, strict=True)
    )
