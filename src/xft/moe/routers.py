"""ROUTERS: rules that turn gate logits, or slices of the data, into weights for the shared and the routed experts.

To add a rule, register a function here; `tests/moe/test_routers.py` then checks its laws.

Shapes: T tokens, R routed experts (the shared one excluded), K routed experts kept per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xft.errors import RecipeError
from xft.recipe import TuneConfig, UpcycleConfig
from xft.registry import Registry


@dataclass(frozen=True, slots=True)
class Routing:
    """Weights of one layer for T tokens."""

    shared_T: Tensor
    """Weight of the shared expert; zeros where there is none."""
    routed_TK: Tensor
    """Weights of the kept experts."""
    ids_TK: Tensor
    """Which experts are kept, best first, 0 to R-1."""
    scores_TR: Tensor
    """Scores of all routed experts, before anything is kept or normalised, summing to 1; balance losses use them."""


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """A routing rule and what it promises."""

    route: Callable[..., Routing]
    """Gets logits (T, R) and K, with a `bias` that (R,) too; without a gate zeros for logits, in training `slice_T`."""
    preserves_dense: bool
    """Weights sum to 1 for every token, so an upcycled model equals its dense parent."""
    shared: bool
    """One expert is shared: always active, beside the routed ones."""
    normalized: bool = False
    """The kept experts' weights sum to 1 by themselves."""
    apart: bool = False
    """A shared expert's weight is 1, whatever the routed ones' are."""
    least: int = 1
    """Routed experts that must be kept for the router to learn."""
    bias: bool = False
    """A bias for each expert, moved against its load after each step, takes part in the choice of experts."""
    gated: bool = True
    """A gate scores the experts. Otherwise there is none, and the training example that a token is of decides."""


ROUTERS: Registry[RouterRule] = Registry("router")


def split_counts(router: str, experts: int, active: int, *, shared: int = 1, parts: int = 1) -> tuple[int, int]:
    """Return the numbers of routed experts and of those kept per token; the shared ones, if any, are in neither.

    `shared` counts where the router has shared experts; `parts` is how many routed experts make a whole FFN.

    Raises:
        UnknownNameError: no such router.
        RecipeError: too few experts, or too few of them active, for this router and these parts.
    """
    rule = ROUTERS[router]
    if shared > 1 and not rule.shared:
        having = ", ".join(name for name, other in ROUTERS.items() if other.shared)
        raise RecipeError(f"shared={shared}, but the router {router} has no shared experts; these have: {having}")
    beside = shared if rule.shared else 0
    counted = ", the shared ones counted" if beside > 1 else ", the shared one counted" if beside else ""
    if active - beside < rule.least:
        raise RecipeError(f"active must be at least {rule.least + beside} with the router {router}{counted}")
    if experts - beside < parts:
        raise RecipeError(f"experts must be at least {parts + beside} with parts={parts}{counted}; some would be lost")
    return experts - beside, active - beside


def refuse_idle_gate(router: str, *sections: UpcycleConfig | TuneConfig) -> None:
    """Refuse settings of a gate, and of the losses that teach it, for a router that has none; raises RecipeError."""
    gate = ("gate", "gate_noise", "balance", "z_loss")
    known = [(section, [key for key in gate if key in type(section).model_fields]) for section in sections]
    idle = [key for section, keys in known for key in section.changed(*keys)]
    if idle and not ROUTERS[router].gated:
        raise RecipeError(f"the router {router} has no gate: leave out {', '.join(idle)}")


def shared_normalized(logits_TR: Tensor, k: int) -> Routing:
    """Give the shared expert `1 - s_max` and split `s_max` among the top k by a softmax of their scores (XFT, eq. 3-5).

    The second softmax is over probabilities, as in the reference code: kept experts are blended almost evenly.
    """
    p_TR, top_TK, ids_TK = _softmax_top(logits_TR, k)
    return Routing(1.0 - top_TK[:, 0], top_TK.softmax(-1) * top_TK[:, :1], ids_TK, p_TR)


def shared_renormalized(logits_TR: Tensor, k: int) -> Routing:
    """Give the shared expert `1 - s_max` and split `s_max` among the top k in proportion to their scores."""
    p_TR, top_TK, ids_TK = _softmax_top(logits_TR, k)
    return Routing(1.0 - top_TK[:, 0], _shares(top_TK) * top_TK[:, :1], ids_TK, p_TR)


def shared_unnormalized(logits_TR: Tensor, k: int) -> Routing:
    """Give the shared expert `1 - s_max` and the top k their scores as they are: XFT without its normalisation."""
    p_TR, top_TK, ids_TK = _softmax_top(logits_TR, k)
    return Routing(1.0 - top_TK[:, 0], top_TK, ids_TK, p_TR)


def softmax_topk(logits_TR: Tensor, k: int) -> Routing:
    """Keep the top k of a softmax over all experts, as they are (sparse upcycling, arXiv 2212.05055)."""
    p_TR, top_TK, ids_TK = _softmax_top(logits_TR, k)
    return Routing(torch.zeros_like(top_TK[:, 0]), top_TK, ids_TK, p_TR)


def topk_softmax(logits_TR: Tensor, k: int) -> Routing:
    """Take a softmax over the top k logits alone (Mixtral, arXiv 2401.04088)."""
    p_TR, top_TK, ids_TK = _softmax_top(logits_TR, k)
    return Routing(torch.zeros_like(top_TK[:, 0]), _shares(top_TK), ids_TK, p_TR)


def deepseek(logits_TR: Tensor, k: int) -> Routing:
    """Add the top k of a softmax, as they are, to a shared expert of weight 1 (DeepSeekMoE, eq. 9-11)."""
    p_TR, top_TK, ids_TK = _softmax_top(logits_TR, k)
    return Routing(torch.ones_like(top_TK[:, 0]), top_TK, ids_TK, p_TR)


def deepseek_sigmoid(logits_TR: Tensor, k: int, bias_R: Tensor) -> Routing:
    """Choose by sigmoid scores plus a bias, weigh by the scores' shares alone (DeepSeek-V3, arXiv 2412.19437).

    The shared expert has weight 1.
    """
    scores_TR = logits_TR.float().sigmoid()
    ids_TK = (scores_TR + bias_R).topk(k, dim=-1).indices
    top_TK = scores_TR.gather(1, ids_TK)
    return Routing(torch.ones_like(top_TK[:, 0]), _shares(top_TK), ids_TK, _shares(scores_TR))


def slices(logits_TR: Tensor, k: int, slice_T: Tensor | None = None) -> Routing:
    """Give a token the k experts from its example's slice of the data on, evenly; all experts, where no slice is known.

    With k = 1 every expert learns from a slice of its own, as the models of branch-train-merge do (arXiv 2208.03306).
    """
    routed = logits_TR.shape[1]
    kept = torch.arange(routed if slice_T is None else k, device=logits_TR.device)
    first_T = kept.new_zeros(len(logits_TR)) if slice_T is None else slice_T
    ids_TK = (first_T[:, None] + kept) % routed
    weights_TK = torch.full(ids_TK.shape, 1 / len(kept), dtype=torch.float32, device=logits_TR.device)
    return Routing(torch.zeros_like(weights_TK[:, 0]), weights_TK, ids_TK, logits_TR.float().softmax(-1))


def _softmax_top(logits_TR: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the softmax over all experts, its k largest values, and whose they are."""
    p_TR = logits_TR.float().softmax(-1)
    return p_TR, *p_TR.topk(k, dim=-1)


def _shares(scores: Tensor) -> Tensor:
    """Divide by the sum over the last dimension; the floor lets experts without any score share alike."""
    return (scores + TINY) / (scores + TINY).sum(-1, keepdim=True)


TINY = 1e-20

for _name, _rule in {
    "shared-normalized": RouterRule(route=shared_normalized, preserves_dense=True, shared=True),
    "shared-renormalized": RouterRule(route=shared_renormalized, preserves_dense=True, shared=True),
    "shared-unnormalized": RouterRule(route=shared_unnormalized, preserves_dense=False, shared=True),
    "softmax-topk": RouterRule(route=softmax_topk, preserves_dense=False, shared=False),
    "topk-softmax": RouterRule(route=topk_softmax, preserves_dense=True, shared=False, normalized=True, least=2),
    "deepseek": RouterRule(route=deepseek, preserves_dense=False, shared=True, apart=True),
    "deepseek-sigmoid": RouterRule(
        route=deepseek_sigmoid, preserves_dense=False, shared=True, normalized=True, apart=True, least=2, bias=True
    ),
    "slices": RouterRule(route=slices, preserves_dense=True, shared=False, normalized=True, gated=False),
}.items():
    ROUTERS.register(_name)(_rule)
