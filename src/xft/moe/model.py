"""Mixture classes: each family's stock class with `layer.mlp` replaced, known to transformers as `xft_<family>`."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from xft.errors import did_you_mean
from xft.families import FAMILIES, Family
from xft.moe.layer import MoELayer, RoutedExperts, Router
from xft.moe.layouts import Layout, layout_of, settings_of


def register() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know every family's mixture.

    Left out is a family whose stock class is not there yet since its module is being imported; see `hook.py`.
    """
    for family in FAMILIES.values():
        module = sys.modules.get(family.modeling)
        under_way = getattr(getattr(module, "__spec__", None), "_initializing", False)
        if under_way and not hasattr(module, family.model_class):
            continue
        config_class, model_class = moe_classes(family)
        AutoConfig.register(family.moe_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
        # What transformers renames in the dense family's checkpoints it must rename in these too (GPT-NeoX's head)
        renamed = get_checkpoint_conversion_mapping(family.model_class)
        if renamed:
            register_checkpoint_conversion_mapping(family.moe_class, renamed, overwrite=True)


@cache
def moe_classes(family: Family) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Return the configuration and model class of a family's mixture.

    Raises:
        CheckpointError: transformers has no such classes, or not where the family's entry says.
    """
    dense_config: type[PreTrainedConfig] = _stock_class(family, "config_class")
    dense_model: type[PreTrainedModel] = _stock_class(family, "model_class")
    if dense_model.__module__ != family.modeling:
        raise family.wrong("module", f"{family.model_class} is in {dense_model.__module__}, not in {family.modeling}")
    config_class = type(
        f"Xft{family.config_class}",
        (dense_config,),
        {"__module__": __name__, "__doc__": MoEConfig.__doc__, "model_type": family.moe_type}
        | {"__annotations__": {"xft": "dict | None"}, "xft": None, "base_model_tp_plan": None},
    )

    def build(self: Any, config: Any) -> None:
        dense_model.__init__(self, config)
        settings, trunk = settings_of(config.xft, "config.json"), self.base_model
        layout = layout_of(settings, family)
        if settings.gate == "tied":
            trunk.router = router_of(config.hidden_size, layout)
            initialise(trunk.router, std=config.initializer_range)
        for layer in trunk.layers[settings.dense_layers :]:
            layer.mlp = moe_layer(layer.mlp, config.hidden_size, layout, getattr(trunk, "router", None))
            for module in layer.mlp.modules():
                initialise(module, std=config.initializer_range)

    def init_weights(self: Any, module: nn.Module) -> None:
        dense_model._init_weights(self, module)
        initialise(module, std=self.config.initializer_range)

    model_class = type(
        family.moe_class,
        (dense_model,),
        {"__module__": __name__, "config_class": config_class, "__init__": build, "_init_weights": init_weights},
    )
    return config_class, model_class


def _stock_class(family: Family, field: str) -> Any:
    name = getattr(family, field)
    if not hasattr(transformers, name):
        near = did_you_mean(name, dir(transformers))
        raise family.wrong(field, f"transformers {transformers.__version__} has no class {name!r}{near}")
    return getattr(transformers, name)


class MoEConfig:
    """The dense family's configuration with a mapping `xft`.

    Keys of `xft`: those of the recipe's section `upcycle` (`experts` and `active` count shared ones), `base` (what the
    user calls the dense parent) and `base_dtype` (its dtype, in which merged models are written).
    """


def moe_layer(ffn: nn.Module, hidden_size: int, layout: Layout, tied: Router | None = None) -> MoELayer:
    """Put a stock FFN module, as far as it is needed, into a mixture layer that is not filled.

    `tied` is the router of all layers, where they have one.
    """
    dropout = float(getattr(ffn, "residual_dropout", 0.0))  # StarCoder2's FFN drops some of its own output
    if dropout:
        ffn.residual_dropout = 0.0  # type: ignore[assignment]  # the layer drops the sum, once
    shared_expert, experts = layout.modules(ffn)
    router = tied or router_of(hidden_size, layout)
    return MoELayer(shared_expert, router, experts, tied=tied is not None, dropout=dropout)


def router_of(hidden_size: int, layout: Layout) -> Router:
    """Return the router of a mixture layer, not filled."""
    config = layout.config
    return Router(
        hidden_size, layout.routed, layout.keep, rule=config.router, gate=config.gate, noise=config.gate_noise,
        parts=config.parts,
    )  # fmt: skip


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Initialise routers as `nn.Linear` does (the reference's way), gate noise to zero, experts as they do it."""
    if isinstance(module, Router):
        for linear in (module.hidden, module.scores):
            if linear is not None:
                bound = linear.in_features**-0.5
                init.uniform_(linear.weight, -bound, bound)
        if module.noise is not None:
            init.zeros_(module.noise.weight)
        if module.bias_R is not None:
            init.zeros_(module.bias_R)
    if isinstance(module, RoutedExperts):
        module.initialise(std)


register()
