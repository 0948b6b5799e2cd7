"""The laws of every benchmark in BENCHMARKS, and of a user's own file: on a few problems of each; `slow`: on all."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xft.errors import DataError, FetchError, SandboxError, UnknownNameError
from xft.eval.benchmarks import BENCHMARKS
from xft.prompts import PROMPTS

FEW = 6
OWN = f"pairs:{Path(__file__).parent.parent / 'fixtures' / 'own_problems.jsonl'}"


@pytest.fixture(scope="module", params=[*sorted(BENCHMARKS), OWN])
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
def sandbox(benchmark):
    try:
        with benchmark.sandbox() as sandbox:
            yield sandbox
    except (SandboxError, DataError) as error:
        pytest.skip(f"not run: {benchmark.name}: {error}")


@pytest.fixture(scope="module")
def usable(benchmark, sandbox):
    """Problems that can be scored here."""
    tools = benchmark.tools(sandbox)
    faults = {tool.name: tool.fault for tool in tools if tool.fault}
    problems = [problem for problem in benchmark.problems() if problem.tool not in faults]
    if not problems:
        pytest.skip(f"not run: {benchmark.name}: {'; '.join(faults.values())}")
    return problems


def few(problems):
    return problems[:: max(1, len(problems) // FEW)][:FEW]


def judge_all(benchmark, sandbox, jobs):
    """Judge programs of problems; what was short of time again, alone, as the scoring does."""
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda job: benchmark.judge(*job, sandbox), jobs))
    return [
        benchmark.judge(*job, sandbox) if verdict.strained else verdict
        for job, verdict in zip(jobs, verdicts, strict=True)
    ]


def failures(benchmark, sandbox, problems):
    """Return the problems whose canonical solutions do not pass."""
    jobs = [(problem, benchmark.assemble(problem, problem.canonical)) for problem in problems if problem.canonical]
    if not jobs:
        pytest.skip(f"not run: {benchmark.name} has no canonical solutions")
    verdicts = judge_all(benchmark, sandbox, jobs)
    return {job[0].task_id: verdict for job, verdict in zip(jobs, verdicts, strict=True) if verdict.status != "passed"}


def test_ids_are_unique_and_the_data_do_not_change(benchmark):
    ids = [problem.task_id for problem in benchmark.problems()]
    assert ids
    assert len(set(ids)) == len(ids)
    assert [problem.stub for problem in benchmark.problems()] == [problem.stub for problem in benchmark.problems()]
    assert benchmark.data_hash() == benchmark.data_hash()


def test_limits_are_named_with_their_units(benchmark):
    assert benchmark.limits["memory_mb"] > 0
    assert any("seconds" in name and limit > 0 for name, limit in benchmark.limits.items())


def test_canonical_solutions_pass(benchmark, sandbox, usable):
    assert failures(benchmark, sandbox, few(usable)) == {}


def test_no_program_passes_for_being_empty(benchmark, sandbox, usable):
    verdicts = judge_all(benchmark, sandbox, [(problem, "") for problem in few(usable)])
    assert [verdict.status for verdict in verdicts if verdict.status == "passed"] == []


def test_every_problem_can_be_asked_in_every_style(benchmark):
    for problem in few(benchmark.problems()):
        for style in ("completion", *PROMPTS):
            request = benchmark.request(problem, style)
            assert request.stop
            assert (request.instruction is None) == (style == "completion")
            if problem.canonical.strip():
                assert problem.canonical.strip() not in (request.instruction or "") + request.prefix
        with pytest.raises(UnknownNameError, match="prompt style 'poem'"):
            benchmark.request(problem, "poem")
