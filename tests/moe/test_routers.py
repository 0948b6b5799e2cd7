from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from xft.errors import RecipeError, UnknownNameError
from xft.moe.routers import ROUTERS, RouterRule, Routing, split_counts

GATED = sorted(name for name, rule in ROUTERS.items() if rule.gated)
SIZES = [(routed, k) for routed in (1, 2, 5, 7) for k in range(1, routed + 1)]


@pytest.fixture(params=sorted(ROUTERS))
def rule(request: Any) -> RouterRule:
    return ROUTERS[request.param]


def routed_by(rule: RouterRule, logits_TR: Tensor, k: int, bias_R: Tensor | None = None) -> Routing:
    """Route, with a bias of zero where the rule has one, and slice after slice where no gate decides."""
    if not rule.gated:
        return rule.route(torch.zeros_like(logits_TR), k, torch.arange(len(logits_TR)) % logits_TR.shape[1])
    if not rule.bias:
        return rule.route(logits_TR, k)
    return rule.route(logits_TR, k, torch.zeros(logits_TR.shape[1]) if bias_R is None else bias_R)


def some_logits(routed: int) -> Tensor:
    """Ordinary, equal, saturated and huge logits."""
    generator = torch.Generator().manual_seed(routed)
    random_TR = torch.randn(64, routed, generator=generator)
    return torch.cat(
        [random_TR, 30 * random_TR, 1e4 * random_TR, torch.zeros(2, routed), torch.full((2, routed), -1e30)]
    )


@pytest.mark.parametrize(("routed", "k"), SIZES)
def test_weights_are_finite_and_not_negative(rule: RouterRule, routed: int, k: int) -> None:
    routing = routed_by(rule, some_logits(routed), k)
    for weights in (routing.shared_T, routing.routed_TK, routing.scores_TR):
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()


@pytest.mark.parametrize(("routed", "k"), SIZES)
def test_each_token_keeps_k_different_experts_that_exist(rule: RouterRule, routed: int, k: int) -> None:
    ids_TK = routed_by(rule, some_logits(routed), k).ids_TK
    assert ids_TK.shape[1] == k
    for kept in ids_TK.tolist():
        assert len(set(kept)) == k
        assert set(kept) <= set(range(routed))


@pytest.mark.parametrize(("routed", "k"), SIZES)
@pytest.mark.parametrize("name", GATED)
def test_the_experts_with_the_largest_logits_are_kept_best_first(name: str, routed: int, k: int) -> None:
    logits_TR = torch.randn(64, routed, generator=torch.Generator().manual_seed(k))
    assert torch.equal(routed_by(ROUTERS[name], logits_TR, k).ids_TK, logits_TR.argsort(-1, descending=True)[:, :k])


@pytest.mark.parametrize("name", [name for name in sorted(ROUTERS) if ROUTERS[name].preserves_dense])
@pytest.mark.parametrize(("routed", "k"), SIZES)
def test_rules_that_preserve_the_dense_model_give_weights_that_sum_to_one(name: str, routed: int, k: int) -> None:
    rule = ROUTERS[name]
    for dtype in (torch.float32, torch.bfloat16):
        routing = routed_by(rule, some_logits(routed).to(dtype), k)
        total_T = routing.shared_T + routing.routed_TK.sum(-1)
        torch.testing.assert_close(total_T, torch.ones_like(total_T), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("routed", "k"), SIZES)
def test_rules_say_what_their_weights_sum_to(rule: RouterRule, routed: int, k: int) -> None:
    routing = routed_by(rule, some_logits(routed), k)
    total_T = routing.routed_TK.sum(-1)
    if rule.normalized:
        torch.testing.assert_close(total_T, torch.ones_like(total_T))
    elif rule.apart or not rule.shared:  # shares of all experts
        alike = routed_by(rule, torch.zeros(2, routed), k).routed_TK.sum(-1)
        torch.testing.assert_close(alike, torch.full((2,), k / routed))
    if rule.apart:
        assert torch.equal(routing.shared_T, torch.ones_like(total_T))


@pytest.mark.parametrize(
    ("name", "routed", "k"),
    [(name, *size) for name in GATED for size in SIZES if size[0] > 1 and size[1] >= ROUTERS[name].least],
)
def test_the_gradient_reaches_the_logits_of_every_token(name: str, routed: int, k: int) -> None:
    rule = ROUTERS[name]
    logits_TR = torch.randn(32, routed, generator=torch.Generator().manual_seed(k), requires_grad=True)
    routing = routed_by(rule, logits_TR, k)
    # Weights alone sum to 1, so each expert's weight is given a value of its own, as its output would.
    (routing.shared_T + (routing.routed_TK * 1.7 ** (1 + routing.ids_TK)).sum(-1)).sum().backward()
    assert logits_TR.grad is not None
    assert torch.isfinite(logits_TR.grad).all()
    assert (logits_TR.grad.abs().sum(-1) > 0).all(), (
        f"no gradient with k={k}; a rule that needs more says so by `least`"
    )


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("routed", "k"), SIZES)
def test_scores_of_all_experts_sum_to_one_and_rank_them_as_the_logits_do(name: str, routed: int, k: int) -> None:
    rule = ROUTERS[name]
    routing = routed_by(rule, some_logits(routed), k)
    torch.testing.assert_close(routing.scores_TR.sum(-1), torch.ones(len(routing.scores_TR)))
    assert torch.equal(routing.scores_TR[:64].argmax(-1), routing.ids_TK[:64, 0])
    if not rule.bias:
        torch.testing.assert_close(routing.scores_TR, some_logits(routed).softmax(-1))


@pytest.mark.parametrize(("routed", "k"), [size for size in SIZES if size[0] > 1])
def test_a_rule_without_a_shared_expert_gives_it_no_weight(rule: RouterRule, routed: int, k: int) -> None:
    shared_T = routed_by(rule, some_logits(routed)[:64], k).shared_T
    assert bool(shared_T.any()) == rule.shared


@pytest.mark.parametrize("name", [name for name in sorted(ROUTERS) if ROUTERS[name].bias])
def test_a_bias_changes_who_is_chosen_and_no_weight_of_the_chosen(name: str) -> None:
    rule = ROUTERS[name]
    logits_TR = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    forced = routed_by(rule, logits_TR, 2, torch.tensor([0.0, 9.0, 0.0, 0.0, 9.0]))
    assert (forced.ids_TK.sort(-1).values == torch.tensor([1, 4])).all()
    scores_TR = logits_TR.sigmoid()
    expected = scores_TR.gather(1, forced.ids_TK) / scores_TR[:, [1, 4]].sum(-1, keepdim=True)
    torch.testing.assert_close(forced.routed_TK, expected)


@pytest.mark.parametrize(
    ("name", "shared", "routed"),
    [
        ("shared-unnormalized", 0.6, [0.4, 0.3]),
        ("softmax-topk", 0.0, [0.4, 0.3]),
        ("topk-softmax", 0.0, [4 / 7, 3 / 7]),
        ("deepseek", 1.0, [0.4, 0.3]),
        ("deepseek-sigmoid", 1.0, [0.8 / 1.55, 0.75 / 1.55]),  # sigmoid(log x) = x / (1 + x): 4/5, 3/4
    ],
)
def test_a_rule_gives_what_was_computed_by_hand(name: str, shared: float, routed: list[float]) -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).log()  # softmax: 0.1, 0.4, 0.2, 0.3
    routing = routed_by(ROUTERS[name], logits, 2)
    assert routing.ids_TK.tolist() == [[1, 3]]
    torch.testing.assert_close(routing.shared_T, torch.tensor([shared]))
    torch.testing.assert_close(routing.routed_TK, torch.tensor([routed]))


def test_mixtral_is_a_softmax_over_the_kept_logits_alone() -> None:
    logits_TR = 3 * torch.randn(32, 7, generator=torch.Generator().manual_seed(1))
    routing = ROUTERS["topk-softmax"].route(logits_TR, 3)
    torch.testing.assert_close(routing.routed_TK, logits_TR.topk(3, dim=-1).values.softmax(-1))


def test_experts_are_split_into_routed_and_kept_ones() -> None:
    assert split_counts("shared-normalized", 8, 6) == (7, 5)
    assert split_counts("topk-softmax", 8, 2) == (8, 2)
    assert split_counts("softmax-topk", 8, 1) == (8, 1)
    with pytest.raises(RecipeError, match="at least 2 with the router shared-normalized, the shared one counted"):
        split_counts("shared-normalized", 8, 1)
    with pytest.raises(RecipeError, match=r"at least 2 with the router topk-softmax$"):
        split_counts("topk-softmax", 8, 1)


def test_shared_normalized_gives_what_was_computed_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).log()  # softmax: 0.1, 0.4, 0.2, 0.3
    routing = ROUTERS["shared-normalized"].route(logits, 2)
    assert routing.ids_TK.tolist() == [[1, 3]]
    # 0.4 e^0.4 / (e^0.4 + e^0.3) = 0.4 / (1 + e^-0.1)
    torch.testing.assert_close(routing.shared_T, torch.tensor([0.6]))
    torch.testing.assert_close(routing.routed_TK, torch.tensor([[0.2099917, 0.1900083]]))
    torch.testing.assert_close(routing.scores_TR, torch.tensor([[0.1, 0.4, 0.2, 0.3]]))


def test_shared_renormalized_gives_what_was_computed_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).log()
    routing = ROUTERS["shared-renormalized"].route(logits, 2)
    torch.testing.assert_close(routing.shared_T, torch.tensor([0.6]))
    torch.testing.assert_close(routing.routed_TK, torch.tensor([[0.4 * 4 / 7, 0.4 * 3 / 7]]))


def by_formula(logits: list[float], k: int) -> dict[str, float]:
    """Weights of XFT's equations 3 to 5, in Python's doubles: p = softmax(z), w_i = s_max e^p_i / sum e^p_j."""
    exponentials = [math.exp(z) for z in logits]
    p = [value / sum(exponentials) for value in exponentials]
    kept = sorted(range(len(p)), key=lambda i: -p[i])[:k]
    s_max = p[kept[0]]
    blend = sum(math.exp(p[j]) for j in kept)
    return {"shared": 1 - s_max} | {str(i): s_max * math.exp(p[i]) / blend for i in kept}


def as_dicts(routing: Routing) -> list[dict[str, float]]:
    rows = zip(routing.shared_T.tolist(), routing.ids_TK.tolist(), routing.routed_TK.tolist(), strict=True)
    return [
        {"shared": shared} | {str(i): w for i, w in zip(ids, weights, strict=True)} for shared, ids, weights in rows
    ]


@pytest.mark.parametrize(("routed", "k"), [(7, 5), (7, 1), (3, 3), (1, 1)])
def test_shared_normalized_follows_the_papers_formula(routed: int, k: int) -> None:
    logits_TR = 2 * torch.randn(32, routed, generator=torch.Generator().manual_seed(5))
    for found, z in zip(as_dicts(ROUTERS["shared-normalized"].route(logits_TR, k)), logits_TR.tolist(), strict=True):
        assert found == pytest.approx(by_formula(z, k), abs=1e-6)


@pytest.mark.parametrize("name", ["shared-normalized", "shared-renormalized"])
def test_a_router_without_opinion_leaves_the_shared_expert_six_sevenths(name: str) -> None:
    routing = ROUTERS[name].route(torch.zeros(1, 7), 5)
    torch.testing.assert_close(routing.shared_T, torch.tensor([6 / 7]))
    torch.testing.assert_close(routing.routed_TK, torch.full((1, 5), 1 / 35))


def test_even_a_certain_router_blends_the_kept_experts_under_shared_normalized() -> None:
    certain = torch.tensor([[0.0, 0.0, 200.0, 0.0, 0.0, 0.0, 0.0]])
    routing = ROUTERS["shared-normalized"].route(certain, 5)
    assert routing.shared_T.item() == 0.0
    best, rest = math.e / (math.e + 4), 1 / (math.e + 4)
    torch.testing.assert_close(routing.routed_TK, torch.tensor([[best, rest, rest, rest, rest]]))
    assert routing.ids_TK[0, 0] == 2


def test_a_certain_router_uses_one_expert_under_shared_renormalized() -> None:
    certain = torch.tensor([[0.0, 0.0, 200.0, 0.0, 0.0, 0.0, 0.0]])
    routing = ROUTERS["shared-renormalized"].route(certain, 5)
    assert routing.shared_T.item() == 0.0
    torch.testing.assert_close(routing.routed_TK, torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]))


def test_an_unknown_rule_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown router 'top'; available: .*shared-normalized"):
        ROUTERS["top"]


def test_slices_take_neighbouring_experts_evenly_and_all_where_none_is_known() -> None:
    route = ROUTERS["slices"].route
    known = route(torch.zeros(3, 4), 2, torch.tensor([0, 3, 1]))
    assert known.ids_TK.tolist() == [[0, 1], [3, 0], [1, 2]]
    assert known.routed_TK.unique().tolist() == [0.5]
    unknown = route(torch.zeros(3, 4), 2)
    assert unknown.ids_TK.tolist() == [[0, 1, 2, 3]] * 3
    assert unknown.routed_TK.unique().tolist() == [0.25]
