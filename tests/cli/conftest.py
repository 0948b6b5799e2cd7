"""A command run in this process, and what commands are given."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Result, Xft

from xft.cli import main


@pytest.fixture
def xft(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Xft]:
    """Run a command in this process."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["xft", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, out, err)

    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    for name, start in (("a.jsonl", 0), ("b.jsonl", 6)):
        lines = [{"instruction": f"Add {n}.", "response": f"return a + {n}"} for n in range(start, start + 6)]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "a.jsonl", folder / "b.jsonl"


@pytest.fixture
def dense(tiny_dense: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_dense, tmp_path / "dense"))


@pytest.fixture
def moe(tiny_moe: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_moe, tmp_path / "moe"))
