import itertools
import math
import random

import pytest

from xft.eval.metrics import mean_interval, paired_difference, paired_rates, pass_at_k, wilson_interval


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 4), (7, 5, 3)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(n, c, k):
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_refuses_more_than_there_are_samples():
    with pytest.raises(ValueError, match="pass@10 needs at least 10 samples, got 1"):
        pass_at_k(1, 0, 10)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0)])
def test_pass_at_k_refuses_counts_without_sense(n, c, k):
    with pytest.raises(ValueError, match="needs k >= 1"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_interval_has_the_published_values(passed, total, low, high):
    assert wilson_interval(passed, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_its_equation():
    for share in wilson_interval(37, 164):
        assert abs(37 / 164 - share) == pytest.approx(1.959964 * math.sqrt(share * (1 - share) / 164), rel=1e-5)


def test_wilson_interval_refuses_nothing():
    with pytest.raises(ValueError, match="total >= 1"):
        wilson_interval(0, 0)


def test_mean_interval_agrees_with_the_normal_one_for_many_values():
    generator = random.Random(1)
    values = [generator.gauss(3.0, 2.0) for _ in range(1000)]
    mean = sum(values) / 1000
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / 999 / 1000)
    assert mean_interval(values) == pytest.approx((mean - half, mean + half), abs=0.01)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)


def test_mean_interval_refuses_one_value_and_nan():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        mean_interval([0.5])
    with pytest.raises(ValueError, match="not finite"):
        mean_interval([0.5, math.nan])


def test_equal_models_differ_by_nothing():
    values = [0, 1, 1, 0, 1]
    same = paired_difference(values, values, seed=0)
    assert (same.mean, same.low, same.high, same.verdict) == (0.0, 0.0, 0.0, "can't tell")


def test_models_that_did_alike_on_a_few_problems_may_still_differ():
    """About what Bonett and Price's interval gives for no discordant pair: 1.96 * sqrt(2) / (n + 2)."""
    for n in (10, 164):
        same = paired_rates([1.0] * n, [1.0] * n)
        half = 1.96 * math.sqrt(2) / (n + 2)
        assert (same.mean, same.verdict) == (0.0, "can't tell")
        assert (same.low, same.high) == pytest.approx((-half, half), rel=0.25)


def test_the_interval_of_a_rate_has_width_when_all_problems_are_alike():
    for rate in (0.0, 0.5, 1.0):
        low, high = mean_interval([rate] * 20, bounds=(0.0, 1.0))
        assert 0 <= low <= rate <= high <= 1
        assert 0.05 < high - low < 0.2


def test_intervals_of_rates_hold_the_truth_about_as_often_as_they_say():
    """20 problems, 5 samples each; the probability of a pass differs from problem to problem."""
    generator = random.Random(4)
    held = 0
    for trial in range(200):
        chances = [generator.random() ** 4 for _ in range(20)]
        rates = [sum(generator.random() < chance for _ in range(5)) / 5 for chance in chances]
        low, high = mean_interval(rates, seed=trial, bounds=(0.0, 1.0))
        held += low <= 1 / 5 <= high
    assert held / 200 > 0.92


def test_a_clear_difference_has_a_direction_that_the_metric_decides():
    generator = random.Random(2)
    base = [generator.gauss(1.0, 0.5) for _ in range(100)]
    lower = [value - 0.1 + generator.gauss(0, 0.1) for value in base]
    loss = paired_difference(lower, base, seed=0, higher_is_better=False)
    assert loss.verdict == "better"
    assert loss.low < loss.mean < loss.high < 0
    assert paired_difference(lower, base, seed=0).verdict == "worse"
    back = paired_difference(base, lower, seed=0, higher_is_better=False)
    assert back.mean == pytest.approx(-loss.mean)
    assert back.verdict == "worse"


@pytest.mark.parametrize(("wins", "verdict"), [(1, "can't tell"), (3, "can't tell"), (5, "can't tell"), (6, "better")])
def test_few_wins_without_a_loss_are_no_proof(wins, verdict):
    """The exact sign test: 2 * 0.5 ** wins; the plain bootstrap would be sure from the first."""
    found = paired_difference([1] * wins, [0] * wins, seed=0)
    assert found.verdict == verdict
    assert (found.low <= 0 <= found.high) == (verdict == "can't tell")


@pytest.mark.parametrize(("wins", "losses", "verdict"), [(12, 8, "can't tell"), (20, 4, "better"), (4, 20, "worse")])
def test_paired_passes_follow_the_problems_that_differ(wins, losses, verdict):
    a = [1] * wins + [0] * losses + [1] * 60 + [0] * 80
    b = [0] * wins + [1] * losses + [1] * 60 + [0] * 80
    found = paired_difference(a, b, seed=0)
    assert found.verdict == verdict
    assert found.mean == pytest.approx((wins - losses) / len(a))
    assert found == paired_difference(a, b, seed=0)


def test_paired_difference_refuses_other_items():
    with pytest.raises(ValueError, match="same items, got 2 and 3"):
        paired_difference([1, 0], [1, 0, 1], seed=0)
    with pytest.raises(ValueError, match="no items"):
        paired_difference([], [], seed=0)
