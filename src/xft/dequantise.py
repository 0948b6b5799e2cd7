"""Turn a GGUF file into a safetensors checkpoint, a few rows at a time, so that it takes the memory of neither."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from xft.checkpoint import Planned, named_as_stored, write_checkpoint
from xft.errors import CheckpointError
from xft.families import family_of

ROWS = 8192
"""Rows dequantised at a time."""
INTERLEAVED = {"llama"}
"""Architectures whose files pair neighbouring rows of the query and key matrices for the rotary embedding; transformers
pairs the two halves of a head."""


def dequantise(path: Path, out: Path, dtype: torch.dtype) -> None:
    """Write config, tokenizer and weights of a GGUF file into a folder.

    Raises:
        CheckpointError: an unknown family, or a tensor that the file lacks.
    """
    config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    reader = gguf.GGUFReader(path)
    held = {tensor.name: tensor for tensor in reader.tensors}
    architecture = str(reader.fields["general.architecture"].contents())
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    plan = []
    for name, parameter in named_as_stored(model, family_of(config.model_type, path.name)):
        stem, _, kind = name.rpartition(".")
        tensor = held.get(f"{names.get_name(stem)}.{kind}")
        if tensor is None:
            raise CheckpointError(f"{path}: no tensor for {name!r}; fetch the file again")
        make = functools.partial(_pieces, tensor, _heads(name, config) if architecture in INTERLEAVED else 0)
        plan.append(Planned(name=name, shape=tuple(parameter.shape), dtype=dtype, make=make))
    write_checkpoint(out, plan)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(out)
    config.architectures, config.dtype = [type(model).__name__], dtype
    GenerationConfig.from_model_config(config).save_pretrained(out)
    config.save_pretrained(out)


def _heads(name: str, config: Any) -> int:
    """Return the heads of a query or key matrix, 0 for other tensors."""
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def _pieces(tensor: Any, heads: int) -> Iterator[torch.Tensor]:
    """Give a tensor's values, a few rows at a time; one whose rows change places all at once."""
    rows = len(tensor.data)
    for begin in range(0, rows, rows if heads else ROWS):
        values = gguf.dequantize(tensor.data[begin : begin + (rows if heads else ROWS)], tensor.tensor_type)
        piece = torch.from_numpy(values.copy())
        yield piece.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) if heads else piece
