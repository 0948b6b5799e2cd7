from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from xft.errors import CheckpointError, RecipeError
from xft.merge.soup import soup


def another(base: Path, out: Path, seed: int) -> Path:
    """Write a model of the same architecture with other weights."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(out)
    return out


def test_a_soup_is_the_mean_of_every_tensor(tiny_dense: Path, tmp_path: Path) -> None:
    models = [tiny_dense, *(another(tiny_dense, tmp_path / str(seed), seed) for seed in range(2))]
    out = tmp_path / "soup"
    out.mkdir()
    soup(models, None, out)
    tensors = [load_file(model / "model.safetensors") for model in models]
    mixed = load_file(out / "model.safetensors")
    assert mixed.keys() == tensors[0].keys()
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, torch.stack([each[name] for each in tensors]).mean(0))
    assert AutoModelForCausalLM.from_pretrained(out).config.model_type == "llama"
    assert (out / "tokenizer.json").exists()


def test_weights_are_divided_by_their_sum(tiny_dense: Path, tmp_path: Path) -> None:
    other = another(tiny_dense, tmp_path / "other", 1)
    out = tmp_path / "soup"
    out.mkdir()
    soup([tiny_dense, other], [3.0, 1.0], out, names=["me/one", "me/other"])
    card = (out / "README.md").read_text()
    assert "| `me/one` | 0.75 |\n| `me/other` | 0.25 |" in card
    one, two, mixed = (load_file(folder / "model.safetensors") for folder in (tiny_dense, other, out))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * two[name])


def test_the_model_that_is_not_finite_is_named(tiny_dense: Path, tmp_path: Path) -> None:
    other = another(tiny_dense, tmp_path / "other", 1)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][3] = float("inf")
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"other/model\.norm\.weight' holds NaN or infinity"):
        soup([tiny_dense, other], None, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"), ("num_attention_heads", 2), ("model_type", "mistral"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5}),
    ],
)  # fmt: skip
def test_models_that_compute_something_else_with_weights_of_the_same_shapes_are_refused(
    key: str, value: Any, tiny_dense: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_dense, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    assert config[key] != value
    (other / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=rf"other: its {key} is .*, that of .*dense .*; leave it out"):
        soup([tiny_dense, other], None, tmp_path)


def test_one_setting_written_in_two_ways_is_no_difference(tiny_dense: Path, tmp_path: Path) -> None:
    other, out = shutil.copytree(tiny_dense, tmp_path / "other"), tmp_path / "soup"
    config = json.loads((other / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]  # as older versions of transformers wrote it
    (other / "config.json").write_text(json.dumps(config))
    out.mkdir()
    soup([tiny_dense, other], None, out)


def test_what_is_no_soup_is_refused(
    tiny_dense: Path, dense_of: Callable[..., Path], moe_of: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="at least two models"):
        soup([tiny_dense], None, tmp_path)
    with pytest.raises(RecipeError, match="2 models, but 3 weights"):
        soup([tiny_dense, tiny_dense], [1.0, 2.0, 3.0], tmp_path)
    with pytest.raises(RecipeError, match="the weights sum to 0"):
        soup([tiny_dense, tiny_dense], [1.0, -1.0], tmp_path)
    with pytest.raises(CheckpointError, match="only one of them has a tensor"):
        soup([tiny_dense, dense_of("llama", attention_bias=False)], None, tmp_path)
    moe = moe_of("llama")
    with pytest.raises(CheckpointError, match="is a mixture; a soup is made of dense models"):
        soup([moe, moe], None, tmp_path)
    quantised = edited(tiny_dense, tmp_path / "quantised", quantization_config={"bits": 8})
    with pytest.raises(CheckpointError, match="has a quantization_config; dequantise"):
        soup([tiny_dense, quantised], None, tmp_path)
    with pytest.raises(CheckpointError, match=r"mlp.down_proj.weight is .*, .* has"):
        soup([tiny_dense, dense_of("llama", intermediate_size=40)], None, tmp_path)


def test_a_soup_of_models_that_transformers_does_not_know(tiny_dense: Path, tmp_path: Path) -> None:
    one, same, other = (
        edited(tiny_dense, tmp_path / name, model_type="of-their-own", hidden_act=activation)
        for name, activation in (("one", "relu"), ("same", "relu"), ("other", "gelu"))
    )
    (tmp_path / "out").mkdir()
    soup([one, same], None, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"hidden_act is gelu, that of .* relu"):
        soup([one, other], None, tmp_path / "out")


def edited(folder: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps(config))
    return out
