from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from xft.checkpoint import Checkpoint, copy_of, write_checkpoint
from xft.errors import CheckpointError, ProofError
from xft.families import FAMILIES
from xft.merge.methods import equal_coefficients
from xft.merge.write import write_merged
from xft.moe.mixture import Mixture
from xft.prove import gap, hidden_states, prove
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

EXPERTS = 4


def upcycled(base: Path, out: Path, active: int = EXPERTS) -> Path:
    out.mkdir()
    upcycle(base, out, UpcycleConfig(experts=EXPERTS, active=active), seed=0)
    return out


def damaged(base: Path, out: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    mixture = upcycled(base, out)
    tensors = load_file(mixture / "model.safetensors")
    change(tensors)
    save_file(tensors, mixture / "model.safetensors", metadata={"format": "pt"})
    return mixture


@pytest.mark.sampled
@pytest.mark.parametrize("active", [2, 3, 4])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_fresh_mixture_proves_itself(
    model_type: str, active: int, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    proof = prove(base, upcycled(base, tmp_path / "moe", active))
    assert 0 < proof.max_difference <= proof.tolerance == 5 * proof.dense_own_error < 1e-4
    assert proof.negative_control_difference > 100 * proof.tolerance
    assert proof.probe_tokens == 192


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_mixture_of_a_16_bit_base_proves_itself(dtype: str, dense_of: Callable[..., Path], tmp_path: Path) -> None:
    base = dense_of("llama", dtype)
    prove(base, upcycled(base, tmp_path / "moe"))


def test_a_mixture_with_tied_embeddings_proves_itself(dense_of: Callable[..., Path], tmp_path: Path) -> None:
    base = dense_of("qwen2", tie_word_embeddings=True)
    prove(base, upcycled(base, tmp_path / "moe"))


def test_a_sharded_mixture_proves_itself(tiny_dense: Path, tmp_path: Path) -> None:
    single = upcycled(tiny_dense, tmp_path / "moe")
    sharded = shutil.copytree(single, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    source = Checkpoint(single)
    write_checkpoint(sharded, [copy_of(source, name) for name in source.names()], shard_bytes=20_000)
    assert prove(tiny_dense, sharded) == prove(tiny_dense, single)


@pytest.mark.sampled
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_streamed_forward_pass_is_the_models_own(
    kind: str, model_type: str, dense_of: Callable[..., Path], moe_of: Callable[..., Path]
) -> None:
    folder = {"dense": dense_of, "mixture": moe_of}[kind](model_type)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).base_model(ids).last_hidden_state
    torch.testing.assert_close(hidden_states(Checkpoint(folder), ids, torch.float32), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["linear", "tied"])
def test_the_streamed_forward_pass_heeds_the_routers_buffers(gate: str, tiny_dense: Path, tmp_path: Path) -> None:
    config = UpcycleConfig.model_validate({"experts": 5, "active": 3, "router": "deepseek-sigmoid", "gate": gate})
    upcycle(tiny_dense, tmp_path, config, seed=0)
    tensors = load_file(tmp_path / "model.safetensors")
    biases = [name for name in tensors if name.endswith(".router.bias_R")]
    assert len(biases) == (1 if gate == "tied" else 2)
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))

    def streamed_and_own(bias: float) -> list[Tensor]:
        for name in biases:
            tensors[name] = bias * torch.tensor([1.0, -1.0, -1.0, 1.0])
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        ids = torch.arange(3, 43).reshape(2, 20)
        with torch.no_grad():
            own = AutoModelForCausalLM.from_pretrained(tmp_path).base_model(ids).last_hidden_state
        return [hidden_states(Checkpoint(tmp_path), ids, torch.float32), own]

    (_, without), (found, expected) = streamed_and_own(0.0), streamed_and_own(2.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float((expected - without).abs().max()) > 0.01


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_gap_is_that_of_the_models_own_logits(
    model_type: str, dense_of: Callable[..., Path], moe_of: Callable[..., Path]
) -> None:
    mixture, dense = moe_of(model_type), dense_of(model_type)
    found = gap(mixture, dense, seed=3)
    ids = torch.randint(
        int(Checkpoint(dense).config["vocab_size"]), (4, 48), generator=torch.Generator().manual_seed(3)
    )
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits for folder in (mixture, dense))
    one, other = ours.log_softmax(-1), theirs.log_softmax(-1)
    assert found.probe_tokens == ids.numel()
    assert found.max_difference == pytest.approx(float((ours - theirs).abs().max()), rel=1e-3)
    assert found.divergence == pytest.approx(float((one.exp() * (one - other)).sum(-1).mean()), rel=1e-3)


@pytest.mark.sampled
@pytest.mark.parametrize("projection", ["gate_proj", "up_proj"])
@pytest.mark.parametrize("expert", range(EXPERTS - 1))
@pytest.mark.parametrize("layer", [0, 1])
def test_two_swapped_channels_in_one_expert_are_found(
    layer: int, expert: int, projection: str, tiny_dense: Path, tmp_path: Path
) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        stack = tensors[f"model.layers.{layer}.mlp.experts.{projection}"]
        stack[expert, [4, 9]] = stack[expert, [9, 4]]

    with pytest.raises(ProofError, match=r"its logits differ from .* or the mixture was changed"):
        prove(tiny_dense, damaged(tiny_dense, tmp_path / "moe", swap))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.down_proj", "model.layers.0.mlp.shared_expert.gate_proj.weight",
        "model.layers.0.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias", "model.norm.weight", "lm_head.weight",
    ],
)  # fmt: skip
def test_one_changed_weight_is_found(name: str, tiny_dense: Path, tmp_path: Path) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[7] += 0.05

    with pytest.raises(ProofError, match="its logits differ from"):
        prove(tiny_dense, damaged(tiny_dense, tmp_path / "moe", nudge))


def test_a_dense_model_is_no_mixture_to_prove(tiny_dense: Path) -> None:
    with pytest.raises(CheckpointError, match="not a mixture that xft made; give the output of `xft upcycle`"):
        prove(tiny_dense, tiny_dense)


def test_a_nan_in_the_mixture_is_found(tiny_dense: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.experts.up_proj"][1, 0, 0] = float("nan")

    with pytest.raises(ProofError, match="its logits differ from"):
        prove(tiny_dense, damaged(tiny_dense, tmp_path / "moe", spoil))


def test_tuned_experts_do_not_pass_for_fresh_ones(tiny_dense: Path, tiny_moe: Path) -> None:
    with pytest.raises(ProofError, match="its logits differ from"):
        prove(tiny_dense, tiny_moe)


def test_another_base_is_found(tiny_dense: Path, dense_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="these two don't belong together"):
        prove(dense_of(seed=8), upcycled(tiny_dense, tmp_path / "moe"))


def test_a_base_of_another_size_is_named_with_the_key_that_differs(
    tiny_dense: Path, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ProofError, match=r"intermediate_size is 48, .* has 64: these two don't belong together"):
        prove(dense_of(intermediate_size=64), upcycled(tiny_dense, tmp_path / "moe"))


def test_a_probe_that_cannot_see_damage_proves_nothing(tiny_dense: Path, tmp_path: Path) -> None:
    # With FFNs of zero no damage to an expert shows.
    base = shutil.copytree(tiny_dense, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if ".mlp." in name]:
        tensors[name].zero_()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProofError, match="the probe proves nothing for this model"):
        prove(base, upcycled(base, tmp_path / "moe"))


def test_proof_figures_can_be_written_as_json(tiny_dense: Path, tmp_path: Path) -> None:
    proof = prove(tiny_dense, upcycled(tiny_dense, tmp_path / "moe"))
    assert json.loads(json.dumps(proof.as_dict()))["max_difference"] == proof.max_difference


@pytest.mark.parametrize(("model_type", "changes"), [
    ("gemma3_text", {"num_hidden_layers": 7, "sliding_window": 8}),  # the sixth layer looks at everything
    ("gemma2", {"sliding_window": 8}),
    ("smollm3", {"num_hidden_layers": 4}),  # the fourth layer has no positions
    ("mistral", {"sliding_window": 8}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
])  # fmt: skip
def test_layers_that_differ_in_what_they_attend_to_are_proved_and_merged(
    model_type: str, changes: dict[str, Any], dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type, **changes)
    for name in ("moe", "merged"):
        (tmp_path / name).mkdir()
    upcycle(base, tmp_path / "moe", UpcycleConfig(experts=3, active=2), seed=0)
    prove(base, tmp_path / "moe")
    mixture = Mixture(tmp_path / "moe")
    write_merged(mixture, equal_coefficients(len(mixture.mixed_layers), mixture.routed, 0.75), tmp_path / "merged")
    ids = torch.arange(3, 67).reshape(2, 32)
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval()(ids).logits
            for each in (base, tmp_path / "moe", tmp_path / "merged")
        ]
    for found in logits[1:]:
        torch.testing.assert_close(found, logits[0], rtol=1e-4, atol=1e-4)
