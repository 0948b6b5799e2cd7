"""Decontamination of answers in other languages, run on the tests of MultiPL-E's kind of problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from xft.curate.contamination import NOTHING_TRIED, References, Tried, reference_of
from xft.curate.languages import Languages, toolchains
from xft.data.example import Example
from xft.eval.benchmark import Problem
from xft.eval.benchmarks.multipl_e import Suite
from xft.eval.languages import LANGUAGES, Language
from xft.eval.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(params=sorted(LANGUAGES))
def language(request: pytest.FixtureRequest) -> Language:
    language = LANGUAGES[request.param]
    if language.toolchain.fault:
        pytest.skip(f"{language.title}: {language.toolchain.fault}")
    return language


def problem_of(language: Language) -> Problem:
    match = re.search(language.signature, language.known.stub.rstrip("\n").rsplit("\n", 1)[-1])
    assert match
    tests = Suite(text=language.known.tests, stops=())
    return Problem(
        task_id="T/0", stub=language.known.stub, entry_point=match[1], tests=tests, tool=language.name
    )  # fmt: skip


def answer(language: Language, body: str) -> Example:
    whole = language.known.stub + body + ("}\n" if language.closed_by_tests else "")
    return Example(instruction="Do it.", response=f"Here:\n```{language.fence}\n{whole}\n```\n")


def test_an_answer_that_passes_under_the_entry_points_name_is_found(language: Language, sandbox: Sandbox) -> None:
    problem = problem_of(language)
    references = References([reference_of(f"multipl-e-{language.name}", problem)], {})
    tried = Languages(references, sandbox).tried
    good = answer(language, language.known.good)
    assert tried(good) == Tried(passed=frozenset([0]))
    assert tried(answer(language, language.known.bad)) == NOTHING_TRIED
    renamed = re.sub(rf"\b{problem.entry_point}\b", "another_name", good.response)
    assert tried(replace(good, response=renamed)) == NOTHING_TRIED


def test_code_that_is_said_to_be_of_another_language_is_not_run(
    language: Language, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "execute", lambda *_, **__: pytest.fail("it was run"))
    references = References([reference_of(f"multipl-e-{language.name}", problem_of(language))], {})
    other = replace(good := answer(language, language.known.good), response=good.response.replace("```", "```go", 1))
    other = replace(other, response=re.sub(r"```go\w*", "```go", other.response))
    assert Languages(references, sandbox).tried(other) == NOTHING_TRIED


def test_what_runs_answers_is_told(language: Language) -> None:
    assert toolchains([f"multipl-e-{language.name}", "mbpp"]) == {
        f"multipl-e-{language.name}": language.toolchain.version
    }


def test_a_name_alone_runs_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, language: Language) -> None:
    monkeypatch.setattr(Sandbox, "execute", lambda *_, **__: pytest.fail("it was run"))
    problem = problem_of(language)
    references = References([reference_of(f"multipl-e-{language.name}", problem)], {})
    mention = Example(instruction="", response=f"You could call {problem.entry_point} here.")
    assert Languages(references, sandbox).tried(mention) == NOTHING_TRIED


def test_problems_of_other_languages_with_the_same_name_are_not_the_same_tasks() -> None:
    names = sorted(LANGUAGES)[:2]
    references = References(
        [reference_of(f"multipl-e-{name}", problem_of(LANGUAGES[name])) for name in names], {}
    )  # fmt: skip
    assert references.same_tasks([0]) == [0]
