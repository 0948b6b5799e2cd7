import ast

import pytest

from xft.eval.extract import extract_program, parseable_prefix

STUB = '''from typing import List


def helper(x: int) -> int:
    """Add one."""
    return x + 1


def solve(xs: List[int]) -> int:
    """ Sum of the helper's values.
    >>> solve([1])
    2
    """
'''
BODY = "    return sum(helper(x) for x in xs)\n"
WHOLE = f"def solve(xs: List[int]) -> int:\n{BODY}"

ANSWERS = {
    "whole function": WHOLE,
    "whole function, more indented": "\n".join("  " + line for line in WHOLE.splitlines()),
    "the prompt repeated": STUB + BODY,
    "body": BODY,
    "body, then another function": f"{BODY}\n\ndef more():\n    return 1\n",
    "body without indentation": BODY.strip() + "\n",
    "body with talk behind it": f"{BODY}\nThis sums the helper's values.\n",
    "body in a fence": f"```python\n{BODY}```\n",
    "fence": f"```python\n{WHOLE}```\n",
    "fence without language": f"```\n{WHOLE}```",
    "fence, indented": "1. So:\n\n   ```python\n" + "\n".join(f"   {line}" for line in WHOLE.splitlines()) + "\n   ```",
    "unclosed fence": f"Sure!\n```python\n{WHOLE}",
    "fence opened by the prompt": f"{WHOLE}```\nIt's that simple, isn't it?\n",
    "talk on both sides of a fence": f"Here's the function:\n\n```python\n{WHOLE}```\n\nDon't forget (the import.",
    "talk without a fence": f"Here is the solution:\n\n{WHOLE}\nI hope that helps!\n",
    "talk between helper and function": f"def other():\n    return 1\n\nAnd now:\n\n{WHOLE}",
    "repeated prompt in one fence, solution in the next": f"```python\n{STUB}```\nSolution:\n```python\n{WHOLE}```",
    "future import": f"from __future__ import annotations\n\n{WHOLE}",
    "own helper": f"def helper(x):\n    return x + 1\n\n\n{WHOLE}",
    "cut in the middle of a second function": f"{WHOLE}\n\ndef second(x):\n    return (x +",
    "async talk": f"import math\nclass of problem: easy\n{WHOLE}",
    "windows line ends": WHOLE.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_program_of_an_answer_runs(answer):
    program = extract_program(STUB, "solve", answer)
    space: dict = {}
    exec(compile(program, "program", "exec", dont_inherit=True), space)
    assert space["solve"]([1, 2]) == 5
    assert program.endswith("\n")


NOTHING = {
    "empty": "",
    "talk": "I can't do that.",
    "only the prompt": STUB,
    "only a docstring": 'def solve(xs):\n    """Later."""\n',
    "another function": "def other(xs):\n    return 1\n",
    "an empty fence": "```python\n```",
    "null byte": "\0",
    "binary": "".join(map(chr, range(32))) * 50,
}


@pytest.mark.parametrize("answer", NOTHING.values(), ids=NOTHING)
def test_an_answer_without_a_program_gives_none(answer):
    assert extract_program(STUB, "solve", answer) == ""


def test_the_answers_own_definitions_win_over_the_stubs():
    program = extract_program(STUB, "solve", f"def helper(x):\n    return 0\n\n\n{WHOLE}")
    space: dict = {}
    exec(program, space)
    assert space["solve"]([1, 2]) == 0


def test_imports_inside_the_stubs_function_reach_a_whole_function():
    stub = 'def solve(x):\n    import math\n    """ Round up. """\n'
    space: dict = {}
    exec(extract_program(stub, "solve", "def solve(x):\n    return math.ceil(x)\n"), space)
    assert space["solve"](1.5) == 2


def test_a_cut_body_keeps_its_whole_lines():
    program = extract_program(
        STUB, "solve", "    total = 0\n    for x in xs:\n        total += helper(x)\n    return (tot"
    )
    assert program.endswith("        total += helper(x)\n")


def test_invalid_escapes_warn_nobody():
    assert extract_program(STUB, "solve", 'def solve(xs):\n    return "\\d"\n')


@pytest.mark.parametrize(
    "text",
    ["x = (\n" * 3000, "try:\n" + "    x = 1\n" * 3000, "if x:\n" * 3000, "(" * 5000, "def f():\n  pass\n ?\n" * 1000],
    ids=["brackets", "try without except", "headers", "deep", "many errors"],
)
def test_bad_text_takes_few_parses(text, monkeypatch):
    count = 0
    parse = ast.parse

    def counting(*arguments):
        nonlocal count
        count += 1
        return parse(*arguments)

    monkeypatch.setattr(ast, "parse", counting)
    parseable_prefix(text)
    assert count <= 80


def test_the_prefix_is_the_longest_that_parses():
    lines = ["a = 1", "def f(x):", "    y = [", "        1,", "    ]", "    return y", "b = f(a", "c = 3"]
    parses = []
    for end in range(len(lines) + 1):
        try:
            ast.parse("\n".join(lines[:end]))
            parses.append(end)
        except SyntaxError:
            pass
    assert parseable_prefix("\n".join(lines)) == "\n".join(lines[: max(parses)]) + "\n"
