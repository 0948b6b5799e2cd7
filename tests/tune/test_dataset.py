"""Pairs become token rows: exact texts, only the response trained, nothing lost without being counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from xft.data.example import Example
from xft.errors import DataError
from xft.prompts import MAGICODER_SYSTEM, resolve_prompt
from xft.tune.dataset import IGNORED, Collator, OrderedRows, Row, encode, encode_all, training_order

EXAMPLE = Example(instruction="Add.", response="a + b")


@pytest.fixture(scope="module")
def tokenizer(tiny_dense: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_dense)


@pytest.fixture(scope="module")
def plain_tokenizer(tiny_dense: Path) -> Any:
    loaded = AutoTokenizer.from_pretrained(tiny_dense)
    loaded.chat_template = None
    return loaded


@pytest.mark.parametrize(
    ("style", "prompt", "response"),
    [
        ("chat", "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n", "a + b<|im_end|>"),
        ("magicoder", f"<s>{MAGICODER_SYSTEM}\n\n@@ Instruction\nAdd.\n\n@@ Response\n", "a + b<|im_end|>"),
    ],
)
def test_a_row_is_prompt_and_response_in_the_styles_exact_text(
    tokenizer: Any, style: str, prompt: str, response: str
) -> None:
    row = encode(EXAMPLE, tokenizer, style, 1024)
    assert tokenizer.decode(row.tokens[: row.prompt]) == prompt
    assert tokenizer.decode(row.tokens[row.prompt :]) == response
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert row.tokens.count(tokenizer.bos_token_id) == (style == "magicoder")
    assert not row.cut


def test_auto_is_the_chat_template_when_there_is_one(tokenizer: Any, plain_tokenizer: Any) -> None:
    assert resolve_prompt("auto", tokenizer) == "chat"
    assert resolve_prompt("auto", plain_tokenizer) == "magicoder"


def test_the_prompt_and_the_padding_are_not_trained(tokenizer: Any) -> None:
    short = encode(EXAMPLE, tokenizer, "chat", 1024)
    long = encode(Example(instruction="Add.", response="a + b + c + d"), tokenizer, "chat", 1024)
    batch = Collator(pad=0)([short, long])
    length = len(long.tokens)
    padding = length - len(short.tokens)
    assert batch["input_ids"][0].tolist() == short.tokens + [0] * padding
    assert batch["attention_mask"][0].tolist() == [1] * len(short.tokens) + [0] * padding
    assert batch["labels"][0].tolist() == [IGNORED] * short.prompt + short.tokens[short.prompt :] + [IGNORED] * padding
    assert batch["labels"][1].tolist() == [IGNORED] * long.prompt + long.tokens[long.prompt :]


def test_over_long_rows_are_cut_and_counted(tokenizer: Any) -> None:
    whole = encode(EXAMPLE, tokenizer, "chat", 1024)
    exact, short = len(whole.tokens), len(whole.tokens) - 2
    assert encode(EXAMPLE, tokenizer, "chat", exact) == whole
    cut = encode(EXAMPLE, tokenizer, "chat", short)
    assert cut.tokens == whole.tokens[:-2]
    assert cut.cut
    rows, counts = encode_all([EXAMPLE, Example(instruction="Add.", response="a")], tokenizer, "chat", short)
    assert len(rows) == 2
    assert counts == {"rows": 2, "cut": 1, "dropped": 0}


def test_rows_without_a_response_are_dropped_and_counted(tokenizer: Any) -> None:
    prompt = encode(EXAMPLE, tokenizer, "chat", 1024).prompt
    longer = Example(instruction="Add" + "!" * 40, response="x")
    rows, counts = encode_all([EXAMPLE, longer], tokenizer, "chat", prompt + 2)
    assert [row.trained for row in rows] == [2]
    assert (counts["rows"], counts["dropped"]) == (1, 1)
    with pytest.raises(DataError, match="no example has a response within max_length=16 tokens; raise it"):
        encode_all([EXAMPLE], tokenizer, "chat", 16)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(tokens=list(range(length)), prompt=0, cut=False) for length in lengths]


def test_every_epoch_has_every_row_once() -> None:
    rows = rows_of([n % 7 + 1 for n in range(12)])
    order = training_order(rows, epochs=3, batch=4, seed=5)
    epochs = [order[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_rows_are_sorted_by_length_inside_a_batch_only() -> None:
    lengths = [(n * 37) % 50 + 1 for n in range(40)]
    order = training_order(rows_of(lengths), epochs=2, batch=8, seed=5)
    batches = [[lengths[number] for number in order[start : start + 8]] for start in range(0, 80, 8)]
    assert all(batch == sorted(batch) for batch in batches)
    assert [max(batch) for batch in batches] != sorted(max(batch) for batch in batches)


def test_sorting_changes_no_batchs_rows() -> None:
    sorted_order = training_order(rows_of([(n * 37) % 50 + 1 for n in range(10)]), epochs=3, batch=4, seed=5)
    equal_order = training_order(rows_of([1] * 10), epochs=3, batch=4, seed=5)
    for start in range(0, 30, 4):
        assert sorted(sorted_order[start : start + 4]) == sorted(equal_order[start : start + 4])


def test_the_order_depends_on_the_seed_alone() -> None:
    rows = rows_of([3] * 20)
    first = training_order(rows, epochs=2, batch=4, seed=1)
    assert training_order(rows, epochs=2, batch=4, seed=1) == first
    assert training_order(rows, epochs=2, batch=4, seed=2) != first


def test_ordered_rows_follow_the_order() -> None:
    rows = rows_of([1, 2, 3])
    data = OrderedRows(rows, [2, 0, 1, 2])
    assert [len(data[index].tokens) for index in range(len(data))] == [3, 1, 2, 3]
