"""A soup: the weighted average of dense checkpoints of one architecture, such as SFT runs with other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, tensor
from transformers import AutoConfig

from xft.cards import write_soup_card
from xft.checkpoint import Checkpoint, Planned, copy_companions, finite, write_checkpoint, write_config
from xft.errors import CheckpointError, RecipeError
from xft.merge.combine import linear
from xft.moe.mixture import is_mixture
from xft.progress import track

ALIKE = (
    "model_type", "hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rope_parameters",
)  # fmt: skip
"""Keys of a configuration on which it depends what weights of the same shapes compute."""


def soup(
    folders: Sequence[Path], weights: Sequence[float] | None, out: Path, *, names: Sequence[str] | None = None
) -> None:
    """Write the average of all tensors into `out`, in the first model's dtype, with its config, tokenizer and a card.

    `names` are what the card calls the models; the folders by default.

    Sums are formed in fp32. Weights are divided by their sum; by default they are alike.

    Raises:
        CheckpointError: a model is damaged, or not of the first one's architecture.
        RecipeError: fewer than two models, another number of weights, or weights that sum to nothing.
    """
    if len(folders) < 2:
        raise RecipeError("a soup needs at least two models")
    shares = list(weights) if weights else [1.0 / len(folders)] * len(folders)
    if len(shares) != len(folders):
        raise RecipeError(f"{len(folders)} models, but {len(shares)} weights; give one for each, or none")
    if not sum(shares) > 0:
        raise RecipeError(f"the weights sum to {sum(shares):g}; an average needs a sum above 0")
    shares = [share / sum(shares) for share in shares]
    sources = [Checkpoint(folder) for folder in folders]
    first = sources[0]
    shapes = {name: first.shape(name) for name in first.names()}
    for source in sources:
        if is_mixture(source):
            raise CheckpointError(f"{source.folder}: is a mixture; a soup is made of dense models: merge it first")
        source.refuse_quantised()
    own, *others = map(_rules, sources)
    for source, rules in zip(sources[1:], others, strict=True):
        for key in ALIKE:
            if (had := rules[key]) != (wanted := own[key]):
                raise CheckpointError(
                    f"{source.folder}: its {key} is {had}, that of {first.folder} {wanted}; leave it out"
                )
        for name in sorted(shapes.keys() ^ set(source.names())):
            raise CheckpointError(f"{source.folder} and {first.folder}: only one of them has a tensor {name!r}")
        for name, shape in shapes.items():
            if source.shape(name) != shape:
                raise CheckpointError(f"{source.folder}: {name} is {source.shape(name)}, {first.folder} has {shape}")

    def averaged(name: str) -> list[Tensor]:
        matrices = [source.read(name) for source in sources]
        named = [(f"{source.folder}/{name}", matrix) for source, matrix in zip(sources, matrices, strict=True)]
        return [finite(linear(matrices, tensor(shares)), name, made_of=named)]

    plan = [
        Planned(name=name, shape=shape, dtype=first.dtype(name), make=partial(averaged, name))
        for name, shape in shapes.items()
    ]
    with track("soup", sum(planned.nbytes for planned in plan)) as advance:
        write_checkpoint(out, plan, progress=advance)
    copy_companions(first.folder, out)
    write_config(out, first.config)
    write_soup_card(out, list(zip(names or map(str, folders), shares, strict=True)))


def _rules(source: Checkpoint) -> dict[str, Any]:
    """Return the keys ALIKE of a configuration as transformers reads them, whose versions write them differently."""
    try:
        config = AutoConfig.for_model(**source.config).to_dict()
    except (KeyError, ValueError):  # a model that it does not know
        config = source.config
    return {key: config.get(key) for key in ALIKE}
