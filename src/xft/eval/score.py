"""The scoring stage: samples through the sandbox to verdicts.jsonl, then scores.json.

A verdict is appended as soon as it is known, so a killed run goes on where it was; it is used again only for the same
program under the same limits and sandbox level. The final file has the order of the samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from xft.errors import DataError
from xft.eval.benchmark import Benchmark, Problem, Sample
from xft.eval.metrics import mean_interval, wilson_interval
from xft.eval.sandbox import Outcome

TIMEOUT_S = 10.0
MEMORY_MB = 2048
NEAR_LIMIT = 0.8

Verdict = dict[str, Any]
Key = tuple[str, int]


class Runs(Protocol):
    """What scoring needs of a sandbox."""

    level: Any

    def run(self, program: str, *, timeout_s: float, memory_mb: int) -> Outcome:
        """Run one program; raises SandboxError where the sandbox itself fails."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One sample to judge."""

    key: Key
    program: str
    """"" where the sample has no code."""
    fingerprint: str
    finish: str


def score(
    benchmark: Benchmark,
    samples_path: Path,
    out: Path,
    *,
    sandbox: Runs,
    workers: int = 2,
    timeout_s: float = TIMEOUT_S,
    memory_mb: int = MEMORY_MB,
    meta: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Judge all samples and write `verdicts.jsonl` and `scores.json` into the folder `out`; return the scores.

    A candidate that did not pass and took 80% of the time limit or more is run again, alone, before it counts.
    `meta` goes into the scores as it is; `progress` gets the verdicts so far and their total.

    Raises:
        DataError: the samples are malformed, of unknown problems, or not equally many for each problem.
        SandboxError: the sandbox failed; the verdicts so far are kept.
    """
    began = time.monotonic()
    problems = {problem.task_id: problem for problem in benchmark.problems()}
    limits = {"timeout_s": timeout_s, "memory_mb": memory_mb}
    conditions = json.dumps([limits, str(sandbox.level)])
    jobs = list(_jobs(benchmark, problems, samples_path, conditions))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "verdicts.jsonl"
    verdicts = _kept(path, jobs)
    _replace(path, "".join(_line(verdict) for verdict in verdicts.values()))
    with path.open("a", encoding="utf-8") as file:
        open_jobs = [job for job in jobs if job.key not in verdicts]
        for job, outcome in _outcomes(open_jobs, sandbox, workers, timeout_s, memory_mb):
            verdicts[job.key] = verdict = _verdict(job, outcome)
            file.write(_line(verdict))
            file.flush()
            if progress:
                progress(len(verdicts), len(jobs))
    ordered = [verdicts[job.key] for job in jobs]
    _replace(path, "".join(map(_line, ordered)))
    scores = {
        "benchmark": benchmark.name,
        "data_hash": benchmark.data_hash(),
        **summarise(ordered),
        "sandbox": str(sandbox.level),
        "limits": limits,
        "python": platform.python_version(),
        "wall_seconds": round(time.monotonic() - began, 1),
        **(meta or {}),
    }
    _replace(out / "scores.json", json.dumps(scores, indent=2) + "\n")
    return scores


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Count verdicts and compute pass@1 with its 95% interval: Wilson for one sample a problem, else a bootstrap.

    Raises:
        DataError: there is no verdict, or not equally many for each problem.
    """
    passed: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        passed[verdict["task_id"]].append(verdict["status"] == "passed")
    counts = Counter(len(samples) for samples in passed.values())
    if len(counts) != 1:
        given = ", ".join(f"{n} problems with {samples}" for samples, n in sorted(counts.items())) or "none"
        raise DataError(f"a score needs equally many samples for each problem, got {given}; generate the rest first")
    samples = next(iter(counts))
    rates = [sum(each) / samples for each in passed.values()]
    single = samples == 1 or len(rates) == 1
    low, high = wilson_interval(sum(map(sum, passed.values())), len(verdicts)) if single else mean_interval(rates)
    statuses = Counter(verdict["status"] for verdict in verdicts)
    return {
        "problems": len(passed),
        "samples_per_problem": samples,
        "pass_at_1": sum(rates) / len(rates),
        "interval": [low, high],
        "statuses": dict(sorted(statuses.items())),
        "truncated": sum(verdict["finish"] == "length" for verdict in verdicts),
        "no_code": statuses["no code"],
    }


def check_references(
    benchmark: Benchmark,
    problems: Sequence[Problem],
    sandbox: Runs,
    *,
    workers: int = 2,
    timeout_s: float = TIMEOUT_S,
    memory_mb: int = MEMORY_MB,
) -> list[tuple[str, Outcome]]:
    """Run the canonical solutions; return those that don't pass. A benchmark with any of these must not be scored."""
    jobs = [
        _Job(key=(p.task_id, 0), program=benchmark.program(p, p.stub + p.canonical), fingerprint="", finish="stop")
        for p in problems
    ]
    found = {job.key[0]: outcome for job, outcome in _outcomes(jobs, sandbox, workers, timeout_s, memory_mb) if outcome}
    return [(p.task_id, found[p.task_id]) for p in problems if found[p.task_id].status != "passed"]


def _outcomes(
    jobs: Sequence[_Job], sandbox: Runs, workers: int, timeout_s: float, memory_mb: int
) -> Iterator[tuple[_Job, Outcome | None]]:
    """Run jobs as workers come free, then the slow failures again one by one; None: there was no code to run."""

    def run(job: _Job) -> Outcome | None:
        return sandbox.run(job.program, timeout_s=timeout_s, memory_mb=memory_mb) if job.program else None

    again: list[_Job] = []
    queue = iter(jobs)
    running: dict[Future[Outcome | None], _Job] = {}
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for job in queue:
                running[pool.submit(run, job)] = job
                if len(running) >= workers:
                    break
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, outcome = running.pop(future), future.result()
                if outcome and outcome.status != "passed" and outcome.seconds >= NEAR_LIMIT * timeout_s:
                    again.append(job)
                else:
                    yield job, outcome
    for job in again:
        yield job, run(job)


def _jobs(benchmark: Benchmark, problems: Mapping[str, Problem], samples_path: Path, conditions: str) -> Iterator[_Job]:
    """Read the samples one by one; the n-th of a task has index n - 1."""
    seen: Counter[str] = Counter()
    with samples_path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            sample = _sample(line, f"{samples_path}: line {number}")
            task_id = sample["task_id"]
            if task_id not in problems:
                raise DataError(f"{samples_path}: line {number}: {benchmark.name} has no problem {task_id!r}")
            program = benchmark.program(problems[task_id], sample["code"]) if sample["code"].strip() else ""
            digest = hashlib.sha256(f"{conditions}\n{program}".encode("utf-8", "surrogatepass")).hexdigest()
            yield _Job(
                key=(task_id, seen[task_id]),
                program=program,
                fingerprint=digest[:16],
                finish=sample["finish"],
            )
            seen[task_id] += 1


def _sample(line: str, where: str) -> Sample:
    """Parse one line of samples.jsonl."""
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); generate the samples again") from None
    for key in ("task_id", "code", "finish"):
        if not isinstance(sample, dict) or not isinstance(sample.get(key), str):
            raise DataError(f"{where}: a sample needs the text {key!r}; generate the samples again")
    return dict(sample)


def _kept(path: Path, jobs: Sequence[_Job]) -> dict[Key, Verdict]:
    """Read the verdicts of an earlier run that still hold; a half-written line counts for nothing."""
    valid = {(job.key, job.fingerprint) for job in jobs}
    kept: dict[Key, Verdict] = {}
    if not path.exists():
        return kept
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            verdict = json.loads(line)
            key = (verdict["task_id"], verdict["sample"])
            if (key, verdict["fingerprint"]) in valid:
                kept.setdefault(key, verdict)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _verdict(job: _Job, outcome: Outcome | None) -> Verdict:
    """Return a line of verdicts.jsonl."""
    task_id, index = job.key
    return {
        "task_id": task_id,
        "sample": index,
        "status": outcome.status if outcome else "no code",
        "seconds": outcome.seconds if outcome else 0.0,
        "error": outcome.error if outcome else "",
        "finish": job.finish,
        "fingerprint": job.fingerprint,
    }


def _line(verdict: Verdict) -> str:
    return json.dumps(verdict) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
