"""The stage `upcycle`: a dense checkpoint becomes a mixture, tensor by tensor, every expert a copy of its FFN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xft.cards import write_mixture_card
from xft.checkpoint import Checkpoint, Planned, copy_companions, copy_of, finite, write_checkpoint, write_config
from xft.errors import CheckpointError
from xft.families import MOE_PREFIX
from xft.moe.layer import Router
from xft.moe.model import initialise
from xft.progress import track
from xft.recipe import UpcycleConfig


def upcycle(base: Path, out: Path, config: UpcycleConfig, seed: int, *, name: str | None = None) -> None:
    """Write the mixture of a dense checkpoint into the folder `out`; peak memory is one tensor.

    `name` is what the user calls the base, for the model cards; the folder's name by default.

    Raises:
        CheckpointError: the base is damaged, holds NaN, is a mixture already, or its family is unknown.
        RunError: the disk is too small.
    """
    source = Checkpoint(base)
    if str(source.config.get("model_type")).startswith(MOE_PREFIX):
        raise CheckpointError(f"{base}: is a mixture already; give its dense base")
    plan = list(plan_mixture(source, config, seed))
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
    options = config.model_dump() | {"base": name, "base_dtype": dtype}
    return source.config | {"model_type": family.moe_type, "architectures": [family.moe_class], "xft": options}


def plan_mixture(source: Checkpoint, config: UpcycleConfig, seed: int) -> Iterator[Planned]:
    """Plan the mixture's tensors in the base's order; the base's dtype is kept.

    Raises:
        CheckpointError: an FFN tensor is missing.
    """
    family = source.family
    owner = {name: layer for layer in range(source.layers) for name in family.ffn_tensors(layer)}
    missing = [name for name in owner if name not in source]
    if missing:
        raise CheckpointError(f"{source.folder}: no tensor {missing[0]!r}, which a {family.model_type} model has")
    biased = [f"{name.removesuffix('.weight')}.bias" for name in owner]
    if any(name in source for name in biased):
        raise CheckpointError(f"{source.folder}: its FFNs have biases, which experts do not have; use another base")
    for name in source.names():
        if name not in owner:
            yield copy_of(source, name)
            continue
        ffn = family.ffn.format(layer=owner[name])
        tail = name.removeprefix(ffn + ".")
        yield replace(copy_of(source, name), name=f"{ffn}.shared_expert.{tail}")
        yield stacked_copies(source, name, f"{ffn}.experts.{tail.removesuffix('.weight')}", config.experts - 1)
        if tail == f"{family.down}.weight":
            yield from _router_tensors(source, f"{ffn}.router", config, seed + owner[name])


def stacked_copies(source: Checkpoint, name: str, new_name: str, copies: int) -> Planned:
    """Plan a stack of equal experts, (R, ...); the copies are written one after the other, never held together."""
    return Planned(
        name=new_name,
        shape=(copies, *source.shape(name)),
        dtype=source.dtype(name),
        make=lambda: (tensor for tensor in [finite(source.read(name), name)] for _ in range(copies)),
    )


def _router_tensors(source: Checkpoint, prefix: str, config: UpcycleConfig, seed: int) -> Iterator[Planned]:
    """Plan a fresh router; its values depend on the seed and the layer only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = Router(
            int(source.config["hidden_size"]),
            config.experts - 1,
            config.active - 1,
            rule=config.router,
            gate=config.gate,
            noise=config.gate_noise,
        )
        initialise(router, std=0.0)
    dtype = source.dtype(source.family.embedding)
    for name, tensor in router.state_dict().items():
        yield Planned(name=f"{prefix}.{name}", shape=tuple(tensor.shape), dtype=dtype, make=partial(list, [tensor]))
