from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

import xft.moe.layer
from xft.families import FAMILIES
from xft.moe.layer import Experts, MoELayer, Router

EXPERTS, HIDDEN, FFN = 5, 24, 40


def make_layer(active: int, *, gate: str = "mlp", noise: bool = False, rule: str = "shared-normalized") -> MoELayer:
    torch.manual_seed(active)
    shared = LlamaMLP(LlamaConfig(hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=2))
    router = Router(HIDDEN, EXPERTS - 1, active - 1, rule=rule, gate=gate, noise=noise)
    layer = MoELayer(shared, router, Experts(HIDDEN, FFN, EXPERTS - 1, shared.act_fn))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def by_loop(layer: MoELayer, x_BSD: Tensor) -> Tensor:
    """The mixture, one token and one expert at a time."""
    experts = layer.experts
    rows = []
    for x_D in x_BSD.reshape(-1, HIDDEN):
        routing = layer.router(x_D[None]).routing
        y_D = routing.shared_T[0] * layer.shared_expert(x_D)
        for weight, number in zip(routing.routed_TK[0], routing.ids_TK[0].tolist(), strict=True):
            gate_F = experts.gate_proj[number] @ x_D
            up_F = experts.up_proj[number] @ x_D
            y_D = y_D + weight * (experts.down_proj[number] @ (gate_F * torch.sigmoid(gate_F) * up_F))
        rows.append(y_D)
    return torch.stack(rows).view_as(x_BSD)


@pytest.mark.parametrize("gate", ["mlp", "linear"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 7)])  # fewer tokens than experts leave some without any
@pytest.mark.parametrize("active", range(2, EXPERTS + 1))
def test_the_layer_equals_a_loop_over_tokens_and_experts_in_values_and_gradients(
    active: int, shape: tuple[int, int], gate: str
) -> None:
    layer = make_layer(active, gate=gate)
    x_BSD = torch.randn(*shape, HIDDEN, requires_grad=True)
    output_weights = torch.randn(*shape, HIDDEN)

    def run(forward: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        layer.zero_grad()
        x_BSD.grad = None
        y_BSD = forward(x_BSD)
        (y_BSD * output_weights).sum().backward()
        found = {name: parameter.grad for name, parameter in layer.named_parameters()} | {"x": x_BSD.grad}
        return {"y": y_BSD.detach()} | {name: grad for name, grad in found.items() if grad is not None}

    ours, expected = run(layer), run(lambda x: by_loop(layer, x))
    assert set(ours) == set(expected) == {"y", "x"} | {name for name, _ in layer.named_parameters()}
    for name, tensor in expected.items():
        assert tensor.abs().max() > 0, name
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}")


def test_an_expert_that_no_token_chose_gets_a_gradient_of_zero() -> None:
    layer = make_layer(2)
    x_BSD = torch.randn(1, 1, HIDDEN)
    chosen = int(layer.router(x_BSD[0]).routing.ids_TK)
    layer(x_BSD).sum().backward()
    grad = layer.experts.up_proj.grad
    assert grad is not None
    touched = grad.abs().sum((1, 2)) > 0
    assert touched.tolist() == [number == chosen for number in range(EXPERTS - 1)]


def test_equal_experts_compute_what_the_shared_one_computes() -> None:
    layer = make_layer(4)
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(layer.experts, name).copy_(getattr(layer.shared_expert, name).weight.expand(EXPERTS - 1, -1, -1))
    x_BSD = torch.randn(2, 5, HIDDEN)
    torch.testing.assert_close(layer(x_BSD), layer.shared_expert(x_BSD), rtol=1e-5, atol=1e-4)


def test_autocast_computes_experts_in_bf16_close_to_fp32() -> None:
    layer = make_layer(3)
    x_BSD = torch.randn(2, 5, HIDDEN)
    exact_BSD = layer(x_BSD)
    with torch.autocast("cpu", torch.bfloat16):
        rough_BSD = layer(x_BSD)
    assert rough_BSD.dtype == torch.bfloat16
    error = (rough_BSD.float() - exact_BSD).norm() / exact_BSD.norm()
    assert 1e-5 < error < 2e-2  # it was rounded, and only that


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_under_bf16_autocast_our_experts_multiply_in_bf16_and_routers_in_fp32(
    model_type: str, moe_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(moe_of(model_type), dtype=torch.float32).train()
    routers = [module for module in model.modules() if isinstance(module, Router)]
    router_weights = {weight.data_ptr() for router in routers for weight in router.parameters()}
    products: list[tuple[torch.dtype, ...]] = []
    linears: list[tuple[torch.dtype, ...]] = []
    functional = xft.moe.layer.F
    grouped_mm, linear = functional.grouped_mm, functional.linear

    def watched_product(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        result = grouped_mm(x, weight, **options)
        products.append((x.dtype, weight.dtype, result.dtype))
        return result

    def watched_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = linear(x, weight, bias)
        if weight.data_ptr() in router_weights:
            linears.append((x.dtype, weight.dtype, result.dtype))  # autocast would show in the result
        return result

    monkeypatch.setattr(functional, "grouped_mm", watched_product)
    monkeypatch.setattr(functional, "linear", watched_linear)
    ids = torch.arange(3, 33)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()

    layers = model.config.num_hidden_layers
    assert len(routers) == layers
    assert products == [(torch.bfloat16,) * 3] * (3 * layers)  # gate, up, down: ours ran, once a layer
    assert linears == [(torch.float32,) * 3] * (3 * layers)  # hidden, scores, noise
    for layer in model.model.layers:
        assert type(layer.mlp) is MoELayer
        assert layer.mlp.experts.up_proj.grad.dtype == torch.float32
        assert layer.mlp.experts.up_proj.grad.abs().max() > 0
        assert layer.mlp.router.hidden.weight.grad.abs().max() > 0


def test_gate_noise_is_added_in_training_only() -> None:
    router = make_layer(3, noise=True).router
    x_TD = torch.randn(6, HIDDEN)
    resting = router.eval()(x_TD)
    assert resting.noise_std_TR is None
    assert torch.equal(resting.noisy_TR, resting.logits_TR)
    assert torch.equal(resting.routing.routed_TK, router(x_TD).routing.routed_TK)
    training = router.train()(x_TD)
    assert torch.equal(training.logits_TR, resting.logits_TR)
    assert not torch.equal(training.noisy_TR, training.logits_TR)
    assert torch.equal(training.routing.ids_TK, training.noisy_TR.argsort(-1, descending=True)[:, : router.keep])


def test_a_router_without_noise_routes_alike_in_training() -> None:
    router = make_layer(3).router.train()
    output = router(torch.randn(6, HIDDEN))
    assert output.noise_std_TR is None
    assert torch.equal(output.noisy_TR, output.logits_TR)


def test_fresh_gate_noise_has_the_references_standard_deviation(moe_of: Callable[..., Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(moe_of())
    router = model.model.layers[0].mlp.router.train()
    torch.manual_seed(0)
    output = router(torch.randn(20_000, model.config.hidden_size))
    expected = math.log(2) + 0.01
    torch.testing.assert_close(output.noise_std_TR, torch.full_like(output.logits_TR, expected))
    assert float((output.noisy_TR - output.logits_TR).detach().std()) == pytest.approx(expected, rel=0.02)
    assert float((output.noisy_TR - output.logits_TR).detach().mean()) == pytest.approx(0, abs=0.02)
