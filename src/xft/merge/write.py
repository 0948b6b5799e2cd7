"""Write the merged dense checkpoint as a stream: the base's class, names, dtype and companions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xft.checkpoint import Planned, copy_companions, copy_of, finite, write_checkpoint, write_config
from xft.merge.methods import mix
from xft.moe.mixture import Mixture
from xft.progress import track


def dense_config(mixture: Mixture) -> dict[str, Any]:
    """Return config.json of the base's own class and dtype."""
    family = mixture.family
    config = {key: value for key, value in mixture.config.items() if key != "xft"}
    dtype = mixture.options["base_dtype"]
    return config | {"model_type": family.model_type, "architectures": [family.model_class], "dtype": dtype}


def dense_skeleton(mixture: Mixture) -> Any:
    """Return the dense model in fp32 with the mixture's other weights; its FFNs are not filled."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**dense_config(mixture))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ffn = {name for layer in range(mixture.layers) for name in mixture.family.ffn_tensors(layer)}
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name == mixture.family.head and name not in mixture:
            continue  # tied to the embedding
        weights[name] = torch.empty(parameter.shape) if name in ffn else mixture.read(name).float()
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    return model


def write_merged(mixture: Mixture, shares_LR: Tensor, shared_weight: float, out: Path) -> dict[str, float]:
    """Mix in fp32 and write in the base's dtype; return the largest and the mean rounding error of an FFN weight."""
    dtype: torch.dtype = getattr(torch, mixture.options["base_dtype"])
    rounding = {"largest": 0.0, "sum": 0.0, "weights": 0.0}
    plan: list[Planned] = []
    ffns = [mixture.family.ffn.format(layer=layer) for layer in range(mixture.layers)]
    stacks = {
        mixture.experts_name(layer, projection): (layer, projection)
        for layer in range(mixture.layers)
        for projection in mixture.family.projections
    }
    for name in mixture.names():
        if name in stacks:
            plan.append(_merged(mixture, *stacks[name], shares_LR, shared_weight, dtype, rounding))
        elif not any(name.startswith(f"{ffn}.") for ffn in ffns):
            copied = copy_of(mixture, name)
            plan.append(Planned(name=name, shape=copied.shape, dtype=dtype, make=copied.make))
    with track("write merged", sum(planned.nbytes for planned in plan)) as advance:
        write_checkpoint(out, plan, progress=advance)
    copy_companions(mixture.folder, out)
    write_config(out, dense_config(mixture))
    return {"largest": rounding["largest"], "mean": rounding["sum"] / max(rounding["weights"], 1)}


def _merged(
    mixture: Mixture,
    layer: int,
    projection: str,
    shares_LR: Tensor,
    shared_weight: float,
    dtype: torch.dtype,
    rounding: dict[str, float],
) -> Planned:
    name = f"{mixture.family.ffn.format(layer=layer)}.{projection}.weight"

    def make() -> list[Tensor]:
        shared, experts_R = mixture.experts(layer, projection)
        finite(experts_R, mixture.experts_name(layer, projection))
        if shared is not None:
            finite(shared, str(mixture.shared_name(layer, projection)))
        mixed = mix(shared, experts_R, shares_LR[layer], shared_weight)
        rounded = finite(mixed, name).to(dtype)
        if dtype != torch.float32:
            error = (mixed - rounded.float()).abs()
            rounding["largest"] = max(rounding["largest"], float(error.max()))
            rounding["sum"] += float(error.sum())
            rounding["weights"] += error.numel()
        return [rounded]

    shape = mixture.shape(mixture.experts_name(layer, projection))[1:]
    return Planned(name=name, shape=tuple(shape), dtype=dtype, make=make)
