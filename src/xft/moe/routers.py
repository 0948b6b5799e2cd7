"""ROUTERS: rules that turn gate logits into weights for the shared and the routed experts.

To add a rule, register a function here; `tests/moe/test_routers.py` then checks its laws.

Shapes: T tokens, R routed experts (the shared one excluded), K routed experts kept per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from xft.registry import Registry


@dataclass(frozen=True, slots=True)
class Routing:
    """Weights of one layer for T tokens."""

    shared_T: Tensor
    """Weight of the shared expert."""
    routed_TK: Tensor
    """Weights of the kept experts."""
    ids_TK: Tensor
    """Which experts are kept, best first, 0 to R-1."""
    scores_TK: Tensor
    """Softmax scores of the kept experts, before normalisation; the balance loss uses them."""


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """A routing rule and what it promises."""

    route: Callable[[Tensor, int], Routing]
    preserves_dense: bool
    """Weights sum to 1 for every token, so an upcycled model equals its dense parent."""


ROUTERS: Registry[RouterRule] = Registry("router")


def shared_normalized(logits_TR: Tensor, k: int) -> Routing:
    """Give the shared expert `1 - s_max` and split `s_max` among the top k by a softmax of their scores (XFT, eq. 3-5).

    The second softmax is over probabilities, as in the reference code: kept experts are blended almost evenly.
    """
    top_TK, ids_TK = logits_TR.float().softmax(-1).topk(k, dim=-1)
    s_max_T1 = top_TK[:, :1]
    return Routing(1.0 - top_TK[:, 0], top_TK.softmax(-1) * s_max_T1, ids_TK, top_TK)


def shared_renormalized(logits_TR: Tensor, k: int) -> Routing:
    """Give the shared expert `1 - s_max` and split `s_max` among the top k in proportion to their scores."""
    top_TK, ids_TK = logits_TR.float().softmax(-1).topk(k, dim=-1)
    s_max_T1 = top_TK[:, :1]
    return Routing(1.0 - top_TK[:, 0], top_TK / top_TK.sum(-1, keepdim=True) * s_max_T1, ids_TK, top_TK)


ROUTERS.register("shared-normalized")(RouterRule(route=shared_normalized, preserves_dense=True))
ROUTERS.register("shared-renormalized")(RouterRule(route=shared_renormalized, preserves_dense=True))
