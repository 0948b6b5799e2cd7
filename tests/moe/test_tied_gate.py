"""One gate for all layers: stored once, and the same as a gate of each layer's own with equal weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from xft.cost import count, count_checkpoint
from xft.export import export
from xft.families import FAMILIES
from xft.merge.fit import Merging
from xft.merge.methods import equal_coefficients
from xft.merge.write import write_merged
from xft.moe.balance import record_routers
from xft.moe.layer import Router
from xft.moe.layouts import LAYOUTS
from xft.moe.mixture import Mixture
from xft.moe.routers import ROUTERS
from xft.prove import prove
from xft.recipe import MergeConfig, UpcycleConfig
from xft.tune.tune import save_tuned
from xft.upcycle import upcycle

IDS = torch.randint(4, 260, (3, 24), generator=torch.Generator().manual_seed(1))
LAYERS = 2


def mixture_of(base: Path, folder: Path, *, gate: str = "tied", **options: Any) -> Mixture:
    folder.mkdir()
    parts = {"parts": 2} if options.get("layout") == "split" else {}
    given = {"experts": 5, "active": 3, "gate": gate} | parts | options
    upcycle(base, folder, UpcycleConfig.model_validate(given), seed=2)
    return Mixture(folder)


def untied(tied: Mixture, base: Path, folder: Path, **options: Any) -> Mixture:
    """The mixture that has the tied gate's weights in each layer."""
    own = mixture_of(base, folder, gate="linear", **options)
    tensors = load_file(own.folder / "model.safetensors")
    for name in tensors:
        source = name if name in tied else f"{tied.family.trunk}.router.{name.split('.router.')[1]}"
        tensors[name] = tied.read(source).clone()
    save_file(tensors, own.folder / "model.safetensors", metadata={"format": "pt"})
    return Mixture(own.folder)


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = model_of(folder)(IDS).logits
    return found


@pytest.mark.parametrize(
    ("model_type", "layout"), [(name, "adapter") for name in FAMILIES] + [("llama", name) for name in LAYOUTS]
)
def test_it_is_stored_once_proved_and_left_out_of_the_merged_model(
    model_type: str, layout: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    router = "deepseek-sigmoid" if layout == "split" else "shared-normalized"
    mixture = mixture_of(base, tmp_path / "moe", layout=layout, router=router)
    trunk = mixture.family.trunk
    names = {name for name in mixture.names() if ".router." in name}
    assert names - {f"{trunk}.router.bias_R"} == {f"{trunk}.router.scores.weight", f"{trunk}.router.noise.weight"}
    assert prove(base, mixture.folder).preserves_dense
    (tmp_path / "merged").mkdir()
    weigh = 0.75 if mixture.layout.weighs_shared else None
    write_merged(
        mixture, equal_coefficients(LAYERS, mixture.routed, weigh, mixture.settings.parts), tmp_path / "merged"
    )
    dense, merged = (load_file(at / "model.safetensors") for at in (base, tmp_path / "merged"))
    assert dense.keys() == merged.keys()
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(base), rtol=1e-5, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("layout", "router"),
    [(layout, name) for layout in LAYOUTS for name, rule in ROUTERS.items()
     if rule.gated and (layout != "split" or rule.apart or not rule.shared)],
)  # fmt: skip
def test_it_is_a_gate_a_layer_with_equal_weights_in_logits_and_summed_gradients(
    router: str, layout: str, tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"layout": layout, "router": router, "gate_noise": False}
    mixture = mixture_of(tiny_dense, tmp_path / "tied", **options)
    mixture = Mixture(perturbed(mixture.folder, std=0.1))
    own = untied(mixture, tiny_dense, tmp_path / "own", **options)
    one, several = model_of(mixture.folder), model_of(own.folder)
    for model in (one, several):
        model.train()
        model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(logits(mixture.folder), logits(own.folder), rtol=0, atol=0)
    parts = [layer.mlp.router.scores.weight.grad for layer in several.model.layers]
    assert all(float(part.abs().max()) > 0 for part in parts)
    torch.testing.assert_close(one.model.router.scores.weight.grad, sum(parts), rtol=1e-5, atol=1e-7)
    with record_routers(one) as outputs:
        one(IDS)
    assert len(outputs) == LAYERS
    assert not torch.equal(outputs[0].logits_TR, outputs[1].logits_TR)  # each layer's own input is scored


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox"])
def test_it_is_saved_once_and_loads_with_its_values(
    model_type: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(dense_of(model_type), tmp_path / "moe", layout="adapter", dense_layers=1)
    mixture = Mixture(perturbed(mixture.folder))
    model = model_of(mixture.folder)
    assert sum(isinstance(module, Router) for module in model.modules()) == 1
    assert count_checkpoint(mixture.folder) == count(model)
    (tmp_path / "tuned").mkdir()
    save_tuned(model, mixture, tmp_path / "tuned")
    model.save_pretrained(tmp_path / "saved")
    before = load_file(mixture.folder / "model.safetensors")
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert sum(".router." in name for name in load_file(tmp_path / "saved" / "model.safetensors")) == 2
    for folder in (tmp_path / "tuned", tmp_path / "saved"):
        torch.testing.assert_close(logits(folder), logits(mixture.folder), rtol=0, atol=1e-5)


def test_a_learned_merge_knows_nothing_of_it(tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", layout="adapter")
    merging = Merging(Mixture(perturbed(mixture.folder)), MergeConfig())
    merging(input_ids=IDS, labels=IDS).loss.backward()
    merging.contract()
    assert merging.logits_LPR.grad is not None
    assert float(merging.logits_LPR.grad.abs().max()) > 0
    assert not any("router" in name for name, _ in merging.named_parameters())


def test_a_stock_class_gets_it_in_each_layer(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(dense_of("qwen3"), tmp_path / "moe", router="topk-softmax")
    (tmp_path / "out").mkdir()
    assert export(perturbed(mixture.folder), tmp_path / "out") == "qwen3-moe"
    torch.testing.assert_close(logits(tmp_path / "out"), logits(mixture.folder), rtol=0, atol=2e-5)


def test_with_adapters_and_one_kept_it_is_self_moes_layer(
    tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """`W x + p_best B_best A_best x` in each linear layer, p the softmax of one matrix that all layers share."""
    mixture = mixture_of(tiny_dense, tmp_path / "moe", layout="adapter", active=2)
    model = model_of(perturbed(mixture.folder, std=0.2)).requires_grad_(False)
    x_TD = torch.randn(7, 32, generator=torch.Generator().manual_seed(4))
    p_TR = linear(x_TD, model.model.router.scores.weight).softmax(-1)
    for number in range(LAYERS):
        layer = model.model.layers[number].mlp
        for token, best in enumerate(p_TR.argmax(-1).tolist()):

            def adapted(name: str, x: Tensor, layer: Any = layer, best: int = best, token: int = token) -> Tensor:
                a, b = (layer.experts.get_parameter(f"{name}_{end}")[best] for end in "ab")
                return linear(x, layer.shared_expert.get_submodule(name).weight + p_TR[token, best] * b @ a)

            x_D = x_TD[token]
            hidden = torch.nn.functional.silu(adapted("gate_proj", x_D)) * adapted("up_proj", x_D)
            torch.testing.assert_close(layer(x_TD[None])[0, token], adapted("down_proj", hidden), rtol=1e-4, atol=1e-5)
    assert len(set(p_TR.argmax(-1).tolist())) > 1


def test_its_settings_are_in_the_config(tiny_dense: Path, tmp_path: Path) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe")
    assert json.loads((mixture.folder / "config.json").read_text())["xft"]["gate"] == "tied"
