"""MERGE_METHODS: where the coefficients of the routed experts come from; and the mixing itself.

To add a method, register a `MergeMethod` here; `tests/merge/test_methods.py` then checks its laws.

Shapes: L layers, R routed experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xft.registry import Registry


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A way to choose coefficients."""

    initial: Callable[[int, int], Tensor]
    """Give the logits `a`, (L, R), that a merge starts from."""
    learned: bool
    """Train the logits on the language-model loss before mixing."""


MERGE_METHODS: Registry[MergeMethod] = Registry("merge method")
MERGE_METHODS.register("uniform")(MergeMethod(initial=torch.ones, learned=False))
MERGE_METHODS.register("learned")(MergeMethod(initial=torch.ones, learned=True))  # ones, as in the reference


def coefficients(logits_LR: Tensor) -> Tensor:
    """Return the routed experts' shares, (L, R); each row sums to 1."""
    return logits_LR.float().softmax(-1)


def mix(
    shared: Tensor | None, experts_R: Tensor, shares_R: Tensor, shared_weight: float, out: Tensor | None = None
) -> Tensor:
    """Return `λ W_shared + (1-λ) Σ c_i W_i` in fp32 for stacked experts (R, ...), one expert at a time (XFT, eq. 6).

    Without a shared expert λ is 0. `out`, when given, is overwritten and returned.
    """
    mixed = torch.empty(experts_R.shape[1:], dtype=torch.float32, device=shares_R.device) if out is None else out
    if shared is None:
        mixed.zero_()
        shared_weight = 0.0
    else:
        mixed.copy_(shared)
        mixed.mul_(shared_weight)
    for expert, share in zip(experts_R, shares_R.tolist(), strict=True):
        mixed.add_(expert.to(mixed.device), alpha=(1.0 - shared_weight) * share)
    return mixed
