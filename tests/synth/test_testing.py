"""Laws of every language that solutions are checked in, and how each reads code and tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from xft.eval.sandbox import Sandbox
from xft.synth.testing import TESTINGS, javascript, python

GOOD = "def add(x, y=1):\n    return x + y"
TESTS = "assert add(1, 2) == 3\nassert add(0) == 1\nassert add(-1, 1) == 0"


@dataclass(frozen=True)
class Known:
    """A solution of `add`, a wrong one, one that ends the program, and tests as a teacher writes them."""

    good: str
    wrong: str
    ending: str
    answer: str


KNOWN = {
    "python": Known(
        good=GOOD,
        wrong=GOOD.replace("+", "-"),
        ending="import os\ndef add(x, y=1):\n    os._exit(0)",
        answer=f"Here:\n```python\n{GOOD}\n{TESTS}\nassert True\n```",
    ),
    "javascript": Known(
        good="function add(x, y = 1) {\n    return x + y;\n}\nmodule.exports = { add };",
        wrong="function add(x, y = 1) {\n    return x - y;\n}",
        ending="function add(x, y = 1) {\n    process.exit(0);\n}",
        answer=(
            "Here:\n```js\nconst assert = require('assert');\nconst { add } = require('./add');\n"
            "assert.deepStrictEqual(add(1, 2), 3);\nassert.deepStrictEqual(\n  add(0), 1\n);\n"
            "assert.strictEqual(add(-1, 1), 0); // zero\nassert(true);\n```"
        ),
    ),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(params=sorted(TESTINGS))
def language(request: pytest.FixtureRequest) -> str:
    if fault := TESTINGS[request.param].fault():
        pytest.skip(f"not run: {request.param} ({fault})")
    return str(request.param)


def test_a_good_solution_passes_and_others_do_not(sandbox: Sandbox, language: str) -> None:
    testing, known = TESTINGS[language], KNOWN[language]
    suite = testing.suite(known.answer, known.good)
    assert len(suite.tests) == 4
    outcomes = [testing.run(sandbox, code, suite, 10.0, 1024) for code in (known.good, known.wrong, known.ending)]
    assert outcomes[0].status == "passed"
    assert outcomes[1].status == "failed"
    assert "ssert" in outcomes[1].error
    assert outcomes[2].status != "passed"


def test_tests_fail_on_mutants_and_a_trivial_one_on_none(sandbox: Sandbox, language: str) -> None:
    testing, known = TESTINGS[language], KNOWN[language]
    suite = testing.suite(known.answer, known.good)
    *proving, trivial = suite.tests
    made = testing.mutants(known.good, 4, 0)
    assert len(made) == len(set(made)) >= 2
    assert known.good not in made
    for tests, status in ((tuple(proving), "failed"), ((trivial,), "passed")):
        for mutant in made:
            assert testing.run(sandbox, mutant, replace(suite, tests=tests), 10.0, 1024).status == status


def test_mutants_come_back_with_the_seed(language: str) -> None:
    testing, known = TESTINGS[language], KNOWN[language]
    assert testing.mutants(known.good, 2, 1) == testing.mutants(known.good, 2, 1)


def test_the_outline_shows_how_to_call_and_not_how_it_is_done(language: str) -> None:
    testing, known = TESTINGS[language], KNOWN[language]
    assert "add(x, y" in testing.outline(known.good)
    assert "x + y" not in testing.outline(known.good)
    assert testing.outline("") == testing.outline("no code at all") == ""


def test_pythons_outline_has_signatures_and_docstrings_and_no_bodies() -> None:
    code = '''
class A(list):
    """Doc."""
    @property
    def b(self) -> int:
        return 1
async def c(x: int = 2, *y):
    """What."""
    return x
'''
    assert python.outline(code).split("\n") == [
        "class A:", "    def b(self) -> int:", "        ...", "async def c(x: int=2, *y):", '    """What."""'
    ]  # fmt: skip
    assert python.outline("x = 1") == python.outline("not python (") == ""


def test_a_result_that_is_compared_with_an_exception_is_no_test() -> None:
    text = "assert f(1) == ValueError\nassert f(2) == ValueError('x')\nassert f(3) == len('x')\nassert f(4) == g\n"
    assert python.suite(text, "def f(x): return x").tests == ("assert f(3) == len('x')", "assert f(4) == g")


@pytest.mark.parametrize("end", ["assert f([1, 2, ", "assert f(3) == 'x", "    assert f(3) == 3", "for"])
def test_of_an_answer_that_was_cut_off_the_whole_tests_are_read(end: str) -> None:
    whole = "import math\nassert f(1) == 1\nassert f(\n    2\n) == 2\n"
    read = python.suite(f"```python\n{whole}{end}", "def f(x): return x")
    assert read == python.suite(f"```python\n{whole}```", "def f(x): return x")
    assert len(read.tests) == 2


@pytest.mark.parametrize(("test", "error", "expecting"), [
    ("assert f(1) == 2", "AssertionError: got 3 (line 7)", "assert f(1) == 3"),
    ("assert f(1) == 2", "AssertionError: got ['a', (1, None)] (line 7)", "assert f(1) == ['a', (1, None)]"),
    ("assert f(1) == 2", "AssertionError: got '(line 7)'", "assert f(1) == '(line 7)'"),
    ("assert f(1) == 2", "AssertionError: got <object object at 0x1> (line 7)", None),
    ("assert f(1) == 2", "AssertionError: got 'cut off (line 7)", None),
    ("assert f(1) == 2", "TypeError: got 3 (line 7)", None),
    ("assert f(1) > 2", "AssertionError: got 1 (line 7)", None),
    ("assert 2 == f(1)", "AssertionError: got 2 (line 7)", None),
    ("assert x == 2", "AssertionError: got 1 (line 7)", None),
    ("assert f(1) == g(1)", "AssertionError: got 1 (line 7)", None),
    ("assert 1 == f(1) == 2", "AssertionError: got 1 (line 7)", None),
    ("assert f(1)", "AssertionError (line 7)", None),
])  # fmt: skip
def test_a_test_can_expect_what_was_got_if_it_can_be_written_down(test: str, error: str, expecting: str | None) -> None:
    assert TESTINGS["python"].expecting(test, error) == expecting


def test_asserts_and_test_functions_are_read_and_the_solutions_own_names_left_out() -> None:
    text = """
from my_module import add
from solution import *
import math
values: list[int] = [1]
def add(x):
    return 0
def test_it():
    assert add(values[0]) == 2
def helper(x):
    return x
assert add(1) == 2
assert add(1) == 2
print(add(1))
"""
    suite = python.suite(f"```python\n{text}\n```", GOOD)
    assert suite.setup == "import math\nvalues: list[int] = [1]\ndef helper(x):\n    return x"
    assert suite.tests == ("def test_it():\n    assert add(values[0]) == 2\ntest_it()", "assert add(1) == 2")
    assert python.suite(TESTS, GOOD).tests == tuple(TESTS.split("\n"))


def test_javascripts_outline_has_functions_classes_and_methods() -> None:
    code = """
// function old(a) {
export async function load(url, { retries = 3 } = {}) {
  if (url) { return 1; }
}
const twice = (x) => x * 2;
class Stack extends Base {
  constructor(items) {
    for (const item of items) { this.push(item); }
  }
  static of(item) { return new Stack([item]); }
}
"""
    assert [line.strip() for line in javascript.outline(code).split("\n")] == [
        "export async function load(url, { retries = 3 } = {})", "const twice = (x) =>", "class Stack extends Base",
        "constructor(items)", "static of(item)",
    ]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [
    ("a === 1 && b", "a !== 1 && b"),
    ("a === 1 && b", "a === 1 || b"),
    ("a === 1 && b", "a === 2 && b"),
    ("return f(a + 1);", "return undefined;"),
    ("return f(a + 1);", "return f(a - 1);"),
])  # fmt: skip
def test_javascripts_operators_numbers_and_returns_are_changed(before: str, after: str) -> None:
    code = f"function g(a, b) {{ // 3 + 4\n  const s = '5 - 6';\n  {before}\n  a++;\n}}"
    made = javascript.mutants(code, 100, 0)
    assert code.replace(before, after) in made
    assert all("// 3 + 4" in mutant and "'5 - 6'" in mutant and "a++" in mutant for mutant in made)


def test_javascripts_statements_end_outside_of_brackets() -> None:
    text = "const a = [\n  1, ';'\n];\nassert(f(`}\n;`)) // done;\n\nfunction h() {\n  return 1;\n}\nassert.ok(h())"
    assert list(javascript.statements(text)) == [
        "const a = [\n  1, ';'\n];", "assert(f(`}\n;`))", "function h() {\n  return 1;\n}", "assert.ok(h())",
    ]  # fmt: skip
