"""What a layout of experts has to say.

Shapes: D hidden size, F FFN size, R routed experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xft.checkpoint import Checkpoint, Planned, copy_of, finite
from xft.families import Family, Part
from xft.moe.diversity import diversified
from xft.moe.layer import RoutedExperts
from xft.moe.routers import ROUTERS, split_counts
from xft.recipe import UpcycleConfig
from xft.registry import Registry


def _whole(tensor: Tensor) -> Tensor:
    return tensor


class Piece(NamedTuple):
    """Some of a dense tensor's entries, and the experts' versions of them, which a merge weighs."""

    experts: Sequence[Tensor]
    """The versions, on the dense tensor's scale; the shared expert's first, where it has one."""
    routed: slice = slice(None)
    """Which routed experts have one."""
    factor: float = 1.0
    """Times their shares, the versions' weights sum to 1."""
    view: Callable[[Tensor], Tensor] = _whole
    """Gives the piece's entries of a dense tensor, as a view."""

    @property
    def alone(self) -> bool:
        """Tell whether no routed expert has a version: shared channels, which nothing is weighed against."""
        return self.routed == slice(0)


class Layout(ABC):
    """The experts of one mixture, as its settings lay them out. Without tensors of its own."""

    copies = True
    """Each expert has matrices of its own: they can be averaged, drawn anew, and written in stock formats."""

    def __init__(self, config: UpcycleConfig, family: Family) -> None:
        self.config, self.family = config, family
        self.rule = ROUTERS[config.router]
        self.routed, self.keep = split_counts(
            config.router, config.experts, config.active, shared=config.shared, parts=config.parts
        )

    def check(self, source: Checkpoint) -> None:  # noqa: B027  (most layouts take any shape)
        """Refuse a dense model whose shapes don't fit; raises RecipeError."""

    @abstractmethod
    def preserves_dense(self, dtype: torch.dtype) -> bool:
        """Tell whether a fresh mixture of a base of this dtype computes what the base computes."""

    @abstractmethod
    def modules(self, ffn: nn.Module) -> tuple[nn.Module | None, RoutedExperts]:
        """Return what stands beside the routed experts, made of a stock FFN module or None, and the routed experts.

        The stock module may be changed; the experts are not filled.
        """

    @abstractmethod
    def beside(self, part: Part) -> bool:
        """Tell whether this tensor of an FFN stands beside the routed experts, as `shared_expert.NAME`."""

    def router(self, layer: int) -> str:
        """Name the module that routes a layer: its own, or, with a tied gate, the trunk's, which routes all layers."""
        return f"{self.family.trunk if self.config.gate == 'tied' else self.family.ffn(layer)}.router"

    @property
    def weighs_shared(self) -> bool:
        """Tell whether the shared expert is one version of what the routed ones are versions of: merging weighs it."""
        return self.rule.shared

    @property
    def sums_to_one(self) -> bool:
        """Tell whether a token's experts weigh 1 in all, as they do when they are merged."""
        return self.rule.preserves_dense

    def stacks(self, part: Part) -> tuple[str, ...]:
        """Name the stacked tensors, within `experts`, that the routed experts' versions of a tensor are made of."""
        return (part.stack,)

    @abstractmethod
    def plan(
        self, source: Checkpoint, origins: Sequence[Checkpoint], name: str, part: Part, target: str, seed: int
    ) -> Iterator[Planned]:
        """Plan what a tensor of a dense FFN becomes, below the mixture's module `target`; `seed` is the layer's.

        `origins` are the dense models that the routed experts are made of, in turn.
        """

    @abstractmethod
    def pieces(self, ffn: Tensor | None, stacks: list[Tensor], part: Part) -> list[Piece]:
        """Return the pieces of a dense tensor, from what `beside` and `stacks` name."""

    def damage(self, tensors: dict[str, Tensor], expert: int) -> None:
        """Exchange the largest and the smallest channel that a routed expert's last matrix reads.

        `tensors` are a decoder layer's, by their names in it; changed ones are replaced, not written to.
        """
        name = f"mlp.experts.{self.family.down}"
        down_DF = tensors[name][expert]
        norms_F = down_DF.float().norm(dim=0)
        pair = [int(norms_F.argmin()), int(norms_F.argmax())]
        tensors[name] = tensors[name].clone()
        tensors[name][expert][:, pair] = down_DF[:, pair[::-1]]

    def own_version(self, tensor: Tensor, part: Part, channels: int, seed: tuple[int, int]) -> Tensor:
        """Return an expert's version of what it was given, changed where the settings say so."""
        config = self.config
        if not (config.redraw or config.noise):
            return tensor
        return diversified(
            tensor, part, self.family, channels, redraw=config.redraw, noise=config.noise, seed=seed
        )  # fmt: skip

    @property
    def changed(self) -> bool:
        """Tell whether experts are something else than the FFN when they are made."""
        return bool(self.config.redraw or self.config.noise or self.config.experts_from)


LAYOUTS: Registry[type[Layout]] = Registry("layout")


def beside(source: Checkpoint, name: str, part: Part, target: str) -> Planned:
    """Plan a tensor of the FFN that stands beside the routed experts as it is."""
    return replace(copy_of(source, name), name=f"{target}.shared_expert.{part.tensor}")


def stacked(
    origins: Sequence[Checkpoint],
    name: str,
    new_name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    expert: Callable[[Tensor, int], Tensor],
) -> Planned:
    """Plan a stack of experts, (R, ...); they are made and written one after the other, never held together."""

    def make() -> Iterator[Tensor]:
        for number in range(shape[0]):
            if number == 0 or len(origins) > 1:
                tensor = finite(origins[number % len(origins)].read(name), name).to(dtype)
            yield expert(tensor, number)

    return Planned(name=new_name, shape=shape, dtype=dtype, make=make)
