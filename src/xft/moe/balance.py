"""Watch the routers: record their outputs, form balance losses, sum up expert health.

To add a balance loss, register a function here; `tests/moe/test_balance.py` then checks its laws.

Shapes: B sequences, S positions, T = B*S tokens, R routed experts, K kept per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xft.moe.layer import Router, RouterOutput
from xft.registry import Registry


@contextmanager
def record_routers(model: nn.Module) -> Iterator[list[RouterOutput]]:
    """Collect every router's output of the forward passes inside the block, in layer order.

    The hooks are gone when the block ends, so that recomputation in the backward pass is not recorded.
    """
    outputs: list[RouterOutput] = []
    routers = [module for module in model.modules() if isinstance(module, Router)]
    handles = [
        router.register_forward_hook(lambda _module, _args, output: outputs.append(output)) for router in routers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


BALANCE_LOSSES: Registry[Callable[[RouterOutput, Tensor], Tensor]] = Registry("balance loss")
"""Each takes one layer's output and the mask (B, S) of the tokens that count."""


@BALANCE_LOSSES.register("cv")
def cv(output: RouterOutput, mask_BS: Tensor) -> Tensor:
    """Return `CV²(importance) + CV²(load)` (Shazeer et al., arXiv 1701.06538, as in the reference); 0 at best.

    Importance sums the kept scores per expert. Load is Shazeer et al.'s smooth estimate under gate noise (their
    comparison of the noisy logits; the reference compares the noise alone), hard counts without noise.
    """
    mask_T = mask_BS.reshape(-1)
    return _cv_squared(_importance(output, mask_T)) + _cv_squared(_load(output, mask_T))


@BALANCE_LOSSES.register("switch")
def switch(output: RouterOutput, mask_BS: Tensor) -> Tensor:
    """Return `Σ f_i P_i` over all tokens of the batch (Switch, arXiv 2101.03961; DeepSeekMoE, eq. 12-14); 1 at best."""
    return _agreement(output, mask_BS.reshape(1, -1)).mean()


@BALANCE_LOSSES.register("sequence")
def sequence(output: RouterOutput, mask_BS: Tensor) -> Tensor:
    """Return the mean of each sequence's own `Σ f_i P_i` (DeepSeek-V2 and V3); 1 at best."""
    return _agreement(output, mask_BS).mean()


def balance_loss(outputs: list[RouterOutput], mask_BS: Tensor, kind: str = "cv") -> Tensor:
    """Return a balance loss, the mean over layers; only tokens in `mask_BS` count."""
    return torch.stack([BALANCE_LOSSES[kind](output, mask_BS) for output in outputs]).mean()


def z_loss(outputs: list[RouterOutput], mask_BS: Tensor) -> Tensor:
    """Return the mean of `logsumexp(logits)²` over layers and the tokens in `mask_BS` (ST-MoE, arXiv 2202.08906)."""
    mask_T = mask_BS.reshape(-1)
    terms = [(output.logits_TR.logsumexp(-1).square() * mask_T).sum() / mask_T.sum().clamp(min=1) for output in outputs]
    return torch.stack(terms).mean()


def _agreement(output: RouterOutput, mask_BS: Tensor) -> Tensor:
    """Return `Σ f_i P_i` of each row, (B,): f_i counts choices of expert i (1 at balance), P_i is its mean score."""
    ids_TK, scores_TR = output.routing.ids_TK, output.routing.scores_TR
    routed, keep = scores_TR.shape[1], ids_TK.shape[1]
    chosen_BSR = torch.zeros_like(scores_TR).scatter(1, ids_TK, 1.0).view(*mask_BS.shape, routed)
    mask_BS1 = mask_BS[..., None].to(scores_TR.dtype)
    tokens_B1 = mask_BS1.sum(1).clamp(min=1)
    load_BR = (chosen_BSR * mask_BS1).sum(1) * routed / (keep * tokens_B1)
    mean_BR = (scores_TR.view(*mask_BS.shape, routed) * mask_BS1).sum(1) / tokens_B1
    return (load_BR * mean_BR).sum(-1)


def _importance(output: RouterOutput, mask_T: Tensor) -> Tensor:
    ids_TK, scores_TR = output.routing.ids_TK, output.routing.scores_TR
    kept_TR = torch.zeros_like(scores_TR).scatter(1, ids_TK, scores_TR.gather(1, ids_TK))
    return (kept_TR * mask_T[:, None]).sum(0)


def _load(output: RouterOutput, mask_T: Tensor) -> Tensor:
    keep = output.routing.ids_TK.shape[1]
    if output.noise_std_TR is None or keep == output.logits_TR.shape[1]:
        return _counts(output, mask_T).to(output.logits_TR.dtype)
    top = output.noisy_TR.topk(keep + 1, dim=-1).values
    # To be kept, an expert must beat the K-th of the others: the (K+1)-th of all if it is kept, else the K-th.
    threshold_TR = torch.where(output.noisy_TR > top[:, keep:], top[:, keep:], top[:, keep - 1 : keep])
    kept_TR: Tensor = torch.special.ndtr((output.logits_TR - threshold_TR) / output.noise_std_TR)
    return (kept_TR * mask_T[:, None]).sum(0)


def _counts(output: RouterOutput, mask_T: Tensor) -> Tensor:
    ids = output.routing.ids_TK[mask_T.bool()].reshape(-1)
    return torch.bincount(ids, minlength=output.logits_TR.shape[1])


def _cv_squared(values_R: Tensor) -> Tensor:
    if len(values_R) == 1:
        return values_R.sum() * 0.0
    return values_R.var() / (values_R.mean() ** 2 + 1e-10)


class ExpertHealth:
    """Sum tokens per expert and shared weight per layer over forward passes."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        """Tokens of each expert, (L, R), since the last `take`."""
        self._shared: Tensor | None = None
        self._tokens = 0

    @torch.no_grad()
    def add(self, outputs: list[RouterOutput], mask_T: Tensor) -> None:
        """Count one forward pass of all layers; only tokens in `mask_T` count."""
        counts = torch.stack([_counts(output, mask_T) for output in outputs])
        shared = torch.stack([(output.routing.shared_T * mask_T).sum() for output in outputs])
        self.counts = counts if self.counts is None else self.counts + counts
        self._shared = shared if self._shared is None else self._shared + shared
        self._tokens += int(mask_T.sum())

    def take(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> dict[str, Any] | None:
        """Return load shares (layers x routed), mean shared weights and the number of dead experts; start anew.

        `total` adds up what several processes counted.
        """
        if self.counts is None or self._shared is None or not self._tokens:
            return None
        counts, shared = total(self.counts), total(self._shared)
        tokens = int(total(torch.tensor(self._tokens, device=counts.device)))
        share = counts / counts.sum(1, keepdim=True).clamp(min=1)
        summary = {
            "load": [[round(value, 6) for value in row] for row in share.tolist()],
            "shared_weight": [round(value, 4) for value in (shared / tokens).tolist()],
            "dead": int((counts == 0).sum()),
        }
        self.__init__()  # type: ignore[misc]
        return summary
