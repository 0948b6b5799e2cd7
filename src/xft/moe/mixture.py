"""A mixture's checkpoint: what its config.json says of experts and router, and where their tensors are."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError
from xft.families import MOE_PREFIX, Part
from xft.moe.layouts import Layout, Piece, layout_of, settings_of
from xft.recipe import UpcycleConfig


class Mixture(Checkpoint):
    """A folder that `xft upcycle` or `xft tune` wrote."""

    def __init__(self, folder: Path | str) -> None:
        """Open a mixture checkpoint.

        Raises:
            CheckpointError: it is no mixture, or lacks an expert.
        """
        super().__init__(folder)
        if not is_mixture(self) or "xft" not in self.config:
            raise CheckpointError(
                f"{folder}: not a mixture that xft made; give the output of `xft upcycle` or `xft tune`"
            )
        for layer in self.mixed_layers:
            for part in self.parts:
                for name in self.tensor_names(layer, part):
                    if name not in self:
                        raise CheckpointError(f"{folder}: no tensor {name!r}; not a whole mixture, make it again")

    @property
    def options(self) -> dict[str, Any]:
        """Return the mapping `xft` of config.json."""
        return dict(self.config["xft"])

    @cached_property
    def settings(self) -> UpcycleConfig:
        """Return how it was made."""
        return settings_of(self.options, str(self.folder / "config.json"))

    @cached_property
    def layout(self) -> Layout:
        """Return the layout of its experts."""
        return layout_of(self.settings, self.family)

    @property
    def mixed_layers(self) -> range:
        """Return the numbers of the layers that are mixtures; those before them are dense."""
        return range(self.settings.dense_layers, self.layers)

    @cached_property
    def parts(self) -> list[Part]:
        """What the experts consist of: the family's matrices, and the biases that are there."""
        first = self.mixed_layers.start
        return [
            part
            for part in self.family.parts
            if part.tensor.endswith(".weight") or any(name in self for name in self.tensor_names(first, part))
        ]

    @property
    def routed(self) -> int:
        """Return the number of routed experts."""
        return self.layout.routed

    @property
    def preserves_dense(self) -> bool:
        """Whether the fresh mixture promises to compute what its dense parent computes."""
        return self.layout.preserves_dense(getattr(torch, self.options["base_dtype"]))

    def ffn_name(self, layer: int, part: Part) -> str | None:
        """Name a tensor of the FFN held beside the routed experts: the shared one, or what they differ from."""
        return f"{self.family.ffn(layer)}.shared_expert.{part.tensor}" if self.layout.beside(part) else None

    def stack_names(self, layer: int, part: Part) -> list[str]:
        """Name the stacked tensors that make one tensor of the routed experts."""
        return [f"{self.family.ffn(layer)}.experts.{stack}" for stack in self.layout.stacks(part)]

    def tensor_names(self, layer: int, part: Part) -> list[str]:
        """Name all tensors that the experts' versions of one tensor are made of, the FFN's own first."""
        name = self.ffn_name(layer, part)
        return [*([] if name is None else [name]), *self.stack_names(layer, part)]

    def part_shape(self, part: Part) -> tuple[int, ...]:
        """Return the shape of a tensor of the dense FFN."""
        return self.family.shape(part, self.config)

    def pieces(self, layer: int, part: Part) -> list[Piece]:
        """Return the pieces of a tensor of the dense FFN, with the experts' versions of them."""
        name = self.ffn_name(layer, part)
        stacks = [self.read(stack) for stack in self.stack_names(layer, part)]
        return self.layout.pieces(None if name is None else self.read(name), stacks, part)


def fingerprint(model: Checkpoint) -> str:
    """Return a hash of the first and the last layer's down projection, by which a mixture knows its dense parent.

    Of a mixture it is that of the FFN beside the experts, in the base's dtype: its parent's, as long as that is frozen.
    """
    digest = hashlib.sha256()
    for layer in (0, model.layers - 1):
        ffn, down = model.family.ffn(layer), f"{model.family.down}.weight"
        beside = f"{ffn}.shared_expert.{down}"
        tensor = model.read(beside if beside in model else f"{ffn}.{down}")
        if is_mixture(model):
            tensor = tensor.to(getattr(torch, model.config["xft"]["base_dtype"]))
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_mixture(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is a mixture's."""
    return str(checkpoint.config.get("model_type")).startswith(MOE_PREFIX)
