"""PROMPTS: how an instruction becomes the text before the response, in tuning and in scoring alike.

To add a style, register a `Prompt` here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from xft.errors import CheckpointError, RecipeError
from xft.registry import Registry

MAGICODER_SYSTEM = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable "
    "responses to user instructions."
)


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts use."""

    chat_template: Any
    bos_token: str | None
    eos_token: str | None

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Render a conversation."""
        ...


class Prompt(Protocol):
    """A prompt style."""

    def before(self, tokenizer: ChatTokenizer, instruction: str) -> str:
        """Return the text that the response follows, special tokens included."""
        ...

    def after(self, tokenizer: ChatTokenizer) -> str:
        """Return the text that ends a response."""
        ...


ANSWER = "(what is answered)"
TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
DAY = datetime(2024, 7, 26)
"""What templates get for today, else tuning and scoring would differ by their days; Llama 3's own default."""

PROMPTS: Registry[Prompt] = Registry("prompt style", also=("auto", "to score also completion"))


@dataclass(frozen=True)
class Chat:
    """The tokenizer's own chat template, one user turn."""

    def before(self, tokenizer: ChatTokenizer, instruction: str) -> str:
        """Render the template up to the place where the assistant starts to speak."""
        if not tokenizer.chat_template:
            raise RecipeError("prompt: chat needs a base with a chat template; this one has none, use prompt=magicoder")
        return _rendered(tokenizer, [{"role": "user", "content": instruction}], add_generation_prompt=True)

    def after(self, tokenizer: ChatTokenizer) -> str:
        """Return what the template puts behind an assistant turn, up to the token that ends generation."""
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ANSWER}]
        _, found, tail = _rendered(tokenizer, turns).rpartition(ANSWER)
        if not found:
            raise RecipeError("prompt: chat: the base's chat template leaves answers out; use prompt=magicoder")
        return tail.rstrip() or (tokenizer.eos_token or "")


def _rendered(tokenizer: ChatTokenizer, turns: list[dict[str, str]], **options: Any) -> str:
    """Apply the template; on the same day always, for some put the date into their prompts."""
    template = tokenizer.chat_template
    if isinstance(template, str):
        options["chat_template"] = TODAY.sub(lambda asked: repr(DAY.strftime(asked[2])), template)
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


@dataclass(frozen=True)
class Magicoder:
    """The prompt of Magicoder and XFT: a fixed sentence, then `@@ Instruction` and `@@ Response`."""

    def before(self, tokenizer: ChatTokenizer, instruction: str) -> str:
        """Put BOS before the prompt, as the reference does."""
        return f"{tokenizer.bos_token or ''}{MAGICODER_SYSTEM}\n\n@@ Instruction\n{instruction}\n\n@@ Response\n"

    def after(self, tokenizer: ChatTokenizer) -> str:
        """End the response with EOS."""
        return tokenizer.eos_token or ""


PROMPTS.register("chat")(Chat())
PROMPTS.register("magicoder")(Magicoder())


def resolve_prompt(name: str, tokenizer: ChatTokenizer) -> str:
    """Name the style to use; `auto` is `chat` for a tokenizer that has a template, else `magicoder`.

    Raises:
        UnknownNameError: no such style.
    """
    if name == "auto":
        return "chat" if tokenizer.chat_template else "magicoder"
    PROMPTS[name]
    return name


def tokenizer_of(model: Path | str) -> Any:
    """Load a model's tokenizer.

    Raises:
        CheckpointError: it has none, or one that can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except Exception as error:  # a damaged file ends in whatever its reader raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{model}: no tokenizer that can be read ({reason}); copy tokenizer.json and tokenizer_config.json of the "
            "model's base into it"
        ) from None
