"""The teacher: a server or a local model that answers, behind a store so that no answer is paid for twice.

A server's answers are kept one by one, as they come. A local model's are kept by units of a few batches: answers made
together influence each other by rounding, so a unit that a kill cut short is made again whole, and the texts are those
of an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xft.errors import FetchError, RecipeError
from xft.eval.extract import THOUGHTS
from xft.eval.generate import Answer, Ask, Backend, Sampling, open_backend
from xft.synth.config import TeacherConfig
from xft.synth.store import Store
from xft.synth.task import Question

SHOWN = 16
"""Characters of a key that name a request in messages, and seed its sampling."""
REFUSED_IN_A_ROW = 20
"""Requests that a server may refuse one after the other before it is taken to refuse everything."""


@dataclass
class Usage:
    """What the answers of a run cost, whether made now or found in the store."""

    answers: int = 0
    found: int = 0
    """Of these, answers that were in the store."""
    found_tokens: int = 0
    """Of all tokens, those of answers that were in the store: they were paid for before."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers whose server did not count tokens."""
    seconds: float = 0.0
    """Wall-clock time of making them, each with its share of the time that others were made beside it."""


@dataclass
class Teacher:
    """A back end, what identifies its answers, and the store of those made before."""

    name: str
    """As pairs call it."""
    backend: Backend
    identity: dict[str, Any]
    """What answers depend on: the model, and how it computes. Part of every key."""
    store: Store
    usage: Usage = field(default_factory=Usage)
    _refused: int = 0

    @property
    def style(self) -> str:
        """Return the prompt style in use."""
        return self.backend.style

    def key(self, question: Question) -> str:
        """Return the key of an answer: model, words, decoding and the number among equal requests."""
        request = {"instruction": question.request.instruction, "prefix": question.request.prefix}
        return Store.key(
            kind="answer", model=self.identity, style=self.style, request=request, stop=list(question.request.stop),
            decoding=decoding(question.sampling), sample=question.sample,
        )  # fmt: skip

    def answer(self, questions: Sequence[Question], told: Callable[[], None] = lambda: None) -> list[Answer]:
        """Answer questions, in their order; equal ones are asked once. `told` is called after each answer.

        Raises:
            FetchError: the server is gone or refuses everything; what it has answered is kept.
        """
        keys = [self.key(question) for question in questions]
        asked = dict(zip(keys, questions, strict=True))
        records = {key: record for key in asked if (record := self.store.get(key)) is not None}
        for record in records.values():
            self._count(record)
            self.usage.found_tokens += (record["prompt_tokens"] or 0) + (record["completion_tokens"] or 0)
        self.usage.found += len(records)
        missing: dict[Sampling, dict[Ask, str]] = {}
        for key, question in asked.items():
            if key not in records:
                ask = Ask(task_id=key[:SHOWN], sample=question.sample, request=question.request)
                missing.setdefault(question.sampling, {})[ask] = key
        for sampling, asks in missing.items():
            records |= self._make(asks, sampling, told)
        return [_answer(records[key]) for key in keys]

    def _make(self, asks: dict[Ask, str], sampling: Sampling, told: Callable[[], None]) -> dict[str, dict[str, Any]]:
        """Let the back end answer requests with their keys; keep each unit's answers when all of them are there."""
        units = self.backend.units(list(asks))
        unit_of = {ask: number for number, unit in enumerate(units) for ask in unit}
        open_units: dict[int, dict[str, dict[str, Any]]] = {}
        made: dict[str, dict[str, Any]] = {}
        before = time.monotonic()
        for ask, answer in self.backend.complete(units, sampling):
            now = time.monotonic()
            record = asdict(answer) | {"seconds": round(now - before, 4)}
            before = now
            self._watch(answer)
            made[asks[ask]] = record
            self._count(record)
            number = unit_of[ask]
            unit = open_units.setdefault(number, {})
            unit[asks[ask]] = record
            if len(unit) == len(units[number]):
                for key, whole in open_units.pop(number).items():
                    if whole["finish"] not in ("refused", "broken"):  # a server may do better next time
                        self.store.put(key, whole)
            told()
        return made

    def _watch(self, answer: Answer) -> None:
        self._refused = self._refused + 1 if answer.finish == "refused" else 0
        if self._refused == REFUSED_IN_A_ROW:
            raise FetchError(
                f"the teacher's server refused {REFUSED_IN_A_ROW} requests in a row, the last: {answer.text}; "
                "correct --model and the server's settings, and run the same command"
            )

    def _count(self, record: dict[str, Any]) -> None:
        self.usage.answers += 1
        self.usage.prompt_tokens += record["prompt_tokens"] or 0
        self.usage.completion_tokens += record["completion_tokens"] or 0
        self.usage.uncounted += record["completion_tokens"] is None
        self.usage.seconds += record["seconds"]


def decoding(sampling: Sampling) -> dict[str, Any]:
    """Return how tokens were chosen, without what makes no difference to greedy decoding."""
    chosen = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
    return chosen if sampling.temperature == 0 else chosen | {"top_p": sampling.top_p, "seed": sampling.seed}


def _answer(record: dict[str, Any]) -> Answer:
    return Answer(
        text=THOUGHTS.sub("", record["text"]),
        finish=record["finish"],
        prompt_tokens=record["prompt_tokens"],
        completion_tokens=record["completion_tokens"],
    )


def open_teacher(config: TeacherConfig, store: Path) -> Teacher:
    """Open a server, or a local model; its answers are kept in the folder `store`.

    Raises:
        FetchError: no server answers, or the model can't be had.
        RecipeError: options that don't fit the kind of teacher.
        CheckpointError: the folder holds no whole model.
        MissingExtraError: a local model needs a package that is not installed.
    """
    settings: dict[str, Any] = {"style": config.prompt, "batch": config.batch, "precision": "auto"}
    if not config.local:
        from xft.eval.generate.server import ServerBackend

        server = ServerBackend(config.model or "", url=config.name, **settings)
        return Teacher(name=server.model, backend=server, identity={"server model": server.model}, store=Store(store))
    if config.model:
        raise RecipeError(f"--model {config.model}: names a server's model; {config.name} is a model of its own")
    from xft.base import resolve_base
    from xft.stage import folder_digest

    folder = resolve_base(config.name)
    local = open_backend(config.backend, str(folder), **settings)
    identity = {"model": folder_digest(folder), "dtype": local.settings()["dtype"], "backend": config.backend}
    return Teacher(name=config.name, backend=local, identity=identity, store=Store(store))
