"""Read safetensors checkpoints lazily and write them as a stream: no more than one tensor is held."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from xft.errors import CheckpointError, RunError
from xft.families import DEQUANTISE, Family, check_entry, family_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
COMPANIONS = ("generation_config.json", "chat_template.*", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
              "vocab.json", "merges.txt", "LICENSE*")  # fmt: skip
"""What travels with the weights, beside config.json."""

COMPUTED = re.compile(r"\.attention\.(?:bias|masked_bias)$|\.rotary_emb\.inv_freq$")
"""Buffers that old versions of transformers stored and today's compute: Pythia's mask, which is infinite in fp16."""

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Checkpoint:
    """A folder with config.json and safetensors weights; tensors are memory-mapped views of the files."""

    def __init__(self, folder: Path | str) -> None:
        """Open a checkpoint.

        Raises:
            CheckpointError: not a model folder, a missing or truncated shard, or weights in another format.
        """
        self.folder = Path(folder)
        self.config = self._read_json("config.json")
        self._files: dict[str, Any] = {}
        self._shards = {name: shard for name, shard in self._map_shards().items() if not COMPUTED.search(name)}

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"{self.folder}: no {name}; give a folder with a model's config.json and safetensors")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path}: not valid JSON ({error}); fetch or make the model again") from None
        if not isinstance(tree, dict):
            raise CheckpointError(f"{path}: not a JSON object; fetch or make the model again")
        return tree

    def _map_shards(self) -> dict[str, str]:
        if (self.folder / INDEX).is_file() and (self.folder / SINGLE).is_file():  # transformers reads the one, vLLM ..
            raise CheckpointError(f"{self.folder}: both {SINGLE} and {INDEX}, two models; move one of them away")
        if (self.folder / INDEX).is_file():
            mapped: dict[str, str] = self._read_json(INDEX).get("weight_map", {})
            if not mapped or not isinstance(mapped, dict) or not all(isinstance(at, str) for at in mapped.values()):
                raise CheckpointError(
                    f"{self.folder / INDEX}: no map from tensors to shards; fetch or make the model again"
                )
            held: dict[str, set[str]] = {name: set(self._open(name).keys()) for name in sorted(set(mapped.values()))}
            for tensor, shard in mapped.items():
                if tensor not in held[shard]:
                    raise CheckpointError(f"{self.folder / shard}: no tensor {tensor!r}, though {INDEX} puts it there")
            return mapped
        if (self.folder / SINGLE).is_file():
            return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        pickled = [path.name for path in self.folder.glob("*.bin")]
        hint = f"; {pickled[0]} is a pickle, convert it with transformers first" if pickled else ""
        raise CheckpointError(f"{self.folder}: neither {SINGLE} nor {INDEX}{hint}")

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            path = self.folder / shard
            if not path.is_file() or Path(shard).name != shard:  # an index must not lead out of the folder
                raise CheckpointError(f"{path}: this shard is missing; fetch or make the model again")
            try:
                self._files[shard] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path}: truncated or damaged ({error}); fetch or make the model again"
                ) from None
        return self._files[shard]

    @cached_property
    def family(self) -> Family:
        """Return the model's family.

        Raises:
            CheckpointError: an unknown one, or one whose entry doesn't fit this dense model.
        """
        model_type = str(self.config.get("model_type"))
        family = family_of(model_type, str(self.folder), self.names())
        if model_type == family.model_type:
            check_entry(family, self)
        return family

    def refuse_quantised(self) -> None:
        """Raise CheckpointError where the configuration says that weights are quantised."""
        if self.config.get("quantization_config"):
            raise CheckpointError(f"{self.folder / 'config.json'}: has a quantization_config; {DEQUANTISE}")

    @property
    def layers(self) -> int:
        """Return the number of decoder layers; raises CheckpointError where the config does not say."""
        if not isinstance(self.config.get("num_hidden_layers"), int):
            raise CheckpointError(f"{self.folder / 'config.json'}: no num_hidden_layers; is this a language model?")
        return int(self.config["num_hidden_layers"])

    def names(self) -> list[str]:
        """Return the tensors' names in file order, without those of buffers that are computed."""
        return list(self._shards)

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading it; raises CheckpointError for one of a quantised model."""
        code = self._slice(name).get_dtype()
        for dtype, known in DTYPES.items():
            if known == code:
                return dtype
        raise CheckpointError(f"{self.folder}: tensor {name!r} has the type {code}; give a model that isn't quantised")

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor backed by the file's pages; do not write to it."""
        self._require(name)
        tensor: torch.Tensor = self._open(self._shards[name]).get_tensor(name)
        return tensor

    def _slice(self, name: str) -> Any:
        self._require(name)
        return self._open(self._shards[name]).get_slice(name)

    def _require(self, name: str) -> None:
        if name not in self._shards:
            raise CheckpointError(
                f"{self.folder}: no tensor {name!r}; is this a {self.config.get('model_type')} model?"
            )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A tensor that will be written: its shape is known before its values."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Iterable[torch.Tensor]]
    """Give the values as consecutive pieces along the first dimension."""

    @property
    def nbytes(self) -> int:
        """Return the tensor's size in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def named_as_stored(model: Any, family: Family) -> Iterator[tuple[str, Any]]:
    """Give a model's parameters and persistent buffers by their names in a checkpoint.

    Only the output matrix may have another one: newer classes of transformers rename it while they load (GPT-NeoX).
    A tied one is given once, as the embedding.
    """
    head = model.get_output_embeddings().weight
    for name, parameter in model.named_parameters():
        yield family.head if parameter is head and name != family.embedding else name, parameter
    kept = model.state_dict()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def copy_of(source: Checkpoint, name: str) -> Planned:
    """Plan a tensor as it stands in another checkpoint."""
    return Planned(
        name=name, shape=source.shape(name), dtype=source.dtype(name), make=lambda: [finite(source.read(name), name)]
    )


def finite(tensor: torch.Tensor, name: str, made_of: Iterable[tuple[str, torch.Tensor]] = ()) -> torch.Tensor:
    """Return the tensor itself.

    `made_of` are the named tensors of which it is the sum. They are looked at only if it is not finite, to
    name the cause.

    Raises:
        CheckpointError: it holds NaN or infinity; the message names the first of `made_of` that does, or else itself.
    """
    # The extremes are NaN where any value is; a mask, or a sum in fp32, would need memory of its own.
    if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        for source, other in made_of:
            finite(other, source)
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity; fetch or make the model again")
    return tensor


def write_checkpoint(
    out: Path, plan: list[Planned], *, shard_bytes: int = 5 << 30, progress: Callable[[int], None] | None = None
) -> None:
    """Write planned tensors as safetensors shards with an index; `progress` is told the bytes of each piece.

    Raises:
        CheckpointError: a cast to the planned dtype overflows.
        RunError: the disk is too small; checked before anything is written.
    """
    require_disk(out, sum(planned.nbytes for planned in plan))
    shards = list(_shards(plan, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys((planned.name for planned in shard), name)
        with (out / name).open("wb") as sink:
            _write_shard(sink, shard, progress or (lambda _: None))
    if len(shards) > 1:
        total = sum(planned.nbytes for planned in plan)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def require_disk(out: Path, nbytes: int) -> None:
    """Check that `nbytes` fit on the disk of an existing folder.

    Raises:
        RunError: they do not; the message has both sizes.
    """
    free = shutil.disk_usage(out).free
    if nbytes > free:
        raise RunError(f"{out}: needs {nbytes / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB; choose another disk")


def _shards(plan: list[Planned], limit: int) -> Iterator[list[Planned]]:
    shard: list[Planned] = []
    size = 0
    for planned in plan:
        if shard and size + planned.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(planned)
        size += planned.nbytes
    yield shard


def _write_shard(sink: BinaryIO, shard: list[Planned], progress: Callable[[int], None]) -> None:
    """Write the safetensors layout: header length, JSON header, then the tensors' bytes in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for planned in shard:
        end = offset + planned.nbytes
        header[planned.name] = {
            "dtype": DTYPES[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sink.write(len(text).to_bytes(8, "little") + text)
    for planned in shard:
        written = 0
        for piece in planned.make():
            raw = _cast(piece, planned).contiguous().reshape(-1).view(torch.uint8).numpy()
            sink.write(raw.data)
            written += raw.nbytes
            progress(raw.nbytes)
        if written != planned.nbytes:
            raise CheckpointError(f"tensor {planned.name!r}: {written} bytes were made, {planned.nbytes} planned")


def _cast(piece: torch.Tensor, planned: Planned) -> torch.Tensor:
    if piece.dtype == planned.dtype:
        return piece
    try:
        return finite(piece.to(planned.dtype), planned.name)
    except CheckpointError:
        finite(piece, planned.name)
        held = str(planned.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"tensor {planned.name!r}: {held} can't hold its largest values; give a base in bfloat16 or float32"
        ) from None


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template and generation config beside new weights."""
    for pattern in COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, out / path.name)


def write_config(out: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
