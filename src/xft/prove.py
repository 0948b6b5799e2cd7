"""Proof of an upcycling: the mixture's logits against its dense parent's, a decoder layer at a time.

The measure is the parent's own rounding: its fp32 logits against its fp64 logits on the same probe sequences. And the
gap of a merge: the merged model against the mixture, of which nothing is demanded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError, ProofError
from xft.moe.balance import record_routers
from xft.moe.layer import RouterOutput
from xft.moe.mixture import Mixture, is_mixture
from xft.progress import track
from xft.tune.loss import scaled

TOLERANCE = 5.0
"""Times the dense model's own fp32-against-fp64 difference."""
PROBE_SEQUENCES, PROBE_LENGTH = 4, 48
VOCABULARY_CHUNK = 8192

Tamper = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Largest absolute differences of logits over the probe."""

    max_difference: float
    """Mixture against dense, both in fp32."""
    dense_own_error: float
    """Dense in fp32 against dense in fp64."""
    tolerance: float
    negative_control_difference: float | None
    """The same after two channels of the first mixture layer's busiest expert were swapped; must exceed it.

    None where nothing is demanded, so that nothing has to be noticed.
    """
    probe_tokens: int
    preserves_dense: bool = True
    """Whether router and experts promise that the mixture computes what its parent does."""
    divergence: float = 0.0
    """Mean KL divergence of the mixture's predictions from the parent's, nats a token; where that is not promised."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for proof.json."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.preserves_dense:
            return (
                f"no proof: this mixture does not start as the dense model; predictions diverge by "
                f"{self.divergence:.3f} nats a token, logits differ by {self.max_difference:.1e} at most"
            )
        return f"proof: logits differ by {self.max_difference:.1e} at most, tolerance {self.tolerance:.1e}"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far a merged model is from the mixture that it was made of, over the probe."""

    max_difference: float
    """Largest absolute difference of logits, both in fp32."""
    divergence: float
    """Mean KL divergence of its predictions from the mixture's, nats a token."""
    probe_tokens: int

    def __str__(self) -> str:
        return (
            f"predictions diverge by {self.divergence:.1e} nats a token, logits differ by {self.max_difference:.1e} at "
            f"most ({self.probe_tokens} random tokens)"
        )


def gap(mixture: Path, merged: Path, seed: int = 0) -> Gap:
    """Compare a merged model with its mixture on random probe sequences, those of the proof."""
    one, other = Mixture(mixture), Checkpoint(merged)
    ids = probe(one, seed)
    with track("gap", 2 * one.layers) as advance:
        mixed, plain = (hidden_states(each, ids, torch.float32, advance=advance) for each in (one, other))
    return Gap(
        max_difference=difference(one, mixed, other, plain),
        divergence=divergence(one, mixed, other, plain),
        probe_tokens=ids.numel(),
    )


def probe(checkpoint: Checkpoint, seed: int = 0) -> Tensor:
    """Return random token sequences, (B, S)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (PROBE_SEQUENCES, PROBE_LENGTH)
    return torch.randint(int(checkpoint.config["vocab_size"]), shape, generator=generator)


def prove(dense: Path, mixture: Path, seed: int = 0) -> Proof:
    """Compare a mixture with its dense parent on random probe sequences.

    Where router and experts don't promise equality, measure the difference and demand nothing.

    Raises:
        CheckpointError: one of them is damaged, or `mixture` is none.
        ProofError: they differ by more than the tolerance, or the probe can't tell a damaged mixture from a whole one.
    """
    parent, child = Checkpoint(dense), Mixture(mixture)
    if is_mixture(parent):
        raise CheckpointError(f"{dense}: is a mixture; give the dense model that {mixture} was made of")
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        if parent.config.get(key) != child.config.get(key):
            raise ProofError(
                f"{mixture}: {key} is {child.config.get(key)}, {dense} has {parent.config.get(key)}: "
                "these two don't belong together"
            )
    ids = probe(parent, seed)
    preserves = child.preserves_dense
    damaged: Tensor | None = None
    with track("proof", (4 if preserves else 3) * parent.layers) as advance:
        exact = hidden_states(parent, ids, torch.float64, advance=advance)
        plain = hidden_states(parent, ids, torch.float32, advance=advance)
        with_routers: list[RouterOutput] = []
        mixed = hidden_states(child, ids, torch.float32, advance=advance, routers=with_routers)
        if preserves:
            busiest = int(with_routers[0].routing.ids_TK.flatten().mode().values)
            tamper = partial(child.layout.damage, expert=busiest)
            first = child.mixed_layers.start
            damaged = hidden_states(child, ids, torch.float32, tamper=tamper, at=first, advance=advance)
    own = difference(parent, exact, parent, plain)
    control = None if damaged is None else difference(parent, plain, child, damaged)
    proof = Proof(
        max_difference=difference(parent, plain, child, mixed),
        dense_own_error=own,
        tolerance=TOLERANCE * own,
        negative_control_difference=control,
        probe_tokens=ids.numel(),
        preserves_dense=preserves,
        divergence=0.0 if preserves else divergence(parent, plain, child, mixed),
    )
    if control is None:
        return proof
    if not proof.max_difference <= proof.tolerance:
        raise ProofError(
            f"{mixture}: its logits differ from {dense}'s by {proof.max_difference:.2e}, tolerance "
            f"{proof.tolerance:.2e}; these two don't belong together, or the mixture was changed"
        )
    if not control > proof.tolerance:
        raise ProofError(
            f"{mixture}: a damaged expert changed the logits by {control:.2e} only, within "
            f"the tolerance {proof.tolerance:.2e}: the probe proves nothing for this model"
        )
    return proof


@torch.inference_mode()
def hidden_states(
    checkpoint: Checkpoint,
    ids: Tensor,
    dtype: torch.dtype,
    *,
    tamper: Tamper | None = None,
    at: int = 0,
    advance: Callable[[int], None] | None = None,
    routers: list[RouterOutput] | None = None,
) -> Tensor:
    """Return the last hidden states, (B, S, D), of the stock class, holding one decoder layer's weights at a time.

    `tamper` may change the tensors of layer `at`; `routers` gets what the routers decided.
    """
    config = AutoConfig.for_model(**checkpoint.config)
    with init_empty_weights(include_buffers=False):
        trunk: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).base_model.eval()
    prefix = f"{checkpoint.family.trunk}."
    embedding = trunk.get_input_embeddings()
    for name, tensor in trunk.state_dict(keep_vars=True).items():
        if not name.startswith("layers.") and tensor is not embedding.weight:
            _assign(trunk, name, checkpoint.read(prefix + name).to(dtype))
    for number, layer in enumerate(trunk.layers):
        _stream(layer, checkpoint, f"{prefix}layers.{number}.", dtype, tamper if number == at else None, advance)
    scale = float(getattr(embedding, "scalar_embed_scale", 1.0))  # Gemma 3 scales inside its embedding
    rows = checkpoint.read(checkpoint.family.embedding)[ids].to(dtype) * scale
    with record_routers(trunk) as outputs:
        result: Tensor = trunk(inputs_embeds=rows, use_cache=False).last_hidden_state
    if routers is not None:
        routers += outputs
    return result


def _stream(
    layer: nn.Module,
    checkpoint: Checkpoint,
    prefix: str,
    dtype: torch.dtype,
    tamper: Tamper | None,
    advance: Callable[[int], None] | None,
) -> None:
    """Load a layer's weights and persistent buffers just before its forward pass and drop them just after."""
    names = list(layer.state_dict())

    def load(module: nn.Module, _args: Any) -> None:
        tensors = {name: checkpoint.read(prefix + name) for name in names}
        if tamper:
            tamper(tensors)
        for name in names:
            _assign(module, name, tensors.pop(name).to(dtype))

    def drop(module: nn.Module, _args: Any, _output: Any) -> None:
        for name in names:
            _assign(module, name, torch.empty(0, device="meta"))
        if advance:
            advance(1)

    layer.register_forward_pre_hook(load)
    layer.register_forward_hook(drop)


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    *path, last = name.split(".")
    owner = module.get_submodule(".".join(path))
    held = nn.Parameter(tensor, requires_grad=False) if last in owner._parameters else tensor
    setattr(owner, last, held)


@torch.inference_mode()
def difference(one: Checkpoint, one_BSD: Tensor, other: Checkpoint, other_BSD: Tensor) -> float:
    """Return the largest absolute difference of two models' logits, a part of the vocabulary at a time."""
    largest = 0.0
    for left, right in zip(_logits(one, one_BSD), _logits(other, other_BSD), strict=True):
        gap = float((left.double() - right.double()).abs().max())
        largest = max(largest, gap) if gap == gap else float("nan")
        if largest != largest:
            return largest
    return largest


@torch.inference_mode()
def divergence(one: Checkpoint, one_BSD: Tensor, other: Checkpoint, other_BSD: Tensor) -> float:
    """Return the mean KL divergence of the other model's predictions from the one's, by parts of the vocabulary."""

    def log_total(checkpoint: Checkpoint, hidden_BSD: Tensor) -> Tensor:
        return torch.stack([part.logsumexp(-1) for part in _logits(checkpoint, hidden_BSD)]).logsumexp(0)

    one_total, other_total = log_total(one, one_BSD), log_total(other, other_BSD)
    kl_BS = torch.zeros_like(one_total)
    for one_part, other_part in zip(_logits(one, one_BSD), _logits(other, other_BSD), strict=True):
        left, right = one_part - one_total[..., None], other_part - other_total[..., None]
        kl_BS += (left.exp() * (left - right)).sum(-1)
    return float(kl_BS.mean())


def _logits(checkpoint: Checkpoint, hidden_BSD: Tensor) -> Iterator[Tensor]:
    """Give the logits as the family scales them, a part of the vocabulary at a time."""
    family, config = checkpoint.family, AutoConfig.for_model(**checkpoint.config)
    head = checkpoint.read(family.head if family.head in checkpoint else family.embedding)
    for part_VD in head.split(VOCABULARY_CHUNK):
        yield scaled(hidden_BSD @ part_VD.to(hidden_BSD.dtype).T, config)
