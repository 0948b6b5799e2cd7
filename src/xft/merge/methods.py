"""MERGE_METHODS: which weights the experts get, and how the weighted experts become one matrix.

To add a method, register a `MergeMethod` here; `tests/merge/test_methods.py` then checks its laws.

Shapes: L layers, P projections of an FFN, R routed experts, E all experts (the shared one first, where there is one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from xft.errors import RecipeError
from xft.merge.combine import Options, dare, task_arithmetic, ties
from xft.moe.layouts import Piece
from xft.recipe import MergeConfig
from xft.registry import Registry


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A way to turn experts into one FFN.

    Every one gives the expert where all are equal, and the base where none has left it; one that `selects` gives, but
    for what it drops at random or by size, the expert that has all the weight.
    """

    weights: Literal["equal", "load", "learned"]
    """Where the routed experts' shares come from: alike, by the tokens each one got in training, or by training."""
    differences: Callable[[Sequence[Tensor], Tensor, Tensor, Options], Tensor] | None = None
    """Combines differences from the dense parent, which must be given then; None for a plain sum."""
    options: tuple[str, ...] = ()
    """Keys of the recipe's section `merge` that it heeds, beside shared_weight."""
    shared_weight: bool = True
    """It heeds shared_weight."""
    selects: bool = True
    """All weight on one expert gives that expert; not so where others count whatever they weigh, as in a median."""

    @property
    def heeded(self) -> set[str]:
        """Return all keys of the recipe's section `merge` that it heeds."""
        return {*self.options, *(["shared_weight"] if self.shared_weight else [])}


MERGE_METHODS: Registry[MergeMethod] = Registry("merge method")
MERGE_METHODS.register("uniform")(MergeMethod(weights="equal"))
MERGE_METHODS.register("learned")(
    MergeMethod(weights="learned", options=("epochs", "lr", "per", "loss", "learn_shared_weight", "prior"))
)
MERGE_METHODS.register("router-weighted")(MergeMethod(weights="load"))
MERGE_METHODS.register("task-arithmetic")(MergeMethod(weights="equal", differences=task_arithmetic, options=("scale",)))
MERGE_METHODS.register("ties")(MergeMethod(weights="equal", differences=ties, options=("density", "scale")))
MERGE_METHODS.register("dare")(MergeMethod(weights="equal", differences=dare, options=("density", "scale")))


def refuse_unheeded(config: MergeConfig, methods: Sequence[str]) -> None:
    """Refuse settings that the chosen methods would ignore.

    Raises:
        RecipeError: a setting is not its default, and none of the methods has a use for it.
    """
    heeded = {"also"}.union(*(MERGE_METHODS[method].heeded for method in methods))
    for key, field in MergeConfig.model_fields.items():
        value = getattr(config, key)
        if key not in heeded and value != field.default:
            users = ", ".join(name for name, other in MERGE_METHODS.items() if key in other.heeded)
            raise RecipeError(f"{key}={value} is for {users}; {', '.join(methods)} would ignore it: leave it out")


def refuse_unweighed(config: MergeConfig, where: str, *, weighs_shared: bool) -> None:
    """Refuse settings of a shared expert's weight for a mixture without such an expert; raises RecipeError."""
    if not weighs_shared and (idle := config.changed("learn_shared_weight", "shared_weight")):
        raise RecipeError(f"{where}: no shared expert is weighed against the routed ones; leave {idle[0]} out")


@dataclass(frozen=True)
class Coefficients:
    """The experts' weights in every matrix of a model; P is 1 where the matrices of a layer share them."""

    shares_LPR: Tensor
    """Shares of the routed experts; they sum to 1, those of each part's copies to 1 / parts."""
    shared_LP: Tensor | None
    """Weight of the shared expert (λ); None where none is weighed."""

    def of(self, layer: int, projection: int, piece: Piece) -> Tensor:
        """Return the weights of all versions of a piece, (E,): λ, and `(1-λ) c_i` for the routed (XFT, eq. 6).

        `layer` counts the layers that are mixtures.
        """
        place = projection if self.shares_LPR.shape[1] > 1 else 0
        shares_R = piece.factor * self.shares_LPR[layer, place].float()[piece.routed]
        if self.shared_LP is not None:
            shared = self.shared_LP[layer, place].float()
            return torch.cat([shared[None], (1.0 - shared) * shares_R])
        alone = len(piece.experts) - len(shares_R)  # a shared expert that nothing stands against
        return torch.cat([torch.ones(alone), shares_R])


def equal_coefficients(layers: int, routed: int, shared_weight: float | None, parts: int = 1) -> Coefficients:
    """Return the coefficients of a merge that knows nothing of its experts, R of which are copies of `parts` parts."""
    shared_LP = None if shared_weight is None else torch.full((layers, 1), shared_weight)
    return Coefficients(shared_out(torch.ones(layers, 1, routed), parts), shared_LP)


def shared_out(amounts_LPR: Tensor, parts: int) -> Tensor:
    """Divide amounts by the sum over each part's copies (expert i is a copy of part i mod `parts`), and by `parts`.

    Copies without any amount share alike.
    """
    shares_LPR = torch.empty_like(amounts_LPR)
    for part in range(parts):
        copies = amounts_LPR[..., part::parts]
        total = copies.sum(-1, keepdim=True)
        even = 1.0 / copies.shape[-1]
        shares_LPR[..., part::parts] = torch.where(total > 0, copies / total, even) / parts
    return shares_LPR


def save_coefficients(path: Path, coefficients: Coefficients) -> None:
    """Write `coefficients`, (L*P, R), and `shared_weight`, (L*P,), as safetensors; metadata `sets_per_layer` is P."""
    tensors = {"coefficients": coefficients.shares_LPR.flatten(0, 1).float().contiguous()}
    if coefficients.shared_LP is not None:
        tensors["shared_weight"] = coefficients.shared_LP.flatten().float().contiguous()
    save_file(tensors, path, metadata={"sets_per_layer": str(coefficients.shares_LPR.shape[1])})
