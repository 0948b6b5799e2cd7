"""What holds for all back ends, and the one that can't run here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from toy_prompts import ToyPrompts, answers

from xft.errors import MissingExtraError, RecipeError, UnknownNameError
from xft.eval.benchmark import Request
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.generate import BACKENDS, Ask, open_backend
from xft.eval.generate.backend import ask_seed


def test_an_unknown_back_end_answers_with_those_there_are() -> None:
    assert set(BACKENDS) == {"transformers", "openai", "vllm"}
    with pytest.raises(UnknownNameError, match="available: openai, transformers, vllm"):
        open_backend("llama", "m", style="chat")


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_missing_extra_is_named(name: str) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'vllm')))\n"
        "from xft.errors import XftError\n"
        "from xft.eval.generate import open_backend\n"
        f"try: open_backend({name!r}, 'm', style='chat', url='http://127.0.0.1:9' if {name == 'openai'} else None)\n"
        "except XftError as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if name == "openai":
        assert said.startswith("FetchError")
    else:
        assert said.startswith("MissingExtraError")
        assert ("xft[train]" if name == "transformers" else "xft[train,vllm]") in said


def test_generation_is_imported_without_torch() -> None:
    code = "import sys, xft.eval.generate, xft.eval.generate.server; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_seed_belongs_to_one_sample_of_one_task() -> None:
    request = Request(instruction=None, prefix="", stop=())
    seeds = {
        ask_seed(seed, Ask(task_id=task, sample=sample, request=request))
        for seed in range(5)
        for task in ("T/1", "T/11", "U/1")
        for sample in range(20)
    }
    assert len(seeds) == 5 * 3 * 20
    assert ask_seed(0, Ask(task_id="T/1", sample=1, request=request)) == 182662196  # in every process


class Engine:
    """What xft calls of `vllm.LLM`."""

    made: dict[str, Any]
    calls: list[tuple[list[Any], list[Any]]]
    finish = "stop"
    tokenizer: Any = None
    llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=1000))

    def __init__(self, **options: Any) -> None:
        type(self).made, type(self).calls = options, []

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(self, prompts: list[Any], how: list[Any], *, use_tqdm: bool) -> list[Any]:
        room = self.llm_engine.model_config.max_model_len
        if any(len(prompt["prompt_token_ids"]) >= room for prompt in prompts):
            raise ValueError("The decoder prompt is longer than the maximum model length")
        self.calls.append((prompts, how))
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[
                    SimpleNamespace(
                        text=f"n{len(prompt['prompt_token_ids'])}#x", finish_reason=self.finish, token_ids=(5, 6)
                    )
                ],
            )
            for prompt in prompts
        ]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tiny_dense: Path) -> type[Engine]:
    from transformers import AutoTokenizer

    module = ModuleType("vllm")
    module.__version__ = "0.0.test"  # type: ignore[attr-defined]
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    module.LLM = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(Engine, "tokenizer", AutoTokenizer.from_pretrained(tiny_dense))
    return Engine


def test_vllm_gets_tokens_and_each_requests_own_rules(vllm: type[Engine], tmp_path: Path) -> None:
    backend = open_backend("vllm", "some/folder", style="auto", batch=7, precision="fp32")
    assert backend.style == "chat"
    assert vllm.made == {"model": "some/folder", "dtype": "float32", "max_num_seqs": 7}
    toy = ToyPrompts(stops={"T/1": ("#",)})
    made = answers(backend, tmp_path / "a", toy, n=2, temperature=0.5, top_p=0.9, seed=3)
    [(prompts, how)] = vllm.calls
    assert len(prompts) == len(how) == 10
    for number, (prompt, each) in enumerate(zip(prompts, how, strict=True)):
        task, sample = divmod(number, 2)
        problem = toy.problems()[task]
        request = toy.request(problem, "chat")
        assert vllm.tokenizer.decode(prompt["prompt_token_ids"]).endswith("<|im_start|>assistant\n```python\n")
        assert problem.stub in vllm.tokenizer.decode(prompt["prompt_token_ids"])
        expected = {
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 6,
            "stop": list(request.stop),
            "stop_token_ids": [2],
        }
        expected["seed"] = ask_seed(3, Ask(task_id=problem.task_id, sample=sample, request=request))
        assert vars(each) == expected
        text = f"n{len(prompt['prompt_token_ids'])}"
        assert made[number]["completion"] == (text if task == 1 else text + "#x")
    assert backend.settings()["versions"] == {"vllm": "0.0.test"}
    backend.close()


def test_vllm_needs_no_seed_when_greedy_and_says_what_ran_out(
    vllm: type[Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "finish", "length")
    made = answers(open_backend("vllm", "m", style="completion"), tmp_path / "a", ToyPrompts(stops={"T/1": ("#",)}))
    assert {each.seed for _, how in vllm.calls for each in how} == {None}
    assert [sample["finish"] for sample in made] == ["length", "stop", "length", "length", "length"]


def test_vllm_is_not_asked_what_its_model_has_no_room_for(
    vllm: type[Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answers(open_backend("vllm", "m", style="completion"), tmp_path / "whole")
    lengths = [len(prompt["prompt_token_ids"]) for prompt in vllm.calls[0][0]]
    room = SimpleNamespace(model_config=SimpleNamespace(max_model_len=max(lengths)))
    monkeypatch.setattr(vllm, "llm_engine", room)
    made = answers(open_backend("vllm", "m", style="completion"), tmp_path / "a")
    long = lengths.index(max(lengths))
    assert (made[long]["completion"], made[long]["finish"]) == ("", "length")
    assert [each for each in made if each is not made[long]] == [each for each in whole if each is not whole[long]]


def test_vllm_without_the_package_and_with_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RecipeError, match="--backend openai"):
        open_backend("vllm", "m", style="chat", url="http://127.0.0.1/v1")
    with pytest.raises(MissingExtraError, match=r"pip install 'xft\[train,vllm\]'"):
        open_backend("vllm", "m", style="chat")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_chat_endpoints_whole_answer_gives_the_program_of_a_begun_one(name: str) -> None:
    """The chat endpoint of a server gets no prefix and no stop strings, so talk and fences stand around the code."""
    if not os.environ.get("XFT_DATA"):
        pytest.skip("not run: XFT_DATA")
    benchmark = BENCHMARKS[name]
    for problem in benchmark.problems()[:20]:
        request = benchmark.request(problem, "chat")
        code = problem.canonical if name in ("ds1000", "mbpp", "mbpp+") else problem.stub + problem.canonical
        code = code.rstrip() if problem.canonical else code.rstrip() + "\n    return 1;\n}"
        begun = benchmark.extract(problem, code, "chat")
        whole = f"Sure, here it is:\n\n{request.prefix}{code}\n```\n\nCall it with `x`:\n```\nx\n```\n"
        assert begun.strip()
        assert lines(benchmark.extract(problem, whole, "chat")) == lines(begun)


def lines(text: str) -> list[str]:
    """Return the lines that hold something."""
    return [line for line in text.split("\n") if line.strip()]
