"""The stage `eval`: score one model on benchmarks and on held-out responses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.errors import DataError, FetchError, RecipeError
from xft.eval.benchmark import Benchmark, Problem, Tool
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.generate import Answer, Ask, Backend, Sampling, generate, open_backend
from xft.eval.score import score
from xft.progress import track
from xft.recipe import BenchmarkConfig, EvalConfig
from xft.stage import Meter, write_json

NOT_RUN = "not-run.json"
HELDOUT_TOKENS = 1024
"""Of a held-out pair, prompt included, that are read at least."""


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
    heldout_tokens: int = HELDOUT_TOKENS
    """Where held-out pairs are cut."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A benchmark that can run here."""

    benchmark: Benchmark
    problems: Sequence[Problem]
    every: int
    tools: Sequence[Tool]


def evaluate(job: EvalJob, meter: Meter) -> None:
    """Write BENCH/{samples,verdicts}.jsonl, BENCH/scores.json and heldout/ into the job's folder.

    A benchmark that the recipe calls optional and that can't run here leaves BENCH/not-run.json with the reason.

    Raises:
        DataError, FetchError: a benchmark's data can't be had, or none of its toolchains works.
        SandboxError: nothing here can confine a candidate.
    """
    runs = [run for entry in job.config.benchmarks for run in _runnable(entry, job)]
    config = job.config
    sampling = Sampling(
        n=config.n, temperature=config.temperature, top_p=config.top_p, seed=config.seed,
        max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    settings = _answer(job, runs, sampling, meter)
    for run in runs:
        _score(job, run, settings)


def require_scoring(benchmarks: Iterable[BenchmarkConfig]) -> None:
    """Try all that scoring needs beside a model, so that what is missing shows before hours of training.

    What is optional is left out.

    Raises:
        DataError, FetchError: the data of a benchmark can't be had, or none of its toolchains works.
        SandboxError: nothing here can confine a candidate.
    """
    for entry in benchmarks:
        if not entry.optional:
            _open(entry, allow_unsafe=False)


def _open(entry: BenchmarkConfig, *, allow_unsafe: bool) -> _Run:
    """Return a benchmark with the problems to answer and the tools to judge them."""
    benchmark = BENCHMARKS[entry.name]
    problems = benchmark.problems()[:: entry.every]
    with benchmark.sandbox(allow_unsafe=allow_unsafe) as sandbox:
        tools = benchmark.tools(sandbox)
    if all(tool.fault for tool in tools):
        raise DataError(f"{benchmark.name} can't be scored here: {'; '.join(tool.fault for tool in tools)}")
    return _Run(benchmark=benchmark, problems=problems, every=entry.every, tools=tools)


def _runnable(entry: BenchmarkConfig, job: EvalJob) -> list[_Run]:
    """Return a benchmark that can run; nothing, with a note why, when it is optional and can't."""
    try:
        return [_open(entry, allow_unsafe=job.allow_unsafe)]
    except (DataError, FetchError) as error:
        if not entry.optional:
            raise
        folder = job.out / BENCHMARKS[entry.name].name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NOT_RUN, {"reason": str(error)})
        return []


def _answer(job: EvalJob, runs: Sequence[_Run], sampling: Sampling, meter: Meter) -> dict[str, Any]:
    """Let the model answer; return what the scores must say of how it did."""
    backend = open_backend(
        job.backend, job.model, style=job.style, url=job.url, batch=job.config.batch, precision=job.config.precision
    )
    try:
        settings = backend.settings()
        meter.device, meter.dtype = settings.get("device"), settings.get("dtype")
        if job.heldout and backend.style != "completion":
            _heldout(job, job.heldout, backend)
        known: dict[Ask, Answer] = {}
        for run in runs:
            folder = job.out / run.benchmark.name
            folder.mkdir(parents=True, exist_ok=True)
            generate(
                backend, run.benchmark, run.problems, folder, sampling=sampling, known=known,
                label=f"{job.label}: {run.benchmark.name} answers",
            )  # fmt: skip
        return {
            "prompt": backend.style,
            "decoding": "greedy" if sampling.temperature == 0 else "sampled",
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "max_new_tokens": sampling.max_new_tokens,
            "model": job.model,
            "model_digest": job.model_digest,
            **settings,
        }
    finally:
        backend.close()


def _heldout(job: EvalJob, pairs: Path, backend: Backend) -> None:
    """Measure the loss on held-out responses, which needs the model itself."""
    if job.backend != "transformers":
        raise RecipeError(f"heldout: the back end {job.backend} gives no losses; leave it out, or use transformers")
    from xft.eval.generate.local import LocalBackend
    from xft.eval.heldout import heldout_losses

    assert isinstance(backend, LocalBackend)
    folder = job.out / "heldout"
    folder.mkdir(parents=True, exist_ok=True)
    heldout_losses(
        backend.model, backend.tokenizer, pairs, folder, style=backend.style, label=f"{job.label}: held-out loss",
        max_length=job.heldout_tokens,
    )  # fmt: skip


def _score(job: EvalJob, run: _Run, settings: dict[str, Any]) -> None:
    """Judge a benchmark's answers."""
    folder = job.out / run.benchmark.name
    stops = {stop for problem in run.problems for stop in run.benchmark.request(problem, settings["prompt"]).stop}
    answers = len(run.problems) * job.config.n
    with (
        run.benchmark.sandbox(allow_unsafe=job.allow_unsafe) as sandbox,
        track(f"{job.label}: {run.benchmark.name} verdicts", answers) as advance,
    ):
        score(
            run.benchmark, folder / "samples.jsonl", folder, sandbox=sandbox, tools=run.tools, every=run.every,
            workers=len(os.sched_getaffinity(0)), meta={**settings, "stop": sorted(stops)}, progress=advance,
        )  # fmt: skip
