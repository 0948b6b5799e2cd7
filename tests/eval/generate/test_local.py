from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from xft.eval.benchmark import Problem, Request
from xft.eval.generate import generate, prompt_tokens


class Toy:
    """Five stubs; what a model answers is kept as it is."""

    name = "toy"

    def problems(self) -> list[Problem]:
        stubs = ["def a", "def bb(x):", "def c(x, y): # long", "def d", "x = 1\ndef e()"]
        return [
            Problem(task_id=f"T/{n}", stub=stub, entry_point="f", canonical="", tests="")
            for n, stub in enumerate(stubs)
        ]

    def data_hash(self) -> str:
        return "0"

    def request(self, problem: Problem, style: str) -> Request:
        return Request(instruction=problem.stub, prefix="```python\n", stop=self.stop)

    stop: tuple[str, ...] = ("\n```",)

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        return completion

    def program(self, problem: Problem, code: str) -> str:
        return code


@pytest.fixture(scope="module")
def model(tiny_dense: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_dense).eval(), AutoTokenizer.from_pretrained(tiny_dense)


def answers(
    model: tuple[Any, Any], out: Path, bench: Toy, batch: int, problems: list[Problem] | None = None
) -> list[Any]:
    out.mkdir(exist_ok=True)
    generate(
        *model, bench, problems or bench.problems(), out, style="chat", max_new_tokens=6, batch=batch, label="t"
    )  # fmt: skip
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_batched_answers_are_those_given_one_at_a_time(model: tuple[Any, Any], tmp_path: Path) -> None:
    one = answers(model, tmp_path / "one", Toy(), 1)
    assert [sample["task_id"] for sample in one] == [f"T/{n}" for n in range(5)]
    assert answers(model, tmp_path / "three", Toy(), 3) == one
    assert {sample["finish"] for sample in one} <= {"stop", "length"}


def test_greedy_answers_are_the_argmax_of_the_model(model: tuple[Any, Any], tmp_path: Path) -> None:
    net, tokenizer = model
    sample = answers(model, tmp_path / "a", Toy(), 5)[2]
    tokens = prompt_tokens(Toy().request(Toy().problems()[2], "chat"), tokenizer, "chat")
    start = len(tokens)
    with torch.inference_mode():
        for _ in range(6):
            tokens.append(int(net(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
    assert sample["completion"] == tokenizer.decode(tokens[start:], skip_special_tokens=True)


def test_an_answer_is_cut_at_its_stop_string(model: tuple[Any, Any], tmp_path: Path) -> None:
    whole = answers(model, tmp_path / "whole", Toy(), 5)[0]["completion"]
    bench = Toy()
    bench.stop = (whole[2:4],)
    cut = answers(model, tmp_path / "cut", bench, 5)[0]
    assert cut["completion"] == whole[: whole.index(whole[2:4])]
    assert cut["finish"] == "stop"


def test_a_killed_generation_goes_on_and_ends_as_if_it_had_not_been(model: tuple[Any, Any], tmp_path: Path) -> None:
    whole = answers(model, tmp_path / "whole", Toy(), 2)
    out = tmp_path / "killed"
    out.mkdir()
    lines = [json.dumps(sample) for sample in whole]
    longest_first = [2, 4]  # the first batch of two
    kept = [lines[number] for number in longest_first] + [lines[1]] + [lines[0][:20]]
    (out / "samples.jsonl").write_text("\n".join(kept))
    assert answers(model, out, Toy(), 2) == whole
    assert (out / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()


def test_the_prompt_is_cut_into_tokens_where_training_cuts_it(model: tuple[Any, Any]) -> None:
    _, tokenizer = model
    tokens = prompt_tokens(Request(instruction="do it", prefix="```python\n", stop=()), tokenizer, "chat")
    assert tokenizer.decode(tokens) == "<|im_start|>user\ndo it<|im_end|>\n<|im_start|>assistant\n```python\n"
