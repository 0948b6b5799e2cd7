"""The laws of every layout: what it makes of a dense model, what it computes, and what merging gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.cost import count, count_checkpoint
from xft.errors import RecipeError
from xft.families import FAMILIES
from xft.merge.fit import Merging
from xft.merge.methods import Coefficients, equal_coefficients
from xft.merge.write import write_merged
from xft.moe.layouts import LAYOUTS, layout_of
from xft.moe.mixture import Mixture
from xft.moe.routers import ROUTERS, Routing
from xft.moe.slices import assign_slices, ungated
from xft.prove import prove
from xft.recipe import MergeConfig, UpcycleConfig
from xft.tune.callbacks import ExpertAveraging
from xft.tune.tune import save_tuned
from xft.upcycle import upcycle

IDS = torch.randint(4, 260, (3, 24), generator=torch.Generator().manual_seed(1))
SETTINGS: dict[str, dict[str, Any]] = {"split": {"parts": 2}}
"""What a layout can't do without."""


def settings(layout: str, router: str, **options: Any) -> UpcycleConfig:
    """Those of a mixture of 4 routed experts, of which 2 are kept."""
    shared = int(ROUTERS[router].shared)
    given = {"experts": 4 + shared, "active": 2 + shared, "layout": layout, "router": router}
    return UpcycleConfig.model_validate(given | SETTINGS.get(layout, {}) | options)


def fits(layout: str, router: str) -> bool:
    try:
        layout_of(settings(layout, router), FAMILIES["llama"])
    except RecipeError:
        return False
    return True


KINDS = [(layout, router) for layout in sorted(LAYOUTS) for router in sorted(ROUTERS) if fits(layout, router)]


def mixture_of(base: Path, folder: Path, layout: str, router: str, **options: Any) -> Mixture:
    folder.mkdir()
    upcycle(base, folder, settings(layout, router, **options), seed=2)
    return Mixture(folder)


def uniform(mixture: Mixture) -> Coefficients:
    shared_weight = 0.75 if mixture.layout.weighs_shared else None
    return equal_coefficients(len(mixture.mixed_layers), mixture.routed, shared_weight, mixture.settings.parts)


def merged(mixture: Mixture, coefficients: Coefficients, out: Path) -> Path:
    out.mkdir()
    write_merged(mixture, coefficients, out)
    return out


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
    return found


def promising(layout: str) -> list[str]:
    """The routers with which a layout promises to preserve the dense model."""
    return [
        router
        for name, router in KINDS
        if name == layout
        and layout_of(settings(layout, router), FAMILIES["llama"]).preserves_dense(torch.float32)
    ]  # fmt: skip


def test_the_recipe_knows_every_layout() -> None:
    assert set(get_args(UpcycleConfig.model_fields["layout"].annotation)) == set(LAYOUTS)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_some_router_preserves_the_dense_model(layout: str) -> None:
    assert promising(layout)


@pytest.mark.sampled
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_fresh_mixture_of_every_family_proves_itself_and_merges_to_its_base(
    model_type: str, layout: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base, router = dense_of(model_type), max(promising(layout), key=lambda name: ROUTERS[name].shared)
    mixture = mixture_of(base, tmp_path / "moe", layout, router)
    proof = prove(base, mixture.folder)
    assert proof.preserves_dense
    assert 0 < proof.max_difference <= proof.tolerance < 1e-4
    assert proof.negative_control_difference > 10 * proof.tolerance
    before = load_file(base / "model.safetensors")
    after = load_file(merged(mixture, uniform(mixture), tmp_path / "merged") / "model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=6e-7, atol=1e-9)


@pytest.mark.parametrize(("layout", "router"), KINDS)
def test_what_is_not_promised_is_measured_and_merges_to_the_base_too(
    layout: str, router: str, tiny_dense: Path, tmp_path: Path
) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", layout, router)
    proof = prove(tiny_dense, mixture.folder)
    assert proof.preserves_dense == (router in promising(layout))
    if not proof.preserves_dense:
        assert proof.max_difference > 100 * proof.tolerance
        assert proof.divergence > 0
    out = merged(mixture, uniform(mixture), tmp_path / "merged")
    torch.testing.assert_close(logits(out), logits(tiny_dense), rtol=1e-5, atol=1e-5)


def choosing(mixture: Mixture, copy: int) -> Coefficients:
    """All weight on one copy of each part, none on a shared expert that is weighed."""
    layers, parts = len(mixture.mixed_layers), mixture.settings.parts
    shares_LPR = torch.zeros(layers, 1, mixture.routed)
    shares_LPR[..., parts * copy : parts * (copy + 1)] = 1.0 / parts
    return Coefficients(shares_LPR, torch.zeros(layers, 1) if mixture.layout.weighs_shared else None)


@pytest.mark.sampled
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("model_type", ["llama", "phi3", "starcoder2", "gpt_neox"])
def test_a_merge_of_chosen_experts_computes_what_the_mixture_does_when_it_chooses_them(
    model_type: str, layout: str, shared: bool, dense_of: Callable[..., Path], perturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    router = "deepseek-sigmoid" if shared else "topk-softmax"
    mixture = mixture_of(dense_of(model_type), tmp_path / "moe", layout, router)
    mixture = Mixture(perturbed(mixture.folder, std=0.1))
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder).requires_grad_(False)
    x_TD, parts = torch.randn(7, model.config.hidden_size), mixture.settings.parts
    outputs = []
    for copy in range(mixture.routed // parts):
        out = merged(mixture, choosing(mixture, copy), tmp_path / f"merged-{copy}")
        dense: Any = AutoModelForCausalLM.from_pretrained(out).requires_grad_(False)
        routing = Routing(
            shared_T=torch.full((7,), float(mixture.layout.rule.shared and not mixture.layout.weighs_shared)),
            routed_TK=torch.full((7, parts), 1.0 / parts),
            ids_TK=torch.arange(parts * copy, parts * (copy + 1)).expand(7, -1),
            scores_TR=torch.zeros(7, mixture.routed),
        )
        layer = model.base_model.layers[1].mlp
        found_TD = layer.experts.mix(x_TD, routing, layer.shared_expert)
        outputs.append(dense.base_model.layers[1].mlp(x_TD))
        torch.testing.assert_close(outputs[-1], found_TD, rtol=1e-4, atol=1e-4)
    assert float((outputs[0] - outputs[1]).abs().max()) > 0.01  # they are different experts


@pytest.mark.parametrize(("layout", "router"), KINDS)
def test_flops_are_counted_for_the_products_that_are_computed(
    layout: str, router: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(dense_of("llama"), tmp_path / "moe", layout, router)
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder).eval().requires_grad_(False)
    layer, tokens = model.base_model.layers[1].mlp, 7
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
    layer.train(not ROUTERS[router].gated)  # slices are of the training data, gate noise is left out
    assign_slices(ungated(layer), torch.zeros(1, dtype=torch.long), tokens)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        layer(torch.randn(1, tokens, model.config.hidden_size))
    experts = {f"experts.{name}": layer.experts.used(name, layer.router.keep) for name in layer.experts.state_dict()}
    per_token = sum(
        experts.get(name, 1.0) * parameter.numel()
        for name, parameter in layer.named_parameters()
        if "noise" not in name
    )
    assert counter.get_total_flops() == 2 * tokens * per_token


@pytest.mark.sampled
@pytest.mark.parametrize("router", ["deepseek-sigmoid", "topk-softmax"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_equal_merge_is_the_mean_of_the_merges_of_single_copies(
    layout: str, router: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(dense_of("gpt_neox"), tmp_path / "moe", layout, router)
    mixture = Mixture(perturbed(mixture.folder, std=0.1))
    coefficients = uniform(mixture)
    if coefficients.shared_LP is not None:
        coefficients.shared_LP.zero_()
    whole = load_file(merged(mixture, coefficients, tmp_path / "equal") / "model.safetensors")
    copies = range(mixture.routed // mixture.settings.parts)
    single = [
        load_file(merged(mixture, choosing(mixture, copy), tmp_path / f"{copy}") / "model.safetensors")
        for copy in copies
    ]
    for name, tensor in whole.items():
        mean = torch.stack([tensors[name] for tensors in single]).mean(0)
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("layout", "router"), [(name, router) for name in LAYOUTS for router in ("deepseek-sigmoid", "topk-softmax")]
)
@pytest.mark.parametrize("per", ["layer", "matrix"])
def test_learned_coefficients_have_the_gradient_of_finite_differences(
    per: str, layout: str, router: str, tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", layout, router)
    mixture = Mixture(perturbed(mixture.folder, std=0.1))
    merging = Merging(mixture, MergeConfig(shared_weight=0.5, per=per)).eval()
    with torch.no_grad():
        merging.logits_LPR.copy_(torch.randn(merging.logits_LPR.shape, generator=torch.Generator().manual_seed(3)))
    merging.remix()
    merging(input_ids=IDS, labels=IDS).loss.backward()
    merging.contract()
    assert merging.logits_LPR.grad is not None
    for place in ((1, 0, 2), (0, -1, 1)):
        gradient, losses = float(merging.logits_LPR.grad[place]), []
        for step in (0.05, -0.05):
            with torch.no_grad():
                merging.logits_LPR[place] += step
                merging.remix()
                losses.append(float(merging(input_ids=IDS, labels=IDS).loss))
                merging.logits_LPR[place] -= step
        assert gradient == pytest.approx((losses[0] - losses[1]) / 0.1, rel=0.05, abs=1e-5)
        assert abs(gradient) > 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize("router", ["deepseek-sigmoid", "topk-softmax"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("model_type", ["qwen2", "phi3", "gpt_neox"])
def test_a_mixture_is_saved_whole_and_loads_with_its_values(
    model_type: str, layout: str, router: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    mixture = mixture_of(dense_of(model_type), tmp_path / "moe", layout, router)
    mixture = Mixture(perturbed(mixture.folder))
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder).eval()
    (tmp_path / "tuned").mkdir()
    save_tuned(model, mixture, tmp_path / "tuned")
    model.save_pretrained(tmp_path / "saved")
    before = load_file(mixture.folder / "model.safetensors")
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert Mixture(tmp_path / "tuned").settings == mixture.settings
    with torch.no_grad():
        expected = model(IDS).logits
    assert float((expected - logits(dense_of(model_type))).abs().max()) > 0.01
    for folder in (tmp_path / "tuned", tmp_path / "saved"):
        torch.testing.assert_close(logits(folder), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("router", ["deepseek-sigmoid", "topk-softmax"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_its_cost_is_counted_from_the_config_alone(layout: str, router: str, tiny_dense: Path, tmp_path: Path) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", layout, router)
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder)
    assert count_checkpoint(mixture.folder) == count(model)
    assert count(model).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.sampled
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_the_first_layers_can_stay_dense(
    model_type: str, layout: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    mixture = mixture_of(base, tmp_path / "moe", layout, "topk-softmax", dense_layers=1)
    family = mixture.family
    first = {name for name in mixture.names() if name.startswith(family.ffn(0))}
    assert first == {name for name in Checkpoint(base).names() if name.startswith(family.ffn(0))}
    assert any(".experts." in name for name in mixture.names() if name.startswith(family.ffn(1)))
    proof = prove(base, mixture.folder)
    assert proof.preserves_dense and proof.negative_control_difference > 10 * proof.tolerance
    out = merged(mixture, uniform(mixture), tmp_path / "merged")
    torch.testing.assert_close(logits(out), logits(base), rtol=1e-5, atol=1e-5)
    mixture = Mixture(perturbed(mixture.folder, std=0.1))
    merging = Merging(mixture, MergeConfig()).eval()
    assert merging.logits_LPR.shape == (1, 1, 4)
    merging(input_ids=IDS, labels=IDS).loss.backward()
    merging.contract()
    assert merging.logits_LPR.grad is not None and float(merging.logits_LPR.grad.abs().max()) > 1e-4
    written = load_file(merged(mixture, merging.coefficients(), tmp_path / "learned") / "model.safetensors")
    for (layer, part), weight in merging.ffn_weights():
        assert layer == 1
        torch.testing.assert_close(written[f"{family.ffn(1)}.{part.tensor}"], weight.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_familys_dropout_of_the_ffns_output_is_that_of_the_layers_in_training(
    layout: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of("starcoder2", residual_dropout=0.3)
    router = max(promising(layout), key=lambda name: ROUTERS[name].shared)
    mixture = mixture_of(base, tmp_path / "moe", layout, router, gate_noise=False)
    found = []
    for folder in (base, mixture.folder):
        model: Any = AutoModelForCausalLM.from_pretrained(folder).train()
        torch.manual_seed(5)  # the same places are dropped then
        with torch.no_grad():
            found.append(model(IDS).logits)
    assert float((found[0] - logits(base)).abs().max()) > 0.1
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [name for name, layout in LAYOUTS.items() if layout.copies])
def test_averaging_moves_copies_towards_each_other_and_keeps_what_they_merge_to(
    layout: str, tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", layout, "topk-softmax")
    mixture = Mixture(perturbed(mixture.folder, std=0.1))
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder)
    before = load_file(merged(mixture, uniform(mixture), tmp_path / "before") / "model.safetensors")
    ExpertAveraging(1.0 - 1.0 / (4 // mixture.settings.parts)).on_step_end(None, None, None, model=model)
    (tmp_path / "averaged").mkdir()
    save_tuned(model, mixture, tmp_path / "averaged")
    averaged = Mixture(tmp_path / "averaged")
    for piece in averaged.pieces(0, averaged.parts[0]):
        torch.testing.assert_close(piece.experts[0], piece.experts[-1])  # such a share makes them equal
    after = load_file(merged(averaged, uniform(averaged), tmp_path / "after") / "model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)
