"""BACKENDS: what makes the answers. Importing this loads no torch; opening a back end loads what it needs.

To add a back end, write a class with the methods of `Backend` and register a function that opens it;
`tests/eval/generate/test_backends.py` then checks its laws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from xft.errors import MissingExtraError
from xft.eval.benchmark import Request
from xft.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen, and how many answers each problem gets."""

    n: int = 1
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Share of the probability that is sampled from."""
    seed: int = 0
    max_new_tokens: int = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One answer to make."""

    task_id: str
    sample: int
    """Number within the task, from 0."""
    request: Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer made."""

    text: str
    """The completion, cut at the request's stop strings."""
    finish: str
    """Why it ended: `stop` (a stop string, or the model's end token) or `length`.

    A server's also `broken` (it stopped for a reason of its own, such as a content filter) and `refused` (it took
    no request of these words; the text is its own).
    """
    prompt_tokens: int | None = field(default=None, compare=False)
    """Tokens read and written; None where a server does not say."""
    completion_tokens: int | None = field(default=None, compare=False)


Unit = Sequence[Ask]
"""Answers that are made together, because they influence each other; a killed run makes all of a unit again."""


class Backend(Protocol):
    """Something that answers."""

    style: str
    """The prompt style in use: `completion`, or a name in `xft.prompts.PROMPTS`."""

    def settings(self) -> dict[str, Any]:
        """Return what scores must say of how answers were made; plain JSON values, no secret."""
        ...

    def units(self, asks: Sequence[Ask]) -> list[Unit]:
        """Divide the work; the same asks give the same units."""
        ...

    def complete(self, units: Sequence[Unit], sampling: Sampling) -> Iterator[tuple[Ask, Answer]]:
        """Answer all of the units, in any order, each answer as soon as it is there.

        Raises:
            FetchError: a server can't be reached, or refuses; all that was answered before has been given.
        """
        ...

    def close(self) -> None:
        """Give back the memory and connections."""
        ...


class Opener(Protocol):
    """Opens a back end."""

    def __call__(self, model: str, *, style: str, url: str | None, batch: int, precision: str) -> Backend:
        """Load the model, or find the server."""
        ...


BACKENDS: Registry[Opener] = Registry("generation back end")


def open_backend(
    name: str, model: str, *, style: str, url: str | None = None, batch: int = 16, precision: str = "auto"
) -> Backend:
    """Open a back end by its name.

    `model` is a folder, or the name by which a server knows it. `style` is a prompt style, `completion`, or `auto`.
    `batch` is the number of answers made at the same time; a server gets so many requests at once. `precision` is one
    of `xft.device.compute_dtype`; a server chooses its own.

    Raises:
        UnknownNameError: no such back end or style.
        MissingExtraError: it needs a package that is not installed.
        RecipeError: an address without a server to talk to, or none where one is needed.
        CheckpointError: the folder holds no whole model.
        FetchError: no server answers.
    """
    return BACKENDS[name](model, style=style, url=url, batch=batch, precision=precision)


def ask_seed(seed: int, ask: Ask) -> int:
    """Derive the seed of one answer: 31 bits that don't depend on what else is asked."""
    name = f"{seed}/{ask.task_id}/{ask.sample}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) >> 1


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first of the stop strings begins, None when there is none."""
    return min((place for place in map(text.find, stop) if place >= 0), default=None)


@BACKENDS.register("transformers")
def _transformers(model: str, *, style: str, url: str | None, batch: int, precision: str) -> Backend:
    try:
        from xft.eval.generate.local import LocalBackend
    except ImportError:
        raise MissingExtraError("--backend transformers needs the training extra: pip install 'xft[train]'") from None
    return LocalBackend(model, style=style, url=url, batch=batch, precision=precision)


@BACKENDS.register("openai")
def _openai(model: str, *, style: str, url: str | None, batch: int, precision: str) -> Backend:
    from xft.eval.generate.server import ServerBackend

    return ServerBackend(model, style=style, url=url, batch=batch, precision=precision)


@BACKENDS.register("vllm")
def _vllm(model: str, *, style: str, url: str | None, batch: int, precision: str) -> Backend:
    from xft.eval.generate.vllm_engine import VllmBackend

    return VllmBackend(model, style=style, url=url, batch=batch, precision=precision)
