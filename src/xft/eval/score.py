"""The scoring stage: answers through the sandbox to verdicts.jsonl, then scores.json.

A verdict is appended as soon as it is known, so a killed run goes on where it was; it is used again only for the same
program of the same benchmark data under the same limits and sandbox level, judged by the same versions of compilers and
libraries. The final file has the order of the answers. Answers are read as they are judged; what stays in memory is a
short verdict each.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft.errors import DataError, SandboxError
from xft.eval.benchmark import Benchmark, Judgement, Problem, Tool
from xft.eval.metrics import mean_interval, pass_at_k, wilson_interval
from xft.eval.samples import Answer, Reject, read_answers
from xft.stage import write_json, write_lines

if TYPE_CHECKING:
    from xft.eval.sandbox import Sandbox

MAX_FAULTS = 8
"""So many faults of the sandbox in a row end the scoring: it is broken, not unlucky."""
KS = (1, 5, 10, 25, 50, 100)
NO_CODE = "no code in the answer, or none that defines what was asked for"
NAMED = 20
"""Problems named in scores.json when they were not scored."""

Verdict = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """An answer to judge."""

    answer: Answer
    fingerprint: str

    @property
    def place(self) -> dict[str, Any]:
        """What a verdict has of the answer, and not of its program."""
        return {"task_id": self.answer.task_id, "sample": self.answer.sample, "finish": self.answer.finish}


def score(
    benchmark: Benchmark,
    samples: Path,
    out: Path,
    *,
    sandbox: Sandbox,
    tools: Sequence[Tool],
    every: int = 1,
    workers: int = 2,
    meta: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Judge all answers; write `verdicts.jsonl`, `scores.json` and any `rejects.jsonl` into the folder `out`.

    Equal programs of a problem are judged once. Problems of a faulty tool are left out and counted. A failure that used
    up a time limit is judged again, alone, before it counts. A fault of the sandbox is tried again, then counted as
    `infrastructure`, never as a wrong answer.
    `every` names the problems that were to be answered: each n-th; answers to others are rejected. `meta` goes into the
    scores as it is; `progress` gets 1 for each verdict.

    Raises:
        DataError: the samples can't be read, or hold no answer that can be scored.
        SandboxError: the sandbox is broken; the verdicts so far are kept.
    """
    began = time.monotonic()
    problems = {problem.task_id: problem for problem in benchmark.problems()}
    asked = dict(list(problems.items())[::every])
    faulty = {tool.name: tool.fault for tool in tools if tool.fault}
    versions = {tool.name: tool.version for tool in tools}
    conditions = json.dumps(
        [benchmark.name, benchmark.data_hash(), dict(benchmark.limits), str(sandbox.level), versions]
    )
    out.mkdir(parents=True, exist_ok=True)
    verdicts = _Verdicts(out / "verdicts.jsonl")
    rejects, left_out = _Rejects(out / "rejects.jsonl"), Counter[str]()

    def jobs() -> Iterator[_Job]:
        for answer in read_answers(samples, benchmark, asked):
            if isinstance(answer, Reject):
                rejects.add(answer)
            elif problems[answer.task_id].tool in faulty:
                left_out[problems[answer.task_id].tool] += 1
            else:
                job = _Job(answer=answer, fingerprint=_fingerprint(conditions, answer))
                if verdicts.wanted(job):
                    yield job
                elif progress:
                    progress(1)

    with verdicts:
        for job, judgement in _judgements(jobs(), benchmark, problems, sandbox, workers):
            verdicts.add(_verdict(job, judgement))
            if progress:
                progress(1)
    ordered = verdicts.finish()
    if not ordered:
        if rejects.counts:
            raise DataError(
                f"{samples}: no answer to {benchmark.name} that can be scored ({_said(rejects.counts)}; "
                f"the lines are in {rejects.path}); a line needs task_id, as in {next(iter(problems))}, and code, "
                "solution or completion"
            )
        found = ", ".join(f"{name}: {faulty[name]}" for name in left_out) or "it is empty"
        raise DataError(f"{samples}: no answer to {benchmark.name} that can be scored ({found})")
    answered = {verdict["task_id"] for verdict in ordered}
    missing = [task for task in asked if task not in answered and problems[task].tool not in faulty]
    scores = {
        "benchmark": benchmark.name,
        "data_hash": benchmark.data_hash(),
        **summarise(ordered),
        "missing": {"problems": len(missing), "first": missing[:NAMED]},
        "not_run": {name: {"answers": count, "reason": faulty[name]} for name, count in sorted(left_out.items())},
        "rejected": dict(sorted(rejects.counts.items())),
        "sandbox": str(sandbox.level),
        "sandbox_reason": sandbox.reason,
        "limits": dict(benchmark.limits),
        "tools": {tool.name: tool.version for tool in tools if not tool.fault},
        "python": platform.python_version(),
        "wall_seconds": round(time.monotonic() - began, 1),
        **(meta or {}),
    }
    write_json(out / "scores.json", scores)
    return scores


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Count verdicts and compute pass@1, its 95% interval, and pass@k.

    The interval is Wilson's for one sample a problem, else a bootstrap over problems. Faults of the sandbox are counted
    and left out. `pass_at_k` has the k that every problem has samples for. What a server broke off or refused is in
    pass@1 as it is, and counted where there is any.

    Raises:
        DataError: nothing is left.
    """
    real = [verdict for verdict in verdicts if verdict["status"] != "infrastructure"]
    if not real:
        raise DataError(f"the sandbox failed for all {len(verdicts)} answers; `xft doctor` shows its state")
    statuses = Counter(verdict["status"] for verdict in verdicts)
    ends = Counter(verdict["finish"] for verdict in verdicts)
    passed = _by_problem(real, lambda verdict: verdict["status"] == "passed")
    fewest = min(map(len, passed.values()))
    most = max(map(len, passed.values()))
    parts = sorted({part for verdict in real for part in verdict.get("parts", {})})
    return {
        "problems": len(passed),
        "samples": len(real),
        "samples_per_problem": fewest if fewest == most else [fewest, most],
        **_rate(passed),
        "pass_at_k": {
            str(k): _mean([pass_at_k(len(each), sum(each), k) for each in passed.values()]) for k in KS if k <= fewest
        },
        "parts": {part: _rate(_by_problem(real, partial(_passed_part, part))) for part in parts},
        "statuses": dict(sorted(statuses.items())),
        "truncated": ends["length"],
        **{finish: ends[finish] for finish in ("broken", "refused") if ends[finish]},
        "no_code": statuses["no code"],
        "in_process": sum(bool(verdict.get("in_process")) for verdict in verdicts),
        "infrastructure": statuses["infrastructure"],
    }


def _passed_part(part: str, verdict: Verdict) -> bool:
    return bool(verdict.get("parts", {}).get(part))


def _by_problem(verdicts: Sequence[Verdict], passed: Callable[[Verdict], bool]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for verdict in verdicts:
        found.setdefault(verdict["task_id"], []).append(passed(verdict))
    return found


def _rate(passed: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Return pass@1 and its interval."""
    rates = [sum(each) / len(each) for each in passed.values()]
    if len(rates) == 1 or all(len(each) == 1 for each in passed.values()):
        interval = wilson_interval(sum(map(sum, passed.values())), sum(map(len, passed.values())))
    else:
        interval = mean_interval(rates, bounds=(0.0, 1.0))
    return {"pass_at_1": _mean(rates), "interval": list(interval)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- judging ----------------------------------------------------------------------------------------------------------


def _judgements(
    jobs: Iterator[_Job], benchmark: Benchmark, problems: Mapping[str, Problem], sandbox: Sandbox, workers: int
) -> Iterator[tuple[_Job, Judgement]]:
    """Judge as workers come free; then, one by one, what was short of time or met a fault of the sandbox."""

    def judge(job: _Job) -> Judgement | SandboxError:
        if not job.answer.code.strip():
            return Judgement(status="no code", seconds=0.0, error=job.answer.unusable or NO_CODE)
        try:
            return benchmark.judge(problems[job.answer.task_id], job.answer.code, sandbox)
        except SandboxError as error:
            return error

    again: list[_Job] = []
    faults = 0
    running: dict[Future[Judgement | SandboxError], _Job] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while len(running) < workers and (job := next(jobs, None)):
                running[pool.submit(judge, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, judgement = running.pop(future), future.result()
                if isinstance(judgement, SandboxError):
                    faults += 1
                    if faults >= MAX_FAULTS:
                        raise judgement
                    again.append(job)
                    continue
                if job.answer.code.strip():
                    faults = 0
                if judgement.strained:
                    again.append(job)
                else:
                    yield job, judgement
    finally:
        pool.shutdown(cancel_futures=True)
    for job in again:
        judgement = judge(job)
        if isinstance(judgement, SandboxError):
            faults += 1
            if faults >= MAX_FAULTS:
                raise judgement
            judgement = Judgement(status="infrastructure", seconds=0.0, error=str(judgement))
        yield job, judgement


def _fingerprint(conditions: str, answer: Answer) -> str:
    """Hash all that a verdict depends on, with so many bits that nobody can make two programs of one hash."""
    whole = f"{conditions}\n{answer.task_id}\n{answer.unusable}\n{answer.code}"
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _verdict(job: _Job, judgement: Judgement) -> Verdict:
    """Return a line of verdicts.jsonl."""
    verdict: Verdict = {
        **job.place,
        "status": judgement.status,
        "seconds": judgement.seconds,
        "error": judgement.error,
        "fingerprint": job.fingerprint,
    }
    if judgement.parts:
        verdict["parts"] = dict(judgement.parts)
    if judgement.in_process:
        verdict["in_process"] = True
    return verdict


# --- files ------------------------------------------------------------------------------------------------------------


class _Verdicts:
    """verdicts.jsonl while it is written: those kept from an earlier run first, then new ones as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = {verdict["fingerprint"]: verdict for verdict in read_verdicts(path)}
        self.asked = set(self.known)
        self.order: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> None:
        write_lines(self.path, map(json.dumps, self.known.values()))
        self.file = self.path.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def wanted(self, job: _Job) -> bool:
        """Note the place of an answer; tell whether its program is yet to be judged."""
        self.order.append((job.fingerprint, job.place))
        known = job.fingerprint in self.asked
        self.asked.add(job.fingerprint)
        return not known

    def add(self, verdict: Verdict) -> None:
        """Keep a verdict, on disk too."""
        self.known[verdict["fingerprint"]] = verdict
        self.file.write(json.dumps(verdict) + "\n")
        self.file.flush()

    def finish(self) -> list[Verdict]:
        """Write the verdicts in the order of the answers, and nothing else; return them."""
        ordered = [self.known[fingerprint] | place for fingerprint, place in self.order]
        write_lines(self.path, map(json.dumps, ordered))
        return ordered


def read_verdicts(path: Path) -> Iterator[Verdict]:
    """Read a verdicts file; a half-written line counts for nothing, a fault of the sandbox neither."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                verdict = json.loads(line)
                hash((verdict["task_id"], verdict["sample"], verdict["fingerprint"]))
                if line.endswith("\n") and verdict["status"] != "infrastructure":
                    yield verdict
            except (ValueError, KeyError, TypeError):
                continue


class _Rejects:
    """rejects.jsonl, there only when something was rejected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.unlink(missing_ok=True)
        self.counts: Counter[str] = Counter()

    def add(self, reject: Reject) -> None:
        """Count a reject and write it down."""
        self.counts[reject.reason] += 1
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"line": reject.line, "reason": reject.reason, "detail": reject.detail}) + "\n")


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
