"""Experts as low-rank differences from one trained FFN (DeRS, CVPR 2025).

They are computed in `moe/delta.py`, which mixes the experts' outputs, or in `moe/adapters.py`, which mixes their
matrices.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xft.checkpoint import Checkpoint, Planned
from xft.families import Part
from xft.moe.adapters import AdapterExperts
from xft.moe.delta import DeltaExperts
from xft.moe.layer import RoutedExperts
from xft.moe.layouts.layout import LAYOUTS, Layout, Piece, beside


class LowRank(Sequence[Tensor]):
    """The versions `W + B_i A_i` of a matrix, first W itself if it is a version too; put together one by one, in fp32.

    Their sum and inner products, which are all that plain merges need, put none together.

    Shapes: O rows and I columns of W, R versions with a difference, E all versions, r rank.
    """

    def __init__(self, whole_OI: Tensor, narrow_RrI: Tensor, wide_ROr: Tensor, *, shared: bool) -> None:
        self.whole_OI, self.narrow_RrI, self.wide_ROr, self.shared = whole_OI, narrow_RrI, wide_ROr, shared

    def __len__(self) -> int:
        return self.shared + len(self.narrow_RrI)

    def __getitem__(self, index: Any) -> Any:
        """Return one version, or a list of some."""
        number = range(len(self))[index]
        if isinstance(number, range):
            return [self[each] for each in number]
        if number < self.shared:
            return self.whole_OI
        expert = number - self.shared
        return self.whole_OI.float() + self.wide_ROr[expert].float() @ self.narrow_RrI[expert].float()

    def sum_into(self, out_OI: Tensor, weights_E: Tensor) -> None:
        """Write `Σ w_i (W + B_i A_i) = (Σ w_i) W + Σ w_i B_i A_i`, in `out_OI`'s dtype and on its device."""
        wide_ROr = self.wide_ROr.to(out_OI) * weights_E[self.shared :].to(out_OI)[:, None, None]
        out_OI.copy_(self.whole_OI).mul_(float(weights_E.sum()))
        out_OI.addmm_(_side_by_side(wide_ROr), self.narrow_RrI.to(out_OI).flatten(0, 1))

    def inner(self, matrix_OI: Tensor) -> Tensor:
        """Return the inner product of a matrix with each version, (E,): `<M, W> + <M A_i^T, B_i>`."""
        whole = torch.dot(matrix_OI.reshape(-1), self.whole_OI.to(matrix_OI).reshape(-1))
        narrow_RrI = self.narrow_RrI.to(matrix_OI)
        low_ORr = torch.mm(matrix_OI, narrow_RrI.flatten(0, 1).t()) * _side_by_side(self.wide_ROr.to(matrix_OI))
        own_R = low_ORr.sum(0).unflatten(0, narrow_RrI.shape[:2]).sum(1)
        return whole + torch.cat([own_R.new_zeros(int(self.shared)), own_R])


def _side_by_side(wide_ROr: Tensor) -> Tensor:
    return wide_ROr.transpose(0, 1).flatten(1)


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
        """Return the whole tensor's versions, of a matrix as what they differ in."""
        assert ffn is not None
        if not stacks:
            return [Piece(experts=[ffn] * (self.rule.shared + self.routed))]
        narrow_RrI, wide_ROr = stacks
        return [Piece(experts=LowRank(ffn, narrow_RrI, wide_ROr, shared=self.rule.shared))]

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
