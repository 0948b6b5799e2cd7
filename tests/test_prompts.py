from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xft.errors import RecipeError, UnknownNameError
from xft.prompts import PROMPTS, resolve_prompt


@pytest.fixture
def tokenizer(tiny_dense: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_dense)


@pytest.mark.parametrize("style", sorted(PROMPTS))
def test_a_style_shows_the_instruction_and_ends_with_a_token_that_ends_generation(style: str, tokenizer: Any) -> None:
    text = PROMPTS[style].before(tokenizer, "Sort a list & <escape> nothing.")
    assert text.count("Sort a list & <escape> nothing.") == 1
    end = tokenizer.encode(PROMPTS[style].after(tokenizer), add_special_tokens=False)
    assert end[-1] == tokenizer.eos_token_id


def test_the_magicoder_prompt_is_the_papers(tokenizer: Any) -> None:
    text = PROMPTS["magicoder"].before(tokenizer, "Add.")
    assert text == (
        "<s>You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable "
        "responses to user instructions.\n\n@@ Instruction\nAdd.\n\n@@ Response\n"
    )


def test_the_chat_prompt_is_the_tokenizers_own_and_opens_the_answer(tokenizer: Any) -> None:
    text = PROMPTS["chat"].before(tokenizer, "Add.")
    assert text == "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    assert PROMPTS["chat"].after(tokenizer) == "<|im_end|>"


def test_the_end_of_an_answer_is_found_whatever_the_template_says_behind_it(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|end_of_{{ m['role'] }}_reply|>{% endfor %}"
    assert PROMPTS["chat"].after(tokenizer) == "<|end_of_assistant_reply|>"
    tokenizer.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(RecipeError, match="leaves answers out; use prompt=magicoder"):
        PROMPTS["chat"].after(tokenizer)


def test_a_template_that_asks_for_the_date_gets_one_that_does_not_change(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }}: {{ messages[0]['content'] }}"
    assert PROMPTS["chat"].before(tokenizer, "Add.") == "26 July 2024: Add."


def test_auto_takes_the_chat_template_where_there_is_one(tokenizer: Any) -> None:
    assert resolve_prompt("auto", tokenizer) == "chat"
    tokenizer.chat_template = None
    assert resolve_prompt("auto", tokenizer) == "magicoder"
    with pytest.raises(RecipeError, match="use prompt=magicoder"):
        PROMPTS["chat"].before(tokenizer, "Add.")
    with pytest.raises(UnknownNameError, match="available: chat, magicoder"):
        resolve_prompt("vicuna", tokenizer)
