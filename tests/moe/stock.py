"""A family's own FFN module, small and random."""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from xft.families import FAMILIES

HIDDEN = 12


def stock_ffn(model_type: str) -> nn.Module:
    config = AutoConfig.for_model(
        model_type, hidden_size=HIDDEN, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, head_dim=6,
        num_key_value_heads=2, vocab_size=16, pad_token_id=0,
    )  # fmt: skip
    ffn = AutoModelForCausalLM.from_config(config).get_submodule(FAMILIES[model_type].ffn(0))
    for parameter in ffn.parameters():
        nn.init.normal_(parameter)
    return ffn.double().eval()
