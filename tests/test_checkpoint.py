from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import xft.checkpoint
from xft.checkpoint import (
    DTYPES,
    INDEX,
    SINGLE,
    Checkpoint,
    Planned,
    copy_companions,
    copy_of,
    finite,
    require_disk,
    write_checkpoint,
    write_config,
)
from xft.errors import CheckpointError, RunError
from xft.prove import prove
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

Usage = namedtuple("Usage", "total used free")


def some_tensor(dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    if dtype.is_floating_point:
        return torch.randn(*shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 120, shape, generator=generator).to(dtype)


def planned(name: str, tensor: Tensor) -> Planned:
    return Planned(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, make=lambda: [tensor])


TENSORS = {f"t.{DTYPES[dtype]}": some_tensor(dtype, 5, 3) for dtype in DTYPES} | {
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 4),
    "cube": some_tensor(torch.float32, 2, 3, 4),
    "transposed": some_tensor(torch.float32, 4, 6).T,
    "odd bytes": some_tensor(torch.uint8, 3),
}


def write(folder: Path, tensors: dict[str, Tensor], **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_config(folder, {"model_type": "llama", "num_hidden_layers": 1})
    write_checkpoint(folder, [planned(name, tensor) for name, tensor in tensors.items()], **options)
    return folder


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    found = load_file(write(tmp_path, TENSORS) / SINGLE)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert_same(found[name], tensor)
    with safe_open(tmp_path / SINGLE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers insists on it


def test_what_safetensors_writes_is_what_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / SINGLE)
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert_same(checkpoint.read(name), tensor)
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
    assert torch.equal(checkpoint.read("cube")[1], TENSORS["cube"][1])


@pytest.mark.parametrize("shard_bytes", [1, 60, 200])
def test_shards_hold_every_tensor_once_and_the_index_says_where(shard_bytes: int, tmp_path: Path) -> None:
    write(tmp_path, TENSORS, shard_bytes=shard_bytes)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    held = [(name, shard) for shard in shards for name in load_file(tmp_path / shard)]
    assert len(held) == len(TENSORS)
    assert dict(held) == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes or len(tensors) == 1
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in TENSORS.items():
        assert_same(checkpoint.read(name), tensor)


def test_pieces_are_written_one_after_the_other_and_progress_counts_their_bytes(tmp_path: Path) -> None:
    rows = some_tensor(torch.bfloat16, 4, 6)
    told: list[int] = []
    plan = [Planned(name="rows", shape=(4, 6), dtype=torch.bfloat16, make=lambda: iter(rows.split(1)))]
    write_checkpoint(tmp_path, plan, progress=told.append)
    assert_same(load_file(tmp_path / SINGLE)["rows"], rows)
    assert told == [12, 12, 12, 12]


def test_values_are_cast_to_the_planned_dtype(tmp_path: Path) -> None:
    values = some_tensor(torch.float32, 7)
    write_checkpoint(tmp_path, [Planned(name="x", shape=(7,), dtype=torch.bfloat16, make=lambda: [values])])
    assert_same(load_file(tmp_path / SINGLE)["x"], values.to(torch.bfloat16))


def test_values_that_the_planned_dtype_can_not_hold_are_an_error_that_names_tensor_and_dtype(tmp_path: Path) -> None:
    def plan(value: float, dtype: torch.dtype) -> list[Planned]:
        return [Planned(name="x", shape=(2,), dtype=dtype, make=lambda: [torch.tensor([1.0, value])])]

    write_checkpoint(tmp_path, plan(65504.0, torch.float16))
    write_checkpoint(tmp_path, plan(1e30, torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"tensor 'x': float16 can't hold its largest values; give a base in"):
        write_checkpoint(tmp_path, plan(1e5, torch.float16))
    with pytest.raises(CheckpointError, match="tensor 'x' holds NaN or infinity"):
        write_checkpoint(tmp_path, plan(float("nan"), torch.float16))


def test_too_few_values_are_an_error(tmp_path: Path) -> None:
    plan = [Planned(name="x", shape=(7,), dtype=torch.float32, make=lambda: [torch.zeros(6)])]
    with pytest.raises(CheckpointError, match="tensor 'x': 24 bytes were made, 28 planned"):
        write_checkpoint(tmp_path, plan)


def test_a_copy_equals_its_source_and_refuses_nan(tmp_path: Path) -> None:
    floats = {name: tensor for name, tensor in TENSORS.items() if tensor.is_floating_point()}
    source = Checkpoint(write(tmp_path / "one", floats | {"bad": torch.tensor([1.0, float("nan")])}))
    (tmp_path / "two").mkdir()
    write_checkpoint(tmp_path / "two", [copy_of(source, name) for name in floats])
    found = load_file(tmp_path / "two" / SINGLE)
    for name, tensor in floats.items():
        assert_same(found[name], tensor)
    with pytest.raises(CheckpointError, match="'bad' holds NaN or infinity"):
        write_checkpoint(tmp_path / "two", [copy_of(source, "bad")])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_large_and_opposite_finite_values_count_as_finite(dtype: torch.dtype) -> None:
    tensor = torch.tensor([60000.0, -60000.0, 1e-7] * 1000).to(dtype)
    assert finite(tensor, "x") is tensor
    for value in (float("nan"), float("inf"), float("-inf")):
        spoilt = tensor.clone()
        spoilt[-1] = value
        with pytest.raises(CheckpointError, match="'x' holds NaN or infinity"):
            finite(spoilt, "x")


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xft.checkpoint.shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 2 * 10**9))
    made: list[str] = []

    def make() -> list[Tensor]:
        made.append("x")
        return []

    plan = [Planned(name="x", shape=(1000, 1000, 1000), dtype=torch.float32, make=make)]
    with pytest.raises(RunError, match=r"needs 4\.0 GB and the disk has 2\.0 GB; choose another disk"):
        write_checkpoint(tmp_path, plan)
    assert not made
    assert not list(tmp_path.iterdir())
    require_disk(tmp_path, 2 * 10**9)


@pytest.mark.parametrize("keep", [4, 200, -1])
def test_a_truncated_file_is_an_error_that_names_it(keep: int, tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    data = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=rf"{SINGLE}: truncated or damaged .* fetch or make the model again"):
        Checkpoint(tmp_path)


def test_a_truncated_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    shard = next(write(tmp_path, TENSORS, shard_bytes=60).glob("model-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: truncated or damaged"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    shard = next(write(tmp_path, TENSORS, shard_bytes=60).glob("model-00002-*"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name}: this shard is missing; fetch or make the model again"):
        Checkpoint(tmp_path)


def with_index(folder: Path, **changes: Any) -> Path:
    """Write shards, then change their index."""
    write(folder, TENSORS, shard_bytes=60)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | changes))
    return folder


def test_an_index_that_names_a_tensor_which_its_shard_lacks_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, shard_bytes=60)
    tree = json.loads((tmp_path / INDEX).read_text())
    tree["weight_map"]["invented"] = tree["weight_map"]["cube"]
    with pytest.raises(CheckpointError, match=rf"no tensor 'invented', though {INDEX} puts it there"):
        Checkpoint(with_index(tmp_path, **tree))


@pytest.mark.parametrize("weight_map", [{"cube": "model-00009-of-00009.safetensors"}, {"cube": "../elsewhere"}])
def test_an_index_that_names_a_shard_which_is_not_there_is_an_error(weight_map: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this shard is missing"):
        Checkpoint(with_index(tmp_path, weight_map=weight_map))


def test_a_folder_with_an_index_and_a_single_file_too_is_refused(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, shard_bytes=60)
    save_file({"cube": torch.zeros(3)}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=rf"both {SINGLE} and {INDEX}, two models; move one of them away"):
        Checkpoint(tmp_path)


def test_an_index_cannot_reach_files_outside_the_folder(tmp_path: Path) -> None:
    save_file({"cube": torch.zeros(3)}, tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="this shard is missing"):
        Checkpoint(with_index(tmp_path / "model", weight_map={"cube": "../secret.safetensors"}))
    with pytest.raises(CheckpointError, match="this shard is missing"):
        Checkpoint(with_index(tmp_path / "model", weight_map={"cube": str(tmp_path / "secret.safetensors")}))


@pytest.mark.parametrize("weight_map", [None, [], {}, {"cube": 3}])
def test_an_index_without_a_usable_weight_map_is_an_error(weight_map: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=INDEX):
        Checkpoint(with_index(tmp_path, weight_map=weight_map))


def test_a_folder_with_pickles_only_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, convert it with transformers first"):
        Checkpoint(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json; give a folder with a model's config"):
        Checkpoint(tmp_path)
    write_config(tmp_path, {})
    with pytest.raises(CheckpointError, match=rf"neither {SINGLE} nor {INDEX}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_config_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: not .*; fetch or make the model again"):
        Checkpoint(tmp_path)


def test_buffers_that_old_versions_stored_are_left_out(dense_of: Callable[..., Path], tmp_path: Path) -> None:
    old = Path(shutil.copytree(dense_of("gpt_neox"), tmp_path / "old"))
    weights = load_file(old / SINGLE)
    masked = {"attention.masked_bias": torch.tensor(-torch.inf), "attention.bias": torch.ones(1, 1, 8, 8).bool()}
    save_file(weights | {f"gpt_neox.layers.0.{name}": each for name, each in masked.items()}, old / SINGLE)
    assert set(Checkpoint(old).names()) == set(weights)
    out = tmp_path / "moe"
    out.mkdir()
    upcycle(old, out, UpcycleConfig(experts=3, active=2), seed=0)
    assert prove(old, out).preserves_dense


def test_a_config_without_the_number_of_layers_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    write(tmp_path, {"x": torch.zeros(1)})
    write_config(tmp_path, {"model_type": "llama"})
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        _ = Checkpoint(tmp_path).layers


def test_a_tensor_of_a_quantised_type_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"tensor 'x' has the type F8_E4M3; give a model that isn't quantised"):
        Checkpoint(tmp_path).dtype("x")


def test_asking_for_a_tensor_that_is_not_there_says_which_model_it_should_be(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write(tmp_path, {"x": torch.zeros(1)}))
    for ask in (checkpoint.read, checkpoint.shape, checkpoint.dtype):
        with pytest.raises(CheckpointError, match=r"no tensor 'y'; is this a llama model\?"):
            ask("y")
    assert "x" in checkpoint
    assert "y" not in checkpoint


def test_companions_are_copied_and_weights_and_config_are_not(tiny_dense: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_dense, tmp_path / "source")
    (source / "LICENSE.txt").write_text("terms")
    (source / "optimizer.pt").write_text("not this")
    (tmp_path / "out").mkdir()
    copy_companions(source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in source.iterdir()} - {SINGLE, "config.json", "optimizer.pt"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= names
    assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in names)
