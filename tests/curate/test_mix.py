"""Mixing: shares, budgets, upsampling, order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xft.curate.config import MixConfig
from xft.curate.mix import choose, token_counter
from xft.data.example import Example
from xft.errors import DataError

TOKENS = np.array([10] * 100 + [10] * 20)
SOURCES = np.array([0] * 100 + [1] * 20, np.int16)


def shares(chosen: np.ndarray) -> dict[int, int]:  # type: ignore[type-arg]
    return {source: int(TOKENS[chosen[SOURCES[chosen] == source]].sum()) for source in (0, 1)}


def test_without_weights_everything_is_written_in_order() -> None:
    assert choose(TOKENS, SOURCES, [1, 5], MixConfig(), 0).tolist() == list(range(120))


def test_weights_take_as_much_as_they_allow() -> None:
    assert shares(choose(TOKENS, SOURCES, [1, 1], MixConfig(weighted=True), 0)) == {0: 200, 1: 200}
    assert shares(choose(TOKENS, SOURCES, [3, 1], MixConfig(weighted=True), 0)) == {0: 600, 1: 200}


def test_upsampling_repeats_a_small_source() -> None:
    chosen = choose(TOKENS, SOURCES, [1, 1], MixConfig(weighted=True, repeats=3), 0)
    assert shares(chosen) == {0: 600, 1: 600}
    assert set(Counter(chosen[SOURCES[chosen] == 1].tolist()).values()) == {3}
    assert set(Counter(chosen[SOURCES[chosen] == 0].tolist()).values()) == {1}


def test_repeats_that_nothing_would_heed_are_refused() -> None:
    with pytest.raises(ValueError, match="set weighted or tokens"):
        MixConfig(repeats=3, shuffle=True)


def test_budget_is_met_by_weight() -> None:
    assert shares(choose(TOKENS, SOURCES, [3, 1], MixConfig(tokens=100), 0)) == {0: 80, 1: 30}
    assert shares(choose(TOKENS, SOURCES, [1, 1], MixConfig(tokens=10_000), 0)) == {0: 1000, 1: 200}
    assert shares(choose(TOKENS, SOURCES, [1, 1], MixConfig(tokens=600), 0)) == {0: 400, 1: 200}
    assert shares(choose(TOKENS, SOURCES, [1, 1], MixConfig(tokens=600, repeats=2), 0)) == {0: 300, 1: 300}
    assert shares(choose(TOKENS, SOURCES, [1, 99], MixConfig(tokens=300), 0)) == {0: 100, 1: 200}
    assert shares(choose(TOKENS, SOURCES, [1, 1], MixConfig(tokens=10_000, weighted=True), 0)) == {0: 200, 1: 200}


def test_source_without_records_gives_its_share_to_the_others() -> None:
    assert len(choose(TOKENS[:100], SOURCES[:100], [1, 1], MixConfig(weighted=True), 0)) == 100


def test_order_and_choice_come_from_the_seed() -> None:
    config = MixConfig(weighted=True, shuffle=True)
    first = choose(TOKENS, SOURCES, [1, 1], config, 1)
    assert first.tolist() == choose(TOKENS, SOURCES, [1, 1], config, 1).tolist()
    assert first.tolist() != choose(TOKENS, SOURCES, [1, 1], config, 2).tolist()
    assert first.tolist() != sorted(first.tolist())


def test_tokens_are_estimated_or_counted(tmp_path: Path) -> None:
    record = Example(instruction="one two", response="three four five")
    assert token_counter(MixConfig())(record) == 5
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        token_counter(MixConfig(tokenizer=str(tmp_path / "none.json")))
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_counter(MixConfig(tokenizer=str(tmp_path / "tokenizer.json")))(record) == 5
