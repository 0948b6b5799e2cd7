from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xft.eval.generate import Answer
from xft.eval.sandbox import Outcome, Sandbox
from xft.synth.check import Bench, check
from xft.synth.config import CheckConfig, SynthConfig
from xft.synth.methods.method import METHODS, frame_of
from xft.synth.store import Store
from xft.synth.task import Document, Draft, Question, Reject
from xft.synth.testing import TESTINGS

GOOD = "def add(x, y=1):\n    return x + y"
TESTS = "assert add(1, 2) == 3\nassert add(0) == 1\nassert add(-1, 1) == 0"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def checked(
    sandbox: Any, folder: Path, solution: str, *answers: str, finish: str = "stop", **settings: Any
) -> tuple[Draft | Reject, list[str]]:
    """Check a solution with a teacher that gives these answers; return what came of it, and the prompts."""
    language = settings.get("languages", ["python"])[0]
    config = SynthConfig(check=CheckConfig(**settings))
    bench = Bench(sandbox=sandbox, level="test", config=config.check, store=Store(folder))
    document = Document(text="seed", source="s")
    draft = Draft(
        instruction="Add two.",
        response=solution if "```" in solution else fenced(solution),
        language=language,
        document=document,
    )
    steps = check(draft, frame_of(METHODS["oss-instruct"], config, "chat", 0), bench)
    left, prompts = list(answers), []
    try:
        wants = next(steps)
        while True:
            found: list[Any] = []
            for want in wants:
                if isinstance(want, Question):
                    prompts.append(want.request.instruction or "")
                    found.append(Answer(text=left.pop(0), finish=finish))
                else:
                    found.append(want())
            wants = steps.send(found)
    except StopIteration as end:
        assert not left, "the teacher was not asked for all of its answers"
        return end.value, prompts


@pytest.mark.parametrize(("finish", "reason"), [
    ("refused", "check: tests: refused by the teacher's server"), ("broken", "check: tests: unfinished answer"),
])  # fmt: skip
def test_tests_that_the_server_did_not_give_are_not_the_teachers_fault(
    sandbox: Sandbox, tmp_path: Path, finish: str, reason: str
) -> None:
    made, prompts = checked(sandbox, tmp_path, "def f(x):\n    return x + 2", "400", finish=finish)
    assert isinstance(made, Reject) and made.reason == reason
    assert len(prompts) == 1  # no repair of what was not tried


def test_what_the_tests_need_is_kept_with_them(sandbox: Sandbox, tmp_path: Path) -> None:
    plain, _ = checked(sandbox, tmp_path, GOOD, fenced(TESTS))
    kept, _ = checked(sandbox, tmp_path, GOOD, fenced("from math import floor\n" + TESTS))
    assert isinstance(plain, Draft) and isinstance(kept, Draft)
    assert "setup" not in plain.meta
    assert kept.meta["setup"] == "from math import floor"
    assert kept.meta["tests"] == TESTS.split("\n")


def test_a_right_solution_is_kept_with_the_tests_that_count(sandbox: Sandbox, tmp_path: Path) -> None:
    trivial = "assert callable(add)\nassert True\n"
    kept, prompts = checked(sandbox, tmp_path, GOOD, fenced(trivial + TESTS))
    assert isinstance(kept, Draft)
    assert kept.meta["tests"] == TESTS.split("\n")
    said = kept.meta["check"]
    assert (said["status"], said["killed"]) == ("passed", said["mutants"])
    assert said["mutants"] >= 2
    assert "return x + y" not in prompts[0]
    assert "def add(x, y=1):\n    ..." in prompts[0]


def test_tests_that_any_solution_passes_prove_too_little(sandbox: Sandbox, tmp_path: Path) -> None:
    weak = "\n".join(f"assert add({at}) is not add" for at in range(5)) + "\nassert add(0) == 1"
    rejected, _ = checked(sandbox, tmp_path, GOOD, fenced(weak), repair=False)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "check: tests prove too little"
    assert rejected.detail == "1 of 6 tests fail on a mutated solution"


def test_a_wrong_solution_is_repaired_with_one_request_that_has_the_error(sandbox: Sandbox, tmp_path: Path) -> None:
    wrong = GOOD.replace("+", "-")
    repair = f"## Solution\n{fenced(GOOD)}\n\n## Tests\n{fenced(TESTS)}"
    kept, prompts = checked(sandbox, tmp_path, wrong, fenced(TESTS), repair)
    assert isinstance(kept, Draft)
    assert kept.meta["check"]["status"] == "repaired"
    assert kept.response == fenced(GOOD)
    assert wrong in prompts[1]
    assert "assert add(1, 2) == 3: AssertionError: got -1" in prompts[1]


def test_a_repair_may_correct_the_tests_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    kept, _ = checked(sandbox, tmp_path, GOOD, fenced("assert add(1, 2) == 4\n" + TESTS), f"## Tests\n{fenced(TESTS)}")
    assert isinstance(kept, Draft)
    assert kept.response == fenced(GOOD)


MISTAKEN = TESTS.replace("== 3", "== 4")
OTHER = "def add(x, y=1):\n    return sum((x, y))"


def test_most_of_the_fresh_solutions_say_what_a_test_must_expect(sandbox: Sandbox, tmp_path: Path) -> None:
    wrong = fenced(GOOD.replace("+", "*"))
    kept, prompts = checked(sandbox, tmp_path, GOOD, fenced(MISTAKEN), wrong, fenced(OTHER), votes=2)
    assert isinstance(kept, Draft)
    assert kept.response == fenced(GOOD)
    assert kept.meta["tests"] == TESTS.split("\n")
    assert (kept.meta["check"]["status"], kept.meta["check"]["votes"]) == ("agreed", "2 of 3")
    assert prompts[1] == prompts[2]
    assert "return x + y" not in prompts[1]


@pytest.mark.parametrize(("solution", "tests", "fresh"), [
    (GOOD.replace("+", "*"), TESTS, [OTHER, OTHER]),  # the first solution is in the minority
    (GOOD, MISTAKEN, ["def add(x, y=1):\n    return 4", "no code at all"]),
    (GOOD, TESTS + "\nassert add('a') == 'a1'", []),  # it fails in another way than by its result: nobody is asked
    (GOOD, TESTS + "\nassert not add(1, 2)", []),
    (GOOD, TESTS + "\nassert 4 == add(1, 2)", []),  # what it gave is not on the left
    (GOOD, TESTS + "\nassert add(1, 2) == add(2, 2)", []),  # what is expected is no value
    ("def add(x, y=1):\n    return [object()]", TESTS, []),  # a result that can't be written down
])  # fmt: skip
def test_without_a_majority_for_the_solution_the_pair_is_rejected(
    sandbox: Sandbox, tmp_path: Path, solution: str, tests: str, fresh: list[str]
) -> None:
    rejected, _ = checked(sandbox, tmp_path, solution, fenced(tests), *map(fenced, fresh), votes=2, repair=False)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "check: tests fail"


def test_what_was_expected_twice_of_one_call_counts_once(sandbox: Sandbox, tmp_path: Path) -> None:
    several = "\n".join(f"assert add(1, 2) == {result}" for result in (4, 5, 6))
    rejected, _ = checked(sandbox, tmp_path, GOOD, fenced(several), fenced(OTHER), votes=1, repair=False)
    assert isinstance(rejected, Reject)


def test_tests_that_need_one_another_do_not_count(sandbox: Sandbox, tmp_path: Path) -> None:
    chained = "q = []\nassert q.append(1) is None\n" + "\n".join(
        f"assert add(q[0], {at}) == {1 + at}" for at in range(3)
    )
    rejected, _ = checked(sandbox, tmp_path, GOOD, fenced(chained), repair=False)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "check: tests prove too little"


def test_what_was_agreed_on_must_still_tell_mutants_apart(sandbox: Sandbox, tmp_path: Path) -> None:
    weak = "\n".join(f"assert (add({at}) is add({at})) == 2" for at in range(4))
    rejected, _ = checked(sandbox, tmp_path, GOOD, fenced(weak), fenced(OTHER), votes=1, repair=False)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "check: tests fail"


@pytest.mark.parametrize(("repair", "reason"), [
    ("I'm sorry, I can't help.", "check: repair: refusal"),
    ("", "check: repair: empty answer"),
    (f"## Solution\n{fenced('def add(')}", "check: repair: no solution in the answer"),
    (f"## Solution\n{fenced(GOOD.replace('+', '*'))}", "check: repair: tests fail"),
])  # fmt: skip
def test_a_failed_repair_is_rejected_with_its_reason(
    sandbox: Sandbox, tmp_path: Path, repair: str, reason: str
) -> None:
    rejected, _ = checked(sandbox, tmp_path, GOOD.replace("+", "-"), fenced(TESTS), repair)
    assert isinstance(rejected, Reject)
    assert rejected.reason == reason
    assert "AssertionError" in rejected.detail


@pytest.mark.parametrize(("solution", "tests", "reason"), [
    ("x = 1", None, "check: nothing to test: no function or class"),
    (GOOD, "no tests at all", "check: too few tests"),
    (GOOD, fenced("assert add(1) == 2\nassert add(1) == 2\nassert add(2) == 3"), "check: too few tests"),
    ("def add(x, y=1):\n    while True: pass", fenced(TESTS), "check: time limit"),
    ("import sys\ndef add(x, y=1):\n    sys.exit(0)", fenced(TESTS), "check: solution ends the program"),
    ("import random\ndef add(x, y=1):\n    return x + y", fenced(TESTS + "\nimport os\n"), ""),
])  # fmt: skip
def test_each_fault_has_its_reason(
    sandbox: Sandbox, tmp_path: Path, solution: str, tests: str | None, reason: str
) -> None:
    result, _ = checked(sandbox, tmp_path, solution, *([tests] if tests else []), repair=False, seconds=1.0)
    assert (result.reason if isinstance(result, Reject) else "") == reason


def test_other_languages_are_checked_in_the_same_way(sandbox: Sandbox, tmp_path: Path) -> None:
    if fault := TESTINGS["javascript"].fault():
        pytest.skip(f"not run: javascript ({fault})")
    wrong, good = (f"```javascript\nfunction add(x, y = 1) {{\n  return x {sign} y;\n}}\n```" for sign in "-+")
    tests = "".join(f"assert.deepStrictEqual(add({x}), {x + 1});\n" for x in range(4))
    repair = f"## Solution\n{good}"
    kept, prompts = checked(sandbox, tmp_path, wrong, tests, repair, languages=["javascript"])
    assert isinstance(kept, Draft)
    assert kept.response == good
    assert kept.meta["check"]["status"] == "repaired"
    assert len(kept.meta["tests"]) == 4
    assert "tests in JavaScript" in prompts[0]
    assert "add(0), 1);: " in prompts[1]


class Counting:
    """Runs nothing: passes or fails as told."""

    def __init__(self, *statuses: str) -> None:
        self.statuses, self.programs = list(statuses), list[str]()

    def run(self, program: str, *, seconds: float, memory_mb: int) -> Outcome:
        self.programs.append(program)
        return Outcome(status=self.statuses.pop(0), seconds=0.1)  # type: ignore[arg-type]


def test_a_solution_that_passes_only_at_times_is_rejected(tmp_path: Path) -> None:
    rejected, _ = checked(Counting("passed", "failed"), tmp_path, GOOD, fenced(TESTS), repair=False)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "check: passes only at times"


def test_a_mutant_that_fails_without_tests_proves_nothing(tmp_path: Path) -> None:
    runner = Counting("passed", "passed", *["failed"] * 12)
    rejected, _ = checked(runner, tmp_path, GOOD, fenced(TESTS), repair=False)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "check: tests prove too little"


def test_a_verdict_is_kept_and_nothing_runs_again(sandbox: Sandbox, tmp_path: Path) -> None:
    first, _ = checked(sandbox, tmp_path, GOOD, fenced(TESTS))
    again, _ = checked(Counting(), tmp_path, GOOD, fenced(TESTS))
    assert again == first
