from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

import xft.moe.layer
from xft.families import FAMILIES
from xft.moe.layer import Experts, MoELayer, Router, _with_spare, dispatched

EXPERTS, HIDDEN, FFN = 5, 24, 40


def llama_ffn(hidden: int, ffn: int, activation: nn.Module | None = None) -> LlamaMLP:
    found = LlamaMLP(LlamaConfig(hidden_size=hidden, intermediate_size=ffn, num_attention_heads=1))
    if activation is not None:
        found.act_fn = activation
    return found


def make_layer(active: int, *, gate: str = "mlp", noise: bool = False, rule: str = "shared-normalized") -> MoELayer:
    torch.manual_seed(active)
    shared = llama_ffn(HIDDEN, FFN)
    router = Router(HIDDEN, EXPERTS - 1, active - 1, rule=rule, gate=gate, noise=noise)
    layer = MoELayer(shared, router, Experts(shared, FAMILIES["llama"], EXPERTS - 1))
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


def kept_experts(tokens: int, keep: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states, kept experts and their weights."""
    torch.manual_seed(tokens)
    ids_TK = torch.rand(tokens, EXPERTS - 1).topk(keep, dim=-1).indices
    x_TD = torch.randn(tokens, HIDDEN, dtype=dtype, requires_grad=True)
    return x_TD, ids_TK, torch.rand(tokens, keep, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh")])
def test_the_hand_written_gradient_is_that_of_finite_differences(activation: nn.Module, tokens: int) -> None:
    experts = Experts(llama_ffn(3, 2, activation), FAMILIES["llama"], EXPERTS - 1).double()
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    x_TD, ids_TK, weights_TK = kept_experts(tokens, 2)

    def run(x_TD: Tensor, weights_TK: Tensor, *stacks: Tensor) -> Tensor:
        names = [name for name, _ in experts.named_parameters()]
        return torch.func.functional_call(experts, dict(zip(names, stacks, strict=True)), (x_TD, ids_TK, weights_TK))

    x_TD = x_TD[:, :3].detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (x_TD, weights_TK, *experts.parameters()))


def stock_ffn(model_type: str) -> nn.Module:
    """One FFN of a family's own class, with random weights and biases."""
    family = FAMILIES[model_type]
    config = AutoConfig.for_model(
        model_type, hidden_size=12, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, head_dim=6,
        num_key_value_heads=2, vocab_size=16, pad_token_id=0,
    )  # fmt: skip
    ffn = AutoModelForCausalLM.from_config(config).get_submodule(family.ffn(0))
    for parameter in ffn.parameters():
        nn.init.normal_(parameter)
    return ffn.double().eval()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_familys_experts_compute_what_its_own_ffn_does_with_its_gradients(model_type: str) -> None:
    ffn = stock_ffn(model_type)
    experts = Experts(ffn, FAMILIES[model_type], EXPERTS - 1).double()
    with torch.no_grad():
        for part in FAMILIES[model_type].parts:
            if hasattr(experts, part.stack):
                getattr(experts, part.stack).copy_(
                    ffn.get_parameter(part.tensor).expand_as(getattr(experts, part.stack))
                )
    assert sum(len(stack[0].flatten()) for stack in experts.stacks()) == sum(p.numel() for p in ffn.parameters())
    x_TD, ids_TK, weights_TK = kept_experts(9, 2)
    x_TD = x_TD[:, :12].detach().requires_grad_()
    output_weights_TD = torch.randn(9, 12, dtype=torch.float64)
    found_TD = experts(x_TD, ids_TK, weights_TK)
    expected_TD = ffn(x_TD) * weights_TK.sum(-1, keepdim=True)
    torch.testing.assert_close(found_TD, expected_TD)
    inputs = [x_TD, weights_TK]
    ours = torch.autograd.grad((found_TD * output_weights_TD).sum(), [*inputs, *experts.stacks()])
    theirs = torch.autograd.grad((expected_TD * output_weights_TD).sum(), [*inputs, *ffn.parameters()])
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one, other)
    of_ffn = dict(zip((name for name, _ in ffn.named_parameters()), theirs[2:], strict=True))
    names = [name for name, _ in experts.named_parameters()]
    of_experts = {name: ours[2 + place].sum(0) for place, name in enumerate(sorted(names, key=stack_order(experts)))}
    for part in FAMILIES[model_type].parts:
        if part.tensor in of_ffn:
            torch.testing.assert_close(of_experts[part.stack], of_ffn[part.tensor])


def stack_order(experts: Experts) -> Callable[[str], int]:
    order = [id(stack) for stack in experts.stacks()]
    return lambda name: order.index(id(experts.get_parameter(name)))


def test_autocast_over_fp32_masters_is_bit_for_bit_bf16_on_rounded_weights() -> None:
    masters = make_layer(3).experts
    rounded = Experts(llama_ffn(HIDDEN, FFN), FAMILIES["llama"], EXPERTS - 1).bfloat16()
    with torch.no_grad():
        for parameter, master in zip(rounded.parameters(), masters.parameters(), strict=True):
            parameter.copy_(master)
            master.copy_(master.bfloat16())
    x_TD, ids_TK, weights_TK = kept_experts(50, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD = masters(x_TD, ids_TK, weights_TK)
    expected_TD = rounded(x_TD.bfloat16(), ids_TK, weights_TK)
    assert torch.equal(y_TD, expected_TD)
    gradients = torch.autograd.grad(y_TD.float().square().sum(), [x_TD, weights_TK, *masters.parameters()])
    expected = torch.autograd.grad(expected_TD.float().square().sum(), [x_TD, weights_TK, *rounded.parameters()])
    for found, wanted in zip(gradients, expected, strict=True):
        assert found.dtype == torch.float32
        assert wanted.abs().max() > 0
        assert torch.equal(found, wanted.float())


def test_bf16_gradients_are_those_of_fp64_up_to_rounding() -> None:
    exact = make_layer(3).experts.bfloat16().double()
    rough = Experts(llama_ffn(HIDDEN, FFN), FAMILIES["llama"], EXPERTS - 1).bfloat16()
    rough.load_state_dict(exact.state_dict())
    x_TD, ids_TK, weights_TK = kept_experts(50, 2)
    gradients = []
    for experts, dtype in ((exact, torch.float64), (rough, torch.bfloat16)):
        y_TD = experts(x_TD.to(torch.bfloat16).to(dtype), ids_TK, weights_TK.float())
        gradients.append(torch.autograd.grad(y_TD.sum(), [x_TD, weights_TK, *experts.parameters()]))
    for wanted, found in zip(*gradients, strict=True):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 2e-2


def test_frozen_experts_get_no_gradient_and_change_no_other() -> None:
    layer, x_TD = make_layer(3), torch.randn(7, HIDDEN, requires_grad=True)
    layer(x_TD[None]).square().sum().backward()
    expected = x_TD.grad
    x_TD.grad = None
    layer.experts.requires_grad_(False).zero_grad(set_to_none=True)
    layer(x_TD[None]).square().sum().backward()
    assert expected is not None and x_TD.grad is not None
    assert torch.equal(x_TD.grad, expected)
    assert all(parameter.grad is None for parameter in layer.experts.parameters())


def test_autocast_keeps_no_second_copy_of_a_stack_for_the_backward_pass() -> None:
    experts = make_layer(3).experts
    x_TD, ids_TK, weights_TK = kept_experts(50, 2, torch.float32)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        experts(x_TD, ids_TK, weights_TK)
    stacks = {parameter.data_ptr() for parameter in experts.parameters()}
    assert {tensor.data_ptr() for tensor in kept if tensor.dim() == 3} == stacks
    rows = sum(dispatched(ids_TK, 3, torch.bfloat16).counts_R)
    floats = sum(tensor.numel() for tensor in kept if tensor.dtype == torch.bfloat16)
    assert floats == 50 * HIDDEN + rows * HIDDEN + 2 * rows * FFN  # x, the experts' outputs, gate and up


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1.125), (torch.float32, 1.0)])
@pytest.mark.parametrize("tokens", [0, 1, 7, 300])
def test_dispatch_gives_each_expert_its_tokens_and_in_16_bits_at_most_an_eighth_of_spare_rows(
    tokens: int, dtype: torch.dtype, most: float
) -> None:
    ids_TK = torch.rand(tokens, 5, generator=torch.Generator().manual_seed(tokens)).topk(2, dim=-1).indices
    dispatch = dispatched(ids_TK, 5, dtype)
    expert_N = torch.repeat_interleave(torch.arange(5), torch.tensor(dispatch.counts_R))
    assert torch.equal(expert_N[dispatch.row_TK], ids_TK)
    assert torch.equal(dispatch.token_N[dispatch.row_TK], torch.arange(tokens)[:, None].expand(-1, 2))
    assert len(dispatch.row_TK.unique()) == tokens * 2
    for used, count in zip(torch.bincount(ids_TK.flatten(), minlength=5).tolist(), dispatch.counts_R, strict=True):
        assert used <= count <= used * most
    assert len({_with_spare(count) for count in range(256, 513)}) <= 9


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
    mm, addmm, linear = torch.mm, torch.addmm, functional.linear

    def watched_product(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        result = mm(x, weight, **options)
        products.append((x.dtype, weight.dtype, result.dtype))
        return result

    def watched_product_and_bias(bias: Tensor, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        result = addmm(bias, x, weight, **options)
        products.append((x.dtype, weight.dtype, result.dtype))
        return result

    def watched_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = linear(x, weight, bias)
        if weight.data_ptr() in router_weights:
            linears.append((x.dtype, weight.dtype, result.dtype))  # autocast would show in the result
        return result

    monkeypatch.setattr(torch, "mm", watched_product)
    monkeypatch.setattr(torch, "addmm", watched_product_and_bias)
    monkeypatch.setattr(functional, "linear", watched_linear)
    ids = torch.arange(3, 33)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    layers, routed = model.config.num_hidden_layers, model.config.xft["experts"] - 1
    matrices = len(FAMILIES[model_type].projections)
    assert products == [(torch.bfloat16,) * 3] * (matrices * routed * layers)  # ours ran, once an expert and matrix
    loss.backward()
    assert set(products) == {(torch.bfloat16,) * 3}  # the backward pass too
    assert len(routers) == layers
    assert linears == [(torch.float32,) * 3] * (3 * layers)  # hidden, scores, noise
    for layer in model.base_model.layers:
        assert type(layer.mlp) is MoELayer
        assert layer.mlp.experts.stacks()[0].grad.dtype == torch.float32
        assert layer.mlp.experts.stacks()[0].grad.abs().max() > 0
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
