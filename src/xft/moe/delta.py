"""Experts as low-rank differences from one trained FFN (DeRS, CVPR 2025), computed so that its matrices are used once.

    h_i = act(g + δg_i) ⊙ (u + δu_i),   y = W_down (Σ w_i h_i) + Σ w_i B_i A_i h_i

g and u are the FFN's own projections, δ·_i = B_i A_i x. The FFN without a difference is the shared expert, where the
router has one.

Shapes: T tokens, D hidden size, F FFN size, R routed experts, K kept per token, E = K + 1 with the shared one, else K,
r rank, I inner matrices, N rows, M rows of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from xft.families import Family
from xft.moe.layer import Dispatch, RoutedExperts, dispatched, slices, sum_rows
from xft.moe.routers import Routing


class DeltaExperts(RoutedExperts):
    """R low-rank differences for each matrix of a family's FFN: `NAME_a` (R, r, in) and `NAME_b` (R, out, r)."""

    def __init__(self, ffn: nn.Module, family: Family, routed: int, rank: int, *, shared: bool = True) -> None:
        """Take shapes from the family's own module; the differences are not filled."""
        super().__init__(ffn, family, routed)
        self.shared = shared
        for name in self.names:
            weight: Tensor = ffn.get_submodule(name).weight  # type: ignore[assignment]
            wide, narrow = weight.shape
            self.register_parameter(f"{name}_a", nn.Parameter(weight.new_empty(routed, rank, narrow)))
            self.register_parameter(f"{name}_b", nn.Parameter(weight.new_empty(routed, wide, rank)))

    def used(self, name: str, keep: int) -> float:
        """All experts' first A and last B are applied at once, of the others those of the experts that are kept."""
        apart = f"{self.names[-1]}_a", *(f"{inner}_b" for inner in self.inner)
        return super().used(name, keep) if name in apart else 1.0

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
        narrow_RIrD = torch.stack([self.get_parameter(f"{name}_a") for name in self.inner], 1)
        low_TRIr = F.linear(x_TD, narrow_RIrD.flatten(0, 2)).unflatten(1, narrow_RIrD.shape[:3])
        low_TKIr = low_TRIr.gather(1, _spread(routing.ids_TK, low_TRIr))
        weights_TE, ids_TE = routing.routed_TK, routing.ids_TK
        if self.shared:
            weights_TE = torch.cat([weights_TE, routing.shared_T[:, None]], 1)
            ids_TE = F.pad(ids_TE, (0, 1), value=self.routed)
        with torch.autocast(x_TD.device.type, enabled=False):
            mixed_TF, last_TKr = _MixDeltas.apply(  # type: ignore[no-untyped-call]
                self.hidden, dispatched(ids_TE, self.routed + self.shared, inner[0].dtype), weights_TE,
                low_TKIr.to(inner[0].dtype),
                self.get_parameter(f"{self.names[-1]}_a"), *inner,
                *(self.get_parameter(f"{name}_b") for name in self.inner),
            )  # fmt: skip
        last_TRr = last_TKr.new_zeros(len(x_TD), self.routed, last_TKr.shape[2])
        last_TRr = last_TRr.scatter(1, _spread(routing.ids_TK, last_TRr), last_TKr)
        down: Any = ffn.get_submodule(self.names[-1])
        wide_DRr = self.get_parameter(f"{self.names[-1]}_b").transpose(0, 1)
        mixed_TD: Tensor = F.linear(mixed_TF, down.weight) + F.linear(last_TRr.flatten(1), wide_DRr.flatten(1))
        if down.bias is not None:
            mixed_TD = mixed_TD + (weights_TE.sum(-1, keepdim=True) * down.bias).to(mixed_TD.dtype)
        return mixed_TD


class _MixDeltas(torch.autograd.Function):
    """Weighted sums of the experts' hidden states, (T, F), and each kept expert's weighted `A_i h_i`, (T, K, r).

    Written by hand because passes over all rows, (N, F), are most of what a step costs beside SFT's, and autograd makes
    many more: here the product that makes a difference adds it in place, and weights are applied to what is narrow, or
    while rows are summed. Saved are the FFN's projections; the experts' own are made again in the backward pass.

    `dispatch` has the shared expert, if any, as expert R, without a difference. `others` are the FFN's I projections,
    (T, F), and for each one the stack of B, (R, F, r); `narrow_RrF` is the last matrix's A.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Callable[..., Tensor], dispatch: Dispatch, weights_TE: Tensor, low_TKIr: Tensor,
        narrow_RrF: Tensor, *others: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        token_N, row_TE, counts = dispatch
        dtype = low_TKIr.dtype
        hidden_NF = hidden(*_projections(dispatch, low_TKIr, *others))
        last_Nr = low_TKIr.new_empty(len(token_N), narrow_RrF.shape[1])
        for rows, narrow_rF in _experts(counts, narrow_RrF.to(dtype)):
            torch.mm(hidden_NF[rows], narrow_rF.t(), out=last_Nr[rows])
        ctx.save_for_backward(weights_TE, low_TKIr, narrow_RrF, token_N, row_TE, *others)
        ctx.counts, ctx.hidden = counts, hidden
        weights_TE, keep = weights_TE.to(dtype), low_TKIr.shape[1]
        return sum_rows(hidden_NF, row_TE, weights_TE), last_Nr[row_TE[:, :keep]] * weights_TE[:, :keep, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmixed_TF: Tensor, dlast_TKr: Tensor) -> tuple[Tensor | None, ...]:
        weights_TE, low_TKIr, narrow_RrF, token_N, row_TE, *others = ctx.saved_tensors
        counts, dtype, stacks = ctx.counts, low_TKIr.dtype, others[len(others) // 2 :]
        row_TK = row_TE[:, : low_TKIr.shape[1]]
        parts = [part.requires_grad_() for part in _projections(Dispatch(token_N, row_TE, counts), low_TKIr, *others)]
        with torch.enable_grad():
            hidden_NF = ctx.hidden(*parts)
        plain_NF, dhidden_NF = hidden_NF.detach(), dmixed_TF.index_select(0, token_N)
        kept_TK1 = weights_TE[:, : low_TKIr.shape[1], None].to(dtype)
        dlast_Nr, weighted_Nr = (_as_rows(each, row_TK, token_N) for each in (dlast_TKr, dlast_TKr * kept_TK1))
        dnarrow_RrF = torch.zeros_like(narrow_RrF)
        for rows, narrow_rF, dnarrow_rF in _experts(counts, narrow_RrF.to(dtype), dnarrow_RrF):
            dhidden_NF[rows].addmm_(dlast_Nr[rows], narrow_rF)
            dnarrow_rF.copy_(torch.mm(weighted_Nr[rows].t(), plain_NF[rows]))
        dweights_N = torch.sum(plain_NF * dhidden_NF, -1, dtype=weights_TE.dtype)
        dparts = torch.autograd.grad(hidden_NF, parts, dhidden_NF)
        low_NIr = _as_rows(low_TKIr * kept_TK1[..., None], row_TK, token_N)
        dlow_NIr, dstacks = torch.empty_like(low_NIr), [torch.zeros_like(stack) for stack in stacks]
        for number, (dpart_NF, stack, dstack) in enumerate(zip(dparts, stacks, dstacks, strict=True)):
            for rows, wide_Fr, dwide_Fr in _experts(counts, stack.to(dtype), dstack):
                torch.mm(dpart_NF[rows], wide_Fr, out=dlow_NIr[rows, number])
                dwide_Fr.copy_(torch.mm(low_NIr[rows, number].t(), dpart_NF[rows]).t())
        dinner = [sum_rows(dpart_NF, row_TE, weights_TE.to(dtype)) for dpart_NF in dparts]
        dlow_TKIr = dlow_NIr[row_TK] * kept_TK1[..., None]
        return None, None, dweights_N[row_TE], dlow_TKIr, dnarrow_RrF, *dinner, *dstacks


def _projections(dispatch: Dispatch, low_TKIr: Tensor, *others: Tensor) -> list[Tensor]:
    """Return all rows' own projections: the FFN's, and the experts' differences."""
    inner, stacks = others[: len(others) // 2], others[len(others) // 2 :]
    parts = [whole_TF.index_select(0, dispatch.token_N) for whole_TF in inner]
    low_NIr = _as_rows(low_TKIr, dispatch.row_TK[:, : low_TKIr.shape[1]], dispatch.token_N)
    for number, (part_NF, stack) in enumerate(zip(parts, stacks, strict=True)):
        for rows, wide_Fr in _experts(dispatch.counts_R, stack.to(low_TKIr.dtype)):
            part_NF[rows].addmm_(low_NIr[rows, number], wide_Fr.t())
    return parts


def _experts(counts: list[int], *stacks: Tensor) -> Iterator[tuple[Any, ...]]:
    """Give each routed expert's rows, and what it has of each stack; a shared expert, which is last, has nothing."""
    for expert, rows in slices(counts[: len(stacks[0])]):
        yield rows, *(stack[expert] for stack in stacks)


def _as_rows(values_TK: Tensor, row_TK: Tensor, token_N: Tensor) -> Tensor:
    """Put each kept expert's values into its row, zeros into all others."""
    values_N = values_TK.new_zeros(len(token_N), *values_TK.shape[2:])
    values_N[row_TK] = values_TK
    return values_N


def _spread(ids_TK: Tensor, values_TR: Tensor) -> Tensor:
    """Give the kept experts' numbers the trailing dimensions of their values."""
    shape = values_TR.shape[2:]
    return ids_TK.view(*ids_TK.shape, *[1] * len(shape)).expand(*ids_TK.shape, *shape)
