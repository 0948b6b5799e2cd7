"""Pairs to token rows: prompt masked out, over-long rows cut and counted, order fixed by the seed."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xft.data.example import Example
from xft.errors import DataError
from xft.prompts import PROMPTS

IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One pair as tokens; the first `prompt` of them are not trained."""

    tokens: list[int]
    prompt: int
    cut: bool
    number: int = 0
    """Its place among the pairs, by which data are cut into slices."""
    digest: str = ""
    """The pair's."""

    @property
    def trained(self) -> int:
        """Return the number of trained positions."""
        return len(self.tokens) - self.prompt


def encode(example: Example, tokenizer: Any, style: str, max_length: int) -> Row:
    """Return a pair's tokens in a prompt style, cut at `max_length`; where only prompt is left, `trained` is <= 0."""
    prompt = PROMPTS[style]
    before = tokenizer.encode(prompt.before(tokenizer, example.instruction), add_special_tokens=False)
    after = tokenizer.encode(example.response + prompt.after(tokenizer), add_special_tokens=False)
    return Row(
        tokens=(before + after)[:max_length], prompt=len(before), cut=len(before) + len(after) > max_length,
        digest=example.digest,
    )  # fmt: skip


def encode_all(
    examples: Iterable[Example], tokenizer: Any, style: str, max_length: int
) -> tuple[list[Row], dict[str, int]]:
    """Return all rows that have a trained position, and how many were cut or dropped; print it where some were.

    Raises:
        DataError: no row is left.
    """
    rows = [encode(example, tokenizer, style, max_length) for example in examples]
    kept = [replace(row, number=number) for number, row in enumerate(row for row in rows if row.trained > 0)]
    if not kept:
        raise DataError(f"no example has a response within max_length={max_length} tokens; raise it")
    counts = {"rows": len(kept), "cut": sum(row.cut for row in kept), "dropped": len(rows) - len(kept)}
    if (counts["cut"] or counts["dropped"]) and os.environ.get("RANK", "0") == "0":
        print(
            f"  {counts['cut']} of {len(rows)} pairs are cut at max_length={max_length} tokens, "
            f"{counts['dropped']} whose prompt alone is longer are left out",
            file=sys.stderr,
        )
    return kept, counts


def training_order(rows: list[Row], *, epochs: int, batch: int, seed: int) -> list[int]:
    """Return row numbers for all epochs: each epoch shuffled anew, the rows of one batch sorted by length.

    Sorting inside a batch saves padding in its micro-batches and changes nothing else. Batches run on across epochs,
    so only the last one may be short.
    """
    generator = random.Random(seed)
    order: list[int] = []
    for _ in range(epochs):
        epoch = list(range(len(rows)))
        generator.shuffle(epoch)
        order += epoch
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [number for part in batches for number in sorted(part, key=lambda n: len(rows[n].tokens))]


class OrderedRows(Dataset[Row]):
    """Rows in training order."""

    def __init__(self, rows: list[Row], order: list[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Row:
        return self.rows[self.order[index]]


@dataclass(frozen=True)
class Collator:
    """Pad rows on the right to a rectangle."""

    pad: int
    numbered: bool = False
    """Tell the rows' numbers too, as `numbers` (B,)."""

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and labels, (B, S); prompt and padding carry the ignored label."""
        length = max(len(row.tokens) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        for number, row in enumerate(rows):
            tokens = torch.tensor(row.tokens)
            ids[number, : len(tokens)] = tokens
            mask[number, : len(tokens)] = 1
            labels[number, row.prompt : len(tokens)] = tokens[row.prompt :]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return batch | ({"numbers": torch.tensor([row.number for row in rows])} if self.numbered else {})
