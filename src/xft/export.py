"""Write a mixture in a stock format, where a stock class of transformers has the router's rule.

To add a format, register a `Stock` in STOCK; `tests/test_export.py` then loads and compares every rule that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from xft.cards import write_export_card
from xft.checkpoint import Planned, copy_companions, copy_of, finite, write_checkpoint, write_config
from xft.errors import CheckpointError
from xft.export_adapters import export_adapters
from xft.merge.write import dense_config
from xft.moe.layouts import Layout
from xft.moe.mixture import Mixture
from xft.progress import track
from xft.prove import probe
from xft.registry import Registry
from xft.tune.tune import quiet

UNUSED_FFN = 8
"""Width of a shared expert that a class demands and the mixture has not; it is filled with zeros."""
CHECKED_LAYERS = 2
"""Layers that are mixtures, beside the dense ones before them, through which the probe of an export goes: all layers
have the same settings, and a check that holds all of them would need the memory that writing does not."""
TOLERANCE = 1e-4
"""Of the largest logit; of a tiny Llama the same in another order is 1.5e-7 apart, an epsilon of 1e-5 in place of 1e-6
2e-4, another rotary base 0.2."""


@dataclass(frozen=True, kw_only=True)
class Stock:
    """A mixture class of transformers, and which of our mixtures it can hold."""

    families: tuple[str, ...]
    """Dense families whose attention, norms and FFN it shares."""
    rules: Mapping[str, Mapping[str, Any]]
    """The routers that it has, with the keys of config.json that choose them."""
    model_type: str
    model_class: str
    expert: str
    """Name of one expert's matrix, with `{ffn}`, `{expert}` and `{name}`."""
    names: Mapping[str, str]
    """How it calls gate_proj, up_proj and down_proj."""
    gate: str
    """Name of the router's matrix, with `{ffn}`."""
    config: Callable[[Mapping[str, Any], Layout, int], dict[str, Any]]
    """Gives its keys of config.json from the mixture's, its layout, and the width of an expert."""
    shared: str = ""
    """Name of a shared expert's matrix, with `{ffn}` and `{name}`; "" where it has none."""
    bias: str = ""
    """Name of the bias on the choice of experts, with `{ffn}`; "" where it has none."""
    dense_layers: bool = True
    """Its first layers can be dense."""
    window: bool = True
    """Its attention can have a sliding window."""
    extra: Callable[[int, int], Mapping[str, tuple[int, ...]]] = lambda *_: {}
    """Gives names, with `{ffn}`, and shapes of tensors of zeros that it demands, from D and F."""


PEFT = "peft"
STOCK: Registry[Stock] = Registry("stock format", also=(PEFT,))


def _mixtral(config: Mapping[str, Any], layout: Layout, width: int) -> dict[str, Any]:
    return {"num_local_experts": layout.routed, "num_experts_per_tok": layout.keep, "intermediate_size": width,
            "sliding_window": config.get("sliding_window")}  # fmt: skip


def _qwen(_config: Mapping[str, Any], layout: Layout, width: int) -> dict[str, Any]:
    return {"num_experts": layout.routed, "num_experts_per_tok": layout.keep, "moe_intermediate_size": width,
            "decoder_sparse_step": 1, "mlp_only_layers": list(range(layout.config.dense_layers))}  # fmt: skip


def _glm(config: Mapping[str, Any], layout: Layout, width: int) -> dict[str, Any]:
    family = layout.family.model_type
    return {
        "n_routed_experts": layout.routed, "num_experts_per_tok": layout.keep, "moe_intermediate_size": width,
        "n_shared_experts": layout.config.shared, "first_k_dense_replace": layout.config.dense_layers,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_mtp_layers": 0,
        "attention_bias": family == "qwen2", "use_qk_norm": family == "qwen3", "partial_rotary_factor": 1.0,
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
    }  # fmt: skip


LATENT = ("deepseek-v2", "deepseek-v3")
"""Classes that have a router's rule, but latent attention (MLA), which the attention of no family can be written as."""
NO_MLA = "its attention is latent (MLA), which no upcycled family's can be written as"
OWN_NAMES = {name: name for name in ("gate_proj", "up_proj", "down_proj")}
QWEN_RULES = {"topk-softmax": {"norm_topk_prob": True}, "softmax-topk": {"norm_topk_prob": False}}
QWEN_EXPERT, QWEN_GATE = "{ffn}.experts.{expert}.{name}.weight", "{ffn}.gate.weight"

STOCK.register("mixtral")(
    Stock(
        families=("llama", "mistral"), rules={"topk-softmax": {}},
        model_type="mixtral", model_class="MixtralForCausalLM",
        expert="{layer}.block_sparse_moe.experts.{expert}.{name}.weight",
        names={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}, gate="{layer}.block_sparse_moe.gate.weight",
        config=_mixtral, dense_layers=False,
    )
)  # fmt: skip
STOCK.register("qwen3-moe")(
    Stock(
        families=("qwen3",), rules=QWEN_RULES, model_type="qwen3_moe", model_class="Qwen3MoeForCausalLM",
        expert=QWEN_EXPERT, names=OWN_NAMES, gate=QWEN_GATE, config=_qwen,
        window=False,  # it has one for all layers, where Qwen3's begins at max_window_layers
    )
)  # fmt: skip
STOCK.register("qwen2-moe")(
    Stock(
        families=("qwen2",), rules=QWEN_RULES, model_type="qwen2_moe", model_class="Qwen2MoeForCausalLM",
        expert=QWEN_EXPERT, names=OWN_NAMES, gate=QWEN_GATE,
        config=lambda *given: _qwen(*given) | {"shared_expert_intermediate_size": UNUSED_FFN},
        extra=lambda hidden, _ffn: {
            "{ffn}.shared_expert.gate_proj.weight": (UNUSED_FFN, hidden),
            "{ffn}.shared_expert.up_proj.weight": (UNUSED_FFN, hidden),
            "{ffn}.shared_expert.down_proj.weight": (hidden, UNUSED_FFN),
            "{ffn}.shared_expert_gate.weight": (1, hidden),
        },
    )
)  # fmt: skip
STOCK.register("glm4-moe")(
    Stock(
        families=("llama", "mistral", "qwen2", "qwen3"), rules={"deepseek-sigmoid": {}},
        model_type="glm4_moe", model_class="Glm4MoeForCausalLM",
        expert=QWEN_EXPERT, names=OWN_NAMES, gate=QWEN_GATE, bias="{ffn}.gate.e_score_correction_bias",
        shared="{ffn}.shared_experts.{name}.weight", config=_glm, window=False,
    )
)  # fmt: skip


def export(folder: Path, out: Path, to: str | None = None) -> str:
    """Write a mixture as a stock checkpoint in the base's dtype, one tensor an expert; return the format's name.

    Low-rank differences are written as adapters, `peft`. Gate noise, which counts in training only, is left out.

    Raises:
        CheckpointError: no mixture, or one that no stock class can hold; says why, and which can be held. Or the
            stock class computes something else from what was written.
    """
    mixture = Mixture(folder)
    if to == PEFT or (to is None and not mixture.layout.copies):
        export_adapters(mixture, out)
        return PEFT
    if to in LATENT:
        raise CheckpointError(f"{folder}: {to} can't hold it: {NO_MLA}; {_possible()}")
    name = to or next((each for each, stock in STOCK.items() if not _obstacle(mixture, stock)), None)
    if name is None:
        raise CheckpointError(f"{folder}: no stock class holds it ({_reasons(mixture)}); {_possible()}")
    stock = STOCK[name]
    if obstacle := _obstacle(mixture, stock):
        raise CheckpointError(f"{folder}: {name} can't hold it: {obstacle}; {_possible()}")
    plan = list(_plan(mixture, stock))
    with track("export", sum(planned.nbytes for planned in plan)) as advance:
        write_checkpoint(out, plan, progress=advance)
    copy_companions(mixture.folder, out)
    config = _config(mixture)
    kept = {key: value for key, value in config.items() if key not in ("mlp_bias", "attention_bias")}
    keys = {
        "model_type": stock.model_type,
        "architectures": [stock.model_class],
        "dtype": mixture.options["base_dtype"],
    }
    down = mixture.stack_names(mixture.mixed_layers.start, mixture.parts[len(mixture.family.inner)])[0]
    own = stock.config(config, mixture.layout, mixture.shape(down)[2])
    write_config(out, kept | keys | own | dict(stock.rules[mixture.options["router"]]))
    _check(mixture, out, name)
    write_export_card(out, mixture, name)
    return name


def _config(mixture: Mixture) -> dict[str, Any]:
    """Return the dense class's config.json with what the base's leaves to defaults, as another class has others."""
    config = dense_config(mixture)
    stated, general = AutoConfig.for_model(**config).to_dict(), PreTrainedConfig().to_dict()
    config |= {key: value for key, value in stated.items() if key not in general}
    if config.get("rope_scaling"):  # the older name, which comes first where both are given
        config["rope_scaling"] = config["rope_parameters"]
    return config


def _check(mixture: Mixture, out: Path, name: str) -> None:
    """Compare the logits of the mixture's first layers and of the written model's, both in memory in fp32.

    Raises:
        CheckpointError: they differ.
    """
    quiet()
    ids = probe(mixture)
    ours, theirs = (_logits(mixture, folder, ids) for folder in (mixture.folder, out))
    # The median over positions, since rounding may turn the choice of experts at one where two scores are equal
    off = float((theirs - ours).abs().amax(-1).median() / ours.abs().max())
    if not off <= TOLERANCE:
        raise CheckpointError(
            f"{mixture.folder}: as {name} it computes something else, logits differ by {off:.1e} of the largest, so "
            "nothing is written; please report this with its config.json, and merge it instead (`xft merge`)"
        )


@torch.inference_mode()
def _logits(mixture: Mixture, folder: Path, ids: Tensor) -> Tensor:
    """Return a folder's logits after the first layers, with weights of the base's dtype."""
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = min(mixture.layers, mixture.mixed_layers.start + CHECKED_LAYERS)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(getattr(torch, mixture.options["base_dtype"])))
    logits: Tensor = model(ids).logits
    return logits


def _obstacle(mixture: Mixture, stock: Stock) -> str:
    """Say why a class can't hold a mixture, "" when it can."""
    options, config = mixture.options, _config(mixture)
    if not mixture.layout.copies:
        return f"its experts are full matrices, not differences, which go to {PEFT}"
    if mixture.family.model_type not in stock.families:
        return f"its attention is that of {' and '.join(stock.families)}, not of {mixture.family.model_type}"
    if options["router"] not in stock.rules:
        return f"its router is {' or '.join(stock.rules)}, not {options['router']}"
    if options["gate"] == "mlp":
        return f"its gate is one matrix, not the gate {options['gate']!r}"
    if len(mixture.parts) > len(mixture.family.projections):
        return "its experts have no biases"
    if config.get("attention_bias"):
        return "its attention has no biases"
    if not stock.window and config.get("sliding_window") and config.get("use_sliding_window", True):
        return "its attention has no sliding window"
    if mixture.settings.dense_layers and not stock.dense_layers:
        return "all of its layers are mixtures, and here the first are dense"
    return ""


def _reasons(mixture: Mixture) -> str:
    reasons = [f"{name}: {_obstacle(mixture, stock)}" for name, stock in STOCK.items()]
    return "; ".join([*reasons, f"{', '.join(LATENT)}: {NO_MLA}"])


def _possible() -> str:
    can = "; ".join(
        f"{name}: {' or '.join(stock.families)} upcycled with --router {' or '.join(stock.rules)} --gate linear"
        for name, stock in STOCK.items()
    )
    return f"what can be exported: {can}; every mixture can be merged (`xft merge`)"


def _plan(mixture: Mixture, stock: Stock) -> Iterator[Planned]:
    dtype: torch.dtype = getattr(torch, mixture.options["base_dtype"])
    layers, router = mixture.mixed_layers, mixture.layout.router
    left_out = tuple(f"{name}." for layer in layers for name in (mixture.family.ffn(layer), router(layer)))
    for name in mixture.names():
        if not name.startswith(left_out):
            yield _copied(mixture, name, name, dtype)
    hidden, size = int(mixture.config["hidden_size"]), int(mixture.config["intermediate_size"])
    for layer in layers:
        ffn = mixture.family.ffn(layer)
        at = {"ffn": ffn, "layer": ffn.rpartition(".")[0]}
        for part in mixture.parts:
            stack = mixture.stack_names(layer, part)[0]
            for expert in range(mixture.routed):
                target = stock.expert.format(**at, expert=expert, name=stock.names[part.stack])
                shape, make = tuple(mixture.shape(stack)[1:]), partial(_expert, mixture, stack, expert, dtype)
                yield Planned(name=target, shape=shape, dtype=dtype, make=make)
            if stock.shared and (shared := mixture.ffn_name(layer, part)):
                yield _copied(mixture, shared, stock.shared.format(**at, name=stock.names[part.stack]), dtype)
        yield _copied(mixture, f"{router(layer)}.scores.weight", stock.gate.format(**at), dtype)
        if stock.bias:
            yield _copied(mixture, f"{router(layer)}.bias_R", stock.bias.format(**at), torch.float32)
        for name, shape in stock.extra(hidden, size).items():
            yield Planned(name=name.format(**at), shape=shape, dtype=dtype, make=partial(_zeros, shape, dtype))


def _copied(mixture: Mixture, name: str, target: str, dtype: torch.dtype) -> Planned:
    return replace(copy_of(mixture, name), name=target, dtype=dtype)


def _expert(mixture: Mixture, stack: str, expert: int, dtype: torch.dtype) -> list[Tensor]:
    return [finite(mixture.read(stack)[expert], stack).to(dtype)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype)]
