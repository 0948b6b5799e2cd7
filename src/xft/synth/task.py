"""The words of synthesis: documents, tasks, questions, drafts, and the steps that lead from one to the other.

A method's work on one task is a generator. It yields a list of wants, gets a list of what they gave, and returns what
came of it. So the driver can have many tasks on their way, and send the wants of all of them to the teacher at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from xft.eval.benchmark import Request
from xft.eval.generate import Answer, Sampling

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A seed: code, text, or an instruction with its response."""

    text: str
    source: str
    """File or record it stands in."""
    license: str = "unknown"
    """SPDX, or `unknown`."""
    language: str = "unknown"
    response: str = ""
    """Of a seed that is a pair."""
    sha256: str = ""
    """Of the whole document's text, also where `text` is a part of it."""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.text.encode()).hexdigest())

    def record(self) -> dict[str, str]:
        """Return what pairs say of their seed."""
        return {"source": self.source, "license": self.license, "language": self.language, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One piece of work for a method: the seeds it shows and a seed for its own choices."""

    seeds: tuple[Document, ...]
    """The first is the one that pairs name."""
    seed: int

    @property
    def document(self) -> Document:
        """Return the first seed."""
        return self.seeds[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One request to the teacher."""

    request: Request
    sampling: Sampling
    sample: int = 0
    """Number among equal requests."""


Job = Callable[[], Any]
"""Work of this machine's, done in a thread."""
Steps = Generator[list[Question | Job], list[Any], T]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A pair that a method made, before it is checked."""

    instruction: str
    response: str
    language: str
    document: Document
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """What came to nothing, and why."""

    reason: str
    """One of few: they are counted."""
    document: Document
    detail: str = ""
    text: str = ""
    """What was rejected."""


def ask(question: Question) -> Steps[Answer]:
    """Ask one question."""
    (answer,) = yield [question]
    assert isinstance(answer, Answer)
    return answer
