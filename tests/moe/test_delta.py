"""Experts as low-rank differences: against full matrices put together, in values, gradients, merges and proofs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stock import stock_ffn
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from xft.families import FAMILIES
from xft.merge.combine import inner, linear
from xft.merge.fit import Merging
from xft.merge.methods import Coefficients, equal_coefficients
from xft.merge.write import write_merged
from xft.moe.delta import DeltaExperts
from xft.moe.layer import Experts
from xft.moe.layouts.delta import LowRank
from xft.moe.mixture import Mixture
from xft.moe.routers import ROUTERS, Routing
from xft.prove import prove
from xft.recipe import MergeConfig, RecipeError, UpcycleConfig, parse_section
from xft.upcycle import upcycle

EXPERTS, RANK = 4, 3
FFN = 10
IDS = torch.randint(4, 260, (3, 24), generator=torch.Generator().manual_seed(1))


def routing(tokens: int, keep: int) -> Routing:
    ids_TK = torch.rand(tokens, EXPERTS).topk(keep, dim=-1).indices
    weights_TK = torch.rand(tokens, keep, dtype=torch.float64, requires_grad=True)
    shared_T = torch.rand(tokens, dtype=torch.float64, requires_grad=True)
    return Routing(shared_T, weights_TK, ids_TK, torch.rand(tokens, EXPERTS))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox"])
def test_differences_compute_what_full_matrices_compute_in_values_and_gradients(model_type: str, shared: bool) -> None:
    torch.manual_seed(3)
    family, ffn = FAMILIES[model_type], stock_ffn(model_type)
    deltas = DeltaExperts(ffn, family, EXPERTS, RANK, shared=shared).double()
    for parameter in deltas.parameters():
        nn.init.normal_(parameter, std=0.5)
    x_TD, routed = torch.randn(9, 12, dtype=torch.float64, requires_grad=True), routing(9, 2)
    output_weights_TD = torch.randn(9, 12, dtype=torch.float64)

    full = Experts(ffn, family, EXPERTS).double()
    stacks = {}
    for name in family.projections:
        a, b = (deltas.get_parameter(f"{name}_{end}") for end in "ab")
        stacks[name] = ffn.get_submodule(name).weight + b @ a
        if full.form.bias:
            stacks[f"{name}_bias"] = ffn.get_submodule(name).bias.expand(EXPERTS, -1)
    expected_TD = torch.func.functional_call(full, stacks, (x_TD, routed.ids_TK, routed.routed_TK))
    if shared:
        expected_TD = expected_TD + routed.shared_T[:, None] * ffn(x_TD)
    found_TD = deltas.mix(x_TD, routed, ffn)
    torch.testing.assert_close(found_TD, expected_TD)
    leaves = [x_TD, routed.routed_TK, *deltas.parameters(), *ffn.parameters(), *([routed.shared_T] if shared else [])]
    ours, theirs = (torch.autograd.grad((y * output_weights_TD).sum(), leaves) for y in (found_TD, expected_TD))
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(deltas.mix(x_TD, routed, ffn), expected_TD)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox"])
def test_gradients_are_those_of_finite_differences(model_type: str) -> None:
    torch.manual_seed(5)
    ffn = stock_ffn(model_type)
    deltas = DeltaExperts(ffn, FAMILIES[model_type], EXPERTS, RANK).double()
    for parameter in deltas.parameters():
        nn.init.normal_(parameter, std=0.5)
    routed = routing(5, 2)

    def mixed(x_TD: Tensor, shared_T: Tensor, weights_TK: Tensor, *_: Tensor) -> Tensor:
        return deltas.mix(x_TD, Routing(shared_T, weights_TK, routed.ids_TK, routed.scores_TR), ffn)

    x_TD = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    leaves = (x_TD, routed.shared_T, routed.routed_TK, *deltas.parameters(), *ffn.parameters())
    assert torch.autograd.gradcheck(mixed, leaves, fast_mode=True)


def test_an_expert_that_no_token_keeps_gets_no_gradient_and_changes_nothing() -> None:
    torch.manual_seed(6)
    ffn = stock_ffn("llama")
    deltas = DeltaExperts(ffn, FAMILIES["llama"], EXPERTS, RANK).double()
    for parameter in deltas.parameters():
        nn.init.normal_(parameter, std=0.5)
    x_TD, routed = torch.randn(9, 12, dtype=torch.float64), routing(9, 2)
    routed = Routing(routed.shared_T, routed.routed_TK, torch.tensor([[3, 1]]).expand(9, 2), routed.scores_TR)
    found_TD = deltas.mix(x_TD, routed, ffn)
    found_TD.square().sum().backward()
    for parameter in deltas.parameters():
        assert parameter.grad is not None
        used = parameter.grad.flatten(1).abs().amax(1) > 0
        assert used.tolist() == [False, True, False, True]
        with torch.no_grad():
            parameter[[0, 2]] += 1.0
    torch.testing.assert_close(deltas.mix(x_TD, routed, ffn), found_TD)


def test_bf16_gradients_under_autocast_are_those_of_fp64_up_to_rounding() -> None:
    torch.manual_seed(7)
    ffn = stock_ffn("llama").bfloat16().double()
    exact = DeltaExperts(ffn, FAMILIES["llama"], EXPERTS, RANK).double()
    for parameter in exact.parameters():
        nn.init.normal_(parameter, std=0.3)
    exact = exact.bfloat16().double()
    x_TD, routed = torch.randn(60, 12).bfloat16(), routing(60, 2)
    weighing_TD = torch.randn(60, 12).bfloat16()
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaves = [*exact.to(dtype).parameters(), *ffn.to(dtype).parameters()]
        given_TD = x_TD.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y_TD = exact.mix(given_TD, routed, ffn)
        inputs = [given_TD, routed.routed_TK, routed.shared_T, *leaves]
        gradients.append(torch.autograd.grad((y_TD * weighing_TD.to(y_TD.dtype)).sum(), inputs))
    for wanted, found in zip(*gradients, strict=True):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 2e-2


def test_what_a_token_keeps_for_the_backward_pass_does_not_grow_with_its_experts() -> None:
    ffn = stock_ffn("llama").float()
    deltas = DeltaExperts(ffn, FAMILIES["llama"], EXPERTS, RANK)
    sizes = []
    for keep in (1, 4):
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() if tensor.shape[-1] == FFN else 0
            return tensor

        routed = routing(50, keep)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            deltas.mix(torch.randn(50, 12, requires_grad=True), routed, ffn)
        weights = {tensor.data_ptr() for tensor in (*deltas.parameters(), *ffn.parameters())}
        sizes.append(sum(count for place, count in kept.items() if place not in weights))
    assert sizes == [3 * 50 * FFN] * 2  # gate, up, and the mixed hidden states


def mixture_of(base: Path, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    given = {"experts": 5, "active": 3, "layout": "delta", "rank": RANK, **options}
    upcycle(base, folder, UpcycleConfig.model_validate(given), seed=2)
    return folder


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_fresh_mixture_of_differences_proves_itself(
    model_type: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    proof = prove(base, mixture_of(base, tmp_path / "moe"))
    assert proof.max_difference <= proof.tolerance
    assert proof.negative_control_difference > 10 * proof.tolerance


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_router_takes_differences(router: str, tiny_dense: Path, tmp_path: Path) -> None:
    mixture = Mixture(mixture_of(tiny_dense, tmp_path / "moe", router=router))
    assert prove(tiny_dense, mixture.folder).preserves_dense == ROUTERS[router].preserves_dense
    assert not mixture.layout.copies
    assert len(mixture.pieces(0, mixture.parts[0])[0].experts) == 5
    torch.testing.assert_close(*mixture.pieces(1, mixture.parts[2])[0].experts[1:3])


def test_a_bf16_base_keeps_its_dtype(dense_of: Callable[..., Path], tmp_path: Path) -> None:
    base = dense_of("llama", "bfloat16")
    mixture = Mixture(mixture_of(base, tmp_path / "moe"))
    assert {mixture.dtype(name) for name in mixture.names()} == {torch.bfloat16}
    prove(base, mixture.folder)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "starcoder2"])
def test_the_merged_model_is_the_ffn_plus_the_weighted_differences(
    model_type: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = Mixture(perturbed(mixture_of(dense_of(model_type), tmp_path / "moe"), std=0.1))
    shares_LPR = torch.rand(2, 1, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    out = tmp_path / "out"
    out.mkdir()
    write_merged(mixture, Coefficients(shares_LPR, torch.full((2, 1), 0.6)), out)
    merged = AutoModelForCausalLM.from_pretrained(out)
    family = mixture.family
    for layer in range(2):
        for part in mixture.parts:
            found: Tensor = merged.get_parameter(f"{family.ffn(layer)}.{part.tensor}")
            expected = mixture.read(f"{family.ffn(layer)}.shared_expert.{part.tensor}").float()
            for expert in range(4) if part.tensor.endswith("weight") else ():
                a, b = (mixture.read(f"{family.ffn(layer)}.experts.{part.stack}_{end}")[expert] for end in "ab")
                expected = expected + 0.4 * shares_LPR[layer, 0, expert] * (b @ a)
            torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_sums_and_inner_products_without_the_versions_are_those_of_the_versions(
    shared: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(8)
    whole_OI, narrow_RrI, wide_ROr = torch.randn(11, 7), torch.randn(4, RANK, 7), torch.randn(4, 11, RANK)
    versions = LowRank(whole_OI.to(dtype), narrow_RrI.to(dtype), wide_ROr.to(dtype), shared=shared)
    put_together = list(versions)
    assert len(versions) == len(put_together) == 4 + shared
    torch.testing.assert_close(versions[1:], put_together[1:])
    a, b = narrow_RrI.to(dtype)[-1].float(), wide_ROr.to(dtype)[-1].float()
    torch.testing.assert_close(versions[-1], whole_OI.to(dtype).float() + b @ a)
    weights_E, matrix_OI = torch.randn(4 + shared).softmax(0), torch.randn(11, 7)
    out_OI = torch.full((11, 7), float("nan"))
    assert linear(versions, weights_E, out_OI) is out_OI
    torch.testing.assert_close(out_OI, linear(put_together, weights_E), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inner(versions, matrix_OI), inner(put_together, matrix_OI), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["delta", "adapter"])
def test_a_plain_merge_learned_or_not_puts_no_version_together(
    layout: str, tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = Mixture(mixture_of(tiny_dense, tmp_path / "moe", layout=layout))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(LowRank, "__getitem__", lambda *_: pytest.fail("a version was put together"))
    merging = Merging(mixture, MergeConfig()).eval()
    merging(input_ids=IDS, labels=IDS).loss.backward()
    merging.contract()
    write_merged(mixture, merging.coefficients(), tmp_path / "out")


def test_learned_coefficients_have_the_gradient_of_finite_differences(
    tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = perturbed(mixture_of(tiny_dense, tmp_path / "moe"), std=0.1)
    merging = Merging(Mixture(mixture), MergeConfig(shared_weight=0.5)).eval()
    merging(input_ids=IDS, labels=IDS).loss.backward()
    merging.contract()
    assert merging.logits_LPR.grad is not None
    gradient = float(merging.logits_LPR.grad[1, 0, 2])
    losses = []
    for step in (0.05, -0.05):
        with torch.no_grad():
            merging.logits_LPR[1, 0, 2] += step
            merging.remix()
            losses.append(float(merging(input_ids=IDS, labels=IDS).loss))
            merging.logits_LPR[1, 0, 2] -= step
    assert gradient == pytest.approx((losses[0] - losses[1]) / 0.1, rel=0.05, abs=1e-5)


def test_merging_a_fresh_mixture_of_differences_gives_the_base_back(tiny_dense: Path, tmp_path: Path) -> None:
    mixture = Mixture(mixture_of(tiny_dense, tmp_path / "moe"))
    out = tmp_path / "out"
    out.mkdir()
    write_merged(mixture, equal_coefficients(mixture.layers, mixture.routed, 0.75), out)
    with torch.no_grad():
        logits, base = (AutoModelForCausalLM.from_pretrained(folder)(IDS).logits for folder in (out, tiny_dense))
    torch.testing.assert_close(logits, base, rtol=1e-5, atol=1e-5)


def test_what_only_copies_can_do_is_refused() -> None:
    with pytest.raises(RecipeError, match="redraw and noise change copies"):
        parse_section(UpcycleConfig, {"layout": "delta", "redraw": 0.5}, "here")
