from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError
from xft.families import FAMILIES, family_of

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
