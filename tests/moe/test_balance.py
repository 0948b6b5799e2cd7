from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from xft.moe.balance import BALANCE_LOSSES, ExpertHealth, balance_loss, record_routers, z_loss
from xft.moe.layer import Router, RouterOutput
from xft.moe.routers import ROUTERS, Routing

EVERYTHING = torch.ones(4, dtype=torch.long)


def decided(ids: list[list[int]], score: float, routed: int, shared: float = 0.5) -> RouterOutput:
    """A router's output without noise that keeps these experts, all with the same score."""
    ids_TK = torch.tensor(ids)
    logits_TR = torch.zeros(len(ids), routed)
    scores_TR = torch.full((len(ids), routed), score)
    routing = Routing(torch.full((len(ids),), shared), scores_TR.gather(1, ids_TK), ids_TK, scores_TR)
    return RouterOutput(routing, logits_TR, logits_TR, None)


UNEVEN = decided([[0, 1], [0, 1], [0, 2], [0, 2]], 0.25, routed=3)
DEAD = decided([[0, 1], [0, 1], [0, 1], [0, 1]], 0.25, routed=3)


def test_the_loss_of_a_layer_is_what_was_computed_by_hand() -> None:
    # importance (1, 1/2, 1/2): mean 2/3, unbiased variance 1/12, CV² 3/16; load (4, 2, 2): CV² 3/16
    assert float(balance_loss([UNEVEN], EVERYTHING)) == pytest.approx(0.375, abs=1e-6)
    # importance (1, 1, 0) and load (4, 4, 0): CV² 3/4 each
    assert float(balance_loss([DEAD], EVERYTHING)) == pytest.approx(1.5, abs=1e-6)


def test_the_loss_is_the_mean_over_layers() -> None:
    assert float(balance_loss([UNEVEN, DEAD], EVERYTHING)) == pytest.approx((0.375 + 1.5) / 2, abs=1e-6)


def test_even_routing_costs_nothing() -> None:
    even = decided([[0], [1], [2], [3]], 0.7, routed=4)
    assert float(balance_loss([even], EVERYTHING)) == pytest.approx(0, abs=1e-6)


def test_a_single_routed_expert_costs_nothing() -> None:
    assert float(balance_loss([decided([[0]] * 4, 1.0, routed=1)], EVERYTHING)) == 0.0


def noisy_router(routed: int, keep: int) -> Router:
    torch.manual_seed(routed * 10 + keep)
    router = Router(16, routed, keep, rule="shared-normalized", gate="mlp", noise=True).train()
    assert router.noise is not None
    torch.nn.init.normal_(router.noise.weight, std=0.3)
    torch.nn.init.normal_(router.scores.weight)
    return router


@pytest.mark.parametrize("keep", [1, 3, 5])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_neither_the_loss_nor_its_gradient(training: bool, keep: int) -> None:
    router = noisy_router(5, keep).train(training)
    x_TD = torch.randn(9, 16)
    mask_T = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0])

    output = router(x_TD)
    kept = mask_T.bool()
    routing = output.routing
    alone = RouterOutput(
        Routing(routing.shared_T[kept], routing.routed_TK[kept], routing.ids_TK[kept], routing.scores_TR[kept]),
        output.logits_TR[kept],
        output.noisy_TR[kept],
        None if output.noise_std_TR is None else output.noise_std_TR[kept],
    )
    padded_loss, expected = balance_loss([output], mask_T), balance_loss([alone], torch.ones(6, dtype=torch.long))
    counted_loss = balance_loss([output], torch.ones(9, dtype=torch.long))
    torch.testing.assert_close(padded_loss, expected)
    assert abs(float((padded_loss - counted_loss).detach())) > 1e-5  # these paddings would have mattered
    weights = [router.scores.weight, router.hidden.weight]  # type: ignore[union-attr]
    for with_padding, without in zip(
        torch.autograd.grad(padded_loss, weights, retain_graph=True),
        torch.autograd.grad(expected, weights),
        strict=True,
    ):
        assert with_padding.abs().max() > 0
        torch.testing.assert_close(with_padding, without, rtol=1e-4, atol=1e-6)


def normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def cv_squared(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1) / mean**2


def test_the_load_under_noise_is_shazeers_estimate_computed_by_hand() -> None:
    logits, noisy, std = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 0.7, -1.0]]), torch.tensor([[0.5, 1, 2]])
    output = RouterOutput(ROUTERS["shared-normalized"].route(noisy, 1), logits, noisy, std)
    # Expert 1 is kept and must beat the best of the others, 0.5; the others must beat 0.7.
    load = [normal_cdf((1 - 0.7) / 0.5), normal_cdf((0 - 0.5) / 1), normal_cdf((-1 - 0.7) / 2)]
    assert load == pytest.approx([0.725747, 0.308538, 0.197663], abs=1e-6)
    # Importance (0, s, 0) has CV² 3 for any s.
    loss = balance_loss([output], torch.ones(1, dtype=torch.long))
    assert float(loss) == pytest.approx(3 + cv_squared(load), rel=1e-5)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_load_under_noise_follows_shazeers_formula_for_many_tokens(keep: int) -> None:
    routed = 5
    output = noisy_router(routed, keep)(torch.randn(20, 16))
    assert output.noise_std_TR is not None
    load, importance = [0.0] * routed, [0.0] * routed
    for clean, noisy, std in zip(
        output.logits_TR.tolist(), output.noisy_TR.tolist(), output.noise_std_TR.tolist(), strict=True
    ):
        total = sum(math.exp(z) for z in noisy)
        for i in range(routed):
            others = sorted((noisy[j] for j in range(routed) if j != i), reverse=True)
            load[i] += normal_cdf((clean[i] - others[keep - 1]) / std[i])
            importance[i] += math.exp(noisy[i]) / total if noisy[i] > others[keep - 1] else 0.0
    loss = balance_loss([output], torch.ones(20, dtype=torch.long))
    assert float(loss.detach()) == pytest.approx(cv_squared(load) + cv_squared(importance), rel=1e-4)


def test_the_load_teaches_the_gate_and_its_noise() -> None:
    router = noisy_router(5, 2)
    balance_loss([router(torch.randn(20, 16))], torch.ones(20, dtype=torch.long)).backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def turn_checkpointing_on(model: Any) -> None:
    # Older transformers know it by the second name only, newer ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_routers_are_recorded_once_a_layer_also_when_activations_are_recomputed(
    checkpointing: bool, moe_of: Callable[..., Path]
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(moe_of()).train()
    if checkpointing:
        turn_checkpointing_on(model)
    calls = 0

    def watch(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(watch)
    layers = model.config.num_hidden_layers
    ids = torch.arange(3, 23).reshape(2, 10)
    with record_routers(model) as outputs:
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert len(outputs) == layers
    assert calls == (2 * layers if checkpointing else layers)  # the recomputation did happen
    model(ids)
    assert len(outputs) == layers  # and nothing is left behind


def test_the_balance_gradient_is_the_same_with_and_without_checkpointing(moe_of: Callable[..., Path]) -> None:
    ids = torch.arange(3, 23).reshape(2, 10)
    gradients = []
    for checkpointing in (False, True):
        model: Any = AutoModelForCausalLM.from_pretrained(moe_of()).train()
        if checkpointing:
            turn_checkpointing_on(model)
        torch.manual_seed(0)
        with record_routers(model) as outputs:
            loss = model(ids, labels=ids).loss
        (loss + balance_loss(outputs, torch.ones(20, dtype=torch.long))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if ".router." in name})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_health_has_load_shares_shared_weights_and_dead_experts_per_layer() -> None:
    health = ExpertHealth()
    health.add([UNEVEN, DEAD], EVERYTHING)
    assert health.take() == {"load": [[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]], "shared_weight": [0.5, 0.5], "dead": 1}
    assert health.take() is None  # it starts anew


def test_health_sums_over_passes_and_leaves_padding_out() -> None:
    health = ExpertHealth()
    health.add([decided([[0], [1], [2], [2]], 0.5, routed=3, shared=0.2)], torch.tensor([1, 1, 0, 0]))
    health.add([decided([[0], [0], [1], [1]], 0.5, routed=3, shared=0.8)], torch.tensor([1, 1, 0, 0]))
    summary = health.take()
    assert summary == {"load": [[0.75, 0.25, 0.0]], "shared_weight": [0.5], "dead": 1}


def test_health_of_a_real_model_has_shares_that_sum_to_one(moe_of: Callable[..., Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(moe_of())
    ids = torch.arange(3, 43).reshape(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with record_routers(model) as outputs, torch.no_grad():
        model(ids, attention_mask=mask)
    health = ExpertHealth()
    health.add(outputs, mask.reshape(-1))
    summary = health.take()
    assert summary is not None
    assert len(summary["load"]) == len(summary["shared_weight"]) == model.config.num_hidden_layers
    for shares, shared in zip(summary["load"], summary["shared_weight"], strict=True):
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert 0 < shared < 2 / 3  # 1 - s_max, and s_max is at least 1/3 of three experts
    assert summary["dead"] == sum(share == 0 for shares in summary["load"] for share in shares)


@pytest.mark.parametrize("kind", sorted(BALANCE_LOSSES))
def test_a_balance_loss_is_least_for_even_routing_and_no_padding_counts(kind: str) -> None:
    best = {"cv": 0.0, "switch": 1.0, "sequence": 1.0}
    mask_BS = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]])
    even = sure([0, 1, 2, 3, 3, 3, 2, 1, 0, 3])
    assert float(balance_loss([even], mask_BS, kind)) == pytest.approx(best.get(kind, 0.0), abs=1e-5)
    uneven = sure([0, 0, 0, 1, 3, 0, 0, 2, 0, 3])
    assert float(balance_loss([uneven], mask_BS, kind)) > best.get(kind, 0.0) + 0.5
    other_padding = sure([0, 0, 0, 1, 1, 0, 0, 2, 0, 2])
    torch.testing.assert_close(balance_loss([uneven], mask_BS, kind), balance_loss([other_padding], mask_BS, kind))


def sure(chosen: list[int]) -> RouterOutput:
    """The output of a router that is certain of one of 4 experts for each token."""
    logits_TR = 50.0 * torch.nn.functional.one_hot(torch.tensor(chosen), 4).float()
    return RouterOutput(ROUTERS["softmax-topk"].route(logits_TR, 1), logits_TR, logits_TR, None)


def test_switch_looks_at_the_batch_and_sequence_at_each_row() -> None:
    mask_BS = torch.ones(2, 4, dtype=torch.long)
    rows_differ = sure([0, 0, 1, 1, 2, 2, 3, 3])
    assert float(balance_loss([rows_differ], mask_BS, "switch")) == pytest.approx(1.0, abs=1e-5)
    # In each row two of four experts get half of the tokens: f = 2, P = 1/2 for two of them
    assert float(balance_loss([rows_differ], mask_BS, "sequence")) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("kind", sorted(BALANCE_LOSSES))
def test_the_gradient_of_a_balance_loss_moves_logits_away_from_the_busy_expert(kind: str) -> None:
    logits_TR = torch.randn(24, 5, generator=torch.Generator().manual_seed(2)) + torch.tensor([1.5, 0, 0, 0, 0])
    logits_TR.requires_grad_()
    output = RouterOutput(ROUTERS["deepseek"].route(logits_TR, 2), logits_TR, logits_TR, None)
    balance_loss([output], torch.ones(4, 6, dtype=torch.long), kind).backward()
    assert logits_TR.grad is not None
    assert logits_TR.grad.sum(0)[0] > 0


def test_the_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits_TR = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    output = RouterOutput(ROUTERS["softmax-topk"].route(logits_TR, 1), logits_TR, logits_TR, None)
    expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert float(z_loss([output, output], torch.tensor([[1, 1, 0]]))) == pytest.approx(expected)


def test_the_load_of_a_router_with_a_bias_is_that_of_its_choices() -> None:
    """Shazeer's estimate ranks the logits alone, which is not how such a router chooses."""
    torch.manual_seed(0)
    router = Router(16, 4, 2, rule="deepseek-sigmoid", gate="linear", noise=True).train()
    assert router.bias_R is not None
    router.bias_R.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))  # experts 0 and 1 get everything
    with torch.no_grad():
        output = router(torch.randn(12, 16))
    load, ids_TK, scores_TR = torch.tensor([12.0, 12.0, 0.0, 0.0]), output.routing.ids_TK, output.routing.scores_TR
    kept = torch.zeros(12, 4).scatter(1, ids_TK, scores_TR.gather(1, ids_TK))
    expected = sum(float(each.var() / each.mean() ** 2) for each in (load, kept.sum(0)))
    assert float(balance_loss([output], torch.ones(1, 12))) == pytest.approx(expected, rel=1e-4)
