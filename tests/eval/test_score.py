import json
import time
from pathlib import Path

import pytest
from toy_benchmark import SANDBOX, TOOLS, N, Toy

from xft.errors import DataError, SandboxError
from xft.eval.benchmark import Judgement, Tool
from xft.eval.score import MAX_FAULTS, score

CODES = ["passed", "failed", "", "passed"] * (N // 4)


def write(path: Path, codes=CODES, samples=1, alike=True) -> Path:
    lines = [
        {
            "task_id": f"toy/{i}",
            "sample": s,
            "completion": "",
            "code": code + " " * s * (not alike),
            "finish": "length" if i == 1 else "stop",
        }
        for i, code in enumerate(codes)
        for s in range(samples)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def judge(toy, samples, out, **options):
    return score(toy, samples, out, **({"sandbox": SANDBOX, "tools": TOOLS} | options))


def verdicts(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def test_scores_count_every_class(tmp_path):
    out = tmp_path / "out"
    scores = judge(Toy(), write(tmp_path / "s.jsonl"), out, meta={"model": "m"})
    assert scores == json.loads((out / "scores.json").read_text())
    wall = scores.pop("wall_seconds")
    low, high = scores.pop("interval")
    assert wall >= 0
    assert 0.25 < low < 0.5 < high < 0.75
    assert scores.pop("python").startswith("3.")
    base = scores["parts"].pop("base")
    assert base["pass_at_1"] == 0.75
    assert scores["parts"].pop("plus")["pass_at_1"] == 0.5
    assert scores == {
        "benchmark": "toy",
        "data_hash": "hash",
        "problems": N,
        "samples": N,
        "samples_per_problem": 1,
        "pass_at_1": 0.5,
        "pass_at_k": {"1": 0.5},
        "parts": {},
        "statuses": {"failed": 3, "no code": 3, "passed": 6},
        "truncated": 1,
        "no_code": 3,
        "in_process": 0,
        "infrastructure": 0,
        "missing": {"problems": 0, "first": []},
        "not_run": {},
        "rejected": {},
        "sandbox": "toy",
        "sandbox_reason": "because",
        "limits": {"seconds": 10.0, "memory_mb": 2048},
        "tools": {"odd": "1", "even": "2"},
        "model": "m",
    }


def test_answers_that_a_server_broke_off_or_refused_are_counted(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    ends = ["broken", "length", "refused", "broken", *["stop"] * (N - 4)]
    lines = [
        json.loads(line) | {"finish": end} for line, end in zip(samples.read_text().splitlines(), ends, strict=True)
    ]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = judge(Toy(), samples, tmp_path / "out")
    assert (scores["truncated"], scores["broken"], scores["refused"]) == (1, 2, 1)
    assert (scores["problems"], scores["pass_at_1"]) == (N, 0.5)


def test_verdicts_have_the_order_of_the_samples(tmp_path):
    judge(Toy(), write(tmp_path / "s.jsonl", samples=3), tmp_path / "out", workers=4)
    keys = [(verdict["task_id"], verdict["sample"]) for verdict in verdicts(tmp_path / "out")]
    assert keys == [(f"toy/{i}", sample) for i in range(N) for sample in range(3)]


def test_equal_programs_of_a_problem_are_judged_once_and_count_as_often_as_they_are_there(tmp_path):
    toy = Toy()
    scores = judge(toy, write(tmp_path / "s.jsonl", samples=3), tmp_path / "out", workers=4)
    assert sorted(toy.ran) == sorted((f"toy/{i}", code) for i, code in enumerate(CODES) if code)
    assert scores["statuses"] == {"failed": 9, "no code": 9, "passed": 18}
    assert [verdict["finish"] for verdict in verdicts(tmp_path / "out")[3:6]] == ["length"] * 3


def test_several_samples_give_the_mean_over_problems_and_pass_at_k(tmp_path):
    codes = [("passed", "failed")[i % 2] for i in range(N)]
    samples = write(tmp_path / "s.jsonl", codes, samples=5)
    lines = samples.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace("passed", "failed")  # 4 of 5 pass
    samples.write_text("".join(lines))
    scores = judge(Toy(), samples, tmp_path / "out")
    assert scores["samples_per_problem"] == 5
    assert scores["pass_at_1"] == pytest.approx((5 + 4 / 5) / N)
    assert scores["pass_at_k"]["5"] == pytest.approx(6 / N)
    assert set(scores["pass_at_k"]) == {"1", "5"}
    assert scores["interval"][0] < scores["pass_at_1"] < scores["interval"][1]


@pytest.mark.parametrize("dies_after", [0, 1, 5, 8])
@pytest.mark.parametrize("half_line", ["", '{"task_id": "toy/9", "sam', "garbage\n", "{}\n"])
def test_a_stopped_scoring_goes_on_to_the_same_files(tmp_path, dies_after, half_line):
    samples = write(tmp_path / "s.jsonl", samples=2, alike=False)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    judge(Toy(), samples, whole)
    with pytest.raises(SandboxError, match="died"):
        judge(Toy(dies_after), samples, cut)
    with (cut / "verdicts.jsonl").open("a") as file:
        file.write(half_line)
    known = []
    for line in (cut / "verdicts.jsonl").read_text().splitlines():
        try:
            known.append(json.loads(line)["status"])
        except (ValueError, KeyError):
            continue
    rest = Toy()
    judge(rest, samples, cut)
    assert len(rest.ran) == 18 - sum(status not in ("no code", "infrastructure") for status in known)
    assert (cut / "verdicts.jsonl").read_bytes() == (whole / "verdicts.jsonl").read_bytes()
    scores = [json.loads((out / "scores.json").read_text()) | {"wall_seconds": 0} for out in (whole, cut)]
    assert scores[0] == scores[1]
    assert sorted(path.name for path in cut.iterdir()) == ["scores.json", "verdicts.jsonl"]


def test_a_finished_score_runs_nothing_again(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    first = judge(Toy(), samples, tmp_path / "out")
    assert judge(Toy(0), samples, tmp_path / "out") | {"wall_seconds": 0} == first | {"wall_seconds": 0}


def test_a_verdict_under_other_conditions_is_not_used(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    judge(Toy(), samples, tmp_path / "out")
    limits, data = Toy(), Toy()
    limits.limits = {"seconds": 5.0}
    data.hash = "other"
    for again in (limits, data):
        judge(again, samples, tmp_path / "out")
        assert len(again.ran) == 9


def test_a_verdict_of_another_version_of_a_compiler_is_not_used(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    judge(Toy(), samples, tmp_path / "out")
    scores = judge(again := Toy(), samples, tmp_path / "out", tools=[TOOLS[0], Tool(name="even", version="3")])
    assert scores["tools"] == {"odd": "1", "even": "3"}
    assert len(again.ran) == 9


def test_a_verdict_on_other_code_is_not_used(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    judge(Toy(), samples, tmp_path / "out")
    write(samples, ["passed", "passed", *CODES[2:]])
    again = Toy()
    scores = judge(again, samples, tmp_path / "out")
    assert again.ran == [("toy/1", "passed")]
    assert scores["pass_at_1"] == pytest.approx(7 / 12)


def test_what_was_short_of_time_is_judged_again_alone_before_it_counts(tmp_path):
    class Loaded(Toy):
        """Times out whatever does not run alone."""

        def verdict(self, problem, code):
            again = self.ran.count((problem.task_id, code)) > 1
            time.sleep(0.01)
            assert not again or self.now == 1
            late = code == "timeout" or not again
            return Judgement(status="timeout" if late else "passed", seconds=10.0, strained=late)

    toy = Loaded()
    scores = judge(toy, write(tmp_path / "s.jsonl", ["timeout", *["passed"] * (N - 1)]), tmp_path / "out", workers=4)
    assert scores["statuses"] == {"passed": N - 1, "timeout": 1}
    assert len(toy.ran) == 2 * N


def test_a_fault_of_the_sandbox_is_tried_again_then_counted_apart(tmp_path):
    class Faulty(Toy):
        def verdict(self, problem, code):
            if problem.task_id == "toy/0" or (problem.task_id == "toy/3" and self.ran.count(("toy/3", code)) == 1):
                raise SandboxError("no more processes")
            return super().verdict(problem, code)

    toy = Faulty()
    scores = judge(toy, write(tmp_path / "s.jsonl"), tmp_path / "out")
    assert (scores["infrastructure"], scores["problems"]) == (1, N - 1)
    assert scores["pass_at_1"] == pytest.approx(5 / 11)
    fault = verdicts(tmp_path / "out")[0]
    assert (fault["status"], fault["error"]) == ("infrastructure", "no more processes")
    judge(mended := Toy(), write(tmp_path / "s.jsonl"), tmp_path / "out")
    assert mended.ran == [("toy/0", "passed")]


def test_a_sandbox_that_fails_time_after_time_ends_the_scoring(tmp_path):
    with pytest.raises(SandboxError, match="died"):
        judge(toy := Toy(0), write(tmp_path / "s.jsonl"), tmp_path / "out")
    assert not toy.ran
    assert N >= MAX_FAULTS
    assert not (tmp_path / "out/scores.json").exists()


def test_problems_of_a_faulty_tool_are_left_out_and_counted(tmp_path):
    tools = [TOOLS[0], Tool(name="even", fault="no compiler; install g++")]
    scores = judge(toy := Toy(), write(tmp_path / "s.jsonl"), tmp_path / "out", tools=tools)
    assert {int(task.split("/")[1]) % 2 for task, _ in toy.ran} == {0}
    assert (scores["problems"], scores["pass_at_1"]) == (6, 0.5)
    assert scores["not_run"] == {"even": {"answers": 6, "reason": "no compiler; install g++"}}
    assert scores["missing"]["problems"] == 0
    assert scores["tools"] == {"odd": "1"}
    with pytest.raises(DataError, match=r"no answer to toy that can be scored \(odd: no compiler, even"):
        only = [Tool(name=name, fault="no compiler") for name in ("odd", "even")]
        judge(Toy(), write(tmp_path / "s.jsonl"), tmp_path / "none", tools=only)


def test_problems_without_an_answer_are_named(tmp_path):
    samples = write(tmp_path / "s.jsonl", CODES[:10])
    assert judge(Toy(), samples, tmp_path / "a")["missing"] == {"problems": 2, "first": ["toy/10", "toy/11"]}
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[::4]))
    assert judge(Toy(), samples, tmp_path / "b", every=4)["missing"]["problems"] == 0


def test_progress_reaches_the_total_also_when_resumed(tmp_path):
    seen: list[int] = []
    for _ in range(2):
        judge(Toy(), write(tmp_path / "s.jsonl"), tmp_path / "o", progress=seen.append)
    assert sum(seen) == 2 * N


def test_memory_does_not_grow_with_the_programs(tmp_path):
    """3,280 programs of 20 kB are 66 MB; their verdicts are not."""
    import tracemalloc

    path = tmp_path / "s.jsonl"
    with path.open("w") as file:
        for i in range(3280):
            line = {"task_id": f"toy/{i % N}", "sample": i // N, "code": f"passed{' ' * 20_000}", "finish": "stop"}
            file.write(json.dumps(line) + "\n")

    class Quick(Toy):
        def judge(self, problem, code, sandbox):
            return Judgement(status=code.strip(), seconds=0.0)

    tracemalloc.start()
    scores = judge(Quick(), path, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scores["samples"], scores["pass_at_1"]) == (3280, 1.0)
    assert peak < 16e6


@pytest.mark.parametrize("text", ["", "\n\n", '{"task_id": "x/1", "code": "", "finish": "stop"}\n'])
def test_a_file_without_an_answer_is_refused(tmp_path, text):
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(DataError, match="no answer to toy"):
        judge(Toy(), tmp_path / "s.jsonl", tmp_path / "out")
    assert not (tmp_path / "out" / "scores.json").exists()
