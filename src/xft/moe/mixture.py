"""A mixture's checkpoint: what its config.json says of experts and router, and where their tensors are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
                for name in (self.shared_name(layer, part), self.experts_name(layer, part)):
                    if name is not None and name not in self:
                        raise CheckpointError(f"{folder}: no tensor {name!r}; not a whole mixture, make it again")

    @property
    def parts(self) -> list[Part]:
        """Return what the experts consist of: the family's matrices, and the biases that are there."""
        parts = self.family.parts
        return [part for part in parts if part.tensor.endswith(".weight") or self.experts_name(0, part) in self]

    @property
    def options(self) -> dict[str, Any]:
        """Return the mapping `xft` of config.json."""
        return dict(self.config["xft"])

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

    def shared_name(self, layer: int, part: Part) -> str | None:
        """Name a tensor of the shared expert; None where there is none."""
        return f"{self.family.ffn(layer)}.shared_expert.{part.tensor}" if self.rule.shared else None

    def experts_name(self, layer: int, part: Part) -> str:
        """Name the stacked tensors of the routed experts."""
        return f"{self.family.ffn(layer)}.experts.{part.stack}"

    def experts(self, layer: int, part: Part) -> list[Tensor]:
        """Return one tensor of every expert, the shared one first, backed by the file's pages."""
        shared, stack_R = self.shared_name(layer, part), self.read(self.experts_name(layer, part))
        return [*([] if shared is None else [self.read(shared)]), *stack_R.unbind()]


def is_mixture(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is a mixture's."""
    return str(checkpoint.config.get("model_type")).startswith(MOE_PREFIX)
