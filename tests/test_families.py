from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError
from xft.families import FAMILIES, family_of
from xft.moe.layouts import layout_of
from xft.moe.model import moe_classes, moe_layer
from xft.recipe import UpcycleConfig

families = pytest.mark.parametrize("model_type", sorted(FAMILIES))


@families
def test_an_entry_names_the_classes_that_transformers_uses(model_type: str) -> None:
    family = FAMILIES[model_type]
    config = AutoConfig.for_model(family.model_type)
    assert type(config).__name__ == family.config_class
    assert AutoModelForCausalLM._model_mapping[type(config)] is getattr(transformers, family.model_class)


@families
def test_an_entry_names_tensors_of_the_familys_checkpoints(model_type: str, dense_of: Callable[..., Path]) -> None:
    family, checkpoint = FAMILIES[model_type], Checkpoint(dense_of(model_type))
    assert checkpoint.family is family
    hidden, ffn = checkpoint.config["hidden_size"], checkpoint.config["intermediate_size"]
    named = [name for layer in range(checkpoint.layers) for name in family.ffn_tensors(layer)]
    biases = [name for name in checkpoint.names() if ".mlp." in name and name.endswith(".bias")]
    assert sorted([*named, *biases]) == sorted(name for name in checkpoint.names() if ".mlp." in name)
    possible = [f"{family.ffn(layer)}.{part.tensor}" for layer in range(checkpoint.layers) for part in family.parts]
    assert set(biases) <= set(possible)
    for layer in range(checkpoint.layers):
        shapes = [checkpoint.shape(name) for name in family.ffn_tensors(layer)]
        assert shapes == [(ffn * (1 + family.fused), hidden)] * len(family.inner) + [(hidden, ffn)]
    tied = AutoConfig.for_model(**checkpoint.config).tie_word_embeddings
    assert (family.head in checkpoint) == (not tied)
    for name in [family.embedding] + ([] if tied else [family.head]):
        assert checkpoint.shape(name) == (checkpoint.config["vocab_size"], hidden)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "starcoder2", "gpt_neox"])
def test_the_random_models_of_families_with_biases_have_some_that_are_not_zero(
    model_type: str, dense_of: Callable[..., Path]
) -> None:
    checkpoint = Checkpoint(dense_of(model_type))
    biases = [name for name in checkpoint.names() if name.endswith(".bias")]
    assert biases
    assert all(checkpoint.read(name).abs().min() > 0 for name in biases)


@families
def test_a_mixture_belongs_to_its_dense_family(model_type: str) -> None:
    assert family_of(FAMILIES[model_type].moe_type, "here") is FAMILIES[model_type]


def test_an_unknown_family_is_answered_with_the_known_ones_and_what_an_entry_needs() -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of("gpt2", "some/folder")
    message = str(caught.value)
    assert message.startswith("some/folder: unknown model family 'gpt2'")
    assert all(name in message for name in FAMILIES)
    assert "xft/families.py" in message
    assert "model.layers.0.mlp.gate_proj.weight" in message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trunk", "transformer", "no tensor begins with 'transformer.layers.0.'"),
        ("inner", ("gate_proj", "upper_proj"), "no tensor 'model.layers.0.mlp.upper_proj.weight'"),
        ("inner", ("gate_proj", "down_proj"), r"'model.layers.0.mlp.down_proj.weight' has the shape \(32, 48\)"),
        ("down", "c_proj", "no tensor 'model.layers.0.mlp.c_proj.weight'.*mlp has .*down_proj.weight"),
        ("down", "up_proj", r"'model.layers.0.mlp.up_proj.weight' has the shape \(48, 32\), not \(32, 48\)"),
        ("fused", True, r"'model.layers.0.mlp.gate_proj.weight' has the shape \(48, 32\), not \(96, 32\)"),
        ("embedding", "model.wte.weight", "no tensor 'model.wte.weight'"),
        ("head", "embed_out.weight", "no tensor 'embed_out.weight', but lm_head.weight beside the layers"),
    ],
)
def test_an_entry_that_does_not_fit_the_checkpoint_is_answered_with_the_field(
    field: str, value: Any, message: str, tiny_dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], **{field: value}))
    with pytest.raises(CheckpointError, match=rf"{message}.*entry 'llama' in src/xft/families.py has {field}="):
        _ = Checkpoint(tiny_dense).family


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "vocab_size"])
def test_a_config_without_a_size_is_answered_with_the_key(key: str, tiny_dense: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dense, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != key}))
    with pytest.raises(CheckpointError, match=rf"config.json: no {key}, which src/xft/families.py expects"):
        _ = Checkpoint(folder).family


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("config_class", "LLamaConfig", "has no class 'LLamaConfig'; did you mean 'LlamaConfig'?"),
        ("model_class", "LlamaCausalLM", "has no class 'LlamaCausalLM'"),
        ("module", "llama3", "LlamaForCausalLM is in transformers.models.llama.modeling_llama, not in"),
    ],
)
def test_an_entry_with_classes_that_transformers_has_not_is_answered_with_the_field(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        moe_classes(replace(FAMILIES["llama"], **{field: value}))
    assert message in str(caught.value)
    assert f"entry 'llama' in src/xft/families.py has {field}={value!r}" in str(caught.value)


def test_an_entry_with_another_activation_is_answered_with_those_there_are(tiny_dense: Path) -> None:
    layer: Any = AutoModelForCausalLM.from_pretrained(tiny_dense).model.layers[0]
    layout = layout_of(UpcycleConfig(), replace(FAMILIES["llama"], activation="act"))
    with pytest.raises(CheckpointError, match=r"LlamaMLP has no such module, but .*act_fn; .* has activation='act'"):
        moe_layer(layer.mlp, 32, layout)


@pytest.mark.parametrize("by", ["config", "tensors"])
def test_a_quantised_model_is_refused_with_the_remedy(by: str, tiny_dense: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dense, tmp_path / "dense")
    if by == "config":
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"load_in_8bit": True}}
        (folder / "config.json").write_text(json.dumps(config))
        words = r"config\.json: has a quantization_config; dequantise the model first"
    else:
        tensors = load_file(folder / "model.safetensors")
        name = "model.layers.0.mlp.down_proj.weight"
        save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
        words = rf"tensor '{name}' holds torch\.int8; dequantise the model first"
    with pytest.raises(CheckpointError, match=words):
        _ = Checkpoint(folder).family
