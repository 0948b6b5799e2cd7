"""Models that the package registry has: made once, whatever was left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xft import base, dequantise
from xft.errors import FetchError


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The folders that models were written to, with a cache of the test's own and without the wheel."""
    found: list[Path] = []

    def write(_: Path, folder: Path, dtype: torch.dtype) -> None:
        assert list(folder.iterdir()) == []
        (folder / "config.json").write_text("{}")
        found.append(folder)

    monkeypatch.setenv("XFT_CACHE", str(tmp_path))
    monkeypatch.setattr(dequantise, "dequantise", write)
    embedded: Any = base.Embedded(fetch=lambda: tmp_path / "a.gguf", folder="a-1234", dtype="float32")
    monkeypatch.setitem(base.EMBEDDED, "pypi:toy", embedded)
    return found


def test_an_embedded_model_is_made_once_and_a_killed_tries_leftovers_are_not_in_the_way(made: list[Path]) -> None:
    folder = base.cache_dir() / "models" / "a-1234"
    leftover = folder.with_name("a-1234.partial")
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("half")
    assert base.resolve_base("pypi:toy") == base.resolve_base("pypi:toy") == folder
    assert made == [leftover]
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_what_is_in_the_models_place_is_named(made: list[Path]) -> None:
    folder = base.cache_dir() / "models" / "a-1234"
    folder.mkdir(parents=True)
    (folder / "something").write_text("")
    with pytest.raises(FetchError, match=r"in the way of the model from a\.gguf; move it away"):
        base.resolve_base("pypi:toy")
