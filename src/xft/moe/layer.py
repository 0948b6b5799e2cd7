"""The mixture layer that takes the place of an FFN: shared expert, router, stacked routed experts.

Shapes: B batch, S sequence, T = B*S tokens, D hidden size, F FFN size, R routed experts, K kept per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from xft.families import Family
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
    """Standard deviation of the noise; None when there was none, or a bias too decides which experts are kept."""


class Router(nn.Module):
    """Score the routed experts and apply the routing rule, in fp32 whatever the autocast.

    Where the rule has no gate, `slice_T` says in training which slice of the data each of the T tokens is of.
    """

    slice_T: Tensor | None = None

    def __init__(
        self, hidden_size: int, routed: int, keep: int, *, rule: str, gate: str, noise: bool, parts: int = 1
    ) -> None:
        """Make a router; `parts` neighbouring experts make a whole FFN and get the same noise, to be kept together."""
        super().__init__()
        self.rule = ROUTERS[rule]
        self.routed, self.keep, self.parts = routed, keep, parts
        gated, two = self.rule.gated, gate == "mlp"
        self.hidden = nn.Linear(hidden_size, routed, bias=False) if gated and two else None
        self.scores = nn.Linear(routed if two else hidden_size, routed, bias=False) if gated else None
        self.noise = nn.Linear(hidden_size, routed, bias=False) if gated and noise else None
        self.bias_R: Tensor | None
        self.register_buffer("bias_R", torch.zeros(routed) if self.rule.bias else None)

    def forward(self, x_TD: Tensor) -> RouterOutput:
        """Route T tokens; noise is added in training only."""
        if self.scores is None:
            logits_TR = x_TD.new_zeros(len(x_TD), self.routed, dtype=torch.float32)
            routing = self.rule.route(logits_TR, self.keep, self.slice_T if self.training else None)
            return RouterOutput(routing, logits_TR, logits_TR, None)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            h_T = x_TD if self.hidden is None else torch.tanh(F.linear(x_TD, self.hidden.weight.float()))
            logits_TR = F.linear(h_T, self.scores.weight.float())
            noisy_TR, std_TR = logits_TR, None
            if self.training and self.noise is not None:
                std_TR = F.softplus(F.linear(x_TD, self.noise.weight.float())) + NOISE_FLOOR
                draws_TR = torch.randn_like(logits_TR[:, :: self.parts]).repeat_interleave(self.parts, dim=-1)
                noisy_TR = logits_TR + draws_TR[:, : logits_TR.shape[1]] * std_TR
            bias = () if self.bias_R is None else (self.bias_R,)
            routing = self.rule.route(noisy_TR, self.keep, *bias)
            return RouterOutput(routing, logits_TR, noisy_TR, None if self.rule.bias else std_TR)


class Dispatch(NamedTuple):
    """Rows of one layer sorted by expert; a token has K rows, one per kept expert, and an expert may have spare ones.

    N counts all of them.
    """

    token_N: Tensor
    """The token of each row; a spare one repeats token 0, and nothing reads what becomes of it."""
    row_TK: Tensor
    """The row of each token's kept experts."""
    counts_R: list[int]
    """How many rows each expert has."""


def dispatched(ids_TK: Tensor, routed: int, dtype: torch.dtype) -> Dispatch:
    """Sort the rows of kept experts by expert; products with them will be of this dtype.

    In 16 bits on a CPU experts get spare rows. With them row counts repeat, from layer to layer and step to step, so
    that oneDNN, which multiplies there, finds a kernel for each shape in its cache instead of compiling one anew.
    """
    expert_N, keep = ids_TK.reshape(-1), ids_TK.shape[1]
    used = torch.bincount(expert_N, minlength=routed).tolist()
    compiled = ids_TK.device.type == "cpu" and dtype.itemsize == 2
    counts = [_with_spare(count) if compiled else count for count in used]
    shifts, sum_used, sum_counts = [], 0, 0
    for count_used, count in zip(used, counts, strict=True):
        shifts.append(sum_counts - sum_used)
        sum_used, sum_counts = sum_used + count_used, sum_counts + count
    order_N = expert_N.argsort(stable=True)
    places_N = torch.arange(len(order_N), device=ids_TK.device)
    places_N += torch.tensor(shifts, device=ids_TK.device)[expert_N[order_N]]
    row_N = torch.empty_like(order_N).scatter_(0, order_N, places_N)
    token_N = order_N.new_zeros(sum_counts).scatter_(0, places_N, order_N // keep)
    return Dispatch(token_N, row_N.view_as(ids_TK), counts)


def _with_spare(count: int) -> int:
    """Round up to one of eight steps between powers of two."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


class _Form(NamedTuple):
    """How an FFN's hidden state follows from its inner projections, and which of the stacked tensors is what."""

    inner: int
    """Matrices from D: gate and up, or a single one."""
    bias: bool
    """Each matrix has a bias."""
    hidden: Callable[..., Tensor]
    """Takes the inner projections."""


class _MixExperts(torch.autograd.Function):
    """Weighted sum of the kept experts' outputs, one expert after the other.

    Written by hand because autograd over stacked matrices casts and differentiates whole stacks: here an expert's cast
    matrices and its (M, F) intermediates, M being its rows, are used while they are in the cache, and a stack is never
    held in a second dtype. Saved for the backward pass are the inner projections and the experts' outputs; the hidden
    state, such as `activation(gate) * up`, is computed again.

    `stacks` are the inner matrices (R, F, D), the outer one (R, D, F), and their biases in the same order.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights_TK: Tensor, dispatch: Dispatch, form: _Form, keep: bool, *stacks: Tensor
    ) -> Tensor:
        total, dtype = len(dispatch.token_N), x_TD.dtype
        matrices, biases = stacks[: form.inner + 1], stacks[form.inner + 1 :] or [None] * (form.inner + 1)
        y_ND = x_TD.new_empty(total, x_TD.shape[1])
        inner = [x_TD.new_empty(total, matrix.shape[1]) if keep else None for matrix in matrices[:-1]]
        for expert, rows in slices(dispatch.counts_R):
            x_MD = x_TD.index_select(0, dispatch.token_N[rows])
            *weights, down_DF = (matrix_R[expert].to(dtype) for matrix_R in matrices)
            *offsets, down_D = (None if bias_R is None else bias_R[expert].to(dtype) for bias_R in biases)
            parts = [
                _project(x_MD, weight, offset, _part(kept, rows))
                for weight, offset, kept in zip(weights, offsets, inner, strict=True)
            ]
            _project(form.hidden(*parts), down_DF, down_D, y_ND[rows])
        if keep:
            ctx.save_for_backward(x_TD, weights_TK, y_ND, dispatch.token_N, dispatch.row_TK, *inner, *stacks)
            ctx.counts_R, ctx.form = dispatch.counts_R, form
        return sum_rows(y_ND, dispatch.row_TK, weights_TK.to(y_ND.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_TD,), form = grads, ctx.form
        x_TD, weights_TK, y_ND, token_N, row_TK, *others = ctx.saved_tensors
        inner, stacks = others[: form.inner], others[form.inner :]
        *weights, down_RDF = stacks[: form.inner + 1]
        weights_N = weights_TK.new_zeros(len(token_N)).scatter_(0, row_TK.view(-1), weights_TK.reshape(-1))
        dweights_N = torch.empty_like(weights_N)
        dx_ND = torch.empty_like(y_ND)
        needed = ctx.needs_input_grad[5:]
        dstacks = [torch.empty_like(stack) if wanted else None for stack, wanted in zip(stacks, needed, strict=True)]
        dmatrices, dbiases = dstacks[: form.inner + 1], dstacks[form.inner + 1 :]
        for expert, rows in slices(ctx.counts_R):
            parts = [tensor_NF[rows].detach().requires_grad_() for tensor_NF in inner]
            with torch.enable_grad():
                hidden_MF = form.hidden(*parts)
            x_MD, dy_MD = x_TD.index_select(0, token_N[rows]), dy_TD.index_select(0, token_N[rows])
            torch.sum(dy_MD * y_ND[rows], -1, dtype=dweights_N.dtype, out=dweights_N[rows])
            dy_MD = dy_MD * weights_N[rows, None].to(dy_MD.dtype)
            dhidden_MF = torch.mm(dy_MD, down_RDF[expert].to(dy_MD.dtype))
            dparts = torch.autograd.grad(hidden_MF, parts, dhidden_MF)
            for number, (dpart_MF, weight_RFD) in enumerate(zip(dparts, weights, strict=True)):
                if number == 0:
                    torch.mm(dpart_MF, weight_RFD[expert].to(x_TD.dtype), out=dx_ND[rows])
                else:
                    dx_ND[rows].addmm_(dpart_MF, weight_RFD[expert].to(x_TD.dtype))
                _put_product(dmatrices[number], expert, dpart_MF, x_MD)
            _put_product(dmatrices[-1], expert, dy_MD, hidden_MF.detach())
            for dbias_RO, dout_MO in zip(dbiases, (*dparts, dy_MD) if dbiases else (), strict=True):
                if dbias_RO is not None:
                    dbias_RO[expert] = dout_MO.sum(0)
        return sum_rows(dx_ND, row_TK, None), dweights_N[row_TK], None, None, None, *dstacks


def _project(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, out: Tensor | None) -> Tensor:
    if bias_O is None:
        return torch.mm(x_MI, weight_OI.t(), out=out)
    return torch.addmm(bias_O, x_MI, weight_OI.t(), out=out)


def slices(counts_R: list[int]) -> Iterator[tuple[int, slice]]:
    """Give each expert and its rows."""
    end = 0
    for expert, count in enumerate(counts_R):
        end += count
        yield expert, slice(end - count, end)


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def sum_rows(rows_ND: Tensor, row_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
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


class RoutedExperts(nn.Module, ABC):
    """What every layout of routed experts has: a family's FFN, its activation, and how its hidden state is formed."""

    def __init__(self, ffn: nn.Module, family: Family, routed: int) -> None:
        """Take the names and the activation from the family's own module."""
        super().__init__()
        self.routed, self.names, self.inner = routed, family.projections, family.inner
        modules = dict(ffn.named_children())
        if family.activation not in modules:
            raise family.wrong("activation", f"{type(ffn).__name__} has no such module, but {', '.join(modules)}")
        self.activation = modules[family.activation]
        self.hidden = self._fused if family.fused else self._hidden

    def used(self, name: str, keep: int) -> float:
        """Return which share of a parameter a token is multiplied with: that of the experts that it keeps."""
        return keep / self.routed

    @abstractmethod
    def initialise(self, std: float) -> None:
        """Fill the parameters of a model that is made from its config alone; those already loaded stay."""

    @abstractmethod
    def mix(self, x_TD: Tensor, routing: Routing, ffn: nn.Module | None) -> Tensor:
        """Return the weighted sum of all experts' outputs, (T, D); `ffn` is held beside the routed ones."""

    def _hidden(self, first_MF: Tensor, *up_MF: Tensor) -> Tensor:
        """Apply the activation to the gate, if any, or to the only projection."""
        hidden_MF: Tensor = self.activation(first_MF)
        return hidden_MF * up_MF[0] if up_MF else hidden_MF

    def _fused(self, gate_up: Tensor) -> Tensor:
        """Take gate and up out of one projection."""
        return self._hidden(*gate_up.chunk(2, dim=-1))


class Experts(RoutedExperts):
    """R FFNs of a family, gated or not, in stacked matrices and biases called as the family calls them."""

    def __init__(self, ffn: nn.Module, family: Family, routed: int, parts: int = 1) -> None:
        """Take shapes and biases from the family's own module; the experts are not filled.

        Expert i is a version of part i mod `parts` of a whole FFN.
        """
        super().__init__(ffn, family, routed)
        self.parts = parts
        linears = [ffn.get_submodule(name) for name in self.names]
        biased = all(linear.bias is not None for linear in linears)
        for name, linear in zip(self.names, linears, strict=True):
            weight: Tensor = linear.weight  # type: ignore[assignment]
            self.register_parameter(name, nn.Parameter(weight.new_empty(routed, *weight.shape)))
            if biased:
                self.register_parameter(f"{name}_bias", nn.Parameter(weight.new_empty(routed, weight.shape[0])))
        self.form = _Form(len(family.inner), biased, self.hidden)

    def initialise(self, std: float) -> None:
        """Draw from N(0, std²)."""
        for stack in self.parameters():
            init.normal_(stack, mean=0.0, std=std)

    def mix(self, x_TD: Tensor, routing: Routing, ffn: nn.Module | None) -> Tensor:
        """Add the shared expert's output, if there is one, to the routed ones'."""
        mixed_TD: Tensor = self(x_TD, routing.ids_TK, routing.routed_TK)
        if ffn is None:
            return mixed_TD
        shared_TD: Tensor = ffn(x_TD)
        return shared_TD * routing.shared_T[:, None].to(shared_TD.dtype) + mixed_TD.to(shared_TD.dtype)

    def stacks(self) -> list[Tensor]:
        """Return the matrices, then the biases, each in the family's order."""
        biases = [f"{name}_bias" for name in self.names] if self.form.bias else []
        return [getattr(self, name) for name in (*self.names, *biases)]

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of the kept experts' outputs, (T, D)."""
        device, stacks = x_TD.device.type, self.stacks()
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else stacks[0].dtype
        with torch.autocast(device, enabled=False):  # it would cast again what is cast here
            mixed_TD: Tensor = _MixExperts.apply(  # type: ignore[no-untyped-call]
                x_TD.to(dtype),
                weights_TK,
                dispatched(ids_TK, self.routed, dtype),
                self.form,
                torch.is_grad_enabled(),
                *stacks,
            )
        return mixed_TD


class MoELayer(nn.Module):
    """Routed experts in the place of an FFN, and the FFN itself as `shared_expert`, where it is needed."""

    router: Router

    def __init__(
        self,
        shared_expert: nn.Module | None,
        router: Router,
        experts: RoutedExperts,
        *,
        tied: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Make a layer; a `tied` router is a module of the trunk, which all layers call and none has registered.

        `dropout` is that of the FFN's output.
        """
        super().__init__()
        self.shared_expert, self.dropout = shared_expert, dropout
        if tied:
            object.__setattr__(self, "router", router)  # its weights have one name, in the model and its checkpoint
        else:
            self.router = router
        self.experts = experts

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Mix the experts' outputs; the shape and dtype are the FFN's."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        y_TD = self.experts.mix(x_TD, self.router(x_TD).routing, self.shared_expert)
        return F.dropout(y_TD, self.dropout, self.training).reshape(x_BSD.shape)
