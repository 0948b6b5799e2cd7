"""HumanEval, MBPP and their EvalPlus forms: what they promise beyond the laws of every benchmark."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from test_laws import FEW, failures, few, judge_all

from xft.errors import DataError, FetchError, SandboxError
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.benchmarks.humaneval import FILE, HumanEval, HumanEvalPlus
from xft.eval.benchmarks.mbpp import Mbpp, MbppPlus
from xft.eval.functions import split_tests
from xft.prompts import PROMPTS

SIZES = {"humaneval": 164, "humaneval+": 164, "mbpp": 499, "mbpp+": 378}
IN_PROCESS = ["HumanEval/32", "HumanEval/38", "HumanEval/50", "HumanEval/53"]
HASHES = {
    "humaneval": "53e6de8cb31dc96b8f53510f0ad0d6bbb34c02bf136f16bdcb6065a0964ec973",
    "humaneval+": "9940113765f726d6d11a096698662984e750c9b7a4e7a4070f102a9dc3ef61dd",
    "mbpp": "4f521051a45f475ce0c974454b09923335726a02b80c36cc402a43b371b20a72",
    "mbpp+": "2eab55984d654d6da20469a32abb95a892c9f4e059709ded465b994aaee53062",
}


@pytest.fixture(scope="module", params=sorted(SIZES))
def benchmark(request):
    found = BENCHMARKS[request.param]
    try:
        found.problems()
    except (DataError, FetchError) as error:
        if isinstance(error, DataError) and "XFT_DATA" in os.environ:
            raise
        pytest.skip(f"not run: {request.param}: {error}")
    return found


@pytest.fixture(scope="module")
def sandbox():
    try:
        with BENCHMARKS["humaneval"].sandbox() as sandbox:
            yield sandbox
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


def usable(benchmark):
    return [problem for problem in benchmark.problems() if problem.tool == "python"]


def returning(problem, value):
    return f"def {problem.entry_point}(*_):\n    return {value}\n"


def test_the_data_are_those_that_the_figures_are_about(benchmark):
    assert len(usable(benchmark)) == SIZES[benchmark.name]
    assert benchmark.data_hash() == HASHES[benchmark.name]


@pytest.mark.slow
def test_all_canonical_solutions_pass(benchmark, sandbox):
    assert failures(benchmark, sandbox, usable(benchmark)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["None", "0", "''", "[]", "object", "_"])
def test_a_constant_passes_nothing(benchmark, sandbox, value):
    verdicts = judge_all(benchmark, sandbox, [(problem, returning(problem, value)) for problem in usable(benchmark)])
    assert Counter(verdict.status for verdict in verdicts)["passed"] == 0


def test_a_constant_does_not_pass(benchmark, sandbox):
    verdicts = judge_all(
        benchmark, sandbox, [(problem, returning(problem, None)) for problem in few(usable(benchmark))]
    )
    assert {verdict.status for verdict in verdicts} <= {"wrong", "failed"}


def test_an_equal_to_everything_object_and_an_early_exit_do_not_pass(benchmark, sandbox):
    liar = "class Liar:\n    __eq__ = __le__ = __ge__ = lambda *_: True\n    __hash__ = None\n"
    for problem in few(usable(benchmark))[: FEW // 2]:
        for program in (
            liar + returning(problem, "Liar()"),
            f"{problem.stub}{problem.canonical}\nimport sys\nsys.exit(0)\n",
            f"import os\ndef {problem.entry_point}(*_):\n    os._exit(0)\n",
        ):
            assert benchmark.judge(problem, program, sandbox).status in ("wrong", "exited", "failed")


def test_extraction_keeps_canonical_solutions(benchmark, sandbox):
    """As a chat answer that leaves out the stub's imports and helpers: the hardest form."""
    jobs = []
    for problem in few(usable(benchmark)):
        whole = problem.stub + problem.canonical
        if f"def {problem.entry_point}(" in problem.stub:
            whole = whole[whole.index(f"def {problem.entry_point}(") :]
        jobs.append((problem, benchmark.extract(problem, f"Sure:\n```python\n{whole}\n```\nDone.", "chat")))
    assert {verdict.status for verdict in judge_all(benchmark, sandbox, jobs)} == {"passed"}


def test_extraction_finds_every_canonical_solution_after_its_prompt(benchmark):
    for problem in usable(benchmark):
        for style in ("completion", "magicoder", "chat"):
            code = benchmark.extract(problem, problem.canonical, style)
            assert f"def {problem.entry_point}" in code
            assert benchmark.extract(problem, "", style) == ""


def test_stops_do_not_cut_the_solutions_of_humaneval():
    benchmark = BENCHMARKS["humaneval"]
    for problem in problems_of(benchmark):
        for style in ("completion", "chat"):
            assert not any(stop in problem.canonical for stop in benchmark.request(problem, style).stop)


def problems_of(benchmark):
    try:
        return benchmark.problems()
    except (DataError, FetchError) as error:
        pytest.skip(f"not run: {benchmark.name}: {error}")


def test_humaneval_is_judged_outside_the_candidate_but_for_four_problems(sandbox):
    benchmark = BENCHMARKS["humaneval"]
    problems = problems_of(benchmark)
    assert [
        problem.task_id for problem in problems if not split_tests(problem.tests, problem.entry_point)
    ] == IN_PROCESS
    inside = next(problem for problem in problems if problem.task_id == IN_PROCESS[0])
    verdict = benchmark.judge(inside, inside.stub + inside.canonical, sandbox)
    assert (verdict.status, verdict.in_process) == ("passed", True)
    outside = problems[0]
    assert not benchmark.judge(outside, outside.stub + outside.canonical, sandbox).in_process


def test_all_of_mbpp_is_judged_outside_the_candidate():
    for problem in problems_of(BENCHMARKS["mbpp"]):
        assert split_tests(problem.tests, problem.entry_point) or problem.tool != "python"


def test_humaneval_is_asked_as_documented():
    benchmark = BENCHMARKS["humaneval"]
    problem = problems_of(benchmark)[0]
    stub = problem.stub.strip("\n")
    assert benchmark.request(problem, "completion").prefix == problem.stub
    xft = benchmark.request(problem, "magicoder")
    assert xft.instruction == f"Write a solution to the following problem:\n```python\n{stub}\n```"
    assert xft.prefix == f"```python\n{stub}\n"
    chat = benchmark.request(problem, "chat")
    assert stub in chat.instruction
    assert chat.prefix == "```python\n"
    for style in PROMPTS:
        assert problem.tests not in benchmark.request(problem, style).instruction


def test_mbpp_is_asked_as_documented():
    for name in ("mbpp", "mbpp+"):
        benchmark = BENCHMARKS[name]
        problem = next(problem for problem in problems_of(benchmark) if problem.task_id == "Mbpp/12")
        request = benchmark.request(problem, "magicoder")
        start, _, fence = request.instruction.partition(" Your code should satisfy the following assertion:\n")
        assert start.startswith("Write a function to sort a given matrix")
        assert fence.startswith("```python\nassert sort_matrix(")
        assert request.prefix == "```python\n"
        assert benchmark.request(problem, "completion").prefix.endswith('\n"""\n')


def test_humaneval_reads_the_folder_that_xft_data_names(tmp_path, monkeypatch):
    row = {"task_id": "t/1", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    pass\n", "test": ""}
    with gzip.open(tmp_path / FILE, "wt") as file:
        file.write(json.dumps(row) + "\n")
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    assert [problem.task_id for problem in HumanEval().problems()] == ["t/1"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no gzip", "not a readable gzip file"),
        (gzip.compress(b'{"task_id": "t/1"}\n')[:12], "not a readable gzip file"),
        (gzip.compress(b'{"task_id": "t/1"}\n'), "line 1 is not a problem of humaneval"),
        (gzip.compress(b"[]\n"), "not an object"),
        (gzip.compress(b"{\n"), "not JSON"),
        (gzip.compress(b""), "no problem in this file"),
    ],
    ids=["no gzip", "cut", "no problem", "no mapping", "no JSON", "empty"],
)
def test_humaneval_names_a_file_that_is_damaged(tmp_path, monkeypatch, data, message):
    (tmp_path / FILE).write_bytes(data)
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=message):
        HumanEval().problems()


@pytest.mark.parametrize("kind", [HumanEvalPlus, Mbpp, MbppPlus])
def test_missing_data_name_both_ways_to_get_them(tmp_path, monkeypatch, kind):
    from xft.eval import data

    def no_hub(name, **_):
        raise FetchError(f"{name}: no network")

    monkeypatch.setattr(data, "fetch_snapshot", no_hub)
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"has no .*jsonl.*; set --data-dir or XFT_DATA .*, or make the hub's .* \(no network\)"
    ):
        kind().problems()


@pytest.mark.parametrize("kind", [HumanEvalPlus, MbppPlus])
def test_a_hub_copy_without_the_inputs_apart_is_refused(tmp_path, monkeypatch, kind):
    """The hub's Parquet files hold inputs and expected outputs in one program; the release's JSON lines do not."""
    from xft.eval import data

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"")
    monkeypatch.setattr(data, "fetch_snapshot", lambda name, **_: tmp_path)
    monkeypatch.delenv("XFT_DATA", raising=False)
    with pytest.raises(DataError, match=r"github\.com/evalplus/"):
        kind().problems()


def test_mbpp_is_the_same_from_the_hubs_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="not run: pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="not run: pyarrow")
    from xft.eval import data

    source = Path(os.environ.get("XFT_DATA", ""), "mbpp.jsonl")
    if not source.is_file():
        pytest.skip("not run: XFT_DATA has no mbpp.jsonl")
    wanted = Mbpp().problems(), Mbpp().data_hash()
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    (tmp_path / "full").mkdir()
    table = pyarrow.Table.from_pylist([row for row in rows if 11 <= row["task_id"] <= 510])
    parquet.write_table(table, tmp_path / "full" / "test-00000-of-00001.parquet")
    monkeypatch.setattr(data, "fetch_snapshot", lambda name, **_: tmp_path)
    monkeypatch.delenv("XFT_DATA")
    assert (Mbpp().problems(), Mbpp().data_hash()) == wanted
