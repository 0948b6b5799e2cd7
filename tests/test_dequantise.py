"""A GGUF file computes what its model computes: written here from a tiny Llama, as llama.cpp's converter orders it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from xft.dequantise import dequantise
from xft.errors import CheckpointError


def interleaved(weight: Any, heads: int) -> Any:
    """Order the rows of a query or key matrix as the file format has them."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(dense: Path, path: Path, without: str = "") -> Any:
    """Write a dense Llama as GGUF, its output matrix in 8 bits; return the model with that matrix rounded alike."""
    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    config = model.config
    tokenizer: Any = AutoTokenizer.from_pretrained(dense)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_token_list([*tokens[:-1], "ab"])  # the one merge that a tokenizer must have
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if name == without:
            continue
        stem, _, kind = name.rpartition(".")
        value = parameter.detach()
        if "q_proj" in name:
            value = interleaved(value, config.num_attention_heads)
        if "k_proj" in name:
            value = interleaved(value, config.num_key_value_heads)
        array = np.ascontiguousarray(value.numpy())
        if name == "lm_head.weight":
            packed = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor("output.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            rounded = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
            parameter.data.copy_(torch.from_numpy(rounded.copy()))
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{kind}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture
def dense(dense_of: Callable[..., Path]) -> Path:
    return dense_of("llama", attention_bias=False)


def test_a_dequantised_model_computes_what_the_file_holds(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xft.dequantise.ROWS", 7)
    model = write_gguf(dense, tmp_path / "model.gguf")
    out = tmp_path / "out"
    out.mkdir()
    dequantise(tmp_path / "model.gguf", out, torch.float32)
    made: Any = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([[5, 9, 100, 42, 7]])
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    text = "def f(x): return 1"
    assert AutoTokenizer.from_pretrained(out).decode(AutoTokenizer.from_pretrained(out).encode(text)).endswith(text)


def test_a_file_that_lacks_a_tensor_is_refused_by_name(dense: Path, tmp_path: Path) -> None:
    write_gguf(dense, tmp_path / "model.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"no tensor for 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        dequantise(tmp_path / "model.gguf", tmp_path, torch.float32)
