"""Write the merged dense checkpoint as a stream: the base's class, names, dtype and companions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xft.checkpoint import (
    Checkpoint,
    Planned,
    copy_companions,
    copy_of,
    finite,
    named_as_stored,
    write_checkpoint,
    write_config,
)
from xft.families import Part
from xft.merge.combine import Options, linear, row_blocks
from xft.merge.methods import Coefficients
from xft.moe.layouts import Piece
from xft.moe.mixture import Mixture
from xft.progress import track


def dense_config(mixture: Mixture) -> dict[str, Any]:
    """Return config.json of the base's own class and dtype."""
    family = mixture.family
    config = {key: value for key, value in mixture.config.items() if key != "xft"}
    dtype = mixture.options["base_dtype"]
    return config | {"model_type": family.model_type, "architectures": [family.model_class], "dtype": dtype}


def dense_skeleton(mixture: Mixture) -> Any:
    """Return the dense model in fp32 with the mixture's other weights; its FFNs are not filled."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**dense_config(mixture))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ffn = {f"{mixture.family.ffn(layer)}.{part.tensor}" for layer in mixture.mixed_layers for part in mixture.parts}
    weights: dict[str, Tensor] = {}
    stored = {id(parameter): name for name, parameter in named_as_stored(model, mixture.family)}
    for name, parameter in model.named_parameters():
        source = stored[id(parameter)]
        if source == mixture.family.head and source not in mixture:
            continue  # tied to the embedding
        weights[name] = torch.empty(parameter.shape) if name in ffn else mixture.read(source).float()
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    return model


@dataclass(frozen=True, kw_only=True)
class Differences:
    """A method that combines the experts' differences from their dense parent."""

    combine: Callable[[Sequence[Tensor], Tensor, Tensor, Options], Tensor]
    base: Checkpoint
    options: Options

    def combined(self, name: str, number: int, piece: Piece, weights_E: Tensor) -> Tensor:
        """Return a piece of a merged matrix; what is dropped at random depends on the seed, its number and the name."""
        seeded = replace(self.options, seed=self.options.seed + number + zlib.crc32(name.encode()))
        return self.combine(piece.experts, piece.view(finite(self.base.read(name), name)), weights_E, seeded)


def write_merged(
    mixture: Mixture,
    coefficients: Coefficients,
    out: Path,
    differences: Differences | None = None,
) -> dict[str, float]:
    """Merge in fp32 and write in the base's dtype; return the largest and the mean rounding error of an FFN weight.

    `differences` is for methods that combine differences from the dense parent.
    """
    dtype: torch.dtype = getattr(torch, mixture.options["base_dtype"])
    rounding = {"largest": 0.0, "sum": 0.0, "weights": 0.0}
    layers = mixture.mixed_layers
    left_out = tuple(
        f"{name}." for layer in layers for name in (mixture.family.ffn(layer), mixture.layout.router(layer))
    )
    parts = {  # each is written where its first tensor is
        mixture.tensor_names(layer, part)[0]: (layer, part) for layer in layers for part in mixture.parts
    }

    shapes = [mixture.part_shape(part) for part in mixture.parts]
    room = torch.empty(max(map(math.prod, shapes)))  # for one matrix after the other: new memory has to be faulted in

    def merged(layer: int, part: Part, name: str) -> Iterator[Tensor]:
        experts = [(source, mixture.read(source)) for source in mixture.tensor_names(layer, part)]
        if differences is not None:  # their comparisons would hide what is not finite; a plain sum hides nothing
            for source, tensor in experts:
                finite(tensor, source)
        shape = mixture.part_shape(part)
        mixed = room[: math.prod(shape)].view(shape)
        for number, piece in enumerate(mixture.pieces(layer, part)):
            weights_E = coefficients.of(layer - layers.start, part.place, piece)
            if differences is None or piece.alone:
                linear(piece.experts, weights_E, out=piece.view(mixed))
            else:
                piece.view(mixed).copy_(differences.combined(name, number, piece, weights_E))
        if dtype == torch.float32:
            yield finite(mixed, name, made_of=experts)
            return
        blocks = row_blocks(mixed)
        rounded_room, back_room = torch.empty_like(blocks[0], dtype=dtype), torch.empty_like(blocks[0])
        for block in blocks:
            rounded = rounded_room[: len(block)].copy_(block)
            error = block.sub_(back_room[: len(block)].copy_(rounded)).abs_()
            rounding["largest"] = max(rounding["largest"], float(error.max()))
            rounding["sum"] += float(error.sum())
            if not math.isfinite(rounding["sum"]):  # it is where a weight was not finite, or no longer is
                finite(mixed, name, made_of=experts)
            yield rounded
        rounding["weights"] += mixed.numel()

    plan: list[Planned] = []
    for name in mixture.names():
        if name in parts:
            layer, part = parts[name]
            target = f"{mixture.family.ffn(layer)}.{part.tensor}"
            shape, make = mixture.part_shape(part), partial(merged, layer, part, target)
            plan.append(Planned(name=target, shape=shape, dtype=dtype, make=make))
        elif not name.startswith(left_out):
            copied = copy_of(mixture, name)
            plan.append(Planned(name=name, shape=copied.shape, dtype=dtype, make=copied.make))
    with track("write merged", sum(planned.nbytes for planned in plan)) as advance:
        write_checkpoint(out, plan, progress=advance)
    copy_companions(mixture.folder, out)
    write_config(out, dense_config(mixture))
    return {"largest": rounding["largest"], "mean": rounding["sum"] / max(rounding["weights"], 1)}
