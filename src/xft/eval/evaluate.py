"""The stage `eval`: score one model on benchmarks and on held-out responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.errors import DataError, FetchError, RecipeError
from xft.eval.benchmark import Benchmark, Problem
from xft.eval.benchmarks import BENCHMARKS
from xft.memory import keep_heap_warm
from xft.progress import track
from xft.recipe import BenchmarkConfig, EvalConfig
from xft.stage import Meter, write_json

NOT_RUN = "not-run.json"


@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """All that scoring a model needs."""

    model: str
    """A folder, or the name by which a server knows the model."""
    model_digest: str
    out: Path
    style: str
    """A prompt style, `completion` for plain continuation, or `auto`."""
    config: EvalConfig
    heldout: Path | None
    """Prepared pairs for the held-out loss."""
    label: str
    backend: str = "transformers"
    url: str | None = None
    allow_unsafe: bool = False


def evaluate(job: EvalJob, meter: Meter) -> None:
    """Write BENCH/{samples,verdicts}.jsonl, BENCH/scores.json and heldout/ into the job's folder.

    A benchmark that the recipe calls optional and that can't run here leaves BENCH/not-run.json with the reason.

    Raises:
        DataError, FetchError: a benchmark's data can't be had, or none of its toolchains works.
        SandboxError: nothing here can confine a candidate.
    """
    runnable = [(benchmark, problems) for entry in job.config.benchmarks for benchmark, problems in _ready(entry, job)]
    style, settings = _generate(job, runnable, meter)
    for benchmark, problems in runnable:
        _score(job, benchmark, len(problems), {"prompt": style, **settings})


def _ready(entry: BenchmarkConfig, job: EvalJob) -> list[tuple[Benchmark, Sequence[Problem]]]:
    """Return a benchmark with the problems to answer; nothing when it is optional and can't run."""
    benchmark = BENCHMARKS[entry.name]
    try:
        problems = benchmark.problems()[:: entry.every]
        with benchmark.sandbox(allow_unsafe=job.allow_unsafe) as sandbox:
            tools = benchmark.tools(sandbox)
        if tools and all(tool.fault for tool in tools):
            raise DataError(f"{benchmark.name} can't be scored here: {'; '.join(tool.fault for tool in tools)}")
    except (DataError, FetchError) as error:
        if not entry.optional:
            raise
        (job.out / entry.name).mkdir(parents=True, exist_ok=True)
        write_json(job.out / entry.name / NOT_RUN, {"reason": str(error)})
        return []
    return [(benchmark, problems)]
