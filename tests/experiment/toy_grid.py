"""A grid of the smallest runs, and what an experiment of it leaves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml


def grid_of(common: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """Write a grid of SFT and XFT with two seeds, with changes."""
    methods = {"sft": {"row": "sft"}, "xft": {"row": "xft"}}
    tree = {"name": "toy", "recipe": "tiny", "seeds": [1, 2], "methods": methods, "baseline": "sft", "set": common}
    folder.mkdir(exist_ok=True)
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(tree | changes))
    return path


def weights(out: Path) -> set[str]:
    """Name the stages that have weights of their own."""
    found = [path for path in out.rglob("model*.safetensors") if not path.is_symlink()]
    return {str(path.parent.relative_to(out)) for path in found}


def command(grid: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", "from xft.cli import main; main()", "experiment", str(grid), "--out", str(out)]
