"""Low-rank differences mixed in each linear layer, as mixtures of LoRA adapters are (Self-MoE, arXiv 2406.12034).

    y = (Σ w_i) W x + Σ w_i B_i A_i x

for every matrix W of the FFN: each token has an FFN of its own, with the matrices `W + Σ w_i B_i A_i`. Where the
weights are the same for all tokens that is the merged FFN, so a merge loses nothing but the routing.

All A are one product and all B another, whatever was kept: what was not has weight 0. These are `R r (I + O)`
multiplications a token and matrix: for 7 experts of rank 16, 27% of SmolLM2's FFN; too many for hundreds of experts.

Shapes: T tokens, D hidden size, F FFN size, R routed experts, K kept per token, r rank; I and O of one matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xft.moe.delta import DeltaExperts
from xft.moe.routers import Routing


class AdapterExperts(DeltaExperts):
    """The differences of `DeltaExperts`, mixed before the activation instead of behind it."""

    def used(self, name: str, keep: int) -> float:
        """All: the differences are mixed."""
        return 1.0

    def mix(self, x_TD: Tensor, routing: Routing, ffn: nn.Module | None) -> Tensor:
        """Apply the FFN with each token's own matrices; biases are weighted as the matrices are."""
        assert ffn is not None
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):
            x_TD = x_TD.to(torch.get_autocast_dtype(device))  # once, and not for each product
        weights_TR = routing.routed_TK.new_zeros(len(x_TD), self.routed)
        weights_TR = weights_TR.scatter(1, routing.ids_TK, routing.routed_TK).to(x_TD.dtype)
        whole_T1 = (routing.shared_T + routing.routed_TK.sum(-1))[:, None].to(x_TD.dtype)
        hidden_TF = self.hidden(*(self._linear(ffn, name, x_TD, whole_T1, weights_TR) for name in self.inner))
        return self._linear(ffn, self.names[-1], hidden_TF, whole_T1, weights_TR)

    def _linear(self, ffn: nn.Module, name: str, x_TI: Tensor, whole_T1: Tensor, weights_TR: Tensor) -> Tensor:
        """Apply one matrix with the differences that each token has."""
        linear: Any = ffn.get_submodule(name)
        narrow_RrI, wide_ROr = self.get_parameter(f"{name}_a"), self.get_parameter(f"{name}_b")
        low_TRr = F.linear(x_TI, narrow_RrI.flatten(0, 1)).unflatten(1, narrow_RrI.shape[:2]) * weights_TR[..., None]
        difference_TO = F.linear(low_TRr.flatten(1), wide_ROr.transpose(0, 1).flatten(1))
        return whole_T1 * F.linear(x_TI, linear.weight, linear.bias) + difference_TO
