"""The mixture layer that takes the place of an FFN: shared expert, router, stacked routed experts.

Shapes: B batch, S sequence, T = B*S tokens, D hidden size, F FFN size, R routed experts, K kept per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        self.rule = ROUTERS[rule]
        self.keep = keep
        self.hidden = nn.Linear(hidden_size, routed, bias=False) if gate == "mlp" else None
        self.scores = nn.Linear(routed if gate == "mlp" else hidden_size, routed, bias=False)
        self.noise = nn.Linear(hidden_size, routed, bias=False) if noise else None
        self.bias_R: Tensor | None
        self.register_buffer("bias_R", torch.zeros(routed) if self.rule.bias else None)

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
            bias = () if self.bias_R is None else (self.bias_R,)
            return RouterOutput(self.rule.route(noisy_TR, self.keep, *bias), logits_TR, noisy_TR, std_TR)


class _Dispatch(NamedTuple):
    """Rows of one layer sorted by expert; a token has K rows, one per kept expert, and each expert a few spare ones.

    N counts all of them. With the spare rows the experts' row counts repeat, from layer to layer and step to step, so
    that oneDNN finds the kernel for a product's shape in its cache instead of compiling it anew.
    """

    token_N: Tensor
    """The token of each row; a spare one repeats token 0, and nothing reads what becomes of it."""
    row_TK: Tensor
    """The row of each token's kept experts."""
    counts_R: list[int]
    """How many rows each expert has."""


def _dispatch(ids_TK: Tensor, routed: int) -> _Dispatch:
    expert_N, keep = ids_TK.reshape(-1), ids_TK.shape[1]
    used = torch.bincount(expert_N, minlength=routed).tolist()
    counts = [_with_spare(count) for count in used]
    shifts, sum_used, sum_counts = [], 0, 0
    for count_used, count in zip(used, counts, strict=True):
        shifts.append(sum_counts - sum_used)
        sum_used, sum_counts = sum_used + count_used, sum_counts + count
    order_N = expert_N.argsort(stable=True)
    places_N = torch.arange(len(order_N), device=ids_TK.device)
    places_N += torch.tensor(shifts, device=ids_TK.device)[expert_N[order_N]]
    row_N = torch.empty_like(order_N).scatter_(0, order_N, places_N)
    token_N = order_N.new_zeros(sum_counts).scatter_(0, places_N, order_N // keep)
    return _Dispatch(token_N, row_N.view_as(ids_TK), counts)


def _with_spare(count: int) -> int:
    """Round up to one of eight steps between powers of two."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


class _MixExperts(torch.autograd.Function):
    """Weighted sum of the kept experts' outputs, one expert after the other.

    Written by hand because autograd over stacked matrices casts and differentiates whole stacks: here an expert's cast
    matrices and its (M, F) intermediates, M being its rows, are used while they are in the cache, and a stack is never
    held in a second dtype. Saved for the backward pass are the gate and up projections and the experts' outputs;
    `activation(gate) * up` is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        gate_RFD: Tensor,
        up_RFD: Tensor,
        down_RDF: Tensor,
        dispatch: _Dispatch,
        activation: nn.Module,
        keep: bool,
    ) -> Tensor:
        total = len(dispatch.token_N)
        y_ND = x_TD.new_empty(total, x_TD.shape[1])
        gate_NF, up_NF = (x_TD.new_empty(total, gate_RFD.shape[1]) if keep else None for _ in range(2))
        for expert, rows in _slices(dispatch.counts_R):
            x_MD = x_TD.index_select(0, dispatch.token_N[rows])
            gate_MF = torch.mm(x_MD, gate_RFD[expert].to(x_TD.dtype).t(), out=_part(gate_NF, rows))
            up_MF = torch.mm(x_MD, up_RFD[expert].to(x_TD.dtype).t(), out=_part(up_NF, rows))
            torch.mm(activation(gate_MF) * up_MF, down_RDF[expert].to(x_TD.dtype).t(), out=y_ND[rows])
        if keep:
            ctx.save_for_backward(
                x_TD, weights_TK, gate_RFD, up_RFD, down_RDF, gate_NF, up_NF, y_ND, dispatch.token_N, dispatch.row_TK
            )
            ctx.counts_R, ctx.activation = dispatch.counts_R, activation
        return _sum_rows(y_ND, dispatch.row_TK, weights_TK.to(y_ND.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_TD,) = grads
        x_TD, weights_TK, gate_RFD, up_RFD, down_RDF, gate_NF, up_NF, y_ND, token_N, row_TK = ctx.saved_tensors
        weights_N = weights_TK.new_zeros(len(token_N)).scatter_(0, row_TK.view(-1), weights_TK.reshape(-1))
        dweights_N = torch.empty_like(weights_N)
        dx_ND = torch.empty_like(y_ND)
        dgate_RFD, dup_RFD, ddown_RDF = (
            torch.empty_like(weight) if needed else None
            for weight, needed in zip((gate_RFD, up_RFD, down_RDF), ctx.needs_input_grad[2:5], strict=True)
        )
        for expert, rows in _slices(ctx.counts_R):
            gate_MF, up_MF = (tensor_NF[rows].detach().requires_grad_() for tensor_NF in (gate_NF, up_NF))
            with torch.enable_grad():
                hidden_MF = ctx.activation(gate_MF) * up_MF
            x_MD, dy_MD = x_TD.index_select(0, token_N[rows]), dy_TD.index_select(0, token_N[rows])
            torch.sum(dy_MD * y_ND[rows], -1, dtype=dweights_N.dtype, out=dweights_N[rows])
            dy_MD = dy_MD * weights_N[rows, None].to(dy_MD.dtype)
            dhidden_MF = torch.mm(dy_MD, down_RDF[expert].to(dy_MD.dtype))
            dgate_MF, dup_MF = torch.autograd.grad(hidden_MF, (gate_MF, up_MF), dhidden_MF)
            torch.mm(dgate_MF, gate_RFD[expert].to(x_TD.dtype), out=dx_ND[rows])
            dx_ND[rows].addmm_(dup_MF, up_RFD[expert].to(x_TD.dtype))
            _put_product(dgate_RFD, expert, dgate_MF, x_MD)
            _put_product(dup_RFD, expert, dup_MF, x_MD)
            _put_product(ddown_RDF, expert, dy_MD, hidden_MF.detach())
        dx_TD = _sum_rows(dx_ND, row_TK, None)
        return dx_TD, dweights_N[row_TK], dgate_RFD, dup_RFD, ddown_RDF, None, None, None


def _slices(counts_R: list[int]) -> Iterator[tuple[int, slice]]:
    end = 0
    for expert, count in enumerate(counts_R):
        end += count
        yield expert, slice(end - count, end)


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _sum_rows(rows_ND: Tensor, row_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Sum each token's K rows, weighted; an embedding bag gathers and sums in one pass, in fp32 inside."""
    return F.embedding_bag(row_TK, rows_ND, per_sample_weights=weights_TK, mode="sum")


def _put_product(grad_ROI: Tensor | None, expert: int, dy_MO: Tensor, x_MI: Tensor) -> None:
    """Write an expert's weight gradient into the stack, cast to the stack's dtype."""
    if grad_ROI is None:
        return
    if grad_ROI.dtype == x_MI.dtype:
        torch.mm(dy_MO.t(), x_MI, out=grad_ROI[expert])
    else:
        grad_ROI[expert] = torch.mm(dy_MO.t(), x_MI)


class Experts(nn.Module):
    """R gated FFNs in three stacked matrices."""

    def __init__(self, hidden_size: int, ffn_size: int, routed: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(routed, ffn_size, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(routed, ffn_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(routed, hidden_size, ffn_size))
        self.activation = activation

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of the kept experts' outputs, (T, D)."""
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.gate_proj.dtype
        with torch.autocast(device, enabled=False):  # it would cast again what is cast here
            mixed_TD: Tensor = _MixExperts.apply(  # type: ignore[no-untyped-call]
                x_TD.to(dtype), weights_TK, self.gate_proj, self.up_proj, self.down_proj,
                _dispatch(ids_TK, len(self.gate_proj)), self.activation, torch.is_grad_enabled(),
            )  # fmt: skip
        return mixed_TD


class MoELayer(nn.Module):
    """Routed experts, and a shared one unless the router has none, in the place of an FFN.

    `shared_expert` is the family's own FFN module.
    """

    def __init__(self, shared_expert: nn.Module | None, router: Router, experts: Experts) -> None:
        super().__init__()
        self.shared_expert = shared_expert
        self.router = router
        self.experts = experts

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Mix the experts' outputs; the shape and dtype are the FFN's."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        routing = self.router(x_TD).routing
        mixed_TD: Tensor = self.experts(x_TD, routing.ids_TK, routing.routed_TK)
        if self.shared_expert is not None:
            shared_TD = self.shared_expert(x_TD)
            mixed_TD = shared_TD * routing.shared_T[:, None].to(shared_TD.dtype) + mixed_TD.to(shared_TD.dtype)
        return mixed_TD.reshape(x_BSD.shape)
