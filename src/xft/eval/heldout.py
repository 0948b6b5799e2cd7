"""The held-out loss: nats a response token of each held-out pair, the measure with the least noise."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from xft.data.prepare import read_pairs
from xft.errors import CheckpointError, DataError
from xft.eval.evaluate import HELDOUT_TOKENS
from xft.eval.metrics import mean_interval
from xft.progress import track
from xft.stage import write_json
from xft.tune.dataset import Collator, encode_all
from xft.tune.loss import logits_of, response_hidden, token_losses

BATCH_TOKENS = 1024
"""Positions scored together, padding included; few enough that the allocator reuses a mixture's buffers (memory.py)."""


@torch.inference_mode()
def heldout_losses(
    model: Any,
    tokenizer: Any,
    pairs: Path,
    out: Path,
    *,
    style: str,
    label: str,
    max_length: int = HELDOUT_TOKENS,
) -> dict[str, Any]:
    """Write losses.jsonl and scores.json into `out`; return the scores. Pairs are cut at `max_length` tokens.

    Raises:
        DataError: too few pairs for an interval.
        CheckpointError: a loss that is not finite.
    """
    rows, counts = encode_all(read_pairs(pairs), tokenizer, style, max_length)
    if len(rows) < 2:
        raise DataError(f"{pairs}: {len(rows)} pair to score, and an interval needs 2; give more held-out pairs")
    collate = Collator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].tokens))
    losses: dict[int, float] = {}
    with track(label, len(rows)) as advance:
        while order:
            part = _fill(order, rows)
            batch = {name: tensor.to(model.device) for name, tensor in collate([rows[n] for n in part]).items()}
            labels = batch.pop("labels")
            hidden, targets = response_hidden(model, batch, labels)
            each = token_losses(hidden, targets, logits_of(model)).split([rows[n].trained for n in part])
            losses |= {number: float(values.mean()) for number, values in zip(part, each, strict=True)}
            advance(len(part))
    for number, loss in losses.items():
        if not math.isfinite(loss):
            raise CheckpointError(f"{label}: the loss of pair {number + 1} is {loss}; are the weights whole?")
    lines = [
        {"id": number, "pair": row.digest, "tokens": row.trained, "loss": losses[number]}
        for number, row in enumerate(rows)
    ]
    (out / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    values = [losses[number] for number in range(len(rows))]
    low, high = mean_interval(values)
    cut_at = max_length if counts["cut"] or counts["dropped"] else None
    scores = {
        "benchmark": "heldout", "data_hash": _digest(pairs, cut_at), "prompt": style, "n": len(rows),
        "mean": sum(values) / len(values), "interval": [low, high], **counts,
    }  # fmt: skip
    write_json(out / "scores.json", scores)
    return scores


def _digest(pairs: Path, cut_at: int | None) -> str:
    """Hash what is scored: instructions and responses, wherever they were read from, and where some were cut."""
    digest = hashlib.sha256(b"" if cut_at is None else str(cut_at).encode())
    for example in read_pairs(pairs):
        digest.update(json.dumps([example.instruction, example.response]).encode() + b"\n")
    return digest.hexdigest()


def _fill(order: list[int], rows: list[Any]) -> list[int]:
    """Take row numbers from the end of `order`, longest first, as many as fit a batch."""
    part = [order.pop()]
    longest = len(rows[part[0]].tokens)
    while order and (len(part) + 1) * longest <= BATCH_TOKENS:
        part.append(order.pop())
    return part
