"""Watch the routers: record their outputs, form the balance loss, sum up expert health.

Shapes: T tokens, R routed experts, K kept per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xft.moe.layer import Router, RouterOutput


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


def balance_loss(outputs: list[RouterOutput], mask_T: Tensor) -> Tensor:
    """Return `CV²(importance) + CV²(load)`, the mean over layers; only tokens in `mask_T` count.

    Importance sums the kept scores per expert. Load is Shazeer et al.'s smooth estimate under gate noise (their
    comparison of the noisy logits; the reference compares the noise alone), hard counts without noise.
    """
    terms = [_cv_squared(_importance(output, mask_T)) + _cv_squared(_load(output, mask_T)) for output in outputs]
    return torch.stack(terms).mean()


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

    def take(self) -> dict[str, Any] | None:
        """Return load shares (layers x routed), mean shared weights and the number of dead experts; start anew."""
        if self.counts is None or self._shared is None or not self._tokens:
            return None
        share = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        summary = {
            "load": [[round(value, 4) for value in row] for row in share.tolist()],
            "shared_weight": [round(value, 4) for value in (self._shared / self._tokens).tolist()],
            "dead": int((self.counts == 0).sum()),
        }
        self.__init__()  # type: ignore[misc]
        return summary
