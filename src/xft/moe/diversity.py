"""Make copies of an FFN differ from the start: channels drawn anew (Drop-Upcycling), noise on the weights."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from xft.families import Family, Part


def diversified(
    tensor: Tensor, part: Part, family: Family, channels: int, *, redraw: float, noise: float, seed: tuple[int, int]
) -> Tensor:
    """Return an expert's own version of one tensor of the FFN, in its dtype.

    `redraw` is the share of the FFN's `channels` whose weights are drawn from a normal distribution with the mean and
    deviation of those that they replace (Drop-Upcycling, arXiv 2502.19261): the same channels in all matrices of an
    expert, where the authors' code draws other ones for each. `noise` is normal, in units of the tensor's deviation.
    `seed` is the layer's and the expert's.
    """
    changed = tensor.float().clone()
    generator = torch.Generator().manual_seed(_seed(*seed, part.stack))
    if noise:
        changed += noise * changed.std() * torch.randn(changed.shape, generator=generator)
    picked = _picked(channels, redraw, seed)
    inner = part.place < len(family.inner)
    if len(picked) and (inner or changed.dim() == 2):  # the last bias belongs to no channel
        if inner:
            for half in range(1 + family.fused):  # gate and up are two matrices, also where they are one tensor
                rows = picked + half * channels
                changed[rows] = _like(changed[rows], generator)
        else:
            changed[:, picked] = _like(changed[:, picked], generator)
    return changed.to(tensor.dtype)


def _picked(channels: int, share: float, seed: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(_seed(*seed))
    return torch.randperm(channels, generator=generator)[: int(share * channels)]


def _seed(*names: object) -> int:
    return zlib.crc32(repr(names).encode())


def _like(dropped: Tensor, generator: torch.Generator) -> Tensor:
    mean, deviation = dropped.mean(), dropped.std(correction=0)
    return mean + deviation * torch.randn(dropped.shape, generator=generator)
