"""`pairs:FILE`: a user's own problems. The laws of all benchmarks are checked in test_laws.py, on the same file."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from xft.errors import DataError, UnknownNameError
from xft.eval.benchmarks import BENCHMARKS, pairs
from xft.recipe import EvalConfig, folder_of

OWN = Path(__file__).parent.parent / "fixtures" / "own_problems.jsonl"
GOOD = {
    "instruction": "Add one.",
    "response": "def inc(n):\n    return n + 1\n",
    "tests": ["assert inc(1) == 2", "assert inc(-1) == 0"],
}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return BENCHMARKS[f"pairs:{path}"]


@pytest.fixture(scope="module")
def own():
    return BENCHMARKS[f"pairs:{OWN}"]


@pytest.fixture(scope="module")
def sandbox(own):
    with own.sandbox() as sandbox:
        yield sandbox


def test_the_instruction_stands_as_it_is_and_nothing_is_put_before_the_answer(own):
    problem = own.problems()[1]
    request = own.request(problem, "chat")
    assert (request.instruction, request.prefix) == ("Write `half`,\nwhich rounds down.", "")
    assert own.request(problem, "completion").prefix == "# Write `half`,\n# which rounds down.\n"


def test_tests_are_read_from_the_record_or_its_meta(own):
    assert [problem.tests.count("assert") for problem in own.problems()] == [3, 2, 2]
    assert [problem.entry_point for problem in own.problems()] == ["double", "half", "Stack"]


@pytest.mark.parametrize(
    "answer",
    [
        "def double(numbers):\n    return [n + n for n in numbers]",
        "Sure!\n```python\ndef double(numbers):\n    return [n + n for n in numbers]\n```\nDone.",
        "```\nimport math\n```\nThen\n```py\ndef double(numbers):\n    return [n + n for n in numbers]\n",
        "def double(numbers):\n    return [n + n for n in numbers]\n\nThis doubles (each one",
        "def double(numbers):\n    return [n + n for n in numbers]\n\nassert double([1]) == 3\nprint(double(input()))",
        "def double(numbers):\n    return []\n</think>\ndouble = lambda numbers: [n + n for n in numbers]\n",
        "```\ndef double(numbers):\n    pass\n```\n```\ndef double(numbers):\n    return [n + n for n in numbers]\n```",
    ],
)
def test_an_answer_is_found_with_and_without_fences(own, sandbox, answer):
    problem = own.problems()[0]
    assert own.judge(problem, own.extract(problem, answer, "chat"), sandbox).status == "passed"


def test_a_class_is_found_and_tested_beside_the_candidate(own, sandbox):
    problem = own.problems()[2]
    code = own.extract(problem, f"So:\n```python\n{problem.canonical}```", "chat")
    assert own.extract(problem, f"Here it is:\n\n{problem.canonical}\nprint(Stack(", "chat") == problem.canonical
    verdict = own.judge(problem, code, sandbox)
    assert (verdict.status, verdict.in_process) == ("passed", True)
    assert own.judge(problem, code.replace("pop()", "pop(0)"), sandbox).status == "failed"


def test_a_script_stays_where_the_reference_has_one(tmp_path):
    script = "log = []\n\n\ndef note(n):\n    log.append(n)\n\n\nnote(1)\n"
    record = {"instruction": "Note 1.", "response": script, "tests": "note(2)\nassert log == [1, 2]"}
    first, second = write(tmp_path / "mine.jsonl", record, GOOD).problems()
    benchmark = BENCHMARKS[f"pairs:{tmp_path / 'mine.jsonl'}"]
    assert benchmark.extract(first, f"So:\n```\n{script}```", "chat").strip() == script.strip()
    assert benchmark.extract(second, f"{GOOD['response']}inc(1)\n", "chat") == GOOD["response"]
    read = {**GOOD, "tests": "step = 2\nassert inc(1) == step and one == 1"}
    (third,) = write(tmp_path / "read.jsonl", read).problems()
    before = "step = 1\nprint(step)\n\n\ndef inc(n):\n    return n + step\n\n\none = 1\n"
    assert benchmark.extract(third, f"{before}two = 2\n", "chat") == before


def test_a_fence_in_the_docstring_of_a_reference_is_no_fence(tmp_path):
    response = 'def inc(n):\n    """Add.\n\n    ```\n    inc(1)\n    ```\n    """\n    return n + 1\n'
    (problem,) = write(tmp_path / "mine.jsonl", {**GOOD, "response": response}).problems()
    assert problem.canonical == response


def test_what_tests_import_stands_beside_them(tmp_path, sandbox):
    record = {**GOOD, "meta": {"tests": ["assert inc(floor(1.5)) == 2"], "setup": "from math import floor"}}
    benchmark = write(tmp_path / "imports.jsonl", {key: value for key, value in record.items() if key != "tests"})
    (problem,) = benchmark.problems()
    assert benchmark.judge(problem, problem.canonical, sandbox).status == "passed"
    assert benchmark.judge(problem, "def inc(n):\n    return n\n", sandbox).status != "passed"


def test_a_candidate_can_forge_nothing_where_the_asserts_are_split(own, sandbox):
    problem = own.problems()[0]
    liar = "class Liar(list):\n    __eq__ = lambda *_: True\ndef double(_):\n    return Liar()\n"
    for code in (liar, "import os\ndef double(_):\n    os._exit(0)\n", "raise SystemExit"):
        verdict = own.judge(problem, code, sandbox)
        assert verdict.status != "passed"
        assert not verdict.in_process


def test_a_reference_that_fails_its_tests_is_named(tmp_path, sandbox):
    wrong = {**GOOD, "tests": ["assert inc(1) == 3"]}
    benchmark = write(tmp_path / "mine.jsonl", GOOD, wrong)
    with pytest.raises(DataError, match=r"mine\.jsonl: 1 of 2 responses .* record 2 \(wrong: .*inc\(1\) == 3"):
        benchmark.tools(sandbox)
    benchmark = write(tmp_path / "mine.jsonl", GOOD, GOOD)
    assert [tool.fault for tool in benchmark.tools(sandbox)] == [""]


@pytest.mark.parametrize(
    ("response", "tests"),
    [
        ("def ups(n):\n    yield from range(n)\n", "assert list(ups(2)) == [0, 1]"),
        ("def ups(n):\n    return lambda: n\n", "assert ups(2)() == 2"),
        ("def ups(n):\n    return list(n)\n", "assert ups(range(2)) == [0, 1]"),
    ],
)
def test_values_that_cannot_leave_the_process_are_judged_in_it(tmp_path, sandbox, response, tests):
    benchmark = write(tmp_path / "mine.jsonl", {"instruction": "Count.", "response": response, "tests": tests}, GOOD)
    benchmark.tools(sandbox)
    first, second = (benchmark.judge(each, each.canonical, sandbox) for each in benchmark.problems())
    assert [(each.status, each.in_process) for each in (first, second)] == [("passed", True), ("passed", False)]
    assert benchmark.judge(benchmark.problems()[0], "def ups(n):\n    return []\n", sandbox).status != "passed"
    (tmp_path / "copy.jsonl").write_text((tmp_path / "mine.jsonl").read_text())
    copy = BENCHMARKS[f"pairs:{tmp_path / 'copy.jsonl'}"]
    copy.tools(sandbox)
    again = copy.problems()[0]
    assert copy.judge(again, again.canonical, sandbox).status == "passed"


@pytest.mark.parametrize(
    "tests",
    ["def test_inc():\n    assert inc(1) == 2\n", "inc\nassert True", "for case in []:\n    assert inc(case) == 2\n"],
)
def test_tests_that_any_program_passes_are_named(tmp_path, sandbox, tests):
    benchmark = write(tmp_path / "mine.jsonl", GOOD, {**GOOD, "tests": tests})
    with pytest.raises(DataError, match=r"record 2 \(its tests pass whatever the response does\)"):
        benchmark.tools(sandbox)


def test_the_pairs_of_the_package_are_problems_too(sandbox, tmp_path):
    shipped = tmp_path / "shipped.jsonl"
    shipped.write_bytes(b"".join((files("xft.data") / "python.jsonl").read_bytes().splitlines(keepends=True)[2::6]))
    benchmark = BENCHMARKS[f"pairs:{shipped}"]
    assert [tool.fault for tool in benchmark.tools(sandbox)] == [""]


def test_a_response_may_begin_with_what_must_stand_first(tmp_path, sandbox):
    future = GOOD | {"response": f"from __future__ import annotations\n\n\n{GOOD['response']}"}
    (tool,) = write(tmp_path / "future.jsonl", future).tools(sandbox)
    assert tool.fault == ""


def test_tests_that_ask_for_no_more_than_truth_are_judged_wherever_they_stand(tmp_path, sandbox):
    even = {"instruction": "Even?", "response": "def even(n):\n    return n % 2 == 0\n", "tests": ["assert even(2)"]}
    (tool,) = write(tmp_path / "even.jsonl", even).tools(sandbox)
    assert tool.fault == ""


def test_references_are_run_once_a_process(tmp_path, sandbox, monkeypatch):
    benchmark = write(tmp_path / "once.jsonl", {**GOOD, "instruction": "Once."})
    benchmark.tools(sandbox)
    monkeypatch.setattr(pairs.Pairs, "_prove", None)
    benchmark.tools(sandbox)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**GOOD, "tests": None}, "no tests"),
        ({**GOOD, "tests": [1]}, "no tests"),
        ({**GOOD, "tests": ""}, "no tests"),
        ({**GOOD, "tests": ["assert inc("]}, "not Python"),
        ({**GOOD, "tests": ["assert 1 == 1"]}, "defines nothing that its tests use"),
        ({**GOOD, "response": "I can't."}, "defines nothing that its tests use"),
        ({"prompt": "x"}, "no known layout"),
    ],
)
def test_a_record_that_is_no_problem_is_named_with_its_line(tmp_path, record, reason):
    benchmark = write(tmp_path / "mine.jsonl", GOOD, record)
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: .*{reason}.*correct it or leave it out"):
        benchmark.problems()


def test_a_missing_file_an_empty_one_and_none_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file of pairs"):
        BENCHMARKS[f"pairs:{tmp_path / 'absent.jsonl'}"].problems()
    with pytest.raises(DataError, match="no record in it"):
        write(tmp_path / "empty.jsonl").problems()
    with pytest.raises(UnknownNameError, match="pairs:FILE"):
        BENCHMARKS["pairs:"]


def test_the_hash_is_of_the_records_and_follows_the_file(tmp_path):
    first = write(tmp_path / "a.jsonl", GOOD).data_hash()
    (tmp_path / "b.json").write_text(json.dumps([GOOD]))
    assert BENCHMARKS[f"pairs:{tmp_path / 'b.json'}"].data_hash() == first
    assert write(tmp_path / "a.jsonl", GOOD, GOOD).data_hash() != first


def test_names_of_folders_are_safe_and_do_not_clash():
    assert folder_of("humaneval+") == "humaneval+"
    assert folder_of("pairs:runs/../my set (1).test.jsonl.gz") == "pairs-my-set-1"
    assert folder_of("pairs:a/..") == "pairs-file"
    with pytest.raises(ValueError, match="share a folder's name"):
        EvalConfig(benchmarks=["pairs:a/x.jsonl", "pairs:b/x.jsonl"])


def test_problems_are_in_no_list_of_all_benchmarks():
    assert not any(name.startswith("pairs:") for name in BENCHMARKS)
