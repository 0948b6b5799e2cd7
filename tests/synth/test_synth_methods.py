"""Laws of every method, and what each does of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from scripted_teacher import good

from xft.errors import DataError, RecipeError
from xft.eval.generate import Answer
from xft.synth.config import SynthConfig
from xft.synth.methods import METHODS, evol_instruct, instruct_pretrain, self_instruct
from xft.synth.methods.method import frame_of, in_turn
from xft.synth.task import Document, Draft, Question, Reject, Task

DOCUMENTS = [
    Document(
        text="".join(f"value_{name}_{line} = compute({line})\n" for line in range(30)),
        source=f"{name}.py", license="MIT", language="python", response=f"Answer to {name}.",
    )
    for name in "abcdefg"
]  # fmt: skip
CONFIG = {"pairs": 5, "chars": 400}


def plan(
    name: str, seed: int = 0, count: int = 6, documents: list[Document] | None = None, **settings: Any
) -> list[Task]:
    config = SynthConfig(method=name, **{**CONFIG, **settings})
    return list(islice(METHODS[name].plan(documents or DOCUMENTS, config, seed), count))


def write(
    name: str, task: Task, answer: Callable[[str], str], style: str = "chat", finish: str = "stop", **settings: Any
) -> tuple[list[Draft | Reject], list[Question]]:
    """Work on a task with a teacher; return what came of it, and what was asked."""
    config = SynthConfig(method=name, **{**CONFIG, **settings})
    steps = METHODS[name].write(task, frame_of(METHODS[name], config, style, 0))
    asked: list[Question] = []
    try:
        wants = next(steps)
        while True:
            questions = [want for want in wants if isinstance(want, Question)]
            asked += questions
            wants = steps.send([Answer(text=answer(prompt_of(each)), finish=finish) for each in questions])
    except StopIteration as end:
        return end.value, asked


def prompt_of(question: Question) -> str:
    return question.request.instruction if question.request.instruction is not None else question.request.prefix


@pytest.mark.parametrize("name", METHODS)
def test_the_first_request_carries_the_seeds_text(name: str) -> None:
    for task in plan(name):
        _, asked = write(name, task, good)
        assert task.document.text.strip() in prompt_of(asked[0])


@pytest.mark.parametrize("name", METHODS)
def test_good_answers_give_pairs_that_name_their_seed(name: str) -> None:
    for task in plan(name):
        made, _ = write(name, task, good)
        assert made
        for draft in made:
            assert isinstance(draft, Draft)
            assert draft.instruction.strip()
            assert draft.response.strip()
            assert draft.document.sha256 in {document.sha256 for document in DOCUMENTS}
            assert draft.document.record()["license"] == "MIT"
        assert len(made) <= METHODS[name].most(SynthConfig(method=name, **CONFIG))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("text", "finish", "reason"), [
    ("I'm sorry, I can't help with that.", "stop", "refusal"),
    ("", "stop", "empty answer"),
    ("HTTP 400 too long", "refused", "refused by the teacher's server"),
    ("of the, and to", "stop", "no content"),
])  # fmt: skip
def test_bad_answers_give_rejects_with_a_reason(name: str, text: str, finish: str, reason: str) -> None:
    made, _ = write(name, plan(name)[0], lambda _: text, finish=finish)
    assert made
    for reject in made:
        assert isinstance(reject, Reject)
        assert reject.reason.endswith(reason)


@pytest.mark.parametrize("name", METHODS)
def test_answers_that_miss_the_form_give_rejects(name: str) -> None:
    made, _ = write(name, plan(name)[0], lambda prompt: "SAME" if "SAME" in prompt else "Some words without any form.")
    assert made
    assert all(isinstance(each, Reject) and each.reason for each in made)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_asks_the_same_and_another_one_something_else(name: str) -> None:
    def prompts(seed: int) -> list[str]:
        return [prompt_of(each) for task in plan(name, seed) for each in write(name, task, good)[1]]

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)


@pytest.mark.parametrize("name", METHODS)
def test_only_languages_of_the_mix_are_used(name: str) -> None:
    rust = Document(text="fn main() {}\n" * 40, source="r.rs", language="rust", response="x")
    tasks = plan(name, documents=[*DOCUMENTS, rust], mix={"rust": 1.0}, rounds=1)
    assert tasks
    assert {seed.language for task in tasks for seed in task.seeds} == {"rust"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_holds_to_the_mixs_shares_and_names_a_language_that_is_missing(name: str) -> None:
    documents = [
        Document(text=f"def {language}_{at}(x): return x", source=f"{language}{at}", language=language, response="r")
        for language, count in (("python", 200), ("rust", 400)) for at in range(count)
    ]  # fmt: skip
    tasks = plan(name, documents=documents, mix={"python": 4.0, "rust": 1.0}, rounds=1, count=150)
    shown = [task.document.language for task in tasks]
    assert len(shown) == 150
    assert shown.count("python") / 150 == pytest.approx(0.8, abs=0.1)
    with pytest.raises(DataError, match="no seed document in go; there are: python, rust"):
        plan(name, documents=documents, mix={"go": 1.0})


def test_instruct_pretrain_shows_each_text_once() -> None:
    documents = [
        Document(text=f"{language} {at}", source=f"{language}{at}", language=language)
        for language, count in (("python", 4), ("rust", 100)) for at in range(count)
    ]  # fmt: skip
    for mix in ({}, {"python": 1.0, "rust": 1.0}):
        shown = [seed.source for task in plan("instruct-pretrain", count=500, documents=documents, mix=mix, rounds=3)
                 for seed in task.seeds]  # fmt: skip
        assert len(shown) == len(set(shown))
        assert len(shown) == 102 if not mix else 4 <= len(shown) < 30


def test_self_instruct_names_all_seeds_and_their_licences() -> None:
    documents = [
        Document(text=f"Sort the list number {at}, please.", source=f"s{at}", license=name, response="r")
        for at, name in enumerate(("MIT", "GPL-3.0", "MIT"))
    ]  # fmt: skip
    (draft, *_), _ = write("self-instruct", plan("self-instruct", documents=documents)[0], good)
    assert isinstance(draft, Draft)
    assert draft.document.license == "GPL-3.0 AND MIT"
    assert draft.meta["seeds"] == ["s0", "s1", "s2"]


def test_self_instruct_shows_few_seeds_as_tasks_and_as_examples() -> None:
    documents = [Document(text=f"Sort the list number {at}, please.", source=f"s{at}", response=f"answer {at}")
                 for at in range(2)]  # fmt: skip
    _, (brainstorm, *answers) = write("self-instruct", plan("self-instruct", documents=documents)[0], good)
    assert answers
    for at in range(2):
        assert prompt_of(brainstorm).count(f"list number {at}") == 1
        assert all(f"answer {at}" in prompt_of(each) for each in answers)


def test_a_mix_gives_each_language_its_share_and_names_one_that_is_missing() -> None:
    import random

    documents = [
        Document(text=f"{language} {at}", source="s", language=language) for language in "ab" for at in range(3)
    ]
    drawn = list(islice(in_turn(documents, {"a": 3.0, "b": 1.0}, random.Random(0)), 4000))
    assert sum(document.language == "a" for document in drawn) / 4000 == pytest.approx(0.75, abs=0.03)
    assert {document.text for document in drawn[:40]} == {document.text for document in documents}
    with pytest.raises(DataError, match="no seed document in c; there are: a, b"):
        next(in_turn(documents, {"c": 1.0}, random.Random(0)))


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"instruct-pretrain"}))
def test_a_teacher_that_only_continues_text_is_refused(name: str) -> None:
    with pytest.raises(
        RecipeError, match="needs a teacher that takes instructions; completion is for instruct-pretrain"
    ):
        frame_of(METHODS[name], SynthConfig(method=name), "completion", 0)


def test_oss_instruct_shows_1_to_15_consecutive_lines_each_once() -> None:
    tasks = plan("oss-instruct", count=10_000)
    shown = [task.document.text for task in tasks]
    assert len(set(shown)) == len(shown)
    assert {text.count("\n") + 1 for text in shown} == set(range(1, 16))
    whole = {document.source: document.text for document in DOCUMENTS}
    for task in tasks:
        name, lines = task.document.source.split(":")
        begin, end = map(int, lines.split("-"))
        assert "\n".join(whole[name].splitlines()[begin - 1 : end]) == task.document.text
    assert len(tasks) > 1000  # and it ends


def test_oss_instruct_wants_code() -> None:
    text = Document(text="Once upon a time.", source="a.txt", language="text")
    assert {task.document.language for task in plan("oss-instruct", documents=[text, *DOCUMENTS])} == {"python"}
    with pytest.raises(DataError, match="no code among the seeds"):
        plan("oss-instruct", documents=[text])


@pytest.mark.parametrize(("text", "reason"), [
    ("## Problem\nDo as the code snippet does.\n\n## Solution\n```python\nx = 1\n```", "problem refers to the seed"),
    ("## Problem\nWrite f.\n\n## Solution\nIt is easy.", "no code in the solution"),
    ("## Problem\nWrite f.\n\n## Solution\n```python\ndef f(:\n```", "solution does not parse"),
    ("Write f.\n```python\nx = 1\n```", "no problem and solution in the answer"),
])  # fmt: skip
def test_oss_instruct_names_what_is_wrong_with_an_answer(text: str, reason: str) -> None:
    [reject] = write("oss-instruct", plan("oss-instruct")[0], lambda _: text)[0]
    assert isinstance(reject, Reject)
    assert reject.reason == reason


def test_evol_instruct_goes_on_from_what_it_evolved() -> None:
    made, asked = write("evol-instruct", plan("evol-instruct")[0], good, rounds=3)
    assert [draft.meta["round"] for draft in made if isinstance(draft, Draft)] == [1, 2, 3]
    assert {draft.meta["evolution"] for draft in made if isinstance(draft, Draft)} <= set(evol_instruct.EVOLUTIONS)
    evolving = [prompt_of(each) for each in asked if prompt_of(each).startswith("Make")]
    for draft, prompt in zip(made, evolving[1:], strict=False):
        assert isinstance(draft, Draft)
        assert prompt.endswith(draft.instruction)
    assert {each.sampling.temperature for each in asked if prompt_of(each).startswith("Make")} == {1.0}
    assert {each.sampling.temperature for each in asked if not prompt_of(each).startswith("Make")} == {0.0}


def test_all_five_evolutions_have_words_of_their_own() -> None:
    from xft.synth.templates import render

    texts = {render("evol_instruct", instruction="x", evolution=name) for name in evol_instruct.EVOLUTIONS}
    assert len(texts) == 5
    assert all("Do it mainly like this: " in text for text in texts)


@pytest.mark.parametrize(("judgement", "expected"), [
    ("DIFFERENT", True), ("**Different.** The second asks for more.", True), ("They are not the same.", True),
    ("SAME", False), ("not different", False), ("The two aren't different.", False), ("SAME, not DIFFERENT", False),
    ("", False), ("I can't tell.", False),
])  # fmt: skip
def test_the_equality_check_reads_the_first_verdict(judgement: str, expected: bool) -> None:
    assert evol_instruct.differs(judgement) is expected


@pytest.mark.parametrize(("evolved", "equal", "reason"), [
    ("Sort it.", "DIFFERENT", "too few words"),
    ("Here is the rewritten task: sort the list.", "DIFFERENT", "repeats the template"),
    ("Sort the list with quicksort.", "SAME", "no information gain"),
    ("sort  the LIST of five numbers", "DIFFERENT", "no information gain"),
])  # fmt: skip
def test_evol_instruct_drops_evolutions_by_its_rules(evolved: str, equal: str, reason: str) -> None:
    task = Task(seeds=(Document(text="Sort the list of five numbers", source="s"),), seed=0)
    made, asked = write("evol-instruct", task, lambda prompt: equal if "SAME" in prompt else evolved, rounds=2)
    assert [each.reason for each in made if isinstance(each, Reject)] == [f"evolution: {reason}"] * 2
    assert all("Sort the list of five numbers" in prompt_of(each) for each in asked)  # the seed evolves on


def test_a_judgement_that_failed_is_not_taken_for_one() -> None:
    task = Task(seeds=(Document(text="Sort the list of five numbers", source="s"),), seed=0)
    made, _ = write(
        "evol-instruct", task, lambda prompt: "" if "SAME" in prompt else "Sort the list with quicksort.", rounds=1
    )
    assert [each.reason for each in made if isinstance(each, Reject)] == ["evolution: judgement: empty answer"]


def test_self_instruct_answers_in_prose_where_the_seeds_are_prose() -> None:
    prose = [
        Document(text=f"Say why tides come {n} times a day", source=f"{n}", language="text", response="The moon.")
        for n in range(5)
    ]
    answer = lambda prompt: "1. Explain how dew forms at night." if prompt.startswith("Think up") else "Cool air."  # noqa: E731
    (made,), _ = write("self-instruct", plan("self-instruct", documents=prose)[0], answer, domain="physics")
    assert isinstance(made, Draft) and (made.response, made.language) == ("Cool air.", "text")
    (made,), _ = write("self-instruct", plan("self-instruct")[0], answer, domain="physics")
    assert isinstance(made, Reject) and made.reason == "no code in the solution"


def test_self_instruct_samples_tasks_from_3_seeds_and_answers_greedily_with_5_pairs() -> None:
    task = plan("self-instruct")[0]
    made, asked = write("self-instruct", task, good)
    listing, *answering = asked
    assert (listing.sampling.temperature, listing.sampling.top_p) == (1.0, 0.98)
    assert prompt_of(listing).count("Example ") == 3
    assert len(answering) == len(made) == 3
    for each in answering:
        assert each.sampling.temperature == 0.0
        assert len(re.findall(r"Answer to [a-g]\.", prompt_of(each))) == 5
    assert "Programming" not in prompt_of(listing)
    assert "Python programming" in prompt_of(listing)


def test_a_list_of_tasks_is_read_with_its_lines() -> None:
    first, second = "Sort a list of words.\n   Ignore case.", "Count the vowels of a text."
    text = f"Here you are:\n1. {first}\n2) {second}\n**3.** Do it\n1. {first}"
    assert self_instruct.tasks_in(text) == [first, second]


def test_instruct_pretrain_shows_the_rounds_before() -> None:
    task = plan("instruct-pretrain", rounds=3)[0]
    made, asked = write("instruct-pretrain", task, good, rounds=3)
    assert len(asked) == 3
    for number, question in enumerate(asked, start=1):
        prompt = prompt_of(question)
        assert [seed.text.strip() in prompt for seed in task.seeds] == [True] * number + [False] * (3 - number)
        assert prompt.count("<ANS> A number. </END>") == number - 1
    assert [draft.meta["round"] for draft in made if isinstance(draft, Draft)] == [1, 1, 2, 2, 3, 3]
    first = made[0]
    assert isinstance(first, Draft)
    assert first.instruction.startswith(task.seeds[0].text.strip())


def test_a_synthesizer_gets_its_own_format() -> None:
    task = plan("instruct-pretrain", rounds=2)[0]
    _, asked = write("instruct-pretrain", task, good, style="completion", rounds=2)
    first, second = (seed.text.strip() for seed in task.seeds)
    assert asked[0].request.instruction is None
    assert asked[0].request.prefix == f"<CON> {first} </CON>\n\n"
    pair = "<QUE> What is it? <ANS> A text. </END>"
    assert asked[1].request.prefix == f"<CON> {first} </CON>\n\n{pair}</s><s> <CON> {second} </CON>\n\n"


def test_pairs_are_read_whole_and_once() -> None:
    text = "<QUE> a b? <ANS> c </END>\n<QUE> A  b? <ANS> d </END> <QUE> e? <QUE> f? <ANS> g </END> <QUE> h? <ANS> i"
    assert instruct_pretrain.pairs_in(text) == [("a b?", "c"), ("f?", "g")]
