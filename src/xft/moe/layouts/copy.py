"""Experts as full copies of the FFN (XFT, arXiv 2404.15247; sparse upcycling, arXiv 2212.05055)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from xft.checkpoint import Checkpoint, Planned
from xft.families import Part
from xft.moe.layer import Experts, RoutedExperts
from xft.moe.layouts.layout import LAYOUTS, Layout, Piece, beside, stacked


@LAYOUTS.register("copy")
class Copy(Layout):
    """Stacks of whole FFNs; the shared expert is the FFN itself."""

    def preserves_dense(self, dtype: torch.dtype) -> bool:
        """Weights that sum to 1 make one FFN out of equal ones."""
        return self.rule.preserves_dense and not self.changed

    def modules(self, ffn: nn.Module) -> tuple[nn.Module | None, RoutedExperts]:
        """Keep the FFN where the router has a shared expert."""
        return ffn if self.rule.shared else None, Experts(ffn, self.family, self.routed)

    def beside(self, part: Part) -> bool:
        """Every tensor, where the router has a shared expert."""
        return self.rule.shared

    def plan(
        self, source: Checkpoint, origins: Sequence[Checkpoint], name: str, part: Part, target: str, seed: int
    ) -> Iterator[Planned]:
        """Plan the shared copy and the stack."""
        channels = int(source.config["intermediate_size"])

        def expert(tensor: Tensor, number: int) -> Tensor:
            return self.own_version(tensor, part, channels, (seed, number))

        if self.rule.shared:
            yield beside(source, name, part, target)
        shape = (self.routed, *source.shape(name))
        yield stacked(origins, name, f"{target}.experts.{part.stack}", shape, source.dtype(name), expert)

    def pieces(self, ffn: Tensor | None, stacks: list[Tensor], part: Part) -> list[Piece]:
        """Return the whole tensor's versions, backed by the file's pages."""
        return [Piece(experts=[*([] if ffn is None else [ffn]), *stacks[0].unbind()])]
