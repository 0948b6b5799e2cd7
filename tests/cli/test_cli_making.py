"""The commands that make models: what they write, and the data, settings and interruptions that they meet."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command import QUICK, Xft, refused, weights
from safetensors.torch import load_file, save_file

from xft.stage import folder_digest


def test_upcycle_writes_a_proven_mixture(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "moe"
    result = xft("upcycle", tiny_dense, out, "--experts", "4", "--active", "2", "--set", "gate_noise=false")
    assert result.code == 0, result.err
    proof = json.loads((out / "proof.json").read_text())
    assert proof["max_difference"] <= proof["tolerance"] < proof["negative_control_difference"]
    assert "proof: logits differ by " in result.out
    options = json.loads((out / "config.json").read_text())["xft"]
    assert (options["experts"], options["active"], options["gate_noise"]) == (4, 2, False)
    stacked, parent = weights(out), weights(tiny_dense)
    for expert in stacked["model.layers.1.mlp.experts.up_proj"]:
        assert torch.equal(expert, parent["model.layers.1.mlp.up_proj.weight"])
    assert not any(".noise" in name for name in stacked)


def test_prove_accepts_the_parent_and_refuses_another_model(
    xft: Xft, tiny_dense: Path, dense: Path, tmp_path: Path
) -> None:
    moe = tmp_path / "fresh"
    assert xft("upcycle", tiny_dense, moe, "--experts", "4", "--active", "3").code == 0
    result = xft("prove", tiny_dense, moe)
    assert result.code == 0, result.err
    assert "proof: logits differ by " in result.out
    stranger = weights(dense)
    stranger["model.layers.0.mlp.up_proj.weight"] *= 1.1
    save_file(stranger, dense / "model.safetensors", metadata={"format": "pt"})
    refused(xft("prove", dense, moe), moe, dense, "don't belong together")


def test_tune_reads_several_files_after_data(
    xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    result = xft("tune", tiny_dense, tmp_path / "sft", "--data", *pairs, *QUICK)
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "sft" / "summary.json").read_text())["rows"] == 12
    manifest = json.loads((tmp_path / "sft" / "manifest.json").read_text())
    assert {path.name for path in pairs} <= set(manifest["inputs"])
    assert not (tmp_path / "sft" / "train.jsonl").exists()
    before = folder_digest(tmp_path / "sft")
    assert xft("tune", tiny_dense, tmp_path / "sft", "--data", *pairs, *QUICK).code == 0
    assert folder_digest(tmp_path / "sft") == before


def test_tune_takes_a_column_map_and_skips_bad_lines_on_request(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    data = tmp_path / "mapped.jsonl"
    lines = [json.dumps({"problem": f"p{n}", "solution": f"s{n}"}) for n in range(4)]
    data.write_text("\n".join([*lines, "nonsense"]) + "\n")
    columns = ("--column", "instruction=problem", "--column", "response=solution")
    refused(xft("tune", tiny_dense, tmp_path / "out", "--data", data, *columns, *QUICK), f"{data}:5", "--skip-bad")
    result = xft("tune", tiny_dense, tmp_path / "out", "--data", data, *columns, *QUICK, "--skip-bad")
    assert result.code == 0, result.err
    (reject,) = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert reject["where"] == "mapped.jsonl:5"
    assert "not JSON" in reject["reason"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows"] == 4
    others = ("--column", "instruction=solution", "--column", "response=problem")
    refused(xft("tune", tiny_dense, tmp_path / "out", "--data", data, *others, *QUICK, "--skip-bad"), "something else")
    assert xft("tune", tiny_dense, tmp_path / "out", "--data", data, *columns, *QUICK, "--skip-bad").code == 0


def test_a_place_that_can_not_be_written_is_one_line(
    xft: Xft, tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    refused(xft("run", "tiny", "--out", tmp_path / "file"), tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    for here in (".", ".."):
        refused(xft("upcycle", tiny_dense, here), f"{here}: give the name of a folder to make")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("xft.upcycle.upcycle", full)
    refused(xft("upcycle", tiny_dense, tmp_path / "moe"), "somewhere: No space left on device", "the same command")


def test_a_uniform_merge_needs_no_data_and_is_the_mean(xft: Xft, tiny_moe: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = xft("merge", tiny_moe, out, "--method", "uniform", "--shared-weight", "0.4")
    assert result.code == 0, result.err
    mixture, merged = weights(tiny_moe), weights(out)
    ffn = "model.layers.0.mlp"
    wanted = 0.4 * mixture[f"{ffn}.shared_expert.down_proj.weight"] + 0.6 * mixture[f"{ffn}.experts.down_proj"].mean(0)
    torch.testing.assert_close(merged[f"{ffn}.down_proj.weight"], wanted)


def test_a_mixture_whose_router_has_no_gate_is_tuned_without_settings_of_one(
    xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    moe, out = tmp_path / "moe", tmp_path / "out"
    assert xft("upcycle", tiny_dense, moe, "--experts", "2", "--active", "1", "--router", "slices").code == 0
    refused(
        xft("tune", moe, out, "--data", *pairs, *QUICK, "--set", "balance=0"), "slices has no gate: leave out balance"
    )
    assert not out.exists()


def test_a_merge_says_that_the_routers_weights_sum_to_something_else(
    xft: Xft, tiny_dense: Path, tmp_path: Path
) -> None:
    for router, said in (("deepseek-sigmoid", True), ("shared-normalized", False)):
        moe = tmp_path / router
        assert xft("upcycle", tiny_dense, moe, "--experts", "4", "--active", "3", "--router", router).code == 0
        result = xft("merge", moe, tmp_path / f"{router} merged", "--method", "uniform")
        assert (f"the router {router} mixes with weights that don't sum to 1" in result.out) == said
        assert result.code == 0


def test_a_learned_merge_moves_the_coefficients(
    xft: Xft, tiny_moe: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    result = xft("merge", tiny_moe, tmp_path / "out", "--data", *pairs, "--method", "learned", *QUICK, "--lr", "0.5")
    assert result.code == 0, result.err
    shares = load_file(tmp_path / "out" / "coefficients.safetensors")["coefficients"]
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert (shares - 1 / 3).abs().max() > 0.01
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llama"


def test_missing_or_absent_data_is_named(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(xft("tune", tiny_dense, out, *QUICK), "no data; give --data FILE")
    refused(xft("tune", tiny_dense, out, "--data", tmp_path / "no.jsonl", *QUICK), tmp_path / "no.jsonl", "give a file")
    refused(xft("tune", tiny_dense, out, "--data", "nobody/nothing", *QUICK), "nobody/nothing", "download it")
    assert not out.exists()


def test_empty_data_is_named(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    result = xft("tune", tiny_dense, tmp_path / "out", "--data", tmp_path / "empty.jsonl", *QUICK)
    refused(result, tmp_path / "empty.jsonl", "no instruction pairs")
    assert not (tmp_path / "out").exists()


def test_a_malformed_line_is_named_with_its_number(
    xft: Xft, tiny_moe: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(pairs[0].read_text() + '{"instruction": "x"}\n')
    for command in (("tune", tiny_moe), ("merge", tiny_moe)):
        result = xft(*command, tmp_path / "out", "--data", bad, *QUICK)
        refused(result, f"{bad}:7", "no known layout", "mend it, or use --skip-bad")
    assert bad.read_text().startswith(pairs[0].read_text())


def test_wrong_names_in_a_recipe_are_found_before_the_work(
    xft: Xft, tiny_dense: Path, tmp_path: Path, pairs: tuple[Path, Path]
) -> None:
    result = xft("run", "tiny", f"base={tiny_dense}", f"data={pairs[0]}", "data.train=9", "--out", tmp_path / "out")
    refused(result, "6 instruction pairs: too few", "lower data.heldout or data.train")


def test_pairs_that_are_cut_or_left_out_are_said(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    texts = (("short", "yes"), ("short", "no " * 90), ("long " * 90, "yes"))
    data.write_text("".join(json.dumps({"instruction": one, "response": two}) + "\n" for one, two in texts))
    result = xft("tune", tiny_dense, tmp_path / "out", "--data", data, *QUICK, "--max-length", "96")
    assert result.code == 0, result.err
    assert "1 of 3 pairs are cut at max_length=96 tokens, 1 whose prompt alone is longer are left out" in result.err


def test_a_report_of_something_else_is_refused(xft: Xft, tmp_path: Path) -> None:
    refused(xft("report", tmp_path), tmp_path, "not a run directory", "`xft run` makes one")
    refused(xft("report", tmp_path / "no"), tmp_path / "no", "not a run directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tune_exits_with_130_and_the_same_command_finishes(
    number: signal.Signals, xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "out.partial" / "metrics.jsonl"
    options = ("--data", *pairs, *QUICK, "--epochs", "10", "--set", "checkpoint_minutes=0", "--set", "precision=fp32")
    arguments = ["tune", tiny_dense, out, *options]
    # A background job of a script inherits an ignored SIGINT; a person at a terminal does not.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{listening}; from xft.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not (log.exists() and log.read_text().count("\n") > 3)
    ):
        time.sleep(0.005)
    assert process.poll() is None, "ended before it could be interrupted"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in err
    assert not out.exists()

    assert xft(*arguments).code == 0
    assert xft("tune", tiny_dense, tmp_path / "whole", *options).code == 0
    wanted = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(out).items())
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
