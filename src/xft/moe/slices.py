"""Slices of the data: tell routers without a gate which training example each token is of.

Shapes: B sequences, T = B times their length tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from xft.moe.layer import Router


def ungated(model: nn.Module) -> list[Router]:
    """Return the routers that have no gate."""
    return [module for module in model.modules() if isinstance(module, Router) and not module.rule.gated]


def assign_slices(routers: list[Router], numbers_B: Tensor, length: int) -> None:
    """Cut the data into as many slices as there are routed experts; say whose the next batch's tokens are.

    The batch has the rows with these numbers, of `length` tokens each. It holds for all training passes until the next
    call, since a backward pass may compute layers again.
    """
    for router in routers:
        router.slice_T = (numbers_B % router.routed).repeat_interleave(length)
