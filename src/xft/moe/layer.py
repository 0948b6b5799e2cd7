"""The mixture layer that takes the place of an FFN: shared expert, router, stacked routed experts.

Shapes: B batch, S sequence, T = B*S tokens, D hidden size, F FFN size, R routed experts, K kept per token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xft.moe.routers import ROUTERS, Routing

NOISE_FLOOR = 0.01  # Shazeer et al.'s epsilon, as in the reference


class RouterOutput(NamedTuple):
    """What a router decided, and what the balance loss needs to know of it."""

    routing: Routing
    logits_TR: Tensor
    """The gate's own logits, without noise."""
    noisy_TR: Tensor
    """The logits that were routed."""
    noise_std_TR: Tensor | None
    """Standard deviation of the noise; None when there was none."""


class Router(nn.Module):
    """Score the routed experts and apply the routing rule, in fp32 whatever the autocast."""

    def __init__(self, hidden_size: int, routed: int, keep: int, *, rule: str, gate: str, noise: bool) -> None:
        super().__init__()
        self.route = ROUTERS[rule].route
        self.keep = keep
        self.hidden = nn.Linear(hidden_size, routed, bias=False) if gate == "mlp" else None
        self.scores = nn.Linear(routed if gate == "mlp" else hidden_size, routed, bias=False)
        self.noise = nn.Linear(hidden_size, routed, bias=False) if noise else None

    def forward(self, x_TD: Tensor) -> RouterOutput:
        """Route T tokens; noise is added in training only."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            h_T = x_TD if self.hidden is None else torch.tanh(F.linear(x_TD, self.hidden.weight.float()))
            logits_TR = F.linear(h_T, self.scores.weight.float())
            noisy_TR, std_TR = logits_TR, None
            if self.training and self.noise is not None:
                std_TR = F.softplus(F.linear(x_TD, self.noise.weight.float())) + NOISE_FLOOR
                noisy_TR = logits_TR + torch.randn_like(logits_TR) * std_TR
            return RouterOutput(self.route(noisy_TR, self.keep), logits_TR, noisy_TR, std_TR)


class _Permute(torch.autograd.Function):
    """Index rows by a permutation; the backward pass is a gather too, not a scatter-add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0][inverse], None, None


class Experts(nn.Module):
    """R gated FFNs in three stacked matrices, computed as grouped matrix products."""

    def __init__(self, hidden_size: int, ffn_size: int, routed: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(routed, ffn_size, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(routed, ffn_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(routed, hidden_size, ffn_size))
        self.activation = activation

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of the kept experts' outputs, (T, D)."""
        tokens, keep = ids_TK.shape
        device = x_TD.device.type
        # grouped_mm is not autocast-enabled and would cast its input to the weights' dtype: cast the weights instead.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.gate_proj.dtype
        expert_N = ids_TK.reshape(-1)  # N = T*K rows, one per kept expert
        order_N = expert_N.argsort(stable=True)
        inverse_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=x_TD.device))
        ends_R = torch.bincount(expert_N, minlength=len(self.gate_proj)).cumsum(0).to(torch.int32)

        x_ND = x_TD.to(dtype)[:, None, :].expand(-1, keep, -1).reshape(tokens * keep, -1)
        x_ND = _permute(x_ND, order_N, inverse_N)
        gate_NF = self._product(x_ND, self.gate_proj.to(dtype), ends_R)
        up_NF = self._product(x_ND, self.up_proj.to(dtype), ends_R)
        y_ND = self._product(self.activation(gate_NF) * up_NF, self.down_proj.to(dtype), ends_R)
        y_TKD = _permute(y_ND, inverse_N, order_N).view(tokens, keep, -1)
        return torch.bmm(weights_TK[:, None, :].to(dtype), y_TKD)[:, 0]

    @staticmethod
    def _product(x_NI: Tensor, weight_ROI: Tensor, ends_R: Tensor) -> Tensor:
        product: Tensor = F.grouped_mm(x_NI, weight_ROI.transpose(1, 2), offs=ends_R)
        return product


def _permute(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    permuted: Tensor = _Permute.apply(rows, order, inverse)  # type: ignore[no-untyped-call]
    return permuted


class MoELayer(nn.Module):
    """Shared expert plus routed experts, in the place of an FFN; `shared_expert` is the family's own FFN module."""

    def __init__(self, shared_expert: nn.Module, router: Router, experts: Experts) -> None:
        super().__init__()
        self.shared_expert = shared_expert
        self.router = router
        self.experts = experts

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Mix the experts' outputs; the shape and dtype are the FFN's."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        routing = self.router(x_TD).routing
        shared_TD = self.shared_expert(x_TD)
        routed_TD = self.experts(x_TD, routing.ids_TK, routing.routed_TK)
        mixed_TD: Tensor = shared_TD * routing.shared_T[:, None].to(shared_TD.dtype) + routed_TD.to(shared_TD.dtype)
        return mixed_TD.reshape(x_BSD.shape)
