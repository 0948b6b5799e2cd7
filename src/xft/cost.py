"""Count parameters and FLOPs of a model from its shapes; works on the meta device.

A multiply-add is 2 FLOPs; a training step costs three forward passes, less where weights get no gradient. Embedding
look-ups are free, the output matrix is counted where logits are made, attention counts the causal half.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from xft.moe.layer import MoELayer


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Sizes of a model."""

    parameters: int
    """All weights, tied ones once."""
    active: int
    """Weights that one token is multiplied with; the output matrix included, the embedding look-up not."""
    trained: int
    """Those of the active weights that get a gradient."""
    head: int
    """Weights of the output matrix."""
    attention: int
    """Layers times width of the attention, for the part that grows with the sequence."""

    def forward_flops(self, positions: int, logits: int, mean_length: float) -> float:
        """Return the FLOPs of a forward pass over `positions` tokens that makes logits for `logits` of them."""
        trunk = 2.0 * (self.active - self.head) * positions
        return trunk + 2.0 * self.head * logits + 2.0 * self.attention * mean_length * positions

    def training_flops(self, positions: int, logits: int, mean_length: float) -> float:
        """Return the FLOPs of forward and backward pass."""
        return (2.0 + self.trained / self.active) * self.forward_flops(positions, logits, mean_length)


def count(model: nn.Module) -> Cost:
    """Count a causal LM, dense or mixture."""
    config: Any = model.config
    root: Any = model
    embedding = root.get_input_embeddings().weight
    head = root.get_output_embeddings().weight
    used = {weight: 1.0 for weight in model.parameters()}
    """The share of each weight that a token uses."""
    if head is not embedding:
        used[embedding] = 0.0
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            experts, keep = layer.experts, layer.router.keep
            used |= {weight: experts.used(name, keep) for name, weight in experts.named_parameters()}
    active = {weight: share * weight.numel() for weight, share in used.items()}
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return Cost(
        parameters=sum(weight.numel() for weight in used),
        active=round(sum(active.values())),
        trained=round(sum(count for weight, count in active.items() if weight.requires_grad)),
        head=head.numel(),
        attention=config.num_hidden_layers * width,
    )


def count_checkpoint(folder: Path) -> Cost:
    """Count a checkpoint from its config.json, without reading weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.tie_weights()
    return count(model)
