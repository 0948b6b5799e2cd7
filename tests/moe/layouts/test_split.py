"""Experts as parts of an FFN: which channels they hold, what routers do with them, which shapes are exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from xft.cost import count_checkpoint
from xft.data.example import Example
from xft.errors import CheckpointError, RecipeError
from xft.families import FAMILIES
from xft.merge.merge import COEFFICIENTS, MergeJob, merge
from xft.merge.methods import MERGE_METHODS, equal_coefficients, shared_out
from xft.merge.write import write_merged
from xft.moe.layer import Router
from xft.moe.mixture import Mixture
from xft.prove import prove
from xft.recipe import MergeConfig, TuneConfig, UpcycleConfig, parse_section
from xft.stage import Meter
from xft.upcycle import upcycle

IDS = torch.randint(4, 260, (3, 24), generator=torch.Generator().manual_seed(1))


def mixture_of(base: Path, folder: Path, **options: Any) -> Mixture:
    folder.mkdir()
    upcycle(base, folder, UpcycleConfig.model_validate({"layout": "split", **options}), seed=2)
    return Mixture(folder)


def by_hand(model_type: str, tensor: Tensor, name: str, start: int, end: int) -> Tensor:
    """Some channels of a tensor of an FFN with 48."""
    if model_type == "phi3" and name.startswith("gate_up"):
        return torch.cat([tensor[start:end], tensor[48 + start : 48 + end]])
    return tensor[:, start:end] if name.startswith(FAMILIES[model_type].down) else tensor[start:end]


@pytest.mark.parametrize("model_type", ["llama", "phi3", "starcoder2", "gpt_neox"])
def test_the_first_channels_are_shared_and_expert_i_holds_part_i_mod_g_of_the_others(
    model_type: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    # 2 shared and 4 routed parts of 8 channels each
    options = {"parts": 4, "shared": 2, "experts": 10, "active": 6, "router": "deepseek-sigmoid"}
    mixed = load_file(mixture_of(base, tmp_path / "moe", **options).folder / "model.safetensors")
    dense, ffn, down = load_file(base / "model.safetensors"), FAMILIES[model_type].ffn(1), FAMILIES[model_type].down
    names = [name.removeprefix(f"{ffn}.") for name in dense if name.startswith(ffn)]
    for name in names:
        tensor, stack = dense[f"{ffn}.{name}"], name.removesuffix(".weight").replace(".bias", "_bias")
        found_R = mixed[f"{ffn}.experts.{stack}"]
        assert len(found_R) == 8
        if name == f"{down}.bias":
            assert all(torch.equal(found, tensor) for found in found_R)
            assert f"{ffn}.shared_expert.{name}" not in mixed
            continue
        assert torch.equal(mixed[f"{ffn}.shared_expert.{name}"], by_hand(model_type, tensor, name, 0, 16))
        for expert, found in enumerate(found_R):
            start = 16 + 8 * (expert % 4)
            expected = by_hand(model_type, tensor, name, start, start + 8)
            assert torch.equal(found, 4 * expected if name == f"{down}.weight" else expected)


def test_a_factor_that_takes_weights_out_of_a_16_bit_dtype_is_an_error(
    dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(dense_of("llama", "float16"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][2, 3] = 30_000.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    shape = {"experts": 8, "active": 4, "router": "topk-softmax"}
    mixture_of(base, tmp_path / "two", parts=2, **shape)
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.down_proj': float16 can't hold its largest"):
        mixture_of(base, tmp_path / "four", parts=4, **shape)


@pytest.mark.parametrize(("router", "beside"), [("softmax-topk", 0), ("deepseek", 2)])
def test_weights_that_are_shares_of_all_experts_start_at_the_bases_size_too(
    router: str, beside: int, tiny_dense: Path, tmp_path: Path
) -> None:
    shape = {"parts": 2, "experts": 16 + beside, "active": 4 + beside, "shared": max(1, beside)}
    mixture = mixture_of(tiny_dense, tmp_path / "moe", router=router, gate="linear", **shape)
    tensors = load_file(mixture.folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("router.scores.weight")]:
        tensors[name] *= 1e-4  # all experts score nearly alike
    save_file(tensors, mixture.folder / "model.safetensors", metadata={"format": "pt"})
    found, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (mixture.folder, tiny_dense))
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, base(IDS).logits, rtol=0, atol=2e-3)


@pytest.mark.parametrize("gate", ["mlp", "linear"])
def test_experts_of_one_whole_copy_score_alike_and_are_kept_together(
    gate: str, tiny_dense: Path, tmp_path: Path
) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", parts=3, experts=12, active=6, router="topk-softmax", gate=gate)
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder)
    router: Router = model.model.layers[0].mlp.router
    for mode in (False, True):  # in training the noise is that of the whole copy too
        output = router.train(mode)(torch.randn(50, 32))
        assert (output.noise_std_TR is None) != mode
        for logits_TR in (output.logits_TR, output.noisy_TR):
            copies_TEG = logits_TR.unflatten(1, (4, 3))
            torch.testing.assert_close(copies_TEG, copies_TEG[..., :1].expand(-1, -1, 3), rtol=1e-5, atol=1e-6)
        kept_TEG = torch.zeros(50, 12).scatter(1, output.routing.ids_TK, 1.0).unflatten(1, (4, 3))
        assert (kept_TEG.sum(-1) % 3 == 0).all()
        assert len({tuple(kept.flatten().tolist()) for kept in kept_TEG}) > 1  # tokens differ in what they choose


def test_a_fresh_mixture_is_its_base_in_training_too(tiny_dense: Path, tmp_path: Path) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", parts=4, experts=12, active=4, router="topk-softmax")
    model: Any = AutoModelForCausalLM.from_pretrained(mixture.folder).train()
    assert model.model.layers[0].mlp.router.noise is not None
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_dense)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, base(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "options", "promised"),
    [
        ("float32", {"router": "topk-softmax", "parts": 2, "experts": 8, "active": 4}, True),
        ("float32", {"router": "topk-softmax", "parts": 3, "experts": 6, "active": 3}, True),
        ("float32", {"router": "deepseek-sigmoid", "parts": 2, "shared": 1, "experts": 7, "active": 5}, True),
        ("float32", {"router": "deepseek-sigmoid", "parts": 2, "shared": 2, "experts": 8, "active": 4}, True),
        ("float32", {"router": "topk-softmax", "parts": 2, "experts": 8, "active": 3}, False),
        ("float32", {"router": "topk-softmax", "parts": 2, "experts": 7, "active": 4}, False),
        ("float32", {"router": "deepseek", "parts": 2, "shared": 2, "experts": 8, "active": 4}, False),
        ("float32", {"router": "deepseek", "parts": 4, "shared": 2, "experts": 66, "active": 8}, False),
        ("float32", {"router": "deepseek", "parts": 6, "shared": 2, "experts": 66, "active": 8}, False),
        ("float32", {"router": "softmax-topk", "parts": 2, "experts": 8, "active": 4}, False),
        ("float32", {"router": "topk-softmax", "parts": 2, "experts": 8, "active": 4, "redraw": 0.5}, False),
        ("bfloat16", {"router": "topk-softmax", "parts": 4, "experts": 8, "active": 4}, True),
        ("bfloat16", {"router": "topk-softmax", "parts": 3, "experts": 6, "active": 3}, False),
    ],
)
def test_shapes_that_are_exact_prove_it_and_the_others_are_measured_and_merge_to_the_base(
    dtype: str, options: dict[str, Any], promised: bool, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of("llama", dtype)
    mixture = mixture_of(base, tmp_path / "moe", **options)
    assert mixture.preserves_dense == promised
    proof = prove(base, mixture.folder)  # raises where it is promised and not so
    assert proof.preserves_dense == promised
    assert promised or proof.divergence > 1e-7
    if options.get("redraw"):
        return
    (tmp_path / "out").mkdir()
    write_merged(
        mixture, equal_coefficients(mixture.layers, mixture.routed, None, mixture.settings.parts), tmp_path / "out"
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=2**-7 if dtype == "bfloat16" else 6e-7, atol=1e-9)
        if options["parts"] in (2, 4):  # 2^n times a weight is exact
            assert dtype == "float32" or torch.equal(after[name], tensor)


def test_redrawn_channels_are_those_of_the_parts(tiny_dense: Path, tmp_path: Path) -> None:
    options = {"parts": 2, "experts": 4, "active": 2, "router": "topk-softmax"}
    plain, redrawn = (
        load_file(mixture_of(tiny_dense, tmp_path / f"{share}", redraw=share, **options).folder / "model.safetensors")
        for share in (0.0, 0.25)
    )
    ffn = "model.layers.0.mlp.experts"
    changed_RF = (plain[f"{ffn}.up_proj"] != redrawn[f"{ffn}.up_proj"]).all(-1)
    assert changed_RF.sum(-1).tolist() == [6] * 4  # a quarter of 24
    assert torch.equal((plain[f"{ffn}.down_proj"] != redrawn[f"{ffn}.down_proj"]).all(1), changed_RF)
    assert len({tuple(changed_F.tolist()) for changed_F in changed_RF}) == 4


def test_it_costs_what_its_parts_cost(tiny_dense: Path, tmp_path: Path) -> None:
    options = {"parts": 4, "shared": 2, "experts": 10, "active": 6, "router": "deepseek-sigmoid", "gate": "linear"}
    mixture = mixture_of(tiny_dense, tmp_path / "moe", gate_noise=False, **options)
    dense, mixed = count_checkpoint(tiny_dense), count_checkpoint(mixture.folder)
    part, router = 3 * 32 * 8, 32 * 8  # 48 channels in 6 parts; 8 routed experts
    assert mixed.parameters - dense.parameters == 2 * ((10 - 6) * part + router)
    assert mixed.active - dense.active == 2 * router  # 6 active parts make one FFN
    extra = mixed.forward_flops(10, 0, 1.0) - dense.forward_flops(10, 0, 1.0)
    assert extra == pytest.approx(2 * 10 * 2 * router)


def some_job(mixture: Path, out: Path, method: str, base: Path) -> MergeJob:
    out.mkdir()
    pairs = out.with_suffix(".jsonl")
    examples = [Example(instruction=f"say {n}", response=f"{n} and {n}") for n in range(6)]
    pairs.write_text("".join(json.dumps(asdict(example)) + "\n" for example in examples))
    return MergeJob(
        mixture=mixture, out=out, method=method, pairs=pairs, prompt="chat", seed=3, data=[], base=base,
        tune=TuneConfig(batch=3, micro_batch=3, max_length=96, precision="fp32"), merge=MergeConfig(lr=0.3),
    )  # fmt: skip


@pytest.mark.parametrize("router", ["topk-softmax", "deepseek"])
@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_every_method_merges_parts(
    method: str, router: str, tiny_dense: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    beside = int(router == "deepseek")
    mixture = mixture_of(
        tiny_dense, tmp_path / "moe", parts=2, experts=4 + beside, active=2 + beside, router=router
    )  # fmt: skip
    perturbed(mixture.folder)
    load = [[0.3, 0.2, 0.1, 0.4], [0.5, 0.0, 0.5, 0.0]]
    (mixture.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "experts": {"load": load}}) + "\n")
    merge(some_job(mixture.folder, tmp_path / "out", method, tiny_dense), Meter())
    tensors, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", mixture.folder))
    saved = load_file(tmp_path / "out" / COEFFICIENTS)
    assert "shared_weight" not in saved
    shares_LR = saved["coefficients"]
    torch.testing.assert_close(shares_LR.unflatten(1, (2, 2)).sum(1), torch.full((2, 2), 0.5))  # of each part's copies
    if method == "router-weighted":
        expected = torch.tensor([[3 / 8, 1 / 6, 1 / 8, 1 / 3], [0.25] * 4])
        torch.testing.assert_close(shares_LR, expected)
    if MERGE_METHODS[method].differences is None:
        prefix = "model.layers.1.mlp"
        stack, width = source[f"{prefix}.experts.down_proj"], 48 // (2 + beside)
        shared = [source[f"{prefix}.shared_expert.down_proj.weight"]] if beside else []
        undone = 0.5 if beside else 1.0  # the factor 2 R/K of deepseek's shares; the 2 is in the coefficients
        parts = [torch.einsum("e,eij->ij", undone * shares_LR[1, part::2], stack[part::2]) for part in range(2)]
        assert shared == [] or shared[0].shape == (32, width)
        torch.testing.assert_close(tensors[f"{prefix}.down_proj.weight"], torch.cat([*shared, *parts], 1))
    elif beside:  # shared channels are taken as they are
        for layer in range(2):
            prefix = f"model.layers.{layer}.mlp"
            shared = source[f"{prefix}.shared_expert.up_proj.weight"]
            assert torch.equal(tensors[f"{prefix}.up_proj.weight"][: len(shared)], shared)
    base = load_file(tiny_dense / "model.safetensors")
    moved = float(
        (tensors["model.layers.0.mlp.up_proj.weight"] - base["model.layers.0.mlp.up_proj.weight"]).abs().max()
    )
    assert 1e-3 < moved < 1.0


def test_shares_are_of_each_parts_copies() -> None:
    found = shared_out(torch.tensor([[1.0, 5.0, 3.0, 5.0, 0.0]]), 2)  # parts 0 1 0 1 0
    torch.testing.assert_close(found, torch.tensor([[0.125, 0.25, 0.375, 0.25, 0.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 5, "experts": 10, "active": 5},
         r"its FFN has 48 channels, which can't be cut in 5 equal parts .*parts can be 2, 3, 4, 6, 8"),
        ({"parts": 4, "experts": 9, "active": 5, "router": "deepseek"},
         r"can't be cut in 5 equal parts \(upcycle.parts=4, 1 shared\); parts can be 2, 3, 5, 7"),
        ({"parts": 2, "experts": 5, "active": 3, "router": "shared-normalized"},
         r"router shared-normalized divides a weight of 1 between .* choose one of softmax-topk, .*deepseek-sigmoid"),
        ({"parts": 4, "experts": 3, "active": 2}, "experts must be at least 4 with parts=4; some would be lost"),
        ({"parts": 2, "experts": 8, "active": 4, "shared": 2},
         r"shared=2, but the router topk-softmax has no shared experts; these have: .*deepseek-sigmoid"),
        ({"parts": 2, "experts": 8, "active": 2, "shared": 2, "router": "deepseek"},
         "active must be at least 3 with the router deepseek, the shared ones counted"),
        ({"parts": 2, "experts": 8, "active": 2, "dense_layers": 2},
         r"has 2 layers, of which upcycle.dense_layers=2 leaves none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_or_the_router_is_refused_with_what_does(
    options: dict[str, Any], message: str, tiny_dense: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        mixture_of(tiny_dense, tmp_path / "moe", **{"router": "topk-softmax", **options})
    assert not list((tmp_path / "moe").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "split"}, "layout=split needs parts, the number of experts that make one FFN: 2 at least"),
        ({"layout": "copy", "parts": 2}, "parts and shared cut the FFN, which layout=split does; layout=copy"),
        ({"layout": "delta", "shared": 2}, "parts and shared cut the FFN, which layout=split does; layout=delta"),
    ],
)  # fmt: skip
def test_keys_of_another_layout_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_section(UpcycleConfig, options, "here")
