"""The stage `upcycle`: a dense checkpoint becomes a mixture, tensor by tensor, the experts made of its FFNs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xft.cards import write_mixture_card
from xft.checkpoint import Checkpoint, Planned, copy_companions, copy_of, write_checkpoint, write_config
from xft.errors import CheckpointError, RecipeError
from xft.families import DEQUANTISE
from xft.moe.layer import Router
from xft.moe.layouts import Layout, layout_of
from xft.moe.mixture import fingerprint, is_mixture
from xft.moe.model import initialise, router_of
from xft.progress import track
from xft.recipe import UpcycleConfig


def upcycle(
    base: Path, out: Path, config: UpcycleConfig, seed: int, *, name: str | None = None, origins: Sequence[Path] = ()
) -> None:
    """Write the mixture of a dense checkpoint into the folder `out`; peak memory is one tensor.

    `name` is what the user calls the base, for the model cards; the folder's name by default. `origins` are the models
    that `config.experts_from` names: routed expert i copies the FFNs of number i, and all else is the base's.

    Raises:
        CheckpointError: the base is damaged, holds NaN, is a mixture already, or its family is unknown; an origin has
            other shapes.
        RecipeError: the settings don't fit this model, or one another.
        RunError: the disk is too small.
    """
    source = Checkpoint(base)
    if is_mixture(source):
        raise CheckpointError(f"{base}: is a mixture already; give its dense base")
    plan = list(plan_mixture(source, config, seed, [Checkpoint(origin) for origin in origins]))
    with track("upcycle", sum(planned.nbytes for planned in plan)) as advance:
        write_checkpoint(out, plan, progress=advance)
    copy_companions(base, out)
    mixture = mixture_config(source, config, name or base.name)
    write_config(out, mixture)
    write_mixture_card(out, mixture, tuned=False)


def mixture_config(source: Checkpoint, config: UpcycleConfig, name: str) -> dict[str, Any]:
    """Return the mixture's config.json: the base's, with another type and the mapping `xft`."""
    family = source.family
    dtype = str(source.dtype(family.embedding)).removeprefix("torch.")
    options = config.model_dump() | {"base": name, "base_dtype": dtype, "base_fingerprint": fingerprint(source)}
    return source.config | {"model_type": family.moe_type, "architectures": [family.moe_class], "xft": options}


def plan_mixture(
    source: Checkpoint, config: UpcycleConfig, seed: int, origins: Sequence[Checkpoint] = ()
) -> Iterator[Planned]:
    """Plan the mixture's tensors in the base's order; the base's dtype is kept.

    Raises:
        CheckpointError: an FFN tensor is missing.
        RecipeError: the settings don't fit this model, or one another.
    """
    family, layout = source.family, layout_of(config, source.family)
    if config.dense_layers >= source.layers:
        left = f"of which upcycle.dense_layers={config.dense_layers} leaves none"
        raise RecipeError(f"{source.folder}: has {source.layers} layers, {left}")
    mixed = range(config.dense_layers, source.layers)
    parts = {f"{family.ffn(layer)}.{part.tensor}": (layer, part) for layer in mixed for part in family.parts}
    missing = [name for layer in range(source.layers) for name in family.ffn_tensors(layer) if name not in source]
    if missing:
        raise CheckpointError(f"{source.folder}: no tensor {missing[0]!r}, which a {family.model_type} model has")
    for origin in origins:
        _check_origin(origin, source, [name for name in parts if name in source])
    refuse_idle(len(origins), layout.routed)
    layout.check(source)
    routers: set[str] = set()
    for name in source.names():
        if name not in parts:
            yield copy_of(source, name)
            continue
        layer, part = parts[name]
        ffn = family.ffn(layer)
        yield from layout.plan(source, origins or [source], name, part, ffn, seed + layer)
        at = layout.router(layer)
        if part.tensor == f"{family.down}.weight" and at not in routers:
            routers.add(at)
            router = new_router(int(source.config["hidden_size"]), layout, seed + layer)
            dtype = source.dtype(family.embedding)
            for key, tensor in router.state_dict().items():
                yield Planned(name=f"{at}.{key}", shape=tuple(tensor.shape), dtype=dtype, make=partial(list, [tensor]))


def refuse_idle(origins: int, routed: int) -> None:
    """Refuse more models than there are routed experts to copy them; raises RecipeError."""
    if origins > routed:
        raise RecipeError(
            f"upcycle.experts_from: {origins} models for {routed} routed experts; set upcycle.experts to "
            "their number, the shared expert counted where the router has one"
        )


def _check_origin(origin: Checkpoint, source: Checkpoint, names: Iterable[str]) -> None:
    remedy = f"experts are made of models tuned from {source.folder}"
    if is_mixture(origin):
        raise CheckpointError(f"{origin.folder}: is a mixture; {remedy}, dense ones: merge it first")
    origin.refuse_quantised()
    for key in ("model_type", "num_hidden_layers", "hidden_size", "hidden_act", "hidden_activation"):
        if (had := origin.config.get(key)) != (wanted := source.config.get(key)):
            raise CheckpointError(f"{origin.folder}: its {key} is {had}, the base's {wanted}; {remedy}")
    for name in names:
        shape = origin.shape(name) if name in origin else None
        if shape != source.shape(name):
            had = f"{name} is {shape}" if shape else f"no tensor {name!r}"
            raise CheckpointError(f"{origin.folder}: {had}, the base has {source.shape(name)}; {remedy}")
        if not origin.dtype(name).is_floating_point:
            raise CheckpointError(f"{origin.folder}: tensor {name!r} holds {origin.dtype(name)}; {DEQUANTISE}")


def new_router(hidden_size: int, layout: Layout, seed: int) -> Router:
    """Return a fresh router; its values depend on the seed alone, and the experts of one whole copy score alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        router = router_of(hidden_size, layout)
        initialise(router, std=0.0)
        if router.scores is not None:
            parts, scores_RI = layout.config.parts, router.scores.weight
            scores_RI.copy_(scores_RI[::parts].repeat_interleave(parts, dim=0)[: len(scores_RI)])
    return router
