"""Settings that are wrong or make no sense are named before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Xft, refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("upcycle", "BASE", "OUT", "--experts", "1"), ("experts", "greater than or equal to 2")),
        (("upcycle", "BASE", "OUT", "--experts", "4", "--active", "5"), ("active must be at most experts=4",)),
        (("upcycle", "BASE", "OUT", "--active", "1"), ("active must be at least 2", "the shared one counted")),
        (("upcycle", "BASE", "OUT", "--router", "topk-softmax", "--active", "1"), ("active must be at least 2",)),
        (("upcycle", "BASE", "OUT", "--router", "top-1"), ("unknown router 'top-1'", "shared-normalized")),
        (("upcycle", "BASE", "OUT", "--gate", "conv"), ("gate", "'mlp', 'linear' or 'tied'")),
        (("upcycle", "BASE", "OUT", "--set", "nose=1"), ("unknown key 'nose'", "did you mean 'noise'?")),
        (("upcycle", "BASE", "OUT", "--set", "noise"), ("--set noise", "key=value")),
        (("merge", "MOE", "OUT", "--shared-weight", "1.5"), ("--shared-weight", "1; see --help")),
        (("merge", "MOE", "OUT", "--shared-weight", "-0.5"), ("--shared-weight", "0; see --help")),
        (
            ("merge", "MOE", "OUT", "--method", "no-such"),
            ("unknown merge method 'no-such'", "learned, router-weighted"),
        ),
        (("merge", "MOE", "OUT"), ("no data; give --data FILE",)),
        (("upcycle", "BASE", "OUT", "--set", "experts.x=5"), ("experts", "valid integer")),
        (("upcycle", "BASE", "OUT", "--set", "noise=["), ("noise", "valid number")),
        (("upcycle", "BASE", "OUT", "--set", "experts=5"), ("--set experts=5", "has the option --experts")),
        (("tune", "BASE", "OUT", "--data", "DATA", "--lr", "inf"), ("lr", "finite number")),
        (("tune", "BASE", "OUT", "--data", "DATA", "--column", "instruction"), ("--column instruction", "field=name")),
        (("tune", "BASE", "OUT", "--data", "DATA", "--set", "z_loss=0.1"), ("z_loss is for mixtures", "dense model")),
        (("tune", "BASE", "OUT", "--data", "DATA", "--lr", "0"), ("lr", "greater than 0")),
        (("tune", "BASE", "OUT", "--data", "DATA", "--epochs", "0"), ("--epochs", "1; see --help")),
        (
            ("tune", "BASE", "OUT", "--data", "DATA", "--prompt", "poem"),
            ("unknown prompt style 'poem'", "chat, magicoder, auto"),
        ),
        (
            ("tune", "BASE", "OUT", "--data", "DATA", "--batch", "3", "--micro-batch", "2"),
            ("batch=3 is no multiple of micro_batch=2", "choose a multiple of 2"),
        ),
        (("tune", "BASE", "OUT", "--data", "DATA", "--rounds", "3"), ("--rounds",)),
        (("tune", "BASE"), ("OUT",)),
        (("eval", "BASE", "--out", "OUT", "--bench", "nobench"), ("unknown benchmark 'nobench'", "humaneval")),
        (("eval", "BASE", "--out", "OUT", "--bench", "humanevl"), ("did you mean 'humaneval'?",)),
        (("eval", "BASE", "--out", "OUT", "--data-dir", "gone"), ("gone: no such folder", "--data-dir")),
        (("curate", "OUT", "--data", "DATA", "--data-dir", "gone"), ("gone: no such folder", "--data-dir")),
        (("run", "nowhere"), ("nowhere: no such recipe file", "tiny")),
        (
            ("run", "tiny", "tune.learning_rate=1", "--out", "OUT"),
            ("command line, for tiny.yaml: tune: unknown key 'learning_rate'", "known keys: epochs"),
        ),
        (("run", "tiny", "tune.epoch=1", "--out", "OUT"), ("did you mean 'epochs'?",)),
        (("run", "smolm2-135m", "--out", "OUT"), ("no such recipe file", "did you mean 'smollm2-135m'?")),
        (("run", "tiny", "base=BASE", "eval.benchmarks=[nobench]", "--out", "OUT"), ("unknown benchmark 'nobench'",)),
        (("run", "tiny", "base=BASE", "upcycle.router=top-1", "--out", "OUT"), ("unknown router 'top-1'",)),
        (("run", "tiny", "base=BASE", "tune.batch=3", "--out", "OUT"), ("tune: batch=3 is no multiple",)),
        (("fly",), ("fly",)),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(
    xft: Xft, arguments: tuple[str, ...], words: tuple[str, ...], tiny_dense: Path, tiny_moe: Path,
    pairs: tuple[Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    places = {"BASE": tiny_dense, "MOE": tiny_moe, "OUT": out, "DATA": pairs[0]}
    given = [f"base={tiny_dense}" if word == "base=BASE" else places.get(word, word) for word in arguments]
    refused(xft(*given), *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "BASE", "--bench", "", "--out", "OUT"), ("nothing to score", "--bench", "--heldout")),
        (("eval", "BASE", "--prompt", "completion", "--heldout", "DATA", "--out", "OUT"), ("--heldout", "--prompt")),
        (("prove", "MOE", "MOE"), ("is a mixture", "give the dense model")),
        (("soup", "BASE", "BASE", "OUT", "--weight", "1", "--weight", "-1"), ("sum to 0",)),
        (("soup", "OUT", "BASE"), ("no such folder",)),
        (("merge", "MOE", "OUT", "--method", "uniform", "--lr", "1"), ("lr=1.0 is for learned", "uniform")),
        (("merge", "MOE", "OUT", "--method", "uniform", "--base", "BASE"), ("no use for --base",)),
        (
            ("merge", "MOE", "OUT", "--method", "ties", "--data", "DATA", "--batch", "8", "--max-length", "99"),
            ("ties learns nothing", "no use for --data, --batch, --max-length; leave it out"),
        ),
        (("merge", "MOE", "OUT", "--method", "uniform", "--micro-batch", "1"), ("no use for --micro-batch",)),
        (
            ("merge", "MOE", "OUT", "--method", "uniform", "--column", "input=x", "--skip-bad"),
            ("--column, --skip-bad",),
        ),
        (("merge", "MOE", "OUT", "--method", "help"), ("available: dare",)),
        (("upcycle", "BASE", "OUT", "--set", "rank=8"), ("rank is that of differences; with layout=copy",)),
        (
            ("upcycle", "BASE", "OUT", "--router", "slices", "--gate", "linear"),
            ("the router slices has no gate: leave out gate",),
        ),
        (("upcycle", "BASE", "OUT", "--router", "help"), ("available: deepseek",)),
        (("export", "MOE", "OUT"), ("no stock class holds it", "mixtral", "--gate linear")),
    ],
)
def test_what_makes_no_sense_is_refused(
    xft: Xft, arguments: tuple[str, ...], words: tuple[str, ...], tiny_dense: Path, tiny_moe: Path,
    pairs: tuple[Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    places = {"BASE": tiny_dense, "MOE": tiny_moe, "OUT": tmp_path / "out", "DATA": pairs[0]}
    refused(xft(*(places.get(word, word) for word in arguments)), *words)
    assert not (tmp_path / "out").exists()
