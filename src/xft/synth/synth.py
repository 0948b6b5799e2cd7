"""The stage `synth`: tasks go to the teacher many at a time; pairs and rejects are written in the tasks' order.

Everything that was asked or run is in the store, so a run that was killed goes through the same tasks again at no cost
and on from there. Which tasks are on their way depends on what came of those before and on nothing else, so the output
is that of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from xft.data.example import Example
from xft.progress import track
from xft.stage import write_json
from xft.synth.check import Bench, check
from xft.synth.config import SynthConfig
from xft.synth.methods import METHODS
from xft.synth.methods.method import Frame, Method, frame_of
from xft.synth.rules import same_key
from xft.synth.seeds import Skipped
from xft.synth.statistics import Tally, statistics
from xft.synth.task import Document, Draft, Job, Question, Reject, Steps, Task
from xft.synth.teacher import Teacher, decoding

PAIRS, REJECTS, STATISTICS = "pairs.jsonl", "rejects.jsonl", "statistics.json"
BATCHES = 4
"""Batches' worth of tasks on their way."""
SHOWN = 4000
"""Characters of a rejected text that are kept."""

Outcome = list[Draft | Reject]


@dataclass(frozen=True, kw_only=True)
class SynthJob:
    """All that a run needs."""

    config: SynthConfig
    seed: int
    documents: Sequence[Document]
    skipped: Sequence[Skipped]
    teacher: Teacher
    bench: Bench | None
    """None: no execution check."""
    batch: int


def synthesise(job: SynthJob, out: Path) -> dict[str, Any]:
    """Write pairs.jsonl, rejects.jsonl and statistics.json into `out`; return the statistics.

    Raises:
        FetchError: the teacher is gone; the same command goes on.
        SandboxError: the sandbox failed.
        RecipeError: a method that can't use this teacher.
    """
    method = METHODS[job.config.method]
    frame = frame_of(method, job.config, job.teacher.style, job.seed)
    with (
        (out / PAIRS).open("w", encoding="utf-8") as pairs,
        (out / REJECTS).open("w", encoding="utf-8") as rejects,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        track("tasks" if job.config.limit else "pairs", job.config.limit or job.config.pairs) as advance,
    ):
        writer = _Writer(job, frame, pairs, rejects)
        driver = _Driver(job, method, frame, writer, pool, told=lambda: advance(0, _note(writer.tally, job.teacher)))
        for kept in driver.run():
            advance(1 if job.config.limit else kept, _note(writer.tally, job.teacher))
    counts = Counter(skipped.reason.split(" (")[0] for skipped in job.skipped)
    seeds = {"documents": len(job.documents), "skipped": dict(counts.most_common())}
    made = statistics(writer.tally, job.teacher.usage, job.config, seeds)
    write_json(out / STATISTICS, made)
    return made


def _note(tally: Tally, teacher: Teacher) -> str:
    return f"{tally.pairs} pairs of {tally.tasks} tasks, {teacher.usage.answers} answers"


def _worked_out(task: Task, method: Method, frame: Frame, bench: Bench | None) -> Steps[Outcome]:
    """Make a task's drafts and check them."""
    drafts = yield from method.write(task, frame)
    outcome: Outcome = []
    for draft in drafts:
        if isinstance(draft, Draft) and bench and method.checked and draft.language in frame.config.check.languages:
            outcome.append((yield from check(draft, frame, bench)))
        else:
            outcome.append(draft)
    return outcome


@dataclass(kw_only=True)
class _Going:
    """A task on its way."""

    number: int
    steps: Steps[Outcome]
    wants: Sequence[Question | Job]
    outcome: Outcome | None = None

    def give(self, found: list[Any]) -> None:
        """Go on to what is wanted next, or to the end."""
        try:
            self.wants = self.steps.send(found)
        except StopIteration as end:
            self.outcome = end.value


class _Driver:
    """Has tasks on their way, and gives the writer what came of them in the tasks' order."""

    def __init__(
        self, job: SynthJob, method: Method, frame: Frame, writer: _Writer, pool: ThreadPoolExecutor, *,
        told: Callable[[], None],
    ) -> None:  # fmt: skip
        self.job, self.method, self.frame, self.writer, self.pool, self.told = job, method, frame, writer, pool, told
        self.going: list[_Going] = []
        self.ended: dict[int, Outcome] = {}
        """Outcomes that wait for those of tasks before them."""

    def run(self) -> Iterator[int]:
        """Yield how many pairs each task gave, until enough were kept or no task is left."""
        config = self.job.config
        tasks = enumerate(
            itertools.islice(self.method.plan(self.job.documents, config, self.job.seed), config.attempts)
        )
        due = 0
        while True:
            while len(self.going) < self._room() and (coming := next(tasks, None)):
                number, task = coming
                steps = _worked_out(task, self.method, self.frame, self.job.bench)
                self.going.append(_Going(number=number, steps=steps, wants=next(steps)))
            if not self.going:
                return
            for each, found in zip(self.going, self._found(), strict=True):
                each.give(found)
            self.ended |= {each.number: each.outcome for each in self.going if each.outcome is not None}
            self.going = [each for each in self.going if each.outcome is None]
            while due in self.ended:
                yield self.writer.write(self.ended.pop(due))
                due += 1
            if self.writer.tally.pairs >= config.pairs:
                return

    def _room(self) -> int:
        """Return how many tasks may be on their way: no more than may be needed."""
        waiting = sum(isinstance(each, Draft) for outcome in self.ended.values() for each in outcome)
        wanted = self.job.config.pairs - self.writer.tally.pairs - waiting
        return min(BATCHES * self.job.batch, -(-wanted // self.method.most(self.job.config)))

    def _found(self) -> list[list[Any]]:
        """Return what the tasks want; programs run beside the teacher's work."""
        running: dict[tuple[int, int], Future[Any]] = {}
        questions: dict[tuple[int, int], Question] = {}
        for row, each in enumerate(self.going):
            for place, want in enumerate(each.wants):
                if isinstance(want, Question):
                    questions[row, place] = want
                else:
                    running[row, place] = self.pool.submit(want)
        answers = self.job.teacher.answer(list(questions.values()), self.told)
        before = time.monotonic()
        found = {at: future.result() for at, future in running.items()}
        self.writer.tally.check_seconds += time.monotonic() - before
        found |= dict(zip(questions, answers, strict=True))
        return [[found[row, place] for place in range(len(each.wants))] for row, each in enumerate(self.going)]


class _Writer:
    """Writes what came of tasks, and counts it."""

    def __init__(self, job: SynthJob, frame: Frame, pairs: TextIO, rejects: TextIO) -> None:
        self.job, self.pairs, self.rejects = job, pairs, rejects
        self.decoding = decoding(frame.inventing)
        self.tally = Tally()
        self.seen: set[str] = set()
        for skipped in job.skipped:
            self._line(rejects, {"stage": "seeds", "reason": skipped.reason, "seed": {"source": skipped.where}})

    def write(self, outcome: Outcome) -> int:
        """Write a task's outcome; return the number of pairs kept."""
        tally, before = self.tally, self.tally.pairs
        tally.tasks += 1
        for each in outcome:
            if isinstance(each, Draft):
                each = self._new(each)
            if isinstance(each, Reject):
                tally.reasons[each.reason] += 1
                self._reject(each)
            elif tally.pairs >= self.job.config.pairs:
                tally.surplus += 1
            else:
                self._pair(each)
        self.pairs.flush()
        self.rejects.flush()
        return tally.pairs - before

    def _new(self, draft: Draft) -> Draft | Reject:
        """Refuse a pair whose instruction, or whose solution, was written before."""
        keys = {_hash("instruction", draft.instruction)}
        if METHODS[self.job.config.method].checked:
            keys.add(_hash("response", draft.response))
        if keys & self.seen:
            return Reject(reason="duplicate", document=draft.document, text=draft.instruction)
        self.seen |= keys
        return draft

    def _pair(self, draft: Draft) -> None:
        meta: dict[str, Any] = {
            "method": self.job.config.method,
            "language": draft.language,
            "license": draft.document.license,
            "seed": draft.document.record(),
            "tests": [],
            "check": {"status": "not run"},
            "teacher": self.job.teacher.name,
            "decoding": self.decoding,
        }
        meta |= draft.meta
        example = Example(
            instruction=draft.instruction, response=draft.response, source=draft.document.source, meta=meta
        )
        self._line(self.pairs, asdict(example))
        self.tally.pairs += 1
        self.tally.checks[meta["check"]["status"]] += 1
        self.tally.languages[draft.language] += 1
        self.tally.licenses[draft.document.license] += 1

    def _reject(self, reject: Reject) -> None:
        record = {"stage": "pairs", "reason": reject.reason, "detail": reject.detail[:SHOWN]}
        self._line(self.rejects, {**record, "seed": reject.document.record(), "text": reject.text[:SHOWN]})

    @staticmethod
    def _line(sink: TextIO, record: dict[str, Any]) -> None:
        sink.write(json.dumps(record, ensure_ascii=False) + "\n")


def _hash(kind: str, text: str) -> str:
    """Return a short name for a text as duplicates are told: without white space and case."""
    return hashlib.sha256(f"{kind}/{same_key(text)}".encode()).hexdigest()
