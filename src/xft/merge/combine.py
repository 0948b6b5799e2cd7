"""How weighted experts become one matrix: plain sums, and sums of differences from the dense parent.

Each function takes one matrix of every expert and gives the merged matrix in fp32. E experts, the shared one first
where there is one; `weights_E` sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xft.moe.layouts.delta import LowRank

BLOCK = 1 << 18
"""Entries that are mixed at a time; of the powers of 2 from 16 to 21 the fastest on a core of an AMD EPYC."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What combinations of differences can be told."""

    density: float = 1.0
    """Share of each expert's difference that is kept."""
    scale: float = 1.0
    """Factor of the merged difference (task arithmetic's lambda)."""
    seed: int = 0
    """Of what is dropped at random; another one for each matrix."""


def linear(experts_E: Sequence[Tensor], weights_E: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `Σ w_i W_i`; `out`, when given, is overwritten and returned.

    Some rows at a time, each expert's after the other: the sum stays in the cache, and nothing is allocated anew.
    """
    like = experts_E.whole_OI if isinstance(experts_E, LowRank) else experts_E[0]
    mixed = torch.empty(like.shape, dtype=torch.float32, device=weights_E.device) if out is None else out
    if isinstance(experts_E, LowRank):
        experts_E.sum_into(mixed, weights_E)
        return mixed
    weight, *weights = weights_E.tolist()
    others = experts_E[1:]
    same = all(expert.dtype == mixed.dtype and expert.device == mixed.device for expert in others)
    blocks = row_blocks(mixed)
    held = torch.empty_like(blocks[0][:0] if same else blocks[0])
    for part, own, *rest in zip(blocks, *map(row_blocks, experts_E), strict=True):
        part.copy_(own).mul_(weight)
        for other, share in zip(rest, weights, strict=True):
            part.add_(other if same else held[: len(part)].copy_(other), alpha=share)
    return mixed


def inner(experts_E: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """Return the inner product of a matrix with each expert's, (E,), in the matrix's dtype and on its device."""
    if isinstance(experts_E, LowRank):
        return experts_E.inner(matrix)
    flat = matrix.reshape(-1)
    return torch.stack([torch.dot(flat, expert.reshape(-1).to(flat)) for expert in experts_E])


def row_blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor along its first dimension into views of about BLOCK entries."""
    blocks: tuple[Tensor, ...] = tensor.split(max(1, BLOCK * len(tensor) // max(tensor.numel(), 1)))
    return blocks


def task_arithmetic(experts_E: Sequence[Tensor], base: Tensor, weights_E: Tensor, options: Options) -> Tensor:
    """Return `W_0 + scale Σ w_i d_i` with the differences `d_i = W_i - W_0` (arXiv 2212.04089)."""
    return base.float() + options.scale * _summed(_differences(experts_E, base), weights_E)


def ties(experts_E: Sequence[Tensor], base: Tensor, weights_E: Tensor, options: Options) -> Tensor:
    """Keep the largest part of each difference, elect signs, and average what agrees (TIES, arXiv 2306.01708).

    The elected sign is that of the weighted sum, + for 0; the average is over the weights of those that agree.
    """
    kept = [_largest(difference, options.density) for difference in _differences(experts_E, base)]
    positive = _summed(iter(kept), weights_E) >= 0
    total, weight = torch.zeros_like(kept[0]), torch.zeros_like(kept[0])
    for difference, share in zip(kept, weights_E.tolist(), strict=True):
        agrees = torch.where(positive, difference > 0, difference < 0)
        total += share * difference * agrees
        weight += share * agrees
    return base.float() + options.scale * total / torch.where(weight < 1e-8, 1.0, weight)


def dare(experts_E: Sequence[Tensor], base: Tensor, weights_E: Tensor, options: Options) -> Tensor:
    """Drop entries of each difference at random and divide the rest by `density`, then add up (DARE, arXiv 2311.03099).

    Divided by the probability to stay, as its authors do, so that the expectation is task arithmetic's.
    """
    generator = torch.Generator().manual_seed(options.seed)

    def thinned() -> Iterator[Tensor]:
        for difference in _differences(experts_E, base):
            stays = torch.rand(difference.shape, generator=generator) < options.density
            yield difference * stays.to(difference.device) / options.density

    return base.float() + options.scale * _summed(thinned(), weights_E)


def _differences(experts_E: Sequence[Tensor], base: Tensor) -> Iterator[Tensor]:
    return (expert.float() - base.float() for expert in experts_E)


def _summed(matrices_E: Iterator[Tensor], weights_E: Tensor) -> Tensor:
    total: Tensor | None = None
    for matrix, weight in zip(matrices_E, weights_E.tolist(), strict=True):
        total = weight * matrix if total is None else total.add_(matrix, alpha=weight)
    assert total is not None
    return total


def _largest(matrix: Tensor, density: float) -> Tensor:
    """Return the matrix with all but the given share of its entries, the largest ones, set to zero."""
    keep = int(density * matrix.numel())
    if keep >= matrix.numel():
        return matrix
    places = matrix.abs().flatten().topk(keep).indices
    kept = torch.zeros_like(matrix).flatten()
    kept[places] = matrix.flatten()[places]
    return kept.view_as(matrix)
