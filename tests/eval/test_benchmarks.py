"""The laws of every benchmark in BENCHMARKS."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from xft.errors import DataError, FetchError, SandboxError, UnknownNameError
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.benchmarks.humaneval import FILE, HumanEval
from xft.eval.sandbox import Sandbox
from xft.eval.score import check_references


@pytest.fixture(scope="module", params=sorted(BENCHMARKS))
def benchmark(request):
    found = BENCHMARKS[request.param]
    try:
        found.problems()
    except FetchError as error:
        pytest.skip(f"not run: {type(found).__name__}: {error}")
    return found


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Sandbox()
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


def statuses(benchmark, sandbox, codes):
    def run(problem, code):
        return sandbox.run(benchmark.program(problem, code), timeout_s=20, memory_mb=1024).status

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, benchmark.problems(), codes))


def test_ids_are_unique_and_the_data_do_not_change(benchmark):
    ids = [problem.task_id for problem in benchmark.problems()]
    assert ids
    assert len(set(ids)) == len(ids)
    assert benchmark.problems() == benchmark.problems()
    assert benchmark.data_hash() == benchmark.data_hash()


def test_all_canonical_solutions_pass(benchmark, sandbox):
    assert check_references(benchmark, benchmark.problems(), sandbox) == []


def test_a_body_that_does_nothing_fails(benchmark, sandbox):
    passed = statuses(benchmark, sandbox, [f"{problem.stub}    pass\n" for problem in benchmark.problems()])
    assert set(passed) == {"failed"}


def test_no_code_fails(benchmark, sandbox):
    some = benchmark.problems()[::16]
    programs = [benchmark.program(problem, "") for problem in some]
    assert {sandbox.run(program, timeout_s=20, memory_mb=1024).status for program in programs} == {"failed"}


def test_extraction_keeps_every_canonical_solution(benchmark, sandbox):
    """As a chat answer that leaves out the stub's imports and helpers: the hardest form."""
    codes = []
    for problem in benchmark.problems():
        whole = problem.stub[problem.stub.index(f"def {problem.entry_point}(") :] + problem.canonical
        codes.append(benchmark.extract(problem, f"Sure:\n```python\n{whole}```\nDone.", "chat"))
    assert set(statuses(benchmark, sandbox, codes)) == {"passed"}


def test_extraction_joins_a_completion_to_its_stub(benchmark):
    for problem in benchmark.problems():
        code = benchmark.extract(problem, problem.canonical, "completion")
        assert code.rstrip() == (problem.stub + problem.canonical).rstrip()
        assert benchmark.extract(problem, "", "completion") == ""


def test_a_request_never_shows_the_tests_or_the_solution(benchmark):
    for problem in benchmark.problems():
        for style in ("completion", "chat", "magicoder"):
            request = benchmark.request(problem, style)
            shown = (request.instruction or "") + request.prefix
            assert problem.stub.strip("\n") in shown
            assert problem.canonical not in shown
            assert problem.tests not in shown
            assert (request.instruction is None) == (style == "completion")
        with pytest.raises(UnknownNameError, match="prompt style 'poem'"):
            benchmark.request(problem, "poem")


def test_humaneval_stops_do_not_cut_its_solutions():
    benchmark = HumanEval()
    try:
        problems = benchmark.problems()
    except FetchError as error:
        pytest.skip(f"not run: HumanEval: {error}")
    assert len(problems) == 164
    assert benchmark.data_hash() == "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2"
    for problem in problems:
        for style in ("completion", "chat"):
            assert not any(stop in problem.canonical for stop in benchmark.request(problem, style).stop)


def test_humaneval_reads_the_folder_that_xft_data_names(tmp_path, monkeypatch):
    row = {"task_id": "t/1", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    pass\n", "test": ""}
    with gzip.open(tmp_path / FILE, "wt") as file:
        file.write(json.dumps(row) + "\n")
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    assert [problem.task_id for problem in HumanEval().problems()] == ["t/1"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no gzip", "not a whole gzip file"),
        (gzip.compress(b'{"task_id": "t/1"}\n')[:12], "not a whole gzip file"),
        (gzip.compress(b'{"task_id": "t/1"}\n'), "line 1 is not a HumanEval problem"),
        (gzip.compress(b"[]\n"), "line 1 is not a HumanEval problem"),
    ],
    ids=["no gzip", "cut", "no problem", "no mapping"],
)
def test_humaneval_names_a_file_that_is_damaged(tmp_path, monkeypatch, data, message):
    (tmp_path / FILE).write_bytes(data)
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=message):
        HumanEval().problems()
