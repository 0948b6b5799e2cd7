"""Tiny real models, built once a test run: random weights, random norms and biases (zeros and ones hide errors)."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network by accident
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose time to threads

# A shell's background jobs ignore SIGINT, and so would all that they start; tests interrupt their children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the slow suite, of a test that is `sampled`, whatever has no value of a parameter for the first time."""
    seen: dict[object, set[tuple[str, str]]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled") and hasattr(item, "callspec"):
            values = {(name, str(value)) for name, value in item.callspec.params.items()}
            known = seen.setdefault(item.function, set())
            if values <= known:
                item.add_marker(pytest.mark.slow)
            known |= values


def pytest_collection_finish() -> None:
    """Spare the garbage collector, which each stage of a run calls, the libraries that the tests have imported."""
    gc.collect()
    gc.freeze()


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
}
"""What a family can do and does not by default."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """A byte-level tokenizer of 262 entries with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(special + letters)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    return tokenizer


def make_dense(
    folder: Path, model_type: str = "llama", dtype: str = "float32", *, seed: int = 7, **overrides: Any
) -> Path:
    """Save a random dense model of a family, with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    overrides = {**SPECIAL.get(model_type, {}), **overrides}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **{**SIZES, **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.normal_(std=0.15)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in fp32."""
    return make_dense(tmp_path_factory.mktemp("tiny") / "dense")


@pytest.fixture(scope="session")
def tiny_moe(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture of `tiny_dense` with experts that differ."""
    from xft.recipe import UpcycleConfig
    from xft.upcycle import upcycle

    folder = tmp_path_factory.mktemp("tiny") / "moe"
    folder.mkdir()
    upcycle(tiny_dense, folder, UpcycleConfig(experts=4, active=3), seed=1, name="owner/base@main")
    return perturb_experts(folder)


@pytest.fixture(scope="session")
def dense_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the random dense model of a family, dtype and settings, made once a run; tests must not write to it."""
    made: dict[str, Path] = {}

    def dense(model_type: str = "llama", dtype: str = "float32", **options: Any) -> Path:
        key = repr((model_type, dtype, sorted(options.items())))
        if key not in made:
            made[key] = make_dense(tmp_path_factory.mktemp("dense") / model_type, model_type, dtype, **options)
        return made[key]

    return dense


@pytest.fixture(scope="session")
def moe_of(dense_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the mixture of 4 experts (3 active) that differ, made once a run; tests must not write to it."""
    from xft.recipe import UpcycleConfig
    from xft.upcycle import upcycle

    made: dict[str, Path] = {}

    def moe(model_type: str = "llama", dtype: str = "float32", **options: Any) -> Path:
        key = repr((model_type, dtype, sorted(options.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("moe")
            upcycle(dense_of(model_type, dtype, **options), made[key], UpcycleConfig(experts=4, active=3), seed=1)
            perturb_experts(made[key])
        return made[key]

    return moe


@pytest.fixture(scope="session")
def quiet_moe(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_moe` without gate noise, so that two forward passes in training mode agree."""
    from xft.recipe import UpcycleConfig
    from xft.upcycle import upcycle

    folder = tmp_path_factory.mktemp("tiny") / "quiet"
    folder.mkdir()
    upcycle(tiny_dense, folder, UpcycleConfig(experts=4, active=3, gate_noise=False), seed=1)
    return perturb_experts(folder)


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in bf16."""
    return make_dense(tmp_path_factory.mktemp("tiny") / "bf16", dtype="bfloat16")


@pytest.fixture(scope="session")
def perturbed() -> Callable[..., Path]:
    """Give every expert of a mixture its own noise, in its folder; return the folder."""
    return perturb_experts


def perturb_experts(folder: Path, std: float = 0.05) -> Path:
    """Give every expert of a mixture its own noise."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, tensor in tensors.items():
        if ".experts." in name or ".shared_expert." in name:
            noise = torch.randn(tensor.shape, generator=generator) * std
            tensors[name] = (tensor + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
