"""The back end that runs a model in this process, on tiny random models in fp32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_prompts import STUBS, ToyPrompts, answers

from xft.errors import CheckpointError, DataError, RecipeError, UnknownNameError
from xft.eval.benchmark import Request
from xft.eval.generate import Answer, Ask, Backend, Sampling, decode, open_backend
from xft.eval.generate.decode import Row, _Writer, sample_tokens
from xft.eval.generate.tokens import end_tokens, prompt_tokens
from xft.families import FAMILIES

A_FEW_FAMILIES = [
    pytest.param(name, marks=() if name in ("llama", "gemma2", "gpt_neox") else pytest.mark.slow) for name in FAMILIES
]
"""Layers that keep all, that have a window, and an attention of another make; the slow suite has all families."""


def opened(model: Path, *, style: str = "chat", batch: int = 5) -> Any:
    return open_backend("transformers", str(model), style=style, batch=batch, precision="fp32")


@pytest.fixture(scope="module")
def backend(tiny_dense: Path) -> Iterator[Any]:
    backend = opened(tiny_dense)
    yield backend
    backend.close()


@pytest.fixture(params=["greedy", "sampled"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {} if request.param == "greedy" else {"n": 3, "temperature": 0.8, "top_p": 0.95, "seed": 5}


def with_batch(backend: Any, batch: int) -> Any:
    backend.batch = batch
    return backend


def test_batched_answers_are_those_given_one_at_a_time(backend: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    one = answers(with_batch(backend, 1), tmp_path / "one", **how)
    n = how.get("n", 1)
    assert [(sample["task_id"], sample["sample"]) for sample in one] == [
        (f"T/{task}", sample) for task in range(5) for sample in range(n)
    ]
    assert answers(with_batch(backend, 4), tmp_path / "four", **how) == one
    assert answers(with_batch(backend, 15), tmp_path / "all", **how) == one
    assert {sample["finish"] for sample in one} <= {"stop", "length"}
    assert len({sample["completion"] for sample in one}) > len(one) // 2


def test_what_is_said_of_a_problem_does_not_depend_on_which_others_are_asked(backend: Any, tmp_path: Path) -> None:
    how = {"n": 2, "temperature": 1.0, "seed": 3}
    toy = ToyPrompts()
    whole = answers(with_batch(backend, 4), tmp_path / "whole", toy, **how)
    some = answers(with_batch(backend, 4), tmp_path / "some", toy, problems=toy.problems()[1::2], **how)
    assert some == [sample for sample in whole if sample["task_id"] in ("T/1", "T/3")]


def test_what_was_asked_before_in_the_same_words_is_not_asked_again(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def spy(units: Any, sampling: Sampling) -> Any:
        asked.extend(ask.task_id for unit in units for ask in unit)
        yield from type(backend).complete(backend, units, sampling)

    monkeypatch.setattr(backend, "complete", spy)
    known: dict[Ask, Answer] = {}
    first = answers(backend, tmp_path / "first", known=known)
    assert len(asked) == len(known) == 5
    asked.clear()
    (toy := ToyPrompts(stops={"T/2": ("x",), "T/4": ("\n```",)})).extract = lambda *_: "other"  # type: ignore[method-assign]
    second = answers(backend, tmp_path / "second", toy, known=known)
    assert asked == ["T/2"]
    assert [each["completion"] for each in second if each["task_id"] != "T/2"] == [
        each["completion"] for each in first if each["task_id"] != "T/2"
    ]
    assert {each["code"] for each in second} == {"other"}  # each benchmark extracts for itself
    asked.clear()
    assert answers(backend, tmp_path / "second", toy, known=known) == second
    assert not asked
    assert len(known) == 6


def test_greedy_answers_are_the_argmax_of_the_model(backend: Any, tmp_path: Path) -> None:
    sample = answers(with_batch(backend, 5), tmp_path / "a")[2]
    request = ToyPrompts().request(ToyPrompts().problems()[2], "chat")
    tokens = prompt_tokens(request, backend.tokenizer, "chat")
    start = len(tokens)
    with torch.inference_mode():
        for _ in range(6):
            tokens.append(int(backend.model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == backend.tokenizer.eos_token_id:
                break
    assert sample["completion"] == backend.tokenizer.decode(tokens[start:], skip_special_tokens=True)
    assert sample["code"] == f"<chat>{sample['completion']}"


def test_answers_are_those_of_transformers_own_generate(backend: Any, tmp_path: Path) -> None:
    toy = ToyPrompts(stop=())
    made = answers(with_batch(backend, 5), tmp_path / "a", toy, max_new_tokens=40)
    for problem, sample in zip(toy.problems(), made, strict=True):
        ids = torch.tensor([prompt_tokens(toy.request(problem, "chat"), backend.tokenizer, "chat")])
        output = backend.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
        )
        assert sample["completion"] == backend.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("model_type", [*sorted(FAMILIES), "mistral with a window"])
def test_all_families_answer_the_same_in_batches(model_type: str, dense_of: Any, tmp_path: Path) -> None:
    model = dense_of("mistral", sliding_window=24) if "window" in model_type else dense_of(model_type)
    made = [
        answers(opened(model, batch=batch), tmp_path / str(batch), temperature=1.0, max_new_tokens=16)
        for batch in (1, 7)
    ]
    assert made[0] == made[1]


def test_a_mixture_answers_the_same_in_batches(tiny_moe: Path, tmp_path: Path) -> None:
    made = [answers(opened(tiny_moe, batch=batch), tmp_path / str(batch)) for batch in (1, 5)]
    assert made[0] == made[1]


def test_sampling_differs_by_seed_and_by_sample_and_comes_back_with_the_seed(backend: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = {"n": 4, "temperature": 1.0, "max_new_tokens": 12}
    first = answers(backend, tmp_path / "first", seed=1, **how)
    assert answers(backend, tmp_path / "again", seed=1, **how) == first
    other = answers(backend, tmp_path / "other", seed=2, **how)
    texts, others = ([sample["completion"] for sample in made] for made in (first, other))
    assert all(text != other for text, other in zip(texts, others, strict=True))
    assert len(set(texts)) == len(texts)


def test_a_low_temperature_and_a_small_top_p_are_greedy(backend: Any, tmp_path: Path) -> None:
    greedy = answers(backend, tmp_path / "greedy")
    assert answers(backend, tmp_path / "cold", temperature=1e-4) == greedy
    assert answers(backend, tmp_path / "narrow", temperature=1.0, top_p=1e-6) == greedy


def test_sampled_tokens_have_the_models_probabilities_within_the_nucleus() -> None:
    torch.manual_seed(0)
    logits_V = torch.randn(1000) * 2
    draws_B = (torch.arange(2000) + 0.5) / 2000
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (3.0, 0.99)):  # the last needs more than NUCLEUS tokens
        probs_V = (logits_V / temperature).softmax(-1)
        order_V = probs_V.argsort(descending=True)
        before_V = probs_V[order_V].cumsum(-1) - probs_V[order_V]
        allowed = set(order_V[before_V < top_p].tolist())
        logits_BV = logits_V.expand(100, -1)
        tokens = [
            token
            for part_B in draws_B.split(100)
            for token in sample_tokens(logits_BV, part_B, temperature=temperature, top_p=top_p).tolist()
        ]
        assert set(tokens) <= allowed
        kept_V = torch.tensor([float(probs_V[token]) if token in allowed else 0.0 for token in range(1000)])
        shares_V = torch.bincount(torch.tensor(tokens), minlength=1000) / len(tokens)
        assert (shares_V - kept_V / kept_V.sum()).abs().max() < 1e-3


def test_a_draw_at_the_very_end_never_gives_a_token_outside_the_nucleus() -> None:
    logits_BV = torch.tensor([[0.0, 5.0, -9.0, 4.9], [5.0, 0.0, -9.0, 4.9]])
    almost_1_B = torch.tensor([1.0, 1.0]) - 1e-8
    assert sample_tokens(logits_BV, almost_1_B, temperature=1.0, top_p=0.9).tolist() == [3, 3]
    hidden_BV = logits_BV.clone()
    hidden_BV[:, 3] = -torch.inf
    assert sample_tokens(hidden_BV, torch.tensor([1.0, 1.0]), temperature=1.0, top_p=1.0).tolist() == [2, 2]


@pytest.mark.parametrize("top_p", [1.0, 0.95])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_gives_no_numbers_still_gives_a_token(bad: float, top_p: float) -> None:
    logits_BV = torch.zeros(2, 300)
    logits_BV[1, 7] = bad
    tokens = sample_tokens(logits_BV, torch.tensor([0.5, 0.5]), temperature=0.8, top_p=top_p)
    assert ((tokens >= 0) & (tokens < 300)).all()


def test_each_problem_is_cut_at_its_own_stop_strings(backend: Any, tmp_path: Path) -> None:
    whole = answers(with_batch(backend, 5), tmp_path / "whole", max_new_tokens=20)
    texts = {sample["task_id"]: sample["completion"] for sample in whole}
    stops = {task: (text[3:5],) for task, text in texts.items() if task != "T/2"}
    cut = answers(backend, tmp_path / "cut", ToyPrompts(stops=stops), max_new_tokens=20)
    for sample in cut:
        text = texts[sample["task_id"]]
        if sample["task_id"] == "T/2":
            assert sample["completion"] == text
        else:
            assert (sample["completion"], sample["finish"]) == (text[: text.index(text[3:5])], "stop")


def test_the_earliest_of_several_stop_strings_cuts(backend: Any, tmp_path: Path) -> None:
    text = answers(backend, tmp_path / "whole", max_new_tokens=20)[0]["completion"]
    toy = ToyPrompts(stop=(text[9:12], text[4:6]))
    cut = min(text.index(stop) for stop in toy.stop)
    assert answers(backend, tmp_path / "cut", toy, max_new_tokens=20)[0]["completion"] == text[:cut]


def test_a_stop_string_of_many_tokens_is_found(backend: Any, tmp_path: Path) -> None:
    whole = answers(with_batch(backend, 1), tmp_path / "whole", max_new_tokens=60)[0]["completion"]
    stop = whole[4:44]  # one byte a token
    toy = ToyPrompts(stop=(stop,))
    sample = answers(backend, tmp_path / "cut", toy, problems=toy.problems()[:1], max_new_tokens=60)[0]
    assert (sample["completion"], sample["finish"]) == (whole[:4], "stop")


class Letters:
    """A tokenizer whose tokens are letters; it decodes as SentencePiece does: a text's first space goes."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(map(chr, tokens)).removeprefix(" ")


def written(text: str, stop: str) -> tuple[list[bool], str]:
    """Give a row letter after letter."""
    row = Row(prompt=tuple(map(ord, "def f():\n")), stop=(stop,), seed=0)
    writer = _Writer(Letters(), row, 0, ends=set(), left=10**6)
    more = [writer.add(ord(letter)) for letter in text]
    return more, writer.answer().text


@pytest.mark.parametrize("stop", ["\n", "\ndef", "\nif __name__ == 'main':", "\n" + "é#" * 100])
def test_a_row_ends_with_the_last_letter_of_its_stop_string(stop: str) -> None:
    more, text = written("a = 1" + stop, stop)
    assert more == [True] * (4 + len(stop)) + [False]
    assert text == "a = 1"


def test_indentation_at_an_answers_start_is_kept_where_the_tokenizer_would_strip_it() -> None:
    assert written("    return 1\ndef", "\ndef")[1] == "    return 1"


def watched(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note the shape of each input that the model gets."""
    shapes: list[Any] = []
    forward = backend.model.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        shapes.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(backend.model, "forward", noted)
    return shapes


def test_rows_that_have_ended_leave_the_batch(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {s["task_id"]: s["completion"] for s in answers(with_batch(backend, 5), tmp_path / "w", max_new_tokens=20)}
    stops = {task: (text[:1],) for task, text in texts.items() if task != "T/4"}
    shapes = watched(backend, monkeypatch)
    answers(backend, tmp_path / "cut", ToyPrompts(stops=stops), max_new_tokens=20)
    rows = [shape[0] for shape in shapes]
    assert rows[0] == 5
    assert rows[-1] == 1
    assert sum(rows[1:]) < 2 * len(rows)


def test_the_next_prompt_takes_the_place_of_a_row_that_has_ended(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answers(with_batch(backend, 1), tmp_path / "whole", max_new_tokens=40)
    texts = {sample["task_id"]: sample["completion"] for sample in whole}
    toy = ToyPrompts(stops={task: (text[:1],) for task, text in texts.items() if task not in ("T/2", "T/3")})
    one = answers(backend, tmp_path / "one", toy, max_new_tokens=40)
    shapes = watched(backend, monkeypatch)
    assert answers(with_batch(backend, 2), tmp_path / "two", toy, max_new_tokens=40) == one
    steps = [shape[0] for shape in shapes if shape[1] == 1]
    read = [shape[0] for shape in shapes if shape[1] > 1]
    assert sum(read) == 5
    assert len(read) > 3  # rather than three batches of two, two and one
    assert max(steps) == 2


def test_a_short_prompt_waits_rather_than_being_padded_to_a_far_longer_one(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [decode.Row(prompt=(7,) * length, stop=(), seed=0) for length in (120, 30, 20, 10)]
    sampling = Sampling(max_new_tokens=25)
    alone = [
        list(decode.complete_rows(backend.model, backend.tokenizer, [row], sampling, set(), width=1)) for row in rows
    ]
    shapes = watched(backend, monkeypatch)
    made = dict(decode.complete_rows(backend.model, backend.tokenizer, rows, sampling, set(), width=4))
    assert [made[number] for number in range(4)] == [answer for ((_, answer),) in alone]
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 120), (3, 30)]


def test_equal_prompts_are_read_once(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watched(backend, monkeypatch)
    toy = ToyPrompts()
    answers(with_batch(backend, 8), tmp_path / "a", toy, problems=toy.problems()[:1], n=8, temperature=1.0)
    assert shapes[0][0] == 1
    assert shapes[1] == (8, 1)


def test_equal_prompts_are_read_once_however_long(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = watched(backend, monkeypatch)
    monkeypatch.setattr(decode, "READ", 4)
    toy = ToyPrompts()
    answers(with_batch(backend, 8), tmp_path / "a", toy, problems=toy.problems()[:1], n=8, temperature=1.0)
    assert [rows for rows, tokens in shapes if tokens > 1] == [1]


@pytest.mark.parametrize("model_type", A_FEW_FAMILIES)
def test_what_prompts_begin_with_is_read_once_and_the_answers_stay(
    model_type: str, dense_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(dense_of(model_type))
    how = {"n": 2, "temperature": 1.0, "seed": 4}
    apart = answers(with_batch(backend, 4), tmp_path / "apart", **how)
    read: list[tuple[int, bool]] = []
    whole = decode._forward

    def spy(model: Any, ids_BT: Any, mask_BT: Any, positions_BT: Any, cache: Any) -> Any:
        read.append((len(ids_BT), decode._can_join(cache)))
        return whole(model, ids_BT, mask_BT, positions_BT, cache)

    monkeypatch.setattr(decode, "SHARED", 2)
    monkeypatch.setattr(decode, "_forward", spy)
    assert answers(with_batch(backend, 4), tmp_path / "together", **how) == apart
    rows, can_join = read[0]
    assert (rows == 1) == can_join  # sliding windows are read as before


@pytest.mark.parametrize("shared", [2, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model_type", A_FEW_FAMILIES)
def test_prompts_are_read_a_few_tokens_at_a_time_and_the_answers_stay(
    model_type: str, shared: int, dense_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(dense_of(model_type))
    how = {"n": 2, "temperature": 1.0, "seed": 4}
    apart = answers(with_batch(backend, 1), tmp_path / "apart", **how)
    can_join: list[bool] = []
    told = decode._can_join
    monkeypatch.setattr(decode, "_can_join", lambda cache: can_join.append(told(cache)) or can_join[-1])
    shapes = watched(backend, monkeypatch)
    monkeypatch.setattr(decode, "SHARED", shared)
    answers(with_batch(backend, 10), tmp_path / "at_once", **how)
    at_once = [shape for shape in shapes if shape[1] > 1]
    tokens = at_once[-1][1]
    shapes.clear()
    monkeypatch.setattr(decode, "READ", 2 * tokens)
    assert answers(with_batch(backend, 10), tmp_path / "parts", **how) == apart
    parts = [shape for shape in shapes if shape[1] > 1]
    if can_join[0]:  # sliding windows are read as before
        assert len(parts) > len(at_once)
        assert max(rows * tokens for rows, tokens in parts) <= 2 * tokens
    assert sum(shape[0] for shape in parts) == sum(shape[0] for shape in at_once)


def test_special_tokens_spelled_as_stop_strings_end_an_answer(backend: Any, tmp_path: Path) -> None:
    special = "<|im_start|>"
    request = Request(instruction=None, prefix="x", stop=(special,))
    number = backend.tokenizer.convert_tokens_to_ids(special)
    head = backend.model.lm_head
    bias = torch.nn.Parameter(torch.zeros(head.out_features))
    bias.data[number] = 1e4
    backend_bias, head.bias = head.bias, bias
    try:
        [(_, answer)] = backend.complete([[Ask(task_id="a", sample=0, request=request)]], Sampling(max_new_tokens=9))
    finally:
        head.bias = backend_bias
    assert (answer.text, answer.finish) == ("", "stop")


def test_a_prompt_as_long_as_the_models_context_gets_no_answer(tmp_path: Path, dense_of: Any) -> None:
    short = opened(dense_of(max_position_embeddings=42), batch=2)
    made = answers(short, tmp_path / "a", ToyPrompts(stop=()), max_new_tokens=400)
    lengths = [
        len(prompt_tokens(ToyPrompts().request(p, "chat"), short.tokenizer, "chat")) for p in ToyPrompts().problems()
    ]
    assert min(lengths) < 42 < max(lengths)
    for sample, length in zip(made, lengths, strict=True):
        assert len(sample["completion"]) <= max(0, 42 - length)  # a token is a character at most
        assert sample["finish"] == "length" or length < 42
    assert [sample["completion"] for sample, length in zip(made, lengths, strict=True) if length >= 42] == ["", ""]


def test_a_killed_generation_goes_on_and_ends_as_if_it_had_not_been(
    backend: Any, tmp_path: Path, how: dict[str, Any]
) -> None:
    with_batch(backend, 2 if how else 1)  # two units
    whole = answers(backend, tmp_path / "whole", **how)
    final = (tmp_path / "whole" / "samples.jsonl").read_text()
    toy = ToyPrompts()

    class Killed(Exception):
        pass

    for after in range(0, len(whole), 4):
        out = tmp_path / f"killed{after}"
        judged = iter(range(after))

        def extract(problem: Any, completion: str, style: str, judged: Iterator[int] = judged) -> str:
            if next(judged, None) is None:
                raise Killed
            return ToyPrompts.extract(toy, problem, completion, style)

        toy.extract = extract  # type: ignore[method-assign]
        with pytest.raises(Killed):
            answers(backend, out, toy, **how)
        with (out / "samples.jsonl").open("a") as file:
            file.write('{"task_id": "T/0", "sam')
        assert answers(backend, out, **how) == whole
        assert (out / "samples.jsonl").read_text() == final


def test_a_finished_file_is_not_made_again(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answers(backend, tmp_path / "a")
    monkeypatch.setattr(type(backend), "complete", None)
    assert answers(backend, tmp_path / "a") == whole


def test_samples_of_other_problems_and_broken_lines_are_not_taken_over(backend: Any, tmp_path: Path) -> None:
    whole = answers(backend, tmp_path / "whole")
    out = tmp_path / "a"
    out.mkdir()
    strange = [
        b'{"task_id": "T/9", "sample": 0, "completion": "", "code": "", "finish": "stop"}',
        b"[1]",
        b"\xff",
        b"7",
    ]
    (out / "samples.jsonl").write_bytes(b"\n".join([*strange, json.dumps({**whole[0], "sample": 7}).encode()]))
    assert answers(backend, out) == whole


def test_the_style_completion_continues_the_prefix_alone(tiny_dense: Path, tmp_path: Path) -> None:
    backend = opened(tiny_dense, style="completion")
    made = answers(backend, tmp_path / "a", ToyPrompts(stop=()))
    ids = torch.tensor([backend.tokenizer.encode(STUBS[1], add_special_tokens=False)])
    output = backend.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
    )
    assert made[1]["completion"] == backend.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_auto_takes_the_tokenizers_template_and_an_unknown_style_is_refused(tiny_dense: Path) -> None:
    assert opened(tiny_dense, style="auto").style == "chat"
    with pytest.raises(UnknownNameError, match="unknown prompt style 'tea'"):
        opened(tiny_dense, style="tea")


def test_settings_say_what_answers_depend_on(backend: Any) -> None:
    settings = with_batch(backend, 5).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["backend"] == "transformers"
    assert settings["dtype"] == "float32"
    assert settings["padding"] == "left"
    assert settings["batch"] == 5
    assert settings["versions"]["torch"] == torch.__version__
    assert {"device", "attention"} <= set(settings)


def test_a_folder_without_a_model_and_an_address_are_refused(tmp_path: Path, tiny_dense: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        opened(tmp_path)
    with pytest.raises(RecipeError, match="--backend openai"):
        open_backend("transformers", str(tiny_dense), style="chat", url="http://127.0.0.1:1/v1")


def test_the_prompt_is_cut_into_tokens_where_training_cuts_it(backend: Any) -> None:
    tokens = prompt_tokens(Request(instruction="do it", prefix="```python\n", stop=()), backend.tokenizer, "chat")
    assert backend.tokenizer.decode(tokens) == "<|im_start|>user\ndo it<|im_end|>\n<|im_start|>assistant\n```python\n"


def test_answers_end_at_the_tokenizers_end_and_at_what_the_style_trains(backend: Any) -> None:
    tokenizer = backend.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(tokenizer, "chat") == end_tokens(tokenizer, "completion") == {end}
    eos, tokenizer.eos_token = tokenizer.eos_token, "<s>"
    try:
        assert end_tokens(tokenizer, "completion") == {tokenizer.eos_token_id}
        assert end_tokens(tokenizer, "chat") == {tokenizer.eos_token_id, end}
    finally:
        tokenizer.eos_token = eos


def test_the_back_end_is_a_backend(backend: Backend) -> None:
    asks = [Ask(task_id=stub, sample=0, request=Request(instruction=stub, prefix="", stop=())) for stub in STUBS]
    units = backend.units(asks)
    assert sorted(ask.task_id for unit in units for ask in unit) == sorted(STUBS)
    lengths = [len(ask.task_id) for unit in units for ask in unit]
    assert lengths == sorted(lengths, reverse=True)


def test_an_empty_prompt_is_named(backend: Any) -> None:
    with pytest.raises(DataError, match="a prompt is empty"):
        prompt_tokens(Request(instruction=None, prefix="", stop=()), backend.tokenizer, "completion")
