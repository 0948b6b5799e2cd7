from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from xft.data.example import Example
from xft.data.prepare import write_examples
from xft.errors import CheckpointError, DataError
from xft.eval import heldout
from xft.eval.compare import read_losses
from xft.tune.dataset import encode

PAIRS = [Example(instruction=f"say {word}", response=word * n) for n, word in enumerate(["ab", "xyz", "q", "hello"], 1)]


def test_each_loss_is_the_models_own_mean_over_the_response(
    tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_examples(tmp_path / "pairs.jsonl", PAIRS)
    model = AutoModelForCausalLM.from_pretrained(tiny_dense).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_dense)
    monkeypatch.setattr(heldout, "BATCH_TOKENS", 120)  # several batches of unequal rows
    scores = heldout.heldout_losses(model, tokenizer, tmp_path / "pairs.jsonl", tmp_path, style="chat", label="t")
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    expected = []
    for pair in PAIRS:
        row = encode(pair, tokenizer, "chat", 1024)
        ids = torch.tensor([row.tokens])
        labels = ids.clone()
        labels[:, : row.prompt] = -100
        with torch.inference_mode():
            expected.append(float(model(ids, labels=labels).loss))
    assert [line["loss"] for line in lines] == pytest.approx(expected, abs=1e-4)
    assert math.isclose(scores["mean"], sum(expected) / 4, abs_tol=1e-4)
    assert scores["interval"][0] <= scores["mean"] <= scores["interval"][1]


def test_too_few_pairs_for_an_interval_and_losses_that_are_not_finite_are_errors(
    tiny_dense: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dense).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_dense)
    write_examples(tmp_path / "one.jsonl", PAIRS[:1])
    with pytest.raises(DataError, match=r"one.jsonl: 1 pair to score, and an interval needs 2"):
        heldout.heldout_losses(model, tokenizer, tmp_path / "one.jsonl", tmp_path, style="chat", label="t")
    write_examples(tmp_path / "pairs.jsonl", PAIRS)
    with torch.no_grad():
        model.lm_head.weight[5, 3] = torch.nan
    with pytest.raises(CheckpointError, match=r"t: the loss of pair \d is nan"):
        heldout.heldout_losses(model, tokenizer, tmp_path / "pairs.jsonl", tmp_path, style="chat", label="t")
    assert not (tmp_path / "scores.json").exists()


def test_each_loss_names_its_pair_whatever_is_left_out(tiny_dense: Path, tmp_path: Path) -> None:
    too_long = Example(instruction="say nothing" * 50, response="")
    write_examples(tmp_path / "pairs.jsonl", [PAIRS[0], too_long, *PAIRS[1:]])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_dense), AutoTokenizer.from_pretrained(tiny_dense)
    heldout.heldout_losses(
        model, tokenizer, tmp_path / "pairs.jsonl", tmp_path, style="chat", label="t", max_length=128
    )
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["pair"] for line in lines] == [pair.digest for pair in PAIRS]
    assert list(read_losses(tmp_path)) == [f"{pair.digest} 0" for pair in PAIRS]


def test_pairs_are_cut_where_told_and_scores_of_other_cuts_are_of_other_data(tiny_dense: Path, tmp_path: Path) -> None:
    long = Example(instruction="count", response="123 " * 300)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_dense), AutoTokenizer.from_pretrained(tiny_dense)
    scores = {}
    for name, pairs in (("long", [long, *PAIRS]), ("short", PAIRS)):
        write_examples(tmp_path / name, pairs)
        for length in (1024, 1100, 2048):
            scores[name, length] = heldout.heldout_losses(
                model, tokenizer, tmp_path / name, tmp_path, style="chat", label="t", max_length=length
            )
    assert [scores["long", length]["cut"] for length in (1024, 1100, 2048)] == [1, 1, 0]
    assert len({scores["long", length]["data_hash"] for length in (1024, 1100, 2048)}) == 3
    assert len({scores["short", length]["data_hash"] for length in (1024, 1100, 2048)}) == 1
