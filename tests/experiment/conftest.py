"""The settings that toy experiments share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def common(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of the smallest runs: a step or two of training, a handful of losses, no samples."""
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [{"instruction": f"Add {n}.", "response": f"def add(a):\n    return a + {n}"} for n in range(12)]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = {"data.heldout": 4, "data.train": 8, "tune.epochs": 1, "eval.benchmarks": []}
    return {"base": str(tiny_dense), "data": str(pairs), **small}
