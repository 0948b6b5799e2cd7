"""Experts as low-rank differences from one trained FFN (DeRS, CVPR 2025), computed so that its matrices are used once.

    h_i = act(g + δg_i) ⊙ (u + δu_i),   y = W_down (Σ w_i h_i) + Σ w_i B_i A_i h_i

g and u are the FFN's own projections, δ·_i = B_i A_i x. The FFN without a difference is the shared expert.

Shapes: T tokens, D hidden size, F FFN size, R routed experts, K kept per token, r rank, N rows, M rows of one expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from xft.families import Family
from xft.moe.layer import Dispatch, RoutedExperts, dispatched, slices
from xft.moe.routers import Routing


class DeltaExperts(RoutedExperts):
    """R low-rank differences for each matrix of a family's FFN: `NAME_a` (R, r, in) and `NAME_b` (R, out, r)."""

    def __init__(self, ffn: nn.Module, family: Family, routed: int, rank: int) -> None:
        """Take shapes from the family's own module; the differences are not filled."""
        super().__init__(ffn, family, routed)
        for name in self.names:
            weight: Tensor = ffn.get_submodule(name).weight  # type: ignore[assignment]
            wide, narrow = weight.shape
            self.register_parameter(f"{name}_a", nn.Parameter(weight.new_empty(routed, rank, narrow)))
            self.register_parameter(f"{name}_b", nn.Parameter(weight.new_empty(routed, wide, rank)))

    def initialise(self, std: float) -> None:
        """Draw A as `nn.Linear` does; B is zero."""
        for name, stack in self.named_parameters():
            if name.endswith("_b"):
                init.zeros_(stack)
            else:
                init.uniform_(stack, -(stack.shape[-1] ** -0.5), stack.shape[-1] ** -0.5)

    def mix(self, x_TD: Tensor, routing: Routing, ffn: nn.Module | None) -> Tensor:
        """Mix hidden states, then apply the FFN's last matrix once; its bias is weighted as the experts are."""
        assert ffn is not None
        inner = [ffn.get_submodule(name)(x_TD) for name in self.inner]
        dtype = inner[0].dtype
        arguments = (x_TD.to(dtype), routing.shared_T.to(dtype), routing.routed_TK.to(dtype))
        dispatch = dispatched(routing.ids_TK, self.routed)
        with torch.autocast(x_TD.device.type, enabled=False):
            if torch.is_grad_enabled():  # the experts' own states are made again: only the FFN's are kept
                hidden_TF, extra_TD = checkpoint(self._mixed, dispatch, *arguments, *inner, use_reentrant=False)
            else:
                hidden_TF, extra_TD = self._mixed(dispatch, *arguments, *inner)
        down: Any = ffn.get_submodule(self.names[-1])
        mixed_TD: Tensor = F.linear(hidden_TF, down.weight) + extra_TD
        if down.bias is not None:
            weights_T1 = (routing.shared_T + routing.routed_TK.sum(-1))[:, None]
            mixed_TD = mixed_TD + (weights_T1 * down.bias.float()).to(mixed_TD.dtype)
        return mixed_TD

    def _mixed(
        self, dispatch: Dispatch, x_TD: Tensor, shared_T: Tensor, weights_TK: Tensor, *inner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed hidden states, (T, F), and what the experts' last differences add, (T, D)."""
        weights_N = weights_TK.new_zeros(len(dispatch.token_N))
        weights_N = weights_N.scatter(0, dispatch.row_TK.view(-1), weights_TK.reshape(-1))
        mixed_TF = shared_T[:, None] * self.hidden(*inner)
        extra_TD = torch.zeros_like(x_TD)
        for expert, rows in slices(dispatch.counts_R):
            token_M, weights_M1 = dispatch.token_N[rows], weights_N[rows, None]
            x_MD = x_TD.index_select(0, token_M)
            parts = [
                whole.index_select(0, token_M) + self._difference(name, expert, x_MD)
                for name, whole in zip(self.inner, inner, strict=True)
            ]
            hidden_MF = weights_M1 * self.hidden(*parts)
            mixed_TF = mixed_TF.index_add(0, token_M, hidden_MF)
            extra_TD = extra_TD.index_add(0, token_M, self._difference(self.names[-1], expert, hidden_MF))
        return mixed_TF, extra_TD

    def _difference(self, name: str, expert: int, x_MI: Tensor) -> Tensor:
        """Return `B_i A_i x`."""
        narrow_rI = self.get_parameter(f"{name}_a")[expert].to(x_MI.dtype)
        wide_Or = self.get_parameter(f"{name}_b")[expert].to(x_MI.dtype)
        return (x_MI @ narrow_rI.t()) @ wide_Or.t()
