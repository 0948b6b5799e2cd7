from __future__ import annotations

import pytest

from conftest import make_tokenizer
from xft.errors import RecipeError, UnknownNameError
from xft.prompts import PROMPTS, resolve_prompt


@pytest.mark.parametrize("style", sorted(PROMPTS))
def test_a_style_shows_the_instruction_and_ends_with_a_token_that_ends_generation(style: str) -> None:
    tokenizer = make_tokenizer()
    text = PROMPTS[style].before(tokenizer, "Sort a list & <escape> nothing.")
    assert text.count("Sort a list & <escape> nothing.") == 1
    end = tokenizer.encode(PROMPTS[style].after(tokenizer), add_special_tokens=False)
    assert end[-1] == tokenizer.eos_token_id


def test_the_magicoder_prompt_is_the_papers() -> None:
    text = PROMPTS["magicoder"].before(make_tokenizer(), "Add.")
    assert text == (
        "<s>You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable "
        "responses to user instructions.\n\n@@ Instruction\nAdd.\n\n@@ Response\n"
    )


def test_the_chat_prompt_is_the_tokenizers_own_and_opens_the_answer() -> None:
    text = PROMPTS["chat"].before(make_tokenizer(), "Add.")
    assert text == "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    assert PROMPTS["chat"].after(make_tokenizer()) == "<|im_end|>"


def test_auto_takes_the_chat_template_where_there_is_one() -> None:
    tokenizer = make_tokenizer()
    assert resolve_prompt("auto", tokenizer) == "chat"
    tokenizer.chat_template = None
    assert resolve_prompt("auto", tokenizer) == "magicoder"
    with pytest.raises(RecipeError, match="use prompt=magicoder"):
        PROMPTS["chat"].before(tokenizer, "Add.")
    with pytest.raises(UnknownNameError, match="available: chat, magicoder"):
        resolve_prompt("vicuna", tokenizer)
