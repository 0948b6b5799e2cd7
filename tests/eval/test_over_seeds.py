"""Statistics over seeds against tables, cases done by hand, and simulations in which nothing differs."""

import itertools
import math

import numpy as np
import pytest

from xft.eval.metrics import paired_difference, paired_rates, smallest_difference
from xft.eval.over_seeds import (
    compare_over_seeds,
    estimate_over_seeds,
    least_p,
    seeds_for,
    sign_flip_p,
    t_quantile,
)


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 9, 2.262),
        (0.975, 30, 2.042), (0.8, 1, 1.376), (0.8, 2, 1.061), (0.8, 7, 0.896), (0.95, 5, 2.015), (0.5, 3, 0.0),
    ],
)  # fmt: skip
def test_quantiles_of_students_t_are_the_tables(share, freedom, value):
    assert t_quantile(share, freedom) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 4.0], 2 / 8),  # only all plus and all minus are as far
        ([1.0, -2.0, 4.0], 6 / 8),  # sums of 3 or more: 3, 5, 7 and their negatives
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2 / 64),
        ([0.0, 0.0], 1.0),
        ([3.0], 1.0),
    ],
)
def test_the_sign_flip_test_counts_all_signs(differences, p):
    assert sign_flip_p(differences) == p


def test_with_many_seeds_random_signs_stand_for_all():
    differences = np.array([0.1 * (k % 5) - 0.15 for k in range(17)])
    signs = np.array(list(itertools.product((1, -1), repeat=17)))
    exact = (abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert sign_flip_p(differences.tolist()) == pytest.approx(exact, abs=0.02)


def test_so_many_seeds_can_reach_a_p():
    assert [least_p(seeds) for seeds in (1, 3, 5)] == [1.0, 0.25, 0.0625]
    assert (seeds_for(0.05), seeds_for(0.01)) == (6, 8)
    assert least_p(6) <= 0.05 < least_p(5)
    assert least_p(8) <= 0.01 < least_p(7)


def named(rows):
    return [{str(item): float(value) for item, value in enumerate(row)} for row in rows]


def apart(values):
    """Give each seed items of its own."""
    return [{f"{seed} {item}": value for item, value in each.items()} for seed, each in enumerate(values)]


def test_without_spread_between_items_the_interval_is_students_t():
    a, b = named([[2.0] * 4, [3.0] * 4, [7.0] * 4]), named([[1.0] * 4] * 3)
    found = compare_over_seeds(a, b)
    assert found.seeds == (1.0, 2.0, 6.0)
    assert found.difference.mean == 3.0
    half = 4.3027 * math.sqrt(7) / math.sqrt(3)  # the variance of 1, 2, 6 is 7
    assert (found.difference.low, found.difference.high) == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert found.difference.verdict == "can't tell"
    assert found.relative == 3.0
    assert found.p == 0.25
    assert found.items == 12
    assert found.smallest == pytest.approx((4.3027 + 1.0607) * math.sqrt(7 / 3), abs=1e-3)


def test_without_spread_between_seeds_the_interval_is_that_of_the_shared_problems():
    generator = np.random.default_rng(1)
    problems = generator.normal(0.5, 1.0, 200)
    a, b = named([problems] * 5), named([[0.0] * 200] * 5)
    found = compare_over_seeds(a, b)
    half = 1.96 * problems.std() / math.sqrt(200)
    assert found.difference.low == pytest.approx(problems.mean() - half, abs=0.01)
    assert found.difference.high == pytest.approx(problems.mean() + half, abs=0.01)
    assert found.difference.verdict == "better"
    own = compare_over_seeds(apart(a), apart(b))  # each seed's own, so the problems' luck averages out
    assert own.difference.high - own.difference.low == pytest.approx(2 * half / math.sqrt(5), rel=0.05)


def test_a_lower_loss_is_better_and_the_order_of_items_does_not_count():
    a = [{"x": 1.0, "y": 2.0, "z": 3.0}, {"x": 1.1, "y": 2.1, "z": 3.1}]
    b = [{"z": 4.0, "y": 3.0, "x": 2.0}, {"z": 4.1, "x": 2.1, "y": 3.1}]
    found = compare_over_seeds(a, b, higher_is_better=False)
    assert found.difference.verdict == "better"
    assert found.difference.mean == pytest.approx(-1.0)
    assert compare_over_seeds(b, a, higher_is_better=False).difference.verdict == "worse"


def test_one_seed_falls_back_on_the_paired_bootstrap_of_items():
    generator = np.random.default_rng(2)
    a, b = (generator.random(30) < 0.6).tolist(), (generator.random(30) < 0.4).tolist()
    found = compare_over_seeds(named([a]), named([b]), bounds=(-1.0, 1.0))
    assert found.difference == paired_rates([float(x) for x in a], [float(x) for x in b])
    assert found.p is None
    assert found.smallest == smallest_difference([float(x) for x in a], [float(x) for x in b])
    losses = compare_over_seeds(named([a]), named([b]), higher_is_better=False)
    assert losses.difference == paired_difference([float(x) for x in a], [float(x) for x in b], higher_is_better=False)


def test_methods_that_did_alike_on_all_problems_are_not_taken_for_equal():
    alike = named([[1.0, 0.0, 1.0, 0.0]] * 3)
    found = compare_over_seeds(alike, alike, bounds=(-1.0, 1.0))
    assert found.difference.mean == 0.0
    assert found.difference.low < 0 < found.difference.high
    assert found.smallest > 0.1
    estimate = estimate_over_seeds(named([[0.0] * 20] * 3), bounds=(0.0, 1.0))
    assert estimate.high > 0.05


def test_an_item_that_one_seed_lost_leaves_the_others_in_their_places():
    whole = {str(item): float(item % 2) for item in range(20)}
    lost = {item: value for item, value in whole.items() if item != "7"}
    found = compare_over_seeds([whole, lost], [whole, lost], bounds=(-1.0, 1.0))
    assert (found.difference.mean, found.items) == (0.0, 39)
    assert estimate_over_seeds([{"x": 1.0}], bounds=(0.0, 1.0)).low == 0.0
    assert estimate_over_seeds([{"x": 1.0}]).high == 1.0


def test_items_that_some_seeds_share_are_drawn_for_them_together():
    generator = np.random.default_rng(4)
    pool = dict(zip(map(str, range(300)), generator.normal(0.0, 1.0, 300), strict=True))
    own = [dict(list(pool.items())[100 * seed : 100 * seed + 100]) for seed in range(3)]
    half = [dict(list(pool.items())[50 * seed : 50 * seed + 100]) for seed in range(3)]

    def width(values):
        zeros = [dict.fromkeys(each, 0.0) for each in values]
        found = compare_over_seeds([{k: v - sum(x.values()) / 100 for k, v in x.items()} for x in values], zeros)
        return found.difference.high - found.difference.low  # all seeds' means are 0

    alone, same = width(own), width([own[0]] * 3)
    assert same == pytest.approx(alone * math.sqrt(3), rel=0.15)
    assert alone * 1.1 < width(half) < same * 0.95


def test_intervals_end_where_values_do():
    found = compare_over_seeds(named([[1.0, 1.0], [-1.0, 1.0]]), named([[0.0, 0.0]] * 2), bounds=(-1.0, 1.0))
    assert (found.difference.low, found.difference.high) == (-1.0, 1.0)
    rates = estimate_over_seeds(named([[0.0] * 9 + [1.0], [0.0] * 7 + [1.0] * 3]), bounds=(0.0, 1.0))
    assert rates.low == 0.0


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same seeds and items"):
        compare_over_seeds(named([[1.0, 2.0]]), named([[1.0]]))
    with pytest.raises(ValueError, match="same seeds and items"):
        compare_over_seeds(named([[1.0]] * 2), named([[1.0]]))
    with pytest.raises(ValueError, match="without items"):
        estimate_over_seeds([])
    with pytest.raises(ValueError, match="not finite"):
        compare_over_seeds(named([[math.nan], [1.0]]), named([[1.0], [1.0]]))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("between_seeds", "between_problems", "rest"), [(1.0, 0.0, 0.0), (0.0, 3.0, 3.0), (0.3, 3.0, 1.0), (0.0, 0.0, 5.0)]
)
@pytest.mark.parametrize("same_items", [True, False])
def test_where_nothing_differs_at_most_one_in_twenty_intervals_leaves_0_out(
    seeds, between_seeds, between_problems, rest, same_items
):
    """Luck of the seeds, of the problems (shared by the seeds, or each seed's own), and of each answer."""
    trials, items = 200, 50
    generator = np.random.default_rng(seeds)
    missed = 0
    for trial in range(trials):
        shape = (1 if same_items else seeds, items)
        values = between_problems * generator.standard_normal(shape) + rest * generator.standard_normal((seeds, items))
        values = values + between_seeds * generator.standard_normal((seeds, 1))
        a, b = named(values), named(np.zeros_like(values))
        pair = (a, b) if same_items else (apart(a), apart(b))
        found = compare_over_seeds(*pair, seed=trial).difference
        missed += not found.low <= 0 <= found.high
    assert missed <= 20  # 10 expected at 5%; more than 20 of 200 has a chance of 0.1%


@pytest.mark.slow
def test_an_effect_as_large_as_the_smallest_is_seen_about_4_times_in_5():
    generator = np.random.default_rng(5)
    seeds, items, spread = 5, 60, 1.0
    error = spread / math.sqrt(seeds)
    smallest = (t_quantile(0.975, seeds - 1) + t_quantile(0.8, seeds - 1)) * error
    seen, promised = 0, []
    for trial in range(300):
        values = smallest + spread * generator.standard_normal((seeds, 1)) + np.zeros((seeds, items))
        found = compare_over_seeds(named(values), named(np.zeros_like(values)), seed=trial)
        seen += found.difference.verdict == "better"
        promised.append(found.smallest)
    assert 0.72 < seen / 300 < 0.9
    assert np.mean(promised) == pytest.approx(smallest, rel=0.15)
