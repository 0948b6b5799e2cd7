"""Experts as low-rank differences from one trained FFN (DeRS, CVPR 2025).

They are computed in `moe/delta.py`, which mixes the experts' outputs, or in `moe/adapters.py`, which mixes their
matrices.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from xft.checkpoint import Checkpoint, Planned
from xft.families import Part
from xft.moe.adapters import AdapterExperts
from xft.moe.delta import DeltaExperts
from xft.moe.layer import RoutedExperts
from xft.moe.layouts.layout import LAYOUTS, Layout, Piece, beside


@LAYOUTS.register("delta")
class Delta(Layout):
    """The FFN, and for each of its matrices stacks `NAME_a` (R, r, in) and `NAME_b` (R, out, r); none for biases."""

    copies = False

    def preserves_dense(self, dtype: torch.dtype) -> bool:
        """Differences start as nothing."""
        return self.rule.preserves_dense

    def modules(self, ffn: nn.Module) -> tuple[nn.Module | None, RoutedExperts]:
        """Keep the FFN, which is the shared expert where the router has one."""
        return ffn, DeltaExperts(ffn, self.family, self.routed, self.config.rank, shared=self.rule.shared)

    def beside(self, part: Part) -> bool:
        """Every tensor."""
        return True

    def stacks(self, part: Part) -> tuple[str, ...]:
        """Biases have no differences."""
        return (f"{part.stack}_a", f"{part.stack}_b") if part.tensor.endswith(".weight") else ()

    def plan(
        self, source: Checkpoint, origins: Sequence[Checkpoint], name: str, part: Part, target: str, seed: int
    ) -> Iterator[Planned]:
        """Plan the FFN, A as `nn.Linear` starts and B of zeros."""
        yield beside(source, name, part, target)
        if not self.stacks(part):
            return
        wide, narrow = source.shape(name)
        rank, dtype = self.config.rank, source.dtype(name)

        def random() -> list[Tensor]:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            return [((2 * torch.rand(self.routed, rank, narrow, generator=generator) - 1) * narrow**-0.5).to(dtype)]

        yield Planned(
            name=f"{target}.experts.{part.stack}_a", shape=(self.routed, rank, narrow), dtype=dtype, make=random
        )
        yield Planned(
            name=f"{target}.experts.{part.stack}_b", shape=(self.routed, wide, rank), dtype=dtype,
            make=lambda: [torch.zeros(self.routed, wide, rank, dtype=dtype)],
        )  # fmt: skip

    def pieces(self, ffn: Tensor | None, stacks: list[Tensor], part: Part) -> list[Piece]:
        """Put the whole tensor's versions together, in fp32."""
        assert ffn is not None
        first = [ffn] if self.rule.shared else []
        if not stacks:
            return [Piece(experts=[*first, *[ffn] * self.routed])]
        narrow_RrI, wide_ROr = stacks
        whole = [ffn.float() + b.float() @ a.float() for a, b in zip(narrow_RrI, wide_ROr, strict=True)]
        return [Piece(experts=[*first, *whole])]

    def damage(self, tensors: dict[str, Tensor], expert: int) -> None:
        """Give an expert the difference of an exchange of the FFN's channels, as far as one rank can."""
        down = self.family.down
        ffn_DF = tensors[f"mlp.shared_expert.{down}.weight"].float()
        norms_F = ffn_DF.norm(dim=0)
        one, other = int(norms_F.argmax()), int(norms_F.argmin())
        for suffix in ("_a", "_b"):
            tensors[f"mlp.experts.{down}{suffix}"] = torch.zeros_like(tensors[f"mlp.experts.{down}{suffix}"]).float()
        # (w_one - w_other)(e_other - e_one): what columns one and other gain when they change places
        tensors[f"mlp.experts.{down}_a"][expert, 0, [other, one]] = torch.tensor([1.0, -1.0])
        tensors[f"mlp.experts.{down}_b"][expert, :, 0] = ffn_DF[:, one] - ffn_DF[:, other]


@LAYOUTS.register("adapter")
class Adapter(Delta):
    """The same tensors, mixed in each linear layer, before the activation."""

    def modules(self, ffn: nn.Module) -> tuple[nn.Module | None, RoutedExperts]:
        """Keep the FFN, whose matrices the differences are added to."""
        return ffn, AdapterExperts(ffn, self.family, self.routed, self.config.rank)
