"""Requests to prompt tokens, and the tokens that end an answer; for back ends that hold the tokenizer."""

from __future__ import annotations

from typing import Any

from xft.errors import DataError
from xft.eval.benchmark import Request
from xft.prompts import PROMPTS


def prompt_tokens(request: Request, tokenizer: Any, style: str) -> list[int]:
    """Return the prompt's tokens, cut where training cuts them: between the prompt style's text and the answer.

    Raises:
        DataError: the prompt is empty.
    """
    before = "" if request.instruction is None else PROMPTS[style].before(tokenizer, request.instruction)
    if request.instruction is None and tokenizer.bos_token and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]:
        before = tokenizer.bos_token
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in (before, request.prefix) if text]
    if not pieces:
        raise DataError("a prompt is empty, and this model's tokenizer puts nothing before it; give the problem a text")
    return [token for piece in pieces for token in piece]


def end_tokens(tokenizer: Any, style: str) -> set[int]:
    """Return the tokens that end an answer by the tokenizer and by what the prompt style trains."""
    found = {tokenizer.eos_token_id} - {None}
    if style != "completion":
        after = tokenizer.encode(PROMPTS[style].after(tokenizer), add_special_tokens=False)
        found |= set(after) if len(after) == 1 else set()
    return found
