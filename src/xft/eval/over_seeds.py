"""Scores and differences over several training seeds: intervals that cover the seeds' luck and the problems' choice."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from xft.eval.metrics import (
    LEVEL,
    POWER,
    RESAMPLES,
    Difference,
    Floats,
    mean_interval,
    paired_difference,
    smallest_difference,
)

MOST_EXACT = 16
"""Seeds up to which all assignments of signs are counted out; with more, random ones are."""
Values = Sequence[Mapping[str, float]]
"""A value for each item, for each seed; an item that several seeds have has one name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds and items, with its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """Each seed's mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedDifference:
    """How a differs from b, paired by seed and item."""

    difference: Difference
    seeds: tuple[float, ...]
    """Each seed's mean of a - b."""
    items: int
    """The items compared, those of all seeds together."""
    relative: float | None
    """The difference as a share of b's mean; None where that is 0."""
    p: float | None
    """The exact sign-flip test's over seeds; None with one seed."""
    smallest: float
    """The difference that would be seen, at 5% two-sided, with a probability of 80%, given the spread."""


def estimate_over_seeds(values: Values, *, bounds: tuple[float, float] | None = None, seed: int = 0) -> Estimate:
    """Return the mean of per-item values over seeds, with its interval (as `compare_over_seeds` has it).

    With one seed the interval is the items' bootstrap, which does not cover the luck of training.

    Raises:
        ValueError: a seed without items, or a value that is not finite.
    """
    columns = _columns(values)
    means = tuple(float(column.mean()) for column in columns)
    if len(columns) == 1:
        alone = columns[0].size == 1  # of one item nothing is known but its bounds
        low, high = bounds or (means * 2) if alone else mean_interval(columns[0].tolist(), seed, bounds=bounds)
    else:
        low, high = _hull(means, _drawn(values, bounds, np.random.default_rng(seed)), bounds)
    return Estimate(mean=math.fsum(means) / len(means), low=low, high=high, seeds=means)


def compare_over_seeds(
    a: Values,
    b: Values,
    *,
    higher_is_better: bool = True,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> SeedDifference:
    """Compare two methods over seeds, paired by seed and by item.

    The interval is the wider one, at each end, of two: a bootstrap that draws seeds and items (a benchmark's problems,
    which all seeds have, or held-out pairs, of which seeds have their own, or some of the same), and Student's t over
    the seeds' means. The bootstrap alone is too sure with few seeds; t alone does not cover the choice of problems that
    seeds share. `bounds` are those of a difference, and of the interval. With one seed, the interval and the verdict
    are those of `paired_difference`.

    Raises:
        ValueError: the seeds or a seed's items differ, there are none, or a value is not finite.
    """
    if len(a) != len(b) or any(ours.keys() != theirs.keys() for ours, theirs in zip(a, b, strict=True)):
        raise ValueError("paired values need the same seeds and items")
    differences = [{item: ours[item] - theirs[item] for item in ours} for ours, theirs in zip(a, b, strict=True)]
    columns, means_b = _columns(differences), [float(column.mean()) for column in _columns(b)]
    means = tuple(float(column.mean()) for column in columns)
    mean, reference = math.fsum(means) / len(means), math.fsum(means_b) / len(means_b)
    if len(columns) == 1:
        ours, theirs = list(a[0].values()), [b[0][item] for item in a[0]]
        difference = paired_difference(ours, theirs, seed, higher_is_better=higher_is_better, bounds=bounds)
        p, smallest = None, smallest_difference(ours, theirs, bounded=bounds is not None)
    else:
        drawn = _drawn(differences, bounds, np.random.default_rng(seed))
        low, high = _hull(means, drawn, bounds)
        clear = low > 0 or high < 0
        better = (mean > 0) == higher_is_better
        difference = Difference(
            mean=mean, low=low, high=high, verdict="can't tell" if not clear else "better" if better else "worse"
        )
        p, smallest = sign_flip_p(means), _smallest(means, drawn)
    return SeedDifference(
        difference=difference,
        seeds=means,
        items=sum(column.size for column in columns),
        relative=mean / reference if reference else None,
        p=p,
        smallest=smallest,
    )


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p of a mean of paired differences: the share of all signs that give one as far from 0.

    Exact up to 16 differences; beyond, from random signs. It can't be below `least_p`.
    """
    values = np.asarray(differences, dtype=np.float64)
    observed = abs(values.sum()) * (1 - 1e-9)
    if values.size <= MOST_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=values.size)))
        return float((abs(signs @ values) >= observed).mean())
    random = np.random.default_rng(seed).choice((1.0, -1.0), size=(RESAMPLES, values.size))
    extreme = int((abs(random @ values) >= observed).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def least_p(seeds: int) -> float:
    """Return the smallest p that the sign-flip test can give with so many seeds."""
    return 2.0 ** (1 - seeds)


def seeds_for(p: float) -> int:
    """Return how many seeds the sign-flip test needs to be able to reach a p."""
    return math.ceil(1 - math.log2(p))


@lru_cache
def t_quantile(share: float, freedom: int) -> float:
    """Return the point of Student's t below which a share of it lies, from 0.5 on."""
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return high


def _t_share(t: float, freedom: int) -> float:
    """Return the share of Student's t below a point that is not negative (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    inner = sine * total
    within = 2 / math.pi * (angle + inner) if odd else inner
    return 0.5 + within / 2


def _columns(values: Values) -> list[Floats]:
    """Return each seed's values as an array, in one order of the items where they are the same.

    Raises:
        ValueError: no seed, a seed without items, or a value that is not finite.
    """
    columns = [np.array([each[item] for item in sorted(each)], dtype=np.float64) for each in values]
    if not columns or not all(column.size for column in columns):
        raise ValueError("nothing to compare: a seed without items")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("a value is not finite")
    return columns


def _drawn(values: Values, bounds: tuple[float, float] | None, generator: np.random.Generator) -> Floats:
    """Return the means of RESAMPLES draws of seeds and items, both with replacement.

    An item that several seeds have is drawn for all of them at once, one of a single seed whenever that seed is drawn.
    Where values can't lie outside `bounds`, an item at each bound is drawn from too, for the reason that
    `paired_difference` gives.
    """
    whole = [{**each, **{f"\0{end}": bound for end, bound in enumerate(bounds or ())}} for each in values]
    seeds, holders = len(whole), Counter(name for each in whole for name in each)
    shared = sorted(name for name, count in holders.items() if count > 1)
    drawn_KI: Floats = np.zeros((RESAMPLES, 0))
    if shared:
        shares = [1 / len(shared)] * len(shared)
        drawn_KI = generator.multinomial(len(shared), shares, size=RESAMPLES).astype(np.float64)
    values_SI = np.array([[each.get(name, 0.0) for name in shared] for each in whole])
    there_SI = np.array([[float(name in each) for name in shared] for each in whole])
    if all(len(each) == len(shared) for each in whole):
        drawn_KS = generator.multinomial(seeds, [1 / seeds] * seeds, size=RESAMPLES)
        return np.asarray(((drawn_KS @ values_SI) * drawn_KI).sum(axis=1) / (seeds * len(shared)))
    sums_KS, counts_KS = drawn_KI @ values_SI.T, drawn_KI @ there_SI.T
    totals_K = np.zeros(RESAMPLES)
    for _ in range(seeds):
        which_K = generator.integers(seeds, size=RESAMPLES)
        for number, each in enumerate(whole):
            rows = np.flatnonzero(which_K == number)
            own = np.array([each[name] for name in sorted(each) if holders[name] == 1])
            picks = generator.integers(max(1, own.size), size=(rows.size, own.size))
            sums = sums_KS[rows, number] + (own[picks].sum(axis=1) if own.size else 0.0)
            totals_K[rows] += sums / np.maximum(1, counts_KS[rows, number] + own.size)
    return totals_K / seeds


def _hull(means: Sequence[float], drawn: Floats, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Return the wider of the bootstrap's percentiles and Student's t over seeds, at each end, within the bounds."""
    low, high = (float(end) for end in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    mean = math.fsum(means) / len(means)
    half = t_quantile(0.5 + LEVEL / 2, len(means) - 1) * _error(means)
    least, most = bounds or (-math.inf, math.inf)
    return max(least, min(low, mean - half)), min(most, max(high, mean + half))


def _smallest(means: Sequence[float], drawn: Floats) -> float:
    """Return the larger of what the two intervals would show 4 times in 5."""
    normal, freedom = NormalDist(), len(means) - 1
    by_seeds = (t_quantile(0.5 + LEVEL / 2, freedom) + t_quantile(POWER, freedom)) * _error(means)
    by_both = (normal.inv_cdf(0.5 + LEVEL / 2) + normal.inv_cdf(POWER)) * float(drawn.std())
    return max(by_seeds, by_both)


def _error(means: Sequence[float]) -> float:
    """Return the standard error of the mean of the seeds' means."""
    return statistics.stdev(means) / math.sqrt(len(means))
