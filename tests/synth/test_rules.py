from __future__ import annotations

import pytest

from xft.eval.generate import Answer
from xft.synth.rules import code_in, copies, fault_of, parsed, same_key, sections


@pytest.mark.parametrize(("text", "finish", "reason"), [
    ("Use a list of squares.", "stop", ""),
    ("Use a list.", "length", "unfinished answer"),
    ("Use a list.", "broken", "unfinished answer"),
    (" \n", "stop", "empty answer"),
    ("", "length", "empty answer"),
    ("I'm sorry, but I can't help with that.", "stop", "refusal"),
    ("As an AI, I cannot do this.", "stop", "refusal"),
    ("Print 'I am sorry' " + "and again " * 80, "stop", ""),
    ("... to the, and of!", "stop", "no content"),
    ("HTTP 400 too long", "refused", "refused by the teacher's server"),
])  # fmt: skip
def test_what_can_not_be_an_answer_has_a_reason(text: str, finish: str, reason: str) -> None:
    assert fault_of(Answer(text=text, finish=finish))[0] == reason


@pytest.mark.parametrize("heads", [
    ("## Problem", "## Solution"), ("# Problem", "### solution"), ("**Problem**", "**Solution:**"),
    ("[Problem]", "[Solution]"), ("## Problem:", "## Solution:"),
])  # fmt: skip
def test_sections_are_found_below_headings_as_teachers_write_them(heads: tuple[str, str]) -> None:
    text = f"Sure!\n{heads[0]}\nDo it.\nWell.\n\n{heads[1]}\n```python\n# Problem\nx = 1\n# Solution\n```\n"
    assert sections(text, ("Problem", "Solution")) == {
        "Problem": "Do it.\nWell.",
        "Solution": "```python\n# Problem\nx = 1\n# Solution\n```",
    }


@pytest.mark.parametrize("line", ["#" * 10_000 + " x", "# " * 10_000, "[*" * 10_000, "## Problem" + " " * 50_000 + "x"])
def test_no_heading_takes_for_ever(line: str) -> None:
    assert sections(f"{line}\n## Problem\nDo it.", ("Problem",)) == {"Problem": "Do it."}


def test_an_item_is_no_heading() -> None:
    assert sections("* Problem\n## Problem\nDo it.", ("Problem",)) == {"Problem": "Do it."}


def test_an_empty_section_is_missing() -> None:
    assert sections("## Problem\n\n## Solution\nx", ("Problem", "Solution")) == {"Solution": "x"}


def test_code_is_the_longest_block_of_its_language() -> None:
    text = "```\nplain text, long\n```\n```py\nx = 1\n```\n```python\nx = 1 + 1\n```\n```bash\nls -l -a -t -r -h\n```"
    assert code_in(text, "python") == "x = 1 + 1"
    assert code_in(text, "shell") == "ls -l -a -t -r -h"
    assert code_in("```\nx = 1\n```", "python") == "x = 1"
    assert code_in("```python\nx = 1", "python") == "x = 1"
    assert code_in("no code", "python") == ""


def test_copies_names_the_phrase() -> None:
    assert copies("Here is the Rewritten  Task:", ("rewritten task",)) == "rewritten task"
    assert copies("Sort it.", ("rewritten task",)) is None


def test_same_texts_have_the_same_key() -> None:
    assert same_key("A b\n", "c") == same_key("a  B", "C") != same_key("ab", "", "c")


def test_programs_that_are_nested_too_deeply_do_not_parse() -> None:
    assert parsed("+".join(["1"] * 5000)) is None
    assert parsed("x = 1") is not None
