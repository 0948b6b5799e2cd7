import json
import threading
import time
from pathlib import Path

import pytest

from xft.errors import DataError, SandboxError
from xft.eval.benchmark import Problem
from xft.eval.sandbox import Outcome
from xft.eval.score import check_references, score

N = 12


class Toy:
    """A benchmark whose programs are instructions to the sandbox below."""

    name = "toy"

    def problems(self):
        return [
            Problem(task_id=f"toy/{i}", stub="", entry_point="f", canonical="passed" if i else "failed", tests="")
            for i in range(N)
        ]

    def data_hash(self):
        return "hash"

    def request(self, problem, style): ...

    def extract(self, problem, completion, style):
        return completion

    def program(self, problem, code):
        return f"{code}|{problem.task_id}"


class Obedient:
    """A sandbox that gives the verdict the program asks for, and dies after some runs."""

    level = "toy"

    def __init__(self, dies_after: int = 10**9) -> None:
        self.left = dies_after
        self.ran: list[str] = []
        self.lock = threading.Lock()

    def run(self, program, *, timeout_s, memory_mb):
        with self.lock:
            if not self.left:
                raise SandboxError("died")
            self.left -= 1
            self.ran.append(program)
        status = program.split("|")[0]
        time.sleep(0.002 * (hash(program) % 3))
        return Outcome(status=status, seconds=1.0, error="" if status == "passed" else "why")


CODES = ["passed", "failed", "", "passed"] * (N // 4)


def write(path: Path, codes=CODES, samples=1) -> Path:
    lines = [
        json.dumps({"task_id": f"toy/{i}", "completion": "", "code": code, "finish": "length" if i == 1 else "stop"})
        for i, code in enumerate(codes)
        for _ in range(samples)
    ]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def verdicts(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def test_scores_count_every_class(tmp_path):
    out = tmp_path / "out"
    scores = score(Toy(), write(tmp_path / "s.jsonl"), out, sandbox=Obedient(), meta={"model": "m"})
    assert scores == json.loads((out / "scores.json").read_text())
    wall = scores.pop("wall_seconds")
    low, high = scores.pop("interval")
    assert wall >= 0
    assert 0.25 < low < 0.5 < high < 0.75
    assert scores.pop("python").startswith("3.")
    assert scores == {
        "benchmark": "toy",
        "data_hash": "hash",
        "problems": N,
        "samples_per_problem": 1,
        "pass_at_1": 0.5,
        "statuses": {"failed": 3, "no code": 3, "passed": 6},
        "truncated": 1,
        "no_code": 3,
        "sandbox": "toy",
        "limits": {"timeout_s": 10.0, "memory_mb": 2048},
        "model": "m",
    }


def test_verdicts_have_the_order_of_the_samples(tmp_path):
    score(Toy(), write(tmp_path / "s.jsonl", samples=3), tmp_path / "out", sandbox=Obedient(), workers=4)
    keys = [(verdict["task_id"], verdict["sample"]) for verdict in verdicts(tmp_path / "out")]
    assert keys == [(f"toy/{i}", sample) for i in range(N) for sample in range(3)]


def test_several_samples_give_the_mean_over_problems(tmp_path):
    scores = score(Toy(), write(tmp_path / "s.jsonl", samples=4), tmp_path / "out", sandbox=Obedient())
    assert (scores["samples_per_problem"], scores["pass_at_1"]) == (4, 0.5)
    assert scores["interval"][0] < 0.5 < scores["interval"][1]


@pytest.mark.parametrize("dies_after", [0, 1, 5, 8])
@pytest.mark.parametrize("half_line", ["", '{"task_id": "toy/9", "sam', "garbage\n", "{}\n"])
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, dies_after, half_line):
    samples = write(tmp_path / "s.jsonl")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    score(Toy(), samples, whole, sandbox=Obedient())
    with pytest.raises(SandboxError, match="died"):
        score(Toy(), samples, cut, sandbox=Obedient(dies_after))
    with (cut / "verdicts.jsonl").open("a") as file:
        file.write(half_line)
    known = {line["task_id"] for line in verdicts_so_far(cut) if line["status"] != "no code"}
    rest = Obedient()
    score(Toy(), samples, cut, sandbox=rest)
    assert not known & {program.split("|")[1] for program in rest.ran}
    assert len(rest.ran) == 9 - len(known)
    assert (cut / "verdicts.jsonl").read_bytes() == (whole / "verdicts.jsonl").read_bytes()
    scores = [json.loads((out / "scores.json").read_text()) | {"wall_seconds": 0} for out in (whole, cut)]
    assert scores[0] == scores[1]
    assert sorted(path.name for path in cut.iterdir()) == ["scores.json", "verdicts.jsonl"]


def verdicts_so_far(out: Path) -> list[dict]:
    found = []
    for line in (out / "verdicts.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if line]


def test_a_finished_score_runs_nothing_again(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    first = score(Toy(), samples, tmp_path / "out", sandbox=Obedient())
    idle = Obedient(0)
    assert score(Toy(), samples, tmp_path / "out", sandbox=idle) | {"wall_seconds": 0} == first | {"wall_seconds": 0}


@pytest.mark.parametrize("change", [{"timeout_s": 5.0}, {"memory_mb": 512}])
def test_a_verdict_under_other_limits_is_not_used(tmp_path, change):
    samples = write(tmp_path / "s.jsonl")
    score(Toy(), samples, tmp_path / "out", sandbox=Obedient())
    again = Obedient()
    score(Toy(), samples, tmp_path / "out", sandbox=again, **change)
    assert len(again.ran) == 9


def test_a_verdict_on_other_code_is_not_used(tmp_path):
    samples = write(tmp_path / "s.jsonl")
    score(Toy(), samples, tmp_path / "out", sandbox=Obedient())
    write(samples, ["passed", "passed", *CODES[2:]])
    again = Obedient()
    scores = score(Toy(), samples, tmp_path / "out", sandbox=again)
    assert again.ran == ["passed|toy/1"]
    assert scores["pass_at_1"] == pytest.approx(7 / 12)


def test_a_slow_failure_is_run_again_alone_before_it_counts(tmp_path):
    class Loaded(Obedient):
        """Times out whatever does not run alone."""

        def __init__(self):
            super().__init__()
            self.now = 0

        def run(self, program, *, timeout_s, memory_mb):
            with self.lock:
                self.now += 1
                again = program in self.ran
            super().run(program, timeout_s=timeout_s, memory_mb=memory_mb)
            time.sleep(0.01)
            with self.lock:
                alone, self.now = self.now == 1, self.now - 1
            assert alone or not again
            timeout = program.startswith("timeout") or not again
            return Outcome(status="timeout" if timeout else "passed", seconds=timeout_s if timeout else 8.5)

    sandbox = Loaded()
    codes = ["timeout", *["passed"] * (N - 1)]
    scores = score(Toy(), write(tmp_path / "s.jsonl", codes), tmp_path / "out", sandbox=sandbox, workers=4)
    assert scores["statuses"] == {"passed": N - 1, "timeout": 1}
    assert len(sandbox.ran) == 2 * N


def test_progress_reaches_the_total(tmp_path):
    seen = []
    score(
        Toy(), write(tmp_path / "s.jsonl"), tmp_path / "o", sandbox=Obedient(), progress=lambda *now: seen.append(now)
    )
    assert seen == [(i, N) for i in range(1, N + 1)]


BAD = {
    "not JSON": ('{"task_id', "line 1: not JSON"),
    "no code key": ('{"task_id": "toy/1", "finish": "stop"}\n', "needs the text 'code'"),
    "a list": ("[1]\n", "needs the text 'task_id'"),
    "unknown problem": ('{"task_id": "x/1", "code": "", "finish": "stop"}\n', "toy has no problem 'x/1'"),
    "nothing": ("", "got none"),
    "unequal": (
        '{"task_id": "toy/1", "code": "", "finish": "stop"}\n' * 2
        + '{"task_id": "toy/2", "code": "", "finish": "x"}\n',
        "got 1 problems with 1, 1 problems with 2",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_samples_are_refused(tmp_path, text, message):
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        score(Toy(), tmp_path / "s.jsonl", tmp_path / "out", sandbox=Obedient())
    assert not (tmp_path / "out" / "scores.json").exists()


def test_references_that_fail_are_named():
    failures = check_references(Toy(), Toy().problems(), Obedient())
    assert [(task_id, outcome.status) for task_id, outcome in failures] == [("toy/0", "failed")]
