"""Asserts become calls and conditions; what does more than assert is refused."""

import time

import pytest

from xft.eval.asserts import CannotSplitError, split_asserts, split_check


def run(checks, function):
    """Do what the sandbox does."""
    return [check.holds([function(*arguments) for arguments in check.calls]) for check in checks]


def test_a_call_is_taken_out_of_its_condition():
    (check,) = split_asserts("assert f([1, 2], x_y) == (3, {'a'})".replace("x_y", "'b'"), ["f"])
    assert check.calls == (([1, 2], "b"),)
    assert check.holds([(3, {"a"})])
    assert not check.holds([[3, {"a"}]])


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("assert abs(f(1.33) - 0.33) < 1e-6", 0.3300001, 0.34),
        ("assert not f('a')", "", "x"),
        ("assert f(1) is None", None, 0),
        ("assert f(1)", [0], []),
        ("assert tuple(f(1)) == tuple([1, 2])", [1, 2], 12),
        ("assert set(f(1)) == {1, 2}", [2, 1, 1], [1]),
        ("assert 1 < f(1) <= 3 and f(1) != 2", 3, 2),
        ("assert sorted(f(1))[:2] == [x * 2 for x in range(2)]", [9, 2, 0], [9]),
        ("assert f(-1) == -1 or f(1) == 5", 5, 6),
        ("assert len(f(1)) == sum([i ** 2 for i in [1, 1]])", "ab", 2),
    ],
)
def test_conditions_are_evaluated_as_python_does(text, right, wrong):
    checks = split_asserts(text, ["f"])
    assert run(checks, lambda *_: right) == [True]
    assert run(checks, lambda *_: wrong) == [False]


def test_loops_and_names_are_followed():
    source = (
        "for x in range(2, 4):\n    assert f(x, x + 1) == str(x)\nn = [1, 2]\ns = sum(n)\nassert f(n) == s, 'message'"
    )
    checks = split_asserts(source, ["f"])
    assert [check.calls for check in checks] == [((2, 3),), ((3, 4),), (([1, 2],),)]
    assert run(checks, lambda first, *_: 3 if first == [1, 2] else str(first)) == [True] * 3
    assert run(checks, lambda *_: "2") == [True, False, False]


def test_an_error_in_a_condition_means_that_it_does_not_hold():
    (check,) = split_asserts("assert abs(f(1) - 1) < 2", ["f"])
    assert not check.holds(["text"])
    assert not check.holds([None])


@pytest.mark.parametrize(
    ("text", "right", "hostile"),
    [
        ("assert 'ab' * f(2) == 'abab'", 2, 10**9),
        ("assert f(2) * 10 ** 9 == 2 * 10 ** 9", 2, "ab"),
        ("assert sum(range(f(3))) == 3", 3, 10**12),
        ("assert len(range(1, f(3))) == 2", 3, 10**12),
        ("assert 1 << f(3) == 8", 3, 10**12),
        ("assert 2 ** f(3) == 8", 3, 10**12),
        ("assert f(3) ** 200000 > 1", 3, 10**9),
        ("assert f(3) % 2 == 1", 3, "%1000000000d"),
        ("assert len([0] * f(3) * 2) == 6", 3, 10**9),
    ],
)
def test_an_answer_can_not_make_a_condition_compute_without_end(text, right, hostile):
    began = time.monotonic()
    checks = split_asserts(text, ["f"])
    assert run(checks, lambda *_: right) == [True]
    assert run(checks, lambda *_: hostile) == [False]
    assert time.monotonic() - began < 2


def test_every_name_of_the_function_counts():
    (check,) = split_asserts("assert candidate(1) == f(1)", ["candidate", "f"])
    assert check.calls == ((1,), (1,))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import random\nassert f(1) == 1", "more than asserts"),
        ("assert f(random.random()) == 1", "Attribute"),
        ("assert f(1) == helper(1)", "unknown name helper"),
        ("assert f(x=1) == 1", "keywords"),
        ("assert f(*[1]) == 1", "star"),
        ("assert f(9 ** 10 ** 10) == 1", "OverflowError"),
        ("assert f(1).a == 1", "Attribute"),
        ("assert (lambda: f(1))()", "Lambda"),
        ("assert f(f(1)) == 1", "unknown name f"),
        ("assert 1 == 1", "no assert calls"),
        ("assert f(1", "not Python"),
        ("x = [1]\nassert f(x) == x", "after the candidate could change it"),
        ("x = [1]\nassert f(x) == 1\nassert f(x) == 1", "unknown name x"),
        ("for i in range(2000):\n    assert f(i)", "too many"),
        ("assert f([1][5])", "IndexError"),
        ("while True:\n    assert f(1)", "more than asserts"),
        ("assert f'{f(1)}' == 1", "JoinedStr"),
        ("assert f(__import__('os')) == 1", "unknown name __import__"),
    ],
)
def test_what_cannot_be_split_says_why(source, reason):
    with pytest.raises(CannotSplitError, match=reason.replace("(", r"\(")):
        split_asserts(source, ["f"])


def test_the_check_of_humaneval_is_split():
    body = "    'Doc.'\n    print\n    assert candidate(1) == 2\n"
    source = f"METADATA = {{'author': 'x'}}\n\ndef check(candidate):\n{body}\ncheck(f)\n"
    (check,) = split_check(source, "f")
    assert check.calls == ((1,),)
    for more in ("def helper(): pass\n", "import os\n", "check = 1\nexit()\n", "check(f)\n"):
        with pytest.raises(CannotSplitError, match="more than the one function"):
            split_check(more + source, "f")
