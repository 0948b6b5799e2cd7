"""The stage `upcycle`: a dense checkpoint becomes a mixture, tensor by tensor, the experts copies of its FFNs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xft.cards import write_mixture_card
from xft.checkpoint import Checkpoint, Planned, copy_companions, copy_of, finite, write_checkpoint, write_config
from xft.errors import CheckpointError
from xft.families import Part
from xft.moe.diversity import diversified
from xft.moe.layer import Router
from xft.moe.mixture import fingerprint, is_mixture
from xft.moe.model import initialise
from xft.moe.routers import ROUTERS, split_counts
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
    if is_mixture(source):
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
    options = config.model_dump() | {"base": name, "base_dtype": dtype, "base_fingerprint": fingerprint(source)}
    return source.config | {"model_type": family.moe_type, "architectures": [family.moe_class], "xft": options}


def plan_mixture(source: Checkpoint, config: UpcycleConfig, seed: int) -> Iterator[Planned]:
    """Plan the mixture's tensors in the base's order; the base's dtype is kept.

    Raises:
        CheckpointError: an FFN tensor is missing.
    """
    family = source.family
    rule, (routed, keep) = ROUTERS[config.router], split_counts(config.router, config.experts, config.active)
    parts = {
        f"{family.ffn(layer)}.{part.tensor}": (layer, part) for layer in range(source.layers) for part in family.parts
    }
    missing = [name for layer in range(source.layers) for name in family.ffn_tensors(layer) if name not in source]
    if missing:
        raise CheckpointError(f"{source.folder}: no tensor {missing[0]!r}, which a {family.model_type} model has")
    channels = int(source.config["intermediate_size"])

    def expert(layer: int, part: Part, tensor: Tensor, number: int) -> Tensor:
        if not (config.redraw or config.noise):
            return tensor
        own = (seed + layer, number)
        return diversified(tensor, part, family, channels, redraw=config.redraw, noise=config.noise, seed=own)

    for name in source.names():
        if name not in parts:
            yield copy_of(source, name)
            continue
        layer, part = parts[name]
        ffn = family.ffn(layer)
        if rule.shared or config.layout == "delta":
            yield replace(copy_of(source, name), name=f"{ffn}.shared_expert.{part.tensor}")
        if config.layout == "copy":
            yield stacked(source, name, f"{ffn}.experts.{part.stack}", routed, partial(expert, layer, part))
        elif part.tensor.endswith(".weight"):
            yield from differences(source, name, f"{ffn}.experts.{part.stack}", routed, config.rank, seed + layer)
        if part.tensor == f"{family.down}.weight":
            router = new_router(int(source.config["hidden_size"]), routed, keep, config, seed + layer)
            dtype = source.dtype(family.embedding)
            for key, tensor in router.state_dict().items():
                yield Planned(
                    name=f"{ffn}.router.{key}", shape=tuple(tensor.shape), dtype=dtype, make=partial(list, [tensor])
                )


def stacked(
    source: Checkpoint, name: str, new_name: str, copies: int, expert: Callable[[Tensor, int], Tensor]
) -> Planned:
    """Plan a stack of experts, (R, ...); they are made and written one after the other, never held together."""

    def make() -> Iterator[Tensor]:
        tensor = finite(source.read(name), name)
        return (expert(tensor, number) for number in range(copies))

    return Planned(name=new_name, shape=(copies, *source.shape(name)), dtype=source.dtype(name), make=make)


def differences(source: Checkpoint, name: str, new_name: str, routed: int, rank: int, seed: int) -> Iterator[Planned]:
    """Plan low-rank differences of nothing: A, (R, r, in), as `nn.Linear` starts, and B, (R, out, r), of zeros."""
    wide, narrow = source.shape(name)
    dtype = source.dtype(name)

    def random() -> list[Tensor]:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        return [((2 * torch.rand(routed, rank, narrow, generator=generator) - 1) * narrow**-0.5).to(dtype)]

    yield Planned(name=f"{new_name}_a", shape=(routed, rank, narrow), dtype=dtype, make=random)
    yield Planned(
        name=f"{new_name}_b", shape=(routed, wide, rank), dtype=dtype,
        make=lambda: [torch.zeros(routed, wide, rank, dtype=dtype)],
    )  # fmt: skip


def new_router(hidden_size: int, routed: int, keep: int, config: UpcycleConfig, seed: int) -> Router:
    """Return a fresh router; its values depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = Router(hidden_size, routed, keep, rule=config.router, gate=config.gate, noise=config.gate_noise)
        initialise(router, std=0.0)
    return router
