"""STEPS: what a filter is. One record in; None (keep it) or the reason to leave it out.

A step is a pure function of the record and of its options, a section of the recipe's kind. Reasons have no part of the
record in them: they are counted. To add a step, write such a function in a module of this package and decorate it;
`tests/curate/test_steps.py` then holds it to its laws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from textwrap import dedent
from typing import Any

from xft.curate.config import StepConfig
from xft.data.example import Example
from xft.recipe import Section, parse_section
from xft.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A filter."""

    check: Callable[[Example, Any], str | None]
    options: type[Section]
    private: bool
    """What it finds must not be written down again: its rejects are recorded without their text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundStep:
    """A filter with its options."""

    name: str
    step: Step
    options: Section

    def __call__(self, record: Example) -> str | None:
        """Return the reason to leave a record out, None to keep it."""
        return self.step.check(record, self.options)


STEPS: Registry[Step] = Registry("step")

PAIRS = ("schema", "refusal", "length", "source-file", "parse", "secrets", "personal")
TEXT = ("schema", "language", "words", "repetition", "boilerplate", "secrets", "personal")
DEFAULTS = {"pairs": PAIRS, "text": TEXT}
"""Steps for each kind of records where the recipe names none: Python instruction pairs, English documents."""


class NoOptions(Section):
    """A step without options."""


def step(name: str, options: type[Section] = NoOptions, *, private: bool = False) -> Callable[[Any], Any]:
    """Register a function `(record, options) -> str | None` as a step."""

    def add(check: Callable[[Example, Any], str | None]) -> Callable[[Example, Any], str | None]:
        STEPS.register(name)(Step(check=check, options=options, private=private))
        return check

    return add


def build_steps(configs: Sequence[StepConfig] | None, kind: str) -> list[BoundStep]:
    """Return the steps, options checked; the kind's own where none are given.

    Raises:
        UnknownNameError: no such step.
        RecipeError: an option that is unknown, mistyped or out of range.
    """
    from xft.curate import classifier, code, fields, private, text  # noqa: F401 - they register their steps

    if configs is None:
        configs = [StepConfig(name=name) for name in DEFAULTS[kind]]
    return [
        BoundStep(
            name=config.name,
            step=STEPS[config.name],
            options=parse_section(STEPS[config.name].options, config.options, f"step {config.name}"),
        )
        for config in configs
    ]


def try_steps(steps: Sequence[BoundStep]) -> None:
    """Let each step see a record, so that what it lacks shows before any work is done.

    Raises:
        MissingExtraError: a library is not installed.
        DataError: a file that a step reads can't be read.
    """
    for each in steps:
        each(Example(instruction="Say hello.", response="```python\nprint('hello')\n```"))


# --- what steps look at -----------------------------------------------------------------------------------------------

# Possessive, here and elsewhere: else texts can be written that take time in their length squared
FENCE = re.compile(
    r"^[ \t]*+(?:```|~~~)[ \t]*+([\w+#-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+(?:```|~~~)[ \t]*+$|\Z)", re.M | re.S
)
PYTHON = re.compile(
    r"^(?:async def \w++\(|def \w++\(|class \w++[^\n;{]*:[ \t]*+$|from [\w.]+ import [^\n;]+$|import [\w., ]+$|@\w)",
    re.M,
)
ALIASES = {
    "c#": "c-sharp", "c++": "cpp", "cc": "cpp", "cs": "c-sharp", "csharp": "c-sharp", "cxx": "cpp", "golang": "go",
    "htm": "html", "js": "javascript", "jsx": "javascript", "py": "python", "python3": "python", "rb": "ruby",
    "rs": "rust", "sh": "bash", "shell": "bash", "ts": "typescript", "yml": "yaml",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A piece of code in a response."""

    language: str
    """As in ALIASES' values; "" where nothing tells."""
    code: str


@lru_cache(maxsize=16)
def _blocks(response: str, language: str) -> tuple[Block, ...]:
    fences = [_fence(named_language(label), dedent(code)) for label, code in FENCE.findall(response)]
    if labelled := [Block(language=label, code=code) for label, code in fences if label]:
        return tuple(labelled)
    if fences:
        known = language if len(fences) == 1 else ""
        return tuple(Block(language=known or _look(code), code=code) for _, code in fences)
    known = language or _look(response)
    return (Block(language=known, code=response),) if known else ()


def blocks_of(record: Example) -> tuple[Block, ...]:
    """Return the code of a response: its labelled fences, else its fences, else the whole, where that is code.

    The language is the fence's label, else the record's `language`, else Python where the code looks like it.
    """
    return _blocks(record.response, named_language(record.meta.get("language")))


def prose_of(record: Example) -> str:
    """Return the text that tells a record's natural language: a document's own, or a pair's instruction."""
    return record.instruction or record.response


def _fence(language: str, code: str) -> tuple[str, str]:
    """Tell a session of Python's prompt, which is no program, from Python."""
    return ("pycon" if language == "python" and code.lstrip().startswith(">>>") else language, code)


def named_language(label: Any) -> str:
    """Return a language's name as ALIASES' values have it; "" for what is no name."""
    name = label.strip().lower() if isinstance(label, str) else ""
    return ALIASES.get(name, name)


def _look(code: str) -> str:
    return "python" if PYTHON.search(code) else ""
