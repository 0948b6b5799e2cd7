"""Decontamination: statement, form and function, on problems made up here."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xft.curate.config import DecontaminateConfig
from xft.curate.contamination import (
    References,
    Tried,
    benchmark_inputs,
    classify,
    coverage,
    load_references,
    python_of,
    reference_of,
    selected,
    shapes_of,
    units_of,
    verdict,
    words_of,
)
from xft.curate.functional import Functional, asserts_of, definitions
from xft.data.example import Example
from xft.errors import UnknownNameError
from xft.eval.benchmark import Problem
from xft.eval.sandbox import Sandbox

STUB = '''from typing import List


def widest_gap(heights: List[int]) -> int:
    """ The heights of neighbouring towers are given in metres. Return the widest gap between two towers that stand
    next to each other, or zero when there are fewer than two towers.
    >>> widest_gap([3, 9, 4])
    6
    """
'''
BODY = """    widest = 0
    for index in range(1, len(heights)):
        gap = abs(heights[index] - heights[index - 1])
        if gap > widest:
            widest = gap
    return widest
"""
TESTS = """\
def check(candidate):
    assert candidate([3, 9, 4]) == 6
    assert candidate([5]) == 0
    assert candidate([1, 1, 8]) == 7

check(widest_gap)
"""
TOWERS = Problem(task_id="Toy/0", stub=STUB, entry_point="widest_gap", canonical=BODY, tests=TESTS)
SQUARE_STUB = (
    '"""\nWrite a function that squares the odd values of a sequence.\nassert odd_squares([1, 2, 3]) == [1, 9]\n"""\n'
)
SQUARE = Problem(
    task_id="Toy/1",
    stub=SQUARE_STUB,
    entry_point="odd_squares",
    canonical="def odd_squares(values):\n    return [value * value for value in values if value % 2]\n",
    tests="assert odd_squares([1, 2, 3]) == [1, 9]\nassert odd_squares([]) == []",
)
CONFIG = DecontaminateConfig()
RENAMED = """\
def f(xs):
    best = 0
    for i in range(1, len(xs)):
        d = abs(xs[i] - xs[i - 1])
        if d > best:
            best = d
    return best
"""
NARROWEST = RENAMED.replace("best = 0", "best = 9").replace("d > best", "d < best")
REWRITTEN = "def biggest(a):\n    return max([abs(x - y) for x, y in zip(a, a[1:])], default=0)\n"
LOOP = """\
def odd_squares(values):
    out = []
    for v in values:
        if v % 2:
            out.append(v ** 2)
    return out
"""
PARAPHRASE = (
    "For towers standing next to each other you get their heights in metres. "
    "What is the widest gap of two neighbouring towers?"
)
HINT = "Find the widest difference of neighbouring values in a signal."
OTHER = "Smooth a signal and tell me its largest jump."
CLEAN = """\
def total(items):
    amount = 0.0
    for item in items:
        amount += item.price * item.count
    return round(amount, 2)
"""


@pytest.fixture(scope="module")
def references() -> References:
    return References([reference_of("humaneval", TOWERS), reference_of("mbpp", SQUARE)], {})


@pytest.fixture(scope="module")
def functional(references: References) -> Iterator[Functional]:
    with Sandbox(libraries=("numpy",)) as sandbox:
        yield Functional(references, sandbox)


def pair(instruction: str, code: str) -> Example:
    return Example(instruction=instruction, response=f"Sure:\n```python\n{code}```\n")


@pytest.mark.parametrize(
    ("record", "kind", "methods"),
    [
        (pair(f"Complete this:\n{STUB}", CLEAN), "leak", {"ngrams"}),
        (pair(PARAPHRASE, f"{STUB}{BODY}"), "leak", {"ngrams", "ngrams-solution", "ast", "functional"}),
        (pair(PARAPHRASE, RENAMED), "leak", {"ast", "functional"}),
        (pair(PARAPHRASE, REWRITTEN), "leak", {"functional"}),
        (pair(OTHER, RENAMED), "common", {"ast"}),
        (pair(OTHER, REWRITTEN), None, set()),  # three asserts alone prove little
        (pair(HINT, REWRITTEN), "common", {"functional"}),
        (pair(PARAPHRASE, NARROWEST), None, set()),  # the form of the solution, but another result
        (pair(PARAPHRASE, CLEAN), None, set()),
        (pair(OTHER, CLEAN), None, set()),
        (Example(instruction=OTHER, response="No code here."), None, set()),
    ],
)
def test_classes(
    references: References, functional: Functional, record: Example, kind: str | None, methods: set[str]
) -> None:
    findings = classify(record, references, CONFIG, functional.tried(record))
    assert verdict(findings) == kind
    assert {method for finding in findings for method in finding.methods} == methods
    assert {(finding.benchmark, finding.task) for finding in findings} <= {("humaneval", "Toy/0")}


def test_same_task_of_another_benchmark_is_found_too() -> None:
    both = References([reference_of("humaneval", TOWERS), reference_of("humaneval+", TOWERS)], {})
    findings = classify(pair(PARAPHRASE, REWRITTEN), both, CONFIG, Tried(passed=frozenset({0})))
    assert [(each.benchmark, each.kind, each.methods) for each in findings] == [
        ("humaneval", "leak", ("functional",)),
        ("humaneval+", "leak", ("functional",)),
    ]


def test_one_leak_is_enough(references: References) -> None:
    findings = classify(pair(OTHER, RENAMED), references, CONFIG)
    assert verdict(findings) == "common"
    more = classify(pair(f"{STUB}", RENAMED), references, CONFIG)
    assert verdict([*findings, *more]) == "leak"


def test_shipped_hashes_stand_in_for_missing_data() -> None:
    from xft.data.overlap import tengrams

    references = References([], {"humaneval": frozenset(tengrams(STUB))})
    assert [(each.kind, each.task) for each in classify(pair(STUB, CLEAN), references, CONFIG)] == [("leak", "")]
    assert classify(pair(PARAPHRASE, RENAMED), references, CONFIG) == []


def test_without_data_nothing_is_fetched_and_the_gap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_DATA", raising=False)
    references, faults = load_references(CONFIG)
    assert references.all == [] and set(references.shipped) == {"humaneval", "mbpp"}
    assert set(faults) == set(selected(CONFIG))
    told = coverage(CONFIG)
    assert told["mbpp"] == "shipped ten-word runs" and told["ds1000"].startswith("nothing")


def test_names() -> None:
    assert selected(DecontaminateConfig(benchmarks=("humaneval+",))) == ["humaneval", "humaneval+"]
    with pytest.raises(UnknownNameError, match="unknown benchmark 'humanevil'"):
        selected(DecontaminateConfig(benchmarks=("humanevil",)))


# --- the form of code -------------------------------------------------------------------------------------------------


def shapes(code: str) -> frozenset[tuple[str, ...]]:
    return units_of(ast.parse(code))[0].shapes


def test_names_docstrings_and_annotations_do_not_count() -> None:
    bare = "def f(a, b):\n    c = a + len(b)\n    return c\n"
    dressed = (
        '@wraps\ndef other(x: int, ys: list[int]) -> int:\n    """Say so."""\n    total: int\n'
        "    total = x + len(ys)\n    return total\n"
    )
    assert shapes(bare) == shapes(dressed.replace("    total: int\n", ""))
    assert shapes(bare) != shapes(bare.replace("len", "sum"))
    assert shapes(bare) != shapes(bare.replace("+", "-"))


def test_functions_and_loose_code_are_units() -> None:
    tree = ast.parse(
        "import os\nx = 1\ny = x + 1\ndef f():\n    return 1\nclass A:\n    def g(self):\n        return 2\n"
    )
    assert len(units_of(tree)) == 3
    assert len(units_of(tree, "g")) == 2
    assert shapes_of([]) == frozenset()


def test_words_tell_names_apart() -> None:
    assert words_of("Return the widest_gap of heights") == {"widest", "gap", "height"}


def test_python_of_joins_blocks_that_parse() -> None:
    assert (
        python_of(Example(instruction="", response="```python\nx = 1\n```\nand\n```python\ny = 2\n```"))
        == "x = 1\n\ny = 2\n"
    )
    assert python_of(Example(instruction="", response="```python\nx = (\n```\nand\n```python\ny = 2\n```")) == "y = 2\n"
    shell = "```python\nimport math\n```\n```python\npip install foo\n```\n```python\ndef f():\n    pass\n```"
    assert python_of(Example(instruction="", response=shell)) == "import math\n\ndef f():\n    pass\n"
    assert python_of(Example(instruction="", response="```java\nint x;\n```")) == ""


def test_benchmarks_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    monkeypatch.setenv("XFT_CACHE", str(tmp_path))
    monkeypatch.setattr("xft.fetch.subprocess", SimpleNamespace(run=lambda *_, **__: pytest.fail("pip was called")))
    how: list[bool] = []

    def snapshot(*_: Any, local_files_only: bool, **__: Any) -> str:
        how.append(local_files_only)
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert set(benchmark_inputs(CONFIG).values()) <= {"none", "fingerprints"}
    assert how and all(how)


# --- running answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        (REWRITTEN, [0]),
        ("import tensorflow_of_mars\n" + REWRITTEN, [0]),
        ("while True:\n    pass\n" + REWRITTEN, [0]),  # only definitions run
        ("def forever(x):\n    while True:\n        pass\n\n" + REWRITTEN, [0]),
        ("def leave(x):\n    raise SystemExit\n\n" + REWRITTEN, [0]),
        ("def widest_gap(heights, unit='m'):\n" + BODY, [0]),
        (LOOP, [1]),
        ("def almost(a):\n    return 6\n", []),  # right for the first call only
        ("def two(a, b):\n    return 6\n", []),
        ("class A:\n    pass\n", []),
        ("async " + REWRITTEN, [0]),
        ("async def wait(a):\n    return a\n\nasync " + REWRITTEN.replace("zip(a", "zip(await wait(a)"), [0]),
        ("class Solution:\n" + textwrap.indent(REWRITTEN.replace("(a)", "(self, a)"), "    "), [0]),
        ("class Needs:\n    def __init__(self, n): ...\n    def f(self, a):\n        return 6\n" + LOOP, [1]),
        ("class Fails:\n    def __init__(self):\n        raise ValueError\n    def f(self, a): ...\n" + LOOP, [1]),
        ("not python", []),
    ],
)
def test_answers_are_judged_by_the_benchmark(functional: Functional, code: str, passed: list[int]) -> None:
    assert sorted(functional.tried(pair(OTHER, code)).passed) == passed


WRONG = "def first(a):\n    return 1\n\n"


@pytest.mark.parametrize(
    "code",
    [
        WRONG + f"{STUB}{BODY}",
        f"{STUB}{BODY}\n"
        + "\n".join(f"def wrong_{number}(a):\n    return {number}\n" for number in range(8)),  # is not run
        WRONG
        + "class Towers:\n    def __init__(self, unit): ...\n"
        + textwrap.indent(RENAMED.replace("(xs)", "(self, xs)"), "    "),
        WRONG + "ZERO = int('0')\n\n" + RENAMED.replace("best = 0", "best = ZERO"),  # what runs code is left out
        WRONG + "from units_of_mars import metres\n\n" + RENAMED.replace("best = 0", "best = metres(0)"),
        WRONG + RENAMED.replace("best = 0", "best = 0 + open('heights').read()"),
    ],
)
def test_another_functions_failure_refutes_nothing(references: References, functional: Functional, code: str) -> None:
    record = pair(PARAPHRASE, code)
    (finding,) = classify(record, references, CONFIG, functional.tried(record))
    assert "ast" in finding.methods and finding.kind == "leak"


def test_only_when_all_that_fit_fail_the_solutions_text_is_no_match(
    references: References, functional: Functional
) -> None:
    spoilt = f"{STUB}{BODY}".replace("return widest", "return -widest")
    for code, methods in (
        (spoilt, {"ngrams"}),
        (spoilt + "\n" + REWRITTEN, {"ngrams", "ngrams-solution", "functional"}),
    ):
        record = pair(PARAPHRASE, code)
        (finding,) = classify(record, references, CONFIG, functional.tried(record))
        assert set(finding.methods) == methods


def test_answers_are_counted_anew_when_the_sandbox_begins_anew(functional: Functional) -> None:
    class Twice:
        def call(self, code: str, name: str, calls: list[Any], keep: Any, **_: Any) -> Any:
            for index in (0, 1):  # then it is lost
                keep(index, SimpleNamespace(value=None if index == 0 else (True, "lost")))
            for index in range(len(calls)):
                keep(index, SimpleNamespace(value=None if index == 0 else (True, index)))
            return SimpleNamespace(status="passed", at=len(calls))

    own = Functional(functional.references, Twice())  # type: ignore[arg-type]
    calls = list(own.by_arity[1][0].calls) * 3
    assert own._answers("", "f", calls, 1.0) == [(True, 1), (True, 2), (True, 3)]


def test_a_coroutine_that_can_not_run_as_a_function_proves_nothing(
    references: References, functional: Functional
) -> None:
    held = "import asyncio\n\nasync def f(xs):\n    async with asyncio.Lock():\n" + textwrap.indent(
        RENAMED.partition("\n")[2], "    "
    )
    record = pair(PARAPHRASE, held)
    assert functional.tried(record) == Tried()
    found = classify(record, references, CONFIG, functional.tried(record))
    assert found == classify(record, references, CONFIG)


def test_what_draws_at_random_is_judged_the_same_each_time(functional: Functional) -> None:
    code = "import random\n\ndef f(values):\n    return [1, 9] if values and random.random() < 0.5 else []\n"
    assert len({functional.tried(pair(OTHER, code)).passed for _ in range(12)}) == 1


def test_asserts() -> None:
    checks = asserts_of(reference_of("humaneval", TOWERS))
    assert [check.calls for check in checks] == [(([3, 9, 4],),), (([5],),), (([1, 1, 8],),)]
    assert asserts_of(reference_of("ds1000", SQUARE)) == ()
    odd = Problem(task_id="Toy/2", stub="", entry_point="f", tests="import random\nassert f(random.random())")
    assert asserts_of(reference_of("mbpp", odd)) == ()


def test_definitions_run_nothing() -> None:
    code = textwrap.dedent("""
        from __future__ import annotations
        import os
        LIMIT = 3
        started = begin()
        print(LIMIT)
        def f():
            return LIMIT
        if __name__ == "__main__":
            f()
    """)
    kept = definitions(ast.parse(code))
    assert kept.startswith("from __future__ import annotations")
    assert "LIMIT = 3" in kept and "def f" in kept and "except Exception" in kept
    assert "print" not in kept and "begin" not in kept and "__main__" not in kept
