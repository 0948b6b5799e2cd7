"""Steps about a record's fields: schema, refusals, length."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from xft.curate.step import step
from xft.data.example import Example
from xft.recipe import Section

CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
REFUSAL = re.compile(
    r"\s*(?:(?:i['’]?m|i am) (?:really |very |so )?sorry\b|sorry,? (?:but )?i\b|i apologi[sz]e\b|as an ai\b|"
    r"(?:unfortunately,? )?i (?:can(?:no|['’])t|am (?:unable|not able) to|am afraid)\b)",
    re.I,
)


@step("schema")
def schema(record: Example, _options: Section) -> str | None:
    """Text in every field, and an answer that is not the question."""
    if not record.response.strip():
        return "empty response"
    if not record.instruction.strip() and not record.is_document:
        return "empty instruction"
    if record.instruction.strip() == record.response.strip():
        return "response repeats the instruction"
    for text in (record.instruction, record.response):
        if "\ufffd" in text:
            return "replacement characters of a lost encoding"
        if CONTROL.search(text):
            return "control characters"
    return None


@step("refusal")
def refusal(record: Example, _options: Section) -> str | None:
    """An answer that begins by declining."""
    return "response declines" if REFUSAL.match(record.response) else None


class LengthOptions(Section):
    """Limits of sizes, in characters and lines."""

    min_instruction: Annotated[int, Field(ge=0)] = 8
    """Least characters of an instruction; raw documents have none and pass."""
    max_instruction: Annotated[int, Field(ge=1)] = 20_000
    """Most characters of an instruction."""
    min_response: Annotated[int, Field(ge=0)] = 8
    """Least characters of a response."""
    max_response: Annotated[int, Field(ge=1)] = 40_000
    """Most characters of a response."""
    max_lines: Annotated[int, Field(ge=1)] = 1_500
    """Most lines of a response."""


@step("length", LengthOptions)
def length(record: Example, options: LengthOptions) -> str | None:
    """Sizes within limits."""
    asked, answered = len(record.instruction.strip()), len(record.response.strip())
    if asked < options.min_instruction and not record.is_document:
        return f"instruction under {options.min_instruction} characters"
    if asked > options.max_instruction:
        return f"instruction over {options.max_instruction} characters"
    if answered < options.min_response:
        return f"response under {options.min_response} characters"
    if answered > options.max_response:
        return f"response over {options.max_response} characters"
    if record.response.count("\n") >= options.max_lines:
        return f"response over {options.max_lines} lines"
    return None
