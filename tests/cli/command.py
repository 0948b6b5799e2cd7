"""Calling a command in a test, and what a refusal is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

QUICK = ("--epochs", "1", "--batch", "4", "--micro-batch", "2", "--max-length", "256")


@dataclass
class Result:
    code: int
    out: str
    err: str


Xft = Callable[..., Result]


def refused(result: Result, *words: object) -> None:
    """Check for exit code 2, one line that has all the words, and no traceback."""
    assert result.code == 2, result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.err.rstrip().endswith(line)
    assert "Traceback" not in result.err
    assert [word for word in words if str(word) not in line] == [], line


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
