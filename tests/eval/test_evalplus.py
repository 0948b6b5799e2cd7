"""EvalPlus's comparison, its special oracles, and the ground truth in the cache."""

import contextlib
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xft.errors import DataError
from xft.eval import evalplus
from xft.eval.benchmark import Problem
from xft.eval.benchmarks import humaneval, mbpp
from xft.eval.evalplus import GroundTruth, Known, PlusTests, equal
from xft.eval.functions import shown
from xft.eval.sandbox import Call, Outcome, Returned
from xft.eval.sandbox.values import Opaque, encode

# --- comparison -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "answer", "atol"),
    [
        *((1, 1, 0), (1, 1.0, 0), (1, True, 0), (1, np.int64(1), 0), ([1, 2], [1.0, 2], 0), ("a", "a", 0)),
        *(
            (0.1 + 0.2, 0.3, 0),
            (1e9, 1e9 + 50, 0),
            (0.0, 9e-7, 0),
            ([0.3], [0.1 + 0.2], 0),
            ((0.3, 1.0), (0.1 + 0.2, 1.0), 0),
        ),
        *((math.inf, math.inf, 0), ({1, 2}, {2, 1}, 0), ({1, 2}, frozenset({1, 2}), 0), ({"a": 1}, {"a": 1.0}, 0)),
        *((1.0, 1.00009, 1e-4), ([1, 2], [1, 2], 1e-4), (10, 10, 1e-4), (None, None, 0)),
    ],
)
def test_answers_that_evalplus_takes(expected, answer, atol):
    assert equal((), expected, answer, atol)


@pytest.mark.parametrize(
    ("expected", "answer", "atol"),
    [
        *((1, 2, 0), ([1, 2], (1, 2), 0), ((1, 2), [1, 2], 0), (0.0, 2e-6, 0), (0.3, 0.1 + 0.2 + 1e-5, 0)),
        *((0.5 + 1e-9, np.float64(0.5), 0), (1.0, 1 + 1e-9 + 0j, 0), ([0.3], (0.1 + 0.2,), 0), ([0.3], [0.3, 0.3], 0)),
        *(
            (1, 1 + 1e-9, 0),
            ([1, 0.5], [1, 0.5 + 1e-9], 0),
            ("a", "b", 1e-4),
            (None, 0, 0),
            ([1, 2], Opaque("list"), 0),
        ),
        *((math.nan, math.nan, 0), (math.inf, -math.inf, 0), (True, None, 0), ({"a": 0.1 + 0.2}, {"a": 0.3}, 0)),
    ],
)
def test_answers_that_evalplus_refuses(expected, answer, atol):
    with contextlib.suppress(TypeError, ValueError):  # an error counts as wrong, see `judge_plus`
        assert not equal((), expected, answer, atol)


def test_an_array_is_not_the_list_of_its_items():
    with pytest.raises(ValueError, match="ambiguous"):
        equal((), [1, 2], np.array([1, 2]), 0)


def test_any_zero_of_the_polynomial_will_do():
    oracle = humaneval.ORACLES["find_zero"]
    coefficients = ([-6.0, 11.0, -6.0, 1.0],)
    for zero in (1, 2.0, 3.00000001, np.float64(1.0)):
        assert oracle(coefficients, 1.0, zero, 1e-4)
    for answer in (1.01, math.nan, math.inf):
        assert not oracle(coefficients, 1.0, answer, 1e-4)


def test_order_and_repetition_do_not_matter_where_sets_are_compared():
    oracle = mbpp.ORACLES["similar_elements"]
    assert oracle((), (4, 5), [5, 4, 4], 0)
    assert not oracle((), (4, 5), (4,), 0)
    assert not oracle((), (4, 5), (4, 5, 6), 0)


def test_a_match_counts_as_true():
    oracle = mbpp.ORACLES["check_str"]
    found = Opaque("re.Match")
    assert oracle((), found, found, 0)
    assert oracle((), found, True, 0)
    assert oracle((), found, 0, 0)
    assert oracle((), None, False, 0)
    assert oracle((), None, None, 0)
    assert not oracle((), found, None, 0)
    assert not oracle((), found, False, 0)
    assert not oracle((), None, found, 0)


def test_two_readings_of_a_task_are_both_right():
    surface, distance = mbpp.ORACLES["surface_Area"], mbpp.ORACLES["digit_distance_nums"]
    assert surface((3, 4), 33, 33, 0)
    assert surface((3, 4), 33, 35, 0)
    assert not surface((3, 4), 33, 34, 0)
    assert distance((12345, 9), 8, 8, 0)
    assert distance((12345, 9), 8, 14, 0)
    assert not distance((12345, 9), 8, 9, 0)


def test_arguments_get_the_types_that_json_lacks():
    assert mbpp.ARGUMENTS[2]([[1, 2], [3]]) == ((1, 2), (3,))
    assert mbpp.ARGUMENTS[63]([[[1, 2]]]) == ([(1, 2)],)
    assert mbpp.ARGUMENTS[75]([[[1, 2]], 3]) == ([(1, 2)], 3)
    assert mbpp.ARGUMENTS[106]([[1], [2]]) == ([1], (2,))
    assert mbpp.ARGUMENTS[115]([[[1, 2], [], 5]]) == ([{1, 2}, {}, {}],)
    assert mbpp.ARGUMENTS[124](["1", "2j"]) == (1.0, 2j)
    assert mbpp.ARGUMENTS[252](["1+2j"]) == (1 + 2j,)
    assert mbpp.ARGUMENTS[259]([[[1, 2]], [[3]]]) == (((1, 2),), ((3,),))
    assert mbpp.ARGUMENTS[278]([[1, [2, [3]]]]) == ((1, (2, [3])),)
    assert mbpp.ARGUMENTS[307]([[1], 2, 3]) == ((1,), 2, 3)
    assert mbpp.ARGUMENTS[580]([[1, [2, [3]]]]) == ((1, (2, (3,))),)
    assert mbpp.ARGUMENTS[722]([{"a": [1]}, 2]) == ({"a": (1,)}, 2)


# --- ground truth -----------------------------------------------------------------------------------------------------

INPUTS = {"base": [(1,), (2,)], "plus": [(3,)]}


class Canonical:
    """A sandbox that doubles; counts how often it was asked."""

    def __init__(self, status="passed"):
        self.asked, self.status = 0, status

    def call(self, code, entry_point, calls, judge, *, memory_mb):
        self.asked += 1
        for index, call in enumerate(calls):
            assert judge(index, Returned(encoded=encode((2 * call.arguments[0],)))) is None
        return Outcome(status=self.status, seconds=0.0, error="", at=0)


def problem(task_id="t/1", digest="d" * 64):
    tests = PlusTests(inputs=INPUTS, atol=0, digest=digest)
    return Problem(task_id=task_id, stub="", entry_point="f", canonical="", tests=tests)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XFT_CACHE", str(tmp_path))
    return lambda: next((tmp_path / "ground-truth").glob("*/*"))


def answers(known):
    return {part: [each.answer for each in known[part]] for part in known}


WANTED = {"base": [(2,), (4,)], "plus": [(6,)]}


def test_expected_outputs_are_computed_once(cache):
    sandbox = Canonical()
    truth = GroundTruth("x")
    assert answers(truth.of(problem(), sandbox)) == WANTED
    assert answers(truth.of(problem(), sandbox)) == WANTED
    assert answers(GroundTruth("x").of(problem(), sandbox)) == WANTED
    assert sandbox.asked == 2  # base and plus
    assert cache().parent.name.startswith("x-dddddddddddddddd-py3.")


def test_other_data_have_other_expected_outputs(cache):
    sandbox = Canonical()
    truth = GroundTruth("x")
    truth.of(problem(), sandbox)
    truth.of(problem(digest="e" * 64), sandbox)
    assert sandbox.asked == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"\xff",
        lambda data: b"[]\n",
        lambda data: b"{}\n",
        lambda data: data[:-1],
        lambda data: data.replace(b"6", b"7"),
        lambda data: data.replace(b'"base"', b'"bass"'),
        lambda data: data.replace(b'"plus": [', b'"plus": [0.5, '),
        lambda data: data.replace(b'"plus": [', b'"plus": ["x", '),
    ],
)
def test_a_damaged_cache_is_mended(cache, spoil):
    GroundTruth("x").of(problem(), Canonical())
    cache().write_bytes(spoil(cache().read_bytes()))
    sandbox = Canonical()
    assert answers(GroundTruth("x").of(problem(), sandbox)) == WANTED
    assert sandbox.asked == 2
    assert answers(GroundTruth("x").of(problem(), sandbox)) == WANTED
    assert sandbox.asked == 2


def test_many_writers_do_not_spoil_the_cache(cache):
    names = [f"t/{number}" for number in range(20)]

    def write(name):
        return GroundTruth("x").of(problem(name), Canonical())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, names * 3))
    sandbox = Canonical()
    truth = GroundTruth("x")
    assert all(answers(truth.of(problem(name), sandbox)) == WANTED for name in names)
    assert sandbox.asked == 0


def test_a_canonical_solution_that_fails_is_an_error_of_the_data(cache):
    with pytest.raises(DataError, match="t/1: the canonical solution fails on base input 0"):
        GroundTruth("x").of(problem(), Canonical("failed"))


def test_time_limits_follow_the_canonical_solution(cache, monkeypatch):
    GroundTruth("x").of(problem(), Canonical())
    head, _, body = cache().read_bytes().partition(b"\n")
    cache().write_bytes(json.dumps({**json.loads(head), "base": [1.5, 100.0]}).encode() + b"\n" + body)
    known = GroundTruth("x").of(problem(), Canonical())
    assert [each.call.seconds for each in known["base"]] == [6.0, 60.0]
    assert [each.call.seconds for each in known["plus"]] == [4.0]


# --- verdicts ---------------------------------------------------------------------------------------------------------


class Answers:
    """A sandbox whose candidate gives these answers, first to the base and then to the plus inputs."""

    def __init__(self, *sets):
        self.sets = iter(sets)

    def call(self, code, entry_point, calls, judge, *, memory_mb):
        for index, (_, answer) in enumerate(zip(calls, next(self.sets), strict=True)):
            if error := judge(index, Returned(encoded=encode(answer))):
                return Outcome(status="wrong", seconds=0.1, error=error, at=index)
        return Outcome(status="passed", seconds=0.1)


def verdict(*sets, expected=WANTED):
    known = {
        part: [
            Known(call=Call(arguments=arguments, seconds=1.0), encoded=encode(answer))
            for arguments, answer in zip(INPUTS[part], expected[part], strict=True)
        ]
        for part in INPUTS
    }
    return evalplus.judge_plus(problem(), "", Answers(*sets), known, equal)


def test_an_answer_passes_when_base_and_plus_pass():
    right = verdict([(2,), (4,)], [(6,)])
    assert (right.status, dict(right.parts)) == ("passed", {"base": True, "plus": True})
    base_only = verdict([(2,), (4,)], [(7,)])
    assert (base_only.status, dict(base_only.parts)) == ("wrong", {"base": True, "plus": False})
    assert base_only.error == f"plus: wrong answer to input 0: ({INPUTS['plus'][0][0]!r}) gives (7,), not (6,)"
    plus_only = verdict([(2,), [4]], [(6,)])
    assert (plus_only.status, dict(plus_only.parts)) == ("wrong", {"base": False, "plus": True})


def test_a_tolerance_does_not_leak_to_the_next_input():
    expected = {"base": [0.3, 1], "plus": [2]}
    assert verdict([0.1 + 0.2, 1], [2], expected=expected).status == "passed"
    assert verdict([0.1 + 0.2, 1 + 1e-9], [2], expected=expected).status == "wrong"


def test_an_answer_that_breaks_the_comparison_is_wrong():
    for odd in (np.array([1, 2]), np.array([]), "x" * 10, {1: 2}, Opaque("x"), [[1.0], 2], 10**400):
        assert not verdict([odd, odd], [odd], expected={"base": [[0.5, 0.5]] * 2, "plus": [0.5]}).parts["base"]


def test_nan_and_opaque_answers_are_never_right_for_looking_alike():
    for odd in (math.nan, [math.nan], Opaque("x")):
        verdict_of = verdict([odd, 1], [2], expected={"base": [odd, 1], "plus": [2]})
        assert dict(verdict_of.parts) == {"base": False, "plus": True}


def test_an_answer_that_is_no_encoding_is_wrong():
    known = {part: [Known(call=Call(arguments=(1,), seconds=1.0), encoded=encode(1))] for part in INPUTS}

    class Forger:
        def call(self, code, entry_point, calls, judge, *, memory_mb):
            return Outcome(status="wrong", seconds=0.1, error=judge(0, Returned(encoded=b"{")) or "none")

    assert evalplus.judge_plus(problem(), "", Forger(), known, equal).error == (
        "base: wrong answer to input 0: (1) gives what can't be compared, not 1"
    )


def test_a_value_is_shown_whatever_it_is():
    assert shown("x" * 500) == repr("x" * 500)[:28] + "..." + "x" * 28 + "'"
    assert shown(10**5000) == "<int>"
    assert len(shown([[list(range(100))] * 50] * 50)) <= 100
    assert shown(Opaque("generator")) == "<generator>"
