"""Every command: help, version, and bad input of one kind, which all of them refuse with one clear line and code 2."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from command import QUICK, Xft, refused


def test_no_arguments_print_the_help(xft: Xft) -> None:
    result = xft()
    assert "upcycle" in result.out + result.err
    assert "Traceback" not in result.err


def test_python_runs_the_package_as_the_command() -> None:
    from xft import __version__

    command = [sys.executable, "-m", "xft", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"xft {__version__}\n"


def test_version_is_printed(xft: Xft) -> None:
    from xft import __version__

    assert xft("--version").out == f"xft {__version__}\n"


def test_a_folder_that_cannot_be_made_is_named(
    xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    refused(xft("upcycle", tiny_dense, tmp_path / "file" / "out"), tmp_path / "file", "can't be written")
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"task_id": "HumanEval/0", "completion": "pass"}\n')
    result = xft("eval", "score", samples, "--bench", "humaneval", "--out", tmp_path / "file")
    refused(result, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_refused_command_leaves_nothing_behind(
    xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"a": 1}\n')
    before = sorted(tmp_path.iterdir())
    result = xft("tune", tiny_dense, tmp_path / "out", "--data", wrong, "--skip-bad")
    refused(result, "no instruction pairs", "all 1 records are bad, the first is", "wrong.jsonl:1", "--column")
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_without_a_tokenizer_is_named_with_the_remedy(
    xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    bare = shutil.copytree(tiny_dense, tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    for arguments in (
        ("tune", bare, tmp_path / "out", "--data", pairs[0], *QUICK),
        ("run", "tiny", f"base={bare}", "--out", tmp_path / "run"),
        ("eval", bare, "--bench", "", "--heldout", pairs[0], "--out", tmp_path / "scores"),
    ):
        refused(xft(*arguments), bare, "no tokenizer that can be read", "copy tokenizer.json")


def test_an_output_folder_that_holds_something_else_is_refused(
    xft: Xft, tiny_dense: Path, tiny_moe: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for arguments in (
        ("upcycle", tiny_dense, tmp_path),
        ("tune", tiny_dense, tmp_path, "--data", pairs[0], *QUICK),
        ("merge", tiny_moe, tmp_path, "--method", "uniform"),
        ("run", "tiny", f"base={tiny_dense}", "--out", tmp_path),
    ):
        refused(xft(*arguments), tmp_path, "holds something else", "give another")
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("thesis.txt", "mine")]


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    xft: Xft,
    tiny_dense: Path,
    tiny_moe: Path,
    pairs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1000, 0, 1000))
    out = tmp_path / "out"
    for arguments in (
        ("upcycle", tiny_dense, out),
        ("tune", tiny_dense, out, "--data", pairs[0], *QUICK),
        ("merge", tiny_moe, out, "--method", "uniform"),
    ):
        refused(xft(*arguments), f"{out}.partial: needs ", "the disk has 0.0 GB; choose another disk")
        assert not list(tmp_path.rglob("model*.safetensors"))
        assert not Path(f"{out}.partial").exists()
