"""A mixture's checkpoint: what its config.json says of experts and router, and where their tensors are."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError
from xft.families import MOE_PREFIX, Part
from xft.moe.routers import ROUTERS, RouterRule, split_counts


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
        for layer in range(self.layers):
            for part in self.parts:
                for name in self.tensor_names(layer, part):
                    if name not in self:
                        raise CheckpointError(f"{folder}: no tensor {name!r}; not a whole mixture, make it again")

    @cached_property
    def parts(self) -> list[Part]:
        """What the experts consist of: the family's matrices, and the biases that are there."""
        return [
            part
            for part in self.family.parts
            if part.tensor.endswith(".weight") or any(name in self for name in self.tensor_names(0, part))
        ]

    @property
    def options(self) -> dict[str, Any]:
        """Return the mapping `xft` of config.json."""
        return dict(self.config["xft"])

    @property
    def delta(self) -> bool:
        """Whether the routed experts are low-rank differences from the FFN."""
        return self.options.get("layout") == "delta"

    @property
    def rule(self) -> RouterRule:
        """Return the routing rule."""
        return ROUTERS[str(self.options["router"])]

    @property
    def preserves_dense(self) -> bool:
        """Whether the fresh mixture promises to compute what its dense parent computes."""
        changed = self.options.get("redraw") or self.options.get("noise")
        return self.rule.preserves_dense and not changed

    @property
    def routed(self) -> int:
        """Return the number of routed experts."""
        return split_counts(self.options["router"], self.options["experts"], self.options["active"])[0]

    def ffn_name(self, layer: int, part: Part) -> str | None:
        """Name a tensor of the FFN held beside the routed experts: the shared one, or what they differ from."""
        return f"{self.family.ffn(layer)}.shared_expert.{part.tensor}" if self.rule.shared or self.delta else None

    def stack_names(self, layer: int, part: Part) -> list[str]:
        """Name the stacked tensors that make one tensor of the routed experts; biases have no differences."""
        stack = f"{self.family.ffn(layer)}.experts.{part.stack}"
        if not self.delta:
            return [stack]
        return [f"{stack}_a", f"{stack}_b"] if part.tensor.endswith(".weight") else []

    def tensor_names(self, layer: int, part: Part) -> list[str]:
        """Name all tensors that the experts' versions of one tensor are made of, the FFN's own first."""
        name = self.ffn_name(layer, part)
        return [*([] if name is None else [name]), *self.stack_names(layer, part)]

    def part_shape(self, layer: int, part: Part) -> tuple[int, ...]:
        """Return the shape of a tensor of one expert."""
        name = self.ffn_name(layer, part)
        return tuple(self.shape(self.stack_names(layer, part)[0])[1:] if name is None else self.shape(name))

    def experts(self, layer: int, part: Part) -> list[Tensor]:
        """Return one tensor of every expert, the shared one first.

        Of copies these are backed by the file's pages; what differs by a low rank is put together, in fp32.
        """
        stacks = [self.read(name) for name in self.stack_names(layer, part)]
        name = self.ffn_name(layer, part)
        ffn = None if name is None else self.read(name)
        first = [ffn] if ffn is not None and self.rule.shared else []
        if not self.delta:
            return [*first, *stacks[0].unbind()]
        assert ffn is not None
        if not stacks:
            return [*first, *[ffn] * self.routed]
        narrow_RrI, wide_ROr = stacks
        return [*first, *(ffn.float() + b.float() @ a.float() for a, b in zip(narrow_RrI, wide_ROr, strict=True))]


def fingerprint(dense: Checkpoint) -> str:
    """Return a hash of a dense model's first and last down projection, by which a mixture knows its parent."""
    digest = hashlib.sha256()
    for layer in (0, dense.layers - 1):
        tensor = dense.read(f"{dense.family.ffn(layer)}.{dense.family.down}.weight")
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_mixture(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is a mixture's."""
    return str(checkpoint.config.get("model_type")).startswith(MOE_PREFIX)
