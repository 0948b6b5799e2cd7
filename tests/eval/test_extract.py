import ast

import pytest

from xft.eval.extract import extract_program, find_program, parseable_prefix, segments, without_demo

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
WHOLE_DOCUMENTED = WHOLE.replace(":\n", ':\n    """Sum."""\n', 1)

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
    "future import in brackets": f"from __future__ import (\n    annotations,\n)\n\n\n{WHOLE}",
    "future import behind a docstring": f'"""Sums."""\nfrom __future__ import annotations\nimport math\n\n{WHOLE}',
    "its own demo behind it": f"{WHOLE}\nassert solve([1]) == 4\nprint(solve(input()))\n",
    "a script behind it": f"{WHOLE}\nif __name__ == '__main__':\n    xs = input()\n    print(solve(xs))\n",
    "loops, blocks and unread variables behind it": f"{WHOLE}\nxs = input()\nfor x in xs:\n    solve(x)\n"
    "try:\n    solve(y)\nexcept ValueError:\n    pass\nwith open('no') as f:\n    z = f.read()\nw: int = solve(1)\n",
    "body and demo": f"{BODY}\nassert solve([1]) == 4\n",
    "what it needs behind it": "def solve(xs):\n    return sum(table) + sum(helper(x) for x in xs)\n\n"
    "zero = 0\ntable = []\ntable += [zero]\nprint(solve(table))\nimport math\n\ndef helper(x):\n    return x + 1\n",
    "decorated where it ends": "import functools\ndef solve(xs):\n    return sum(map(helper, xs))\n"
    "solve = functools.cache(solve)\nsolve.limit = 3\nprint(nothing)\nsolve = lambda xs, f=solve: f(tuple(xs))\n",
    "statements before it": f"import sys\nsys.setrecursionlimit(5000)\nassert sys\n{WHOLE}",
    "a draft in its thoughts": f"def solve(xs):\n    return 0\n\nNo.\n```python\nx\n```\n</think>\n\n{WHOLE}",
    "a stub first": f"```python\ndef solve(xs):\n    pass\n```\nNow:\n```python\n{WHOLE}```",
    "a stub that raises first": "def solve(xs):\n"
    f'    """Later."""\n    raise NotImplementedError("x")\n\nNow so:\n\n{WHOLE}',
    "a fence in its docstring": WHOLE.replace(
        ":\n", ':\n    """Sum.\n\n    ```\n    solve([1])\n    ```\n    """\n', 1
    ),
    "a docstring that is never closed": f'```python\ndef solve(xs):\n    """Sum.\n```\nSo:\n```\n{WHOLE_DOCUMENTED}```',
    "a lambda": "Sure:\n\nsolve = lambda xs: sum(helper(x) for x in xs)\n",
    "a lambda with a type": "from typing import Callable\n"
    "solve: Callable[[list], int] = lambda xs: sum(map(helper, xs))\n",
    "another name of a function": "def total(xs):\n    return sum(map(helper, xs))\n\nsolve = total\n",
    "helpers in fences of their own": "```python\nimport operator\n```\nThen\n```python\ndef one(x):\n"
    "    return operator.add(x, 1)\nprint(two(1))\n```\nand\n```python\nfrom __future__ import annotations\n"
    "def solve(xs):\n    return sum(map(one, xs))\n```",
    "talk as a comment before its fence": f"# Here is the solution.\n```python\n{WHOLE}",
    "a closing fence at the very end": f"{WHOLE}```",
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


def test_the_first_definition_that_does_something_wins():
    text = "```python\ndef f(x):\n    {}\n```\nor\n```python\ndef f(x):\n    return 2\n```"
    assert "return 1" in extract_program("", "f", text.format("return 1"))
    assert "return 2" in extract_program("", "f", text.format("raise NotImplementedError"))
    assert "pass" in extract_program("", "f", "def f(x):\n    pass\n")


def test_a_body_that_assigns_to_the_functions_name_is_a_body():
    body = "    solve = sum(map(helper, xs))\n    if solve:\n        return solve\n    return 0\n"
    space: dict = {}
    exec(extract_program(STUB, "solve", body), space)
    assert space["solve"]([1, 2]) == 5


def test_a_demo_stays_where_a_script_is_asked_for():
    answer = f"{WHOLE}\nprint(solve([1]))\n"
    assert find_program("", {"solve"}, answer) == answer
    assert without_demo(answer, {"solve"}) == WHOLE
    assert without_demo(answer, {"other"}) == answer
    assert without_demo("def f():\n    return x\n\n\nx = 1; f()\n", {"f"}).endswith("x = 1; f()\n")
    assert without_demo("class A:\n    x = 1\n\n\nA.x = 2\nA()\n", {"A"}) == "class A:\n    x = 1\n\n\nA.x = 2\n"


def test_a_demo_before_the_function_does_not_come_with_its_helper():
    answer = "```python\nitems = [f(1)]\nprint(items)\n```\n```python\ndef f(x):\n    return x.items()\n```"
    assert extract_program("", "f", answer).strip() == "def f(x):\n    return x.items()"


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        ("a\n```Python \nb\n  ~~~\nc", [("", "a\n"), ("python", "\nb\n"), ("", "\nc")]),
        ("<think>\n```\nx\n```\n</think>y", [("", "y")]),
        ('text.split("</think>")', [("", 'text.split("</think>")')]),
        ('x = """\n```\n"""\n```\ny', [("", 'x = """\n```\n"""\n'), ("", "\ny")]),
        ('Use """.\n```\ny', [("", 'Use """.\n'), ("", "\ny")]),
    ],
)
def test_an_answer_is_cut_at_its_fences(answer, cut):
    assert segments(answer) == cut


@pytest.mark.parametrize("text", ["</think>'", '"""', '""" \ndef ', "```\n", '"""\n```\n', "'\n```"])
def test_long_answers_are_cut_in_linear_time(text):
    segments(text * 30_000)


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
