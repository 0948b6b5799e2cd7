"""The whole command, against a teacher over HTTP: output, faults, kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import Script, good, solution
from typer.testing import CliRunner

from xft.cli import app
from xft.data.sources import read_source
from xft.errors import FetchError, XftError
from xft.eval.generate import server
from xft.recipe import DataSource

RUNNER = CliRunner()
CHECKED = "--check=python"


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    folder = tmp_path / "seeds"
    folder.mkdir()
    (folder / "LICENSE").write_text("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    for name in "abcd":
        (folder / f"{name}.py").write_text("".join(f"{name}_{line} = {line}\n" for line in range(40)))
    (folder / "latin.py").write_bytes("# é".encode("latin-1"))
    return folder


def arguments(out: Path, seeds: Path, url: str, *more: str, pairs: int = 6) -> list[str]:
    given = ["synth", str(out), "--seeds", str(seeds), "--teacher", url, "--pairs", str(pairs), "--batch", "3"]
    return [*given, "--set", "check.mutants=2", *([] if CHECKED in more else ["--check", "off"]), *more]


def run(out: Path, seeds: Path, url: str, *more: str, pairs: int = 6) -> str:
    result = RUNNER.invoke(app, arguments(out, seeds, url, *more, pairs=pairs))
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_are_written_checked_and_with_all_that_made_them(serve: Any, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(out, seeds, serve(Script(good)), CHECKED)
    pairs = lines(out / "pairs.jsonl")
    assert len(pairs) == 6
    for pair in pairs:
        meta = pair["meta"]
        assert set(meta) == {"method", "language", "license", "seed", "tests", "check", "teacher", "decoding"}
        assert (meta["method"], meta["language"], meta["teacher"]) == ("oss-instruct", "python", "scripted-1")
        assert meta["decoding"] == {"temperature": 0.0, "max_new_tokens": 1024}
        assert meta["seed"]["license"] == "PSF-2.0"
        assert meta["seed"]["source"] == pair["source"]
        assert len(meta["tests"]) == 4
        assert meta["check"]["status"] == "passed"
    assert len({pair["instruction"] for pair in pairs}) == 6
    assert "6 pairs of 6 tasks (100%)" in said
    assert "forecast for 6 pairs" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["teacher"]["name"] == "scripted-1"
    assert "done before" in run(out, seeds, manifest["teacher"]["url"], CHECKED)


def test_the_pairs_can_be_tuned_on(serve: Any, seeds: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", seeds, serve(Script(good)), pairs=2)
    examples = list(read_source(DataSource(path=str(tmp_path / "out" / "pairs.jsonl"))))
    written = lines(tmp_path / "out" / "pairs.jsonl")
    assert [each.instruction for each in examples] == [each["instruction"] for each in written]  # type: ignore[union-attr]


def bad_at_times(prompt: str) -> str:
    """Refuse, be empty, be wrong in the solution or in the tests, by the excerpt."""
    if prompt.startswith("An exercise has a solution and tests"):
        return "## Solution\n" + solution(1)
    if "## Problem" in prompt and "_3 = " in prompt:
        return "I'm sorry, I can't."
    if "## Problem" in prompt and "_20 = " in prompt:
        return good(prompt).replace("return x +", "return x -")
    return good(prompt)


def test_rejects_are_named_counted_and_their_seeds_recorded(serve: Any, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, seeds, serve(Script(bad_at_times)), CHECKED, "--limit", "12", pairs=50)
    rejects = lines(out / "rejects.jsonl")
    made = json.loads((out / "statistics.json").read_text())
    assert made["tasks"] == 12
    assert made["pairs"] == len(lines(out / "pairs.jsonl"))
    assert made["pairs"] + sum(made["rejected"].values()) == 12
    assert {"refusal", "check: repair: tests fail"} <= set(made["rejected"])
    assert sum(each["stage"] == "pairs" for each in rejects) == sum(made["rejected"].values())
    assert rejects[0] == {
        "stage": "seeds",
        "reason": "not UTF-8 (unexpected end of data at byte 2)",
        "seed": {"source": "seeds/latin.py"},
    }
    assert made["seeds"] == {"documents": 4, "skipped": {"not UTF-8": 1}}
    assert made["forecast"]["pairs"] == 50
    assert made["forecast"]["tasks"] == pytest.approx(50 * 12 / made["pairs"], rel=1e-3)


def test_cost_follows_the_prices(serve: Any, seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(out, seeds, serve(Script(good)), "--set", "input_price=2", "--set", "output_price=10", pairs=2)
    made = json.loads((out / "statistics.json").read_text())
    teacher = made["teacher"]
    assert made["cost"] == pytest.approx((2 * teacher["prompt_tokens"] + 10 * teacher["completion_tokens"]) / 1e6)
    assert made["cost"] > 0
    assert "cost " in said


def test_faults_on_the_way_do_not_change_the_output(serve: Any, seeds: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", seeds, serve(Script(good)), "--store", str(tmp_path / "one"))
    faults = {"": ["status:429:0", "status:500", "garbage", "half", "gone", "status:503"]}
    run(tmp_path / "faulty", seeds, serve(Script(good, faults=faults)), "--store", str(tmp_path / "two"))
    assert (tmp_path / "faulty" / "pairs.jsonl").read_bytes() == (tmp_path / "whole" / "pairs.jsonl").read_bytes()


def test_a_teacher_that_went_away_is_an_error_and_the_same_command_goes_on(
    serve: Any, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    run(tmp_path / "whole", seeds, serve(Script(good)), "--store", str(tmp_path / "one"))
    script = Script(good, die_after=3)
    url = serve(script)
    with pytest.raises(FetchError, match="the answers so far are kept"):
        run(tmp_path / "out", seeds, url, "--store", str(tmp_path / "two"))
    assert not (tmp_path / "out").exists()
    script.die_after = None
    run(tmp_path / "out", seeds, url, "--store", str(tmp_path / "two"))
    assert len(script.answered) == len(set(script.answered)) == 6
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == (tmp_path / "whole" / "pairs.jsonl").read_bytes()


def test_a_killed_run_goes_on_without_losing_or_repeating_an_answer(serve: Any, seeds: Path, tmp_path: Path) -> None:
    whole = Script(bad_at_times)
    run(tmp_path / "whole", seeds, serve(whole), CHECKED, "--store", str(tmp_path / "one"), pairs=8)
    script = Script(bad_at_times, seconds=0.05)
    command = [sys.executable, "-m", "xft", *arguments(tmp_path / "out", seeds, serve(script), CHECKED, pairs=8)]
    environment = {**os.environ, "XFT_CACHE": str(tmp_path / "two")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(script.answered) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    kept = len(list((tmp_path / "two" / "answers").rglob("*.json")))
    assert kept >= 5
    script.seconds = 0.0
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in ("pairs.jsonl", "rejects.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert set(script.answered) == set(whole.answered)
    assert len(script.answered) - len(whole.answered) <= 3  # on their way when it was killed


def test_a_second_run_with_more_pairs_pays_for_the_new_ones_only(serve: Any, seeds: Path, tmp_path: Path) -> None:
    script = Script(good)
    url = serve(script)
    run(tmp_path / "trial", seeds, url, "--limit", "3", pairs=8)
    assert len(script.answered) == 3
    run(tmp_path / "out", seeds, url, pairs=8)
    assert len(script.answered) == 8
    assert lines(tmp_path / "out" / "pairs.jsonl")[:3] == lines(tmp_path / "trial" / "pairs.jsonl")


def test_pairs_said_twice_are_kept_once(serve: Any, seeds: Path, tmp_path: Path) -> None:
    def same(prompt: str) -> str:
        return (
            f"## Problem\nWrite a function add_1(x).\n\n## Solution\n{solution(1)}"
            if "## Problem" in prompt
            else good(prompt)
        )

    run(tmp_path / "out", seeds, serve(Script(same)), "--limit", "5")
    made = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (made["pairs"], made["rejected"]) == (1, {"duplicate": 4})


@pytest.mark.parametrize("method", ["evol-instruct", "self-instruct", "instruct-pretrain"])
def test_every_method_makes_just_as_many_pairs_as_asked_for(serve: Any, tmp_path: Path, method: str) -> None:
    path = tmp_path / "seeds.jsonl"
    records = [
        {"instruction": f"Write number {at} as words.", "response": "x", "language": "python"} for at in range(12)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    run(out, path, serve(Script(good)), CHECKED, "--method", method, pairs=7)
    pairs = lines(out / "pairs.jsonl")
    assert len(pairs) == 7
    checks = {pair["meta"]["check"]["status"] for pair in pairs}
    assert checks == ({"not run"} if method == "instruct-pretrain" else {"passed"})


def test_fewer_pairs_than_asked_for_are_said_with_the_reason(serve: Any, tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Write number {at} as words."}) + "\n" for at in range(2)))
    url = serve(Script(good))
    said = run(tmp_path / "one", path, url, "--method", "evol-instruct", pairs=50)
    assert "fewer pairs than asked for: the seeds are used up" in said
    said = run(tmp_path / "two", path, serve(Script(lambda _: "Of the.")), "--method", "self-instruct", pairs=1)
    assert "0 pairs of 10 tasks" in said
    assert "fewer pairs than asked for: ten tasks for each pair were begun" in said


def test_without_the_check_nothing_is_run_or_asked_for_it(serve: Any, seeds: Path, tmp_path: Path) -> None:
    script = Script(good)
    run(tmp_path / "out", seeds, serve(script), pairs=3)
    assert len(script.answered) == 3
    assert {pair["meta"]["check"]["status"] for pair in lines(tmp_path / "out" / "pairs.jsonl")} == {"not run"}


@pytest.mark.parametrize(("more", "says"), [
    (["--method", "magic"], "unknown method 'magic'; available: evol-instruct"),
    (["--check", "cobol"], "unknown tested language 'cobol'; available: javascript, python, off"),
    (["--set", "check.test=2"], "unknown key 'test'; known keys: languages, tests"),
    (["--prompt", "completion"], "needs a teacher that takes instructions"),
])  # fmt: skip
def test_what_can_not_be_meant_is_an_error_at_once(
    serve: Any, seeds: Path, tmp_path: Path, more: list[str], says: str
) -> None:
    script = Script(good)
    with pytest.raises(XftError, match=says):
        run(tmp_path / "out", seeds, serve(script), *more)
    assert script.asked == []


def test_seeds_and_teacher_are_required(tmp_path: Path) -> None:
    for given, says in (([], "no seeds; give --seeds"), (["--seeds", str(tmp_path)], "no teacher; give --teacher")):
        result = RUNNER.invoke(app, ["synth", str(tmp_path / "out"), *given])
        assert says in str(result.exception)
