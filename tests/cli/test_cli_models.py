"""Models that no command can read: one clear line names the file and the remedy, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import QUICK, Xft, refused, weights
from safetensors.torch import save_file

from xft.stage import folder_digest


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _missing_shard(folder: Path) -> None:
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _unknown_family(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))


def _damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


MODEL_FAULTS: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (_truncate, ("model.safetensors: truncated or damaged", "fetch or make the model again")),
    (_no_weights, ("neither model.safetensors nor model.safetensors.index.json",)),
    (_pickle_only, ("pytorch_model.bin is a pickle, convert it",)),
    (_missing_shard, ("model-00002-of-00002.safetensors: this shard is missing", "fetch or make the model again")),
    (
        _unknown_family,
        ("unknown model family 'gpt2'", "known: gemma2, ", "llama, ", "model.layers.0.mlp.gate_proj.weight"),
    ),
    (_damaged_config, ("config.json: not valid JSON", "fetch or make the model again")),
    (_no_config, ("no config.json", "give a folder with a model's config.json and safetensors")),
]


@pytest.mark.parametrize("command", ["upcycle", "tune", "eval", "run"])
@pytest.mark.parametrize(("spoil", "words"), MODEL_FAULTS)
def test_a_damaged_model_is_named_and_nothing_is_written(
    xft: Xft, command: str, spoil: Callable[[Path], None], words: tuple[str, ...], dense: Path,
    pairs: tuple[Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    if command == "eval" and spoil is _unknown_family:
        pytest.skip("any causal LM can be scored")
    spoil(dense)
    before = folder_digest(dense)
    out = tmp_path / "out"
    arguments = {
        "upcycle": ("upcycle", dense, out),
        "tune": ("tune", dense, out, "--data", pairs[0], *QUICK),
        "eval": ("eval", dense, "--out", out, "--every", "82"),
        "run": ("run", "tiny", f"base={dense}", f"data={pairs[0]}", "data.train=4", "data.heldout=2", "--out", out),
    }[command]
    refused(xft(*arguments), dense, *words)
    assert folder_digest(dense) == before
    assert not list(tmp_path.rglob("out/**/model*.safetensors"))


@pytest.mark.parametrize(("spoil", "words"), MODEL_FAULTS[:1] + MODEL_FAULTS[5:])
def test_a_damaged_mixture_is_named(
    xft: Xft, spoil: Callable[[Path], None], words: tuple[str, ...], moe: Path, tmp_path: Path
) -> None:
    spoil(moe)
    refused(xft("merge", moe, tmp_path / "out", "--method", "uniform"), moe, *words)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_missing_is_named(xft: Xft, dense: Path, tmp_path: Path) -> None:
    tensors = weights(dense)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, dense / "model.safetensors")
    refused(xft("upcycle", dense, tmp_path / "out"), dense, "no tensor 'model.layers.1.mlp.up_proj.weight'")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(
    xft: Xft, value: float, dense: Path, moe: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder, tensor in ((dense, "model.layers.1.mlp.up_proj.weight"), (moe, "model.layers.1.mlp.experts.up_proj")):
        tensors = weights(folder)
        tensors[tensor].view(-1)[7] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(xft("upcycle", dense, tmp_path / "out"), "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity")
    result = xft("tune", dense, tmp_path / "tuned", "--data", pairs[0], *QUICK)
    refused(result, "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity")
    result = xft("merge", moe, tmp_path / "merged", "--method", "uniform")
    refused(result, "'model.layers.1.mlp.experts.up_proj' holds NaN or infinity")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "merged").exists()


def test_a_model_that_is_nowhere_is_named(xft: Xft, pairs: tuple[Path, Path], tmp_path: Path) -> None:
    refused(xft("upcycle", tmp_path / "no", tmp_path / "out"), tmp_path / "no", "give a model folder, a hub name")
    refused(xft("upcycle", "nobody/nothing", tmp_path / "out"), "nobody/nothing", "check the name and the network")
    refused(xft("tune", "nobody/nothing", tmp_path / "out", "--data", pairs[0]), "nobody/nothing")


def test_a_dense_model_is_no_mixture_and_the_other_way_round(
    xft: Xft, tiny_dense: Path, tiny_moe: Path, tmp_path: Path
) -> None:
    result = xft("merge", tiny_dense, tmp_path / "out", "--method", "uniform")
    refused(result, tiny_dense, "not a mixture that xft made; give the output of `xft upcycle`")
    refused(xft("upcycle", tiny_moe, tmp_path / "out"), tiny_moe, "is a mixture already; give its dense base")
