"""Fine-grained experts: the FFN's channels cut in equal parts (DeepSeekMoE, arXiv 2401.06066).

With G parts and S shared experts the FFN is cut in S + G: the first S are always on, as one narrow FFN, and routed
expert i is a copy of part i mod G of the others. The router's rows start alike for the G experts that make one whole
copy (virtual groups; Nvidia, arXiv 2410.07524), so that parts are kept together. Then each part has 1/G of the kept
experts' weight, and `down_proj` of the routed ones is multiplied by G; times R/K where the kept weights do not sum to 1
but, all R experts scoring alike, to K/R. (Nvidia spread this factor over both matrices, which a gate does not allow.)

The last matrix's bias belongs to no channel: every routed expert has all of it, the shared ones have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from xft.checkpoint import Checkpoint, Planned, finite
from xft.errors import RecipeError
from xft.families import Family, Part
from xft.moe.layer import Experts, RoutedExperts
from xft.moe.layouts.layout import LAYOUTS, Layout, Piece, stacked
from xft.moe.routers import ROUTERS
from xft.recipe import UpcycleConfig


def refuse_dividing(router: str) -> None:
    """Refuse a router that divides weight or examples between what hold different channels; raises RecipeError."""
    fitting = [name for name, rule in ROUTERS.items() if rule.apart or (rule.gated and not rule.shared)]
    if router not in fitting:
        gated = ROUTERS[router].gated
        divides = "a weight of 1 between shared and routed experts" if gated else "examples among experts"
        raise RecipeError(
            f"the router {router} divides {divides}, which with layout=split hold different channels, all "
            f"of them needed; choose one of {', '.join(fitting)}"
        )


@LAYOUTS.register("split")
class Split(Layout):
    """Stacks of narrow FFNs; the shared experts are one FFN of their channels."""

    def __init__(self, config: UpcycleConfig, family: Family) -> None:
        """Take the settings; raises RecipeError for a router that does not fit."""
        super().__init__(config, family)
        refuse_dividing(config.router)

    @property
    def scale(self) -> float:
        """Return the factor of the routed experts' last matrix."""
        return float(self.config.parts) * (1.0 if self.rule.normalized else self.routed / self.keep)

    @property
    def shared(self) -> int:
        """Return the number of shared experts."""
        return self.config.shared if self.rule.shared else 0

    @property
    def weighs_shared(self) -> bool:
        """The shared experts' channels are no other expert's: nothing is weighed."""
        return False

    @property
    def sums_to_one(self) -> bool:
        """The factor of the last matrix stands for all that weights do not sum to."""
        return True

    def check(self, source: Checkpoint) -> None:
        """Refuse channels that don't go into equal parts."""
        channels, parts = int(source.config["intermediate_size"]), self.shared + self.config.parts
        if channels % parts:
            possible = [n for n in range(2, min(channels, self.routed) + 1) if channels % (self.shared + n) == 0]
            raise RecipeError(
                f"{source.folder}: its FFN has {channels} channels, which can't be cut in {parts} equal parts "
                f"(upcycle.parts={self.config.parts}, {self.shared} shared); "
                f"parts can be {', '.join(map(str, possible)) or 'nothing with these experts'}"
            )

    def preserves_dense(self, dtype: torch.dtype) -> bool:
        """Each token must keep whole copies, whose weights sum to 1; 16 bits hold G times a weight if G is 2^n."""
        parts = self.config.parts
        whole = self.routed % parts == 0 and self.keep % parts == 0
        exact = dtype == torch.float32 or parts & (parts - 1) == 0
        return whole and exact and self.rule.normalized and not self.changed

    def modules(self, ffn: nn.Module) -> tuple[nn.Module | None, RoutedExperts]:
        """Make the FFN narrow, once for the routed and once for the shared experts."""
        width = ffn.get_parameter(f"{self.family.down}.weight").shape[1] // (self.shared + self.config.parts)
        narrowed(ffn, self.family, width)
        experts = Experts(ffn, self.family, self.routed, parts=self.config.parts)
        if not self.shared:
            return None, experts
        narrowed(ffn, self.family, self.shared * width)
        ffn.get_submodule(self.family.down).bias = None  # type: ignore[assignment]
        return ffn, experts

    def beside(self, part: Part) -> bool:
        """What belongs to channels, where the router has shared experts."""
        return bool(self.shared) and self.family.of_channels(part)

    def plan(
        self, source: Checkpoint, origins: Sequence[Checkpoint], name: str, part: Part, target: str, seed: int
    ) -> Iterator[Planned]:
        """Plan the shared experts' channels and the stack of parts."""
        parts, width = self.config.parts, int(source.config["intermediate_size"]) // (self.shared + self.config.parts)
        dtype, cut = source.dtype(name), self.family.of_channels(part)
        scale = self.scale if cut and self._last(part) else 1.0

        def expert(tensor: Tensor, number: int) -> Tensor:
            start = (self.shared + number % parts) * width
            own = self._cut(tensor, part, start, width) if cut else tensor
            own = self.own_version(own, part, width, (seed, number))
            return own if scale == 1.0 else scale * own.float()  # 16 bits may not hold it; writing says so

        if self.beside(part):
            yield Planned(
                name=f"{target}.shared_expert.{part.tensor}", dtype=dtype,
                shape=self.family.shape(part, source.config, self.shared * width),
                make=lambda: [self._cut(finite(source.read(name), name), part, 0, self.shared * width)],
            )  # fmt: skip
        shape = (self.routed, *self.family.shape(part, source.config, width))
        yield stacked(origins, name, f"{target}.experts.{part.stack}", shape, dtype, expert)

    def pieces(self, ffn: Tensor | None, stacks: list[Tensor], part: Part) -> list[Piece]:
        """Return the shared channels, then each part's copies; the last matrix's bias is one piece of all experts."""
        (stack,), parts = stacks, self.config.parts
        if not self.family.of_channels(part):
            return [Piece(experts=stack.unbind())]
        experts = [self._channels(part, expert) for expert in stack]
        width = stack.shape[2] if self._last(part) else stack.shape[1] // (1 + self.family.fused)
        if self._last(part):
            experts = [expert.float() / self.scale for expert in experts]
        found, start = [], self.shared * width
        if ffn is not None:
            found = [self._piece(part, [self._channels(part, ffn)], slice(0), 0, start)]
        for number in range(parts):
            copies = slice(number, None, parts)
            found.append(self._piece(part, experts[copies], copies, start + number * width, width))
        return found

    def _piece(self, part: Part, experts: list[Tensor], routed: slice, start: int, width: int) -> Piece:
        view = partial(self._channels, part, start=start, width=width)
        return Piece(experts=experts, routed=routed, factor=float(self.config.parts), view=view)

    def _cut(self, tensor: Tensor, part: Part, start: int, width: int) -> Tensor:
        """Return some channels of a tensor, in the shape that they have in a narrow FFN."""
        channels = self._channels(part, tensor, start, width)
        return channels.flatten(0, 1) if self.family.fused and not self._last(part) else channels

    def _channels(self, part: Part, tensor: Tensor, start: int = 0, width: int | None = None) -> Tensor:
        """Return a view of some channels, all by default; gate and up in one tensor stand apart, (2, F, ...)."""
        apart = self.family.fused and not self._last(part)
        tensor, axis = tensor.unflatten(0, (2, -1)) if apart else tensor, int(apart or self._last(part))
        return tensor.narrow(axis, start, tensor.shape[axis] if width is None else width)

    def _last(self, part: Part) -> bool:
        """Tell whether it is of the last matrix, which has a column a channel."""
        return part.place == len(self.family.inner)


def narrowed(ffn: nn.Module, family: Family, channels: int) -> None:
    """Give an FFN module of a family another number of channels; its weights are not filled."""
    for name in family.projections:
        old = ffn.get_submodule(name)
        weight: Tensor = old.weight  # type: ignore[assignment]
        wide, narrow = weight.shape
        sizes = (channels, wide) if name == family.down else (narrow, channels * (1 + family.fused))
        new = nn.Linear(*sizes, bias=old.bias is not None, device=weight.device, dtype=weight.dtype)
        ffn.set_submodule(name, new)
