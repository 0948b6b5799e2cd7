"""Stock formats hold what they promise: loaded by transformers alone, with the mixture's logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from xft.errors import CheckpointError
from xft.export import STOCK, export
from xft.moe.routers import ROUTERS
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

IDS = torch.randint(4, 260, (3, 24), generator=torch.Generator().manual_seed(1))
HELD = [(name, family, rule) for name, stock in STOCK.items() for family in stock.families for rule in stock.rules]


def mixture_of(perturbed: Callable[..., Path], base: Path, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    upcycle(
        base, folder, UpcycleConfig.model_validate({"experts": 5, "active": 3, "gate": "linear", **options}), seed=2
    )
    return perturbed(folder)


PLAIN: dict[str, dict[str, Any]] = {"llama": {"attention_bias": False}, "mistral": {"sliding_window": None}}
"""What not every stock class can do."""


def plain_dense(dense_of: Callable[..., Path], family: str, **options: Any) -> Path:
    return dense_of(family, **PLAIN.get(family, {}), **options)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("name", "family", "rule"), HELD)
def test_an_exported_mixture_loads_as_the_stock_class_with_the_same_logits(
    name: str,
    family: str,
    rule: str,
    tied: bool,
    dense_of: Callable[..., Path],
    perturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = plain_dense(dense_of, family, tie_word_embeddings=tied)
    mixture = mixture_of(perturbed, base, tmp_path / "moe", router=rule)
    (tmp_path / "out").mkdir()
    assert export(mixture, tmp_path / "out") == name
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == STOCK[name].model_class
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(mixture)(IDS).logits
        theirs = loaded(IDS).logits
        dense = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5)
    assert float((ours - dense).abs().max()) > 0.05  # the experts matter
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize(("name", "family", "rule"), HELD)
def test_parts_and_dense_layers_are_held_where_the_class_can(
    name: str, family: str, rule: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    shared = 2 if ROUTERS[rule].shared else 0
    options = {"layout": "split", "parts": 4, "experts": 8 + shared, "active": 4 + shared, "shared": max(shared, 1)}
    layers = int(STOCK[name].dense_layers)
    base = plain_dense(dense_of, family)
    mixture = mixture_of(perturbed, base, tmp_path / "moe", router=rule, dense_layers=layers, **options)
    choice = {"model.layers.1.mlp.router.bias_R": torch.linspace(-0.3, 0.3, 8)}
    tensors = load_file(mixture / "model.safetensors")
    save_file(tensors | {key: value for key, value in choice.items() if key in tensors}, mixture / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    (tmp_path / "out").mkdir()
    assert export(mixture, tmp_path / "out") == name
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(mixture)(IDS).logits
        dense = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, ours, rtol=0, atol=2e-5)
    assert float((ours - dense).abs().max()) > 0.05
    assert hasattr(loaded.model.layers[0].mlp, "experts") == (not layers)


def test_what_a_class_cannot_hold_of_parts_and_attention_is_refused(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(
        perturbed, plain_dense(dense_of, "llama"), tmp_path / "dense", router="topk-softmax", dense_layers=1
    )
    with pytest.raises(CheckpointError, match="all of its layers are mixtures, and here the first are dense"):
        export(mixture, tmp_path, "mixtral")
    mixture = mixture_of(
        perturbed, dense_of("mistral", sliding_window=16), tmp_path / "window", router="deepseek-sigmoid"
    )
    with pytest.raises(CheckpointError, match="glm4-moe can't hold it: its attention has no sliding window"):
        export(mixture, tmp_path, "glm4-moe")


@pytest.mark.parametrize("to", ["deepseek-v2", None])
def test_latent_attention_is_named_as_what_keeps_deepseeks_classes_out(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path, to: str | None
) -> None:
    mixture = mixture_of(perturbed, plain_dense(dense_of, "llama"), tmp_path / "moe", router="deepseek")
    with pytest.raises(CheckpointError, match=r"deepseek-v2.*: its attention is latent \(MLA\).*what can be exported"):
        export(mixture, tmp_path, to)


def test_windows_that_begin_at_a_layer_are_refused(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    windows = dense_of("qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    mixture = mixture_of(perturbed, windows, tmp_path / "moe", router="topk-softmax")
    with pytest.raises(CheckpointError, match="qwen3-moe can't hold it: its attention has no sliding window"):
        export(mixture, tmp_path, "qwen3-moe")


def test_the_base_s_dtype_is_kept(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(perturbed, dense_of("qwen3", "bfloat16"), tmp_path / "moe", router="topk-softmax")
    (tmp_path / "out").mkdir()
    export(mixture, tmp_path / "out", "qwen3-moe")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert "in the format qwen3-moe" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "options", "to", "message"),
    [
        ("llama", {"router": "shared-normalized"}, None, "mixtral: its router is topk-softmax, not shared-normalized"),
        ("llama", {"router": "topk-softmax", "gate": "mlp"}, "mixtral", "its gate is one matrix, not the gate 'mlp'"),
        ("llama", {"router": "topk-softmax"}, "qwen3-moe", "its attention is that of qwen3, not of llama"),
        ("gemma2", {"router": "topk-softmax"}, None, "its attention is that of llama and mistral, not of gemma2"),
        ("qwen2", {"router": "deepseek"}, "qwen2-moe", "its router is topk-softmax or softmax-topk, not deepseek"),
    ],
)
def test_what_no_stock_class_can_hold_is_refused_with_what_can_be(
    family: str,
    options: dict[str, Any],
    to: str | None,
    message: str,
    dense_of: Callable[..., Path],
    perturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    mixture = mixture_of(perturbed, plain_dense(dense_of, family), tmp_path / "moe", **options)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError) as caught:
        export(mixture, tmp_path / "out", to)
    assert message in str(caught.value)
    assert "what can be exported: mixtral: llama or mistral upcycled with --router topk-softmax" in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_attention_biases_fit_no_mixtral(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = mixture_of(perturbed, dense_of("llama"), tmp_path / "moe", router="topk-softmax")
    assert json.loads((mixture / "config.json").read_text())["attention_bias"]
    with pytest.raises(CheckpointError, match="its attention has no biases"):
        export(mixture, tmp_path, "mixtral")


def without(dense: Path, folder: Path, *keys: str) -> Path:
    """Copy a dense model whose config.json leaves some keys to the class."""
    shutil.copytree(dense, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))
    return folder


@pytest.mark.parametrize(("family", "rule"), [("llama", "topk-softmax"), ("qwen2", "deepseek-sigmoid")])
def test_what_the_base_leaves_to_its_class_is_what_the_stock_class_computes_with(
    family: str, rule: str, dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    base = without(plain_dense(dense_of, family), tmp_path / "base", "rope_parameters", "rms_norm_eps")
    mixture = mixture_of(perturbed, base, tmp_path / "moe", router=rule)
    out = tmp_path / "out"
    out.mkdir()
    export(mixture, out)
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(folder)(IDS).logits for folder in (mixture, out))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5)


def test_a_window_that_the_base_leaves_to_its_class_is_written_or_refused(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    base = without(dense_of("mistral"), tmp_path / "base", "sliding_window")
    (tmp_path / "out").mkdir()
    export(mixture_of(perturbed, base, tmp_path / "moe", router="topk-softmax"), tmp_path / "out", "mixtral")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 4096
    mixture = mixture_of(perturbed, base, tmp_path / "sigmoid", router="deepseek-sigmoid")
    with pytest.raises(CheckpointError, match="glm4-moe can't hold it: its attention has no sliding window"):
        export(mixture, tmp_path / "out", "glm4-moe")


def test_an_older_base_s_scaled_rotation_is_kept(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    base = without(plain_dense(dense_of, "llama"), tmp_path / "base", "rope_parameters")
    config = json.loads((base / "config.json").read_text()) | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    (base / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    export(mixture_of(perturbed, base, tmp_path / "moe", router="topk-softmax"), tmp_path / "out")
    rope = AutoConfig.from_pretrained(tmp_path / "out").rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 4.0, 10000.0)


def test_an_export_that_computes_something_else_is_an_error(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = mixture_of(perturbed, plain_dense(dense_of, "llama"), tmp_path / "moe", router="topk-softmax")
    stock = STOCK["mixtral"]
    wrong = replace(stock, config=lambda *given: stock.config(*given) | {"rms_norm_eps": 1e-5})
    monkeypatch.setitem(STOCK, "mixtral", wrong)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="as mixtral it computes something else, logits differ by"):
        export(mixture, tmp_path / "out")


def test_a_tuned_mixture_in_fp32_is_compared_in_its_base_s_dtype(
    dense_of: Callable[..., Path], perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    base = plain_dense(dense_of, "llama", dtype="bfloat16")
    mixture = mixture_of(perturbed, base, tmp_path / "moe", router="topk-softmax")
    tensors = {name: tensor.float() * 1.001 for name, tensor in load_file(mixture / "model.safetensors").items()}
    save_file(tensors, mixture / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    assert export(mixture, tmp_path / "out") == "mixtral"
