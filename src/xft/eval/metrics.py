"""Scores with intervals; they refuse to answer rather than mislead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
FEWEST = 6
"""Items that must differ, all one way, before an exact test's p is below 5%: 2 / 2**6 = 3%."""
BLOCK = 1 << 21

Floats = NDArray[np.float64]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate, without bias, the chance that one of k samples passes, from c of n that did (Chen et al., 2021).

    Raises:
        ValueError: k > n, or the counts make no sense.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {n}")
    if k < 1 or not 0 <= c <= n:
        raise ValueError(f"pass@k needs k >= 1 and 0 <= passed <= samples, got k={k}, {c} passed of {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def wilson_interval(passed: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share.

    Raises:
        ValueError: nothing was counted, or more passed than were counted.
    """
    if total < 1 or not 0 <= passed <= total:
        raise ValueError(f"an interval needs 0 <= passed <= total and total >= 1, got {passed} of {total}")
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    share, shrink = passed / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / shrink
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / shrink
    low = 0.0 if passed == 0 else middle - half
    high = 1.0 if passed == total else middle + half
    return low, high


def mean_interval(
    values: Sequence[float], seed: int = 0, *, bounds: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Return the 95% bootstrap interval (percentiles) of the mean of per-item values.

    Where values can't lie outside `bounds`, an item at each bound is drawn from too: without them, items that happen to
    be alike would give an interval without width.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    array = _finite(values)
    if array.size < 2:
        raise ValueError(f"an interval of a mean needs at least 2 values, got {array.size}")
    return _percentiles(_resampled_means(np.append(array, bounds or ()), np.random.default_rng(seed)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How a differs from b over the same items: the mean of a - b, with its 95% interval."""

    mean: float
    low: float
    high: float
    verdict: Literal["better", "worse", "can't tell"]
    """Whether a is better than b."""


def paired_rates(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compare the shares of samples that passed, 0 to 1, of two models on the same problems."""
    return paired_difference(a, b, bounds=(-1.0, 1.0))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    *,
    higher_is_better: bool = True,
    bounds: tuple[float, float] | None = None,
) -> Difference:
    """Compare per-item values of two models on the same items.

    The interval is a paired bootstrap's. It is widened to hold 0 where a sign-flip test can't rule out, at 5%, that
    the two are alike: with few items, or few that differ, the bootstrap alone is far too sure. Where differences can't
    lie outside `bounds`, an item at each bound is drawn from too (as Bonett and Price, 2012, add two pairs), so that
    models that did alike on these items are not taken for equal.

    Raises:
        ValueError: the lengths differ, or there is nothing to compare.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need the same items, got {len(a)} and {len(b)}")
    difference = _finite(a) - _finite(b)
    if difference.size == 0:
        raise ValueError("nothing to compare: no items")
    generator = np.random.default_rng(seed)
    mean = float(difference.mean())
    low, high = _percentiles(_resampled_means(np.append(difference, bounds or ()), generator))
    if _sign_flip_p(difference, generator) > 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    if low <= 0 <= high:
        return Difference(mean=mean, low=low, high=high, verdict="can't tell")
    better = (mean > 0) == higher_is_better
    return Difference(mean=mean, low=low, high=high, verdict="better" if better else "worse")


def mcnemar_p(wins: int, losses: int) -> float:
    """Return the exact two-sided p of McNemar's test: the chance of so uneven a split of the items that differ."""
    differ = wins + losses
    tail = sum(math.comb(differ, k) for k in range(min(wins, losses) + 1)) / 2**differ
    return float(min(1.0, 2 * tail))


def smallest_difference(a: Sequence[float], b: Sequence[float], *, bounded: bool = True) -> float:
    """Return the mean difference that these items would show, at 5% two-sided, with a probability of 80%.

    From the spread of the paired differences seen (normal approximation). For `bounded` values, 0 to 1, at least 6
    whole items: with fewer that differ, no exact test reaches 5%; a result above 1 means that no difference can be
    shown.

    Raises:
        ValueError: the lengths differ, or there is nothing to compare.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired values need the same items, at least one, got {len(a)} and {len(b)}")
    normal = NormalDist()
    spread = float((_finite(a) - _finite(b)).std())
    detectable = (normal.inv_cdf(0.5 + LEVEL / 2) + normal.inv_cdf(POWER)) * spread / math.sqrt(len(a))
    return max(detectable, FEWEST / len(a)) if bounded else detectable


def _finite(values: Sequence[float]) -> Floats:
    """Return the values as an array; refuse NaN and infinity, which would vanish in a percentile."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite")
    return array


def _percentiles(means: Floats) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled_means(values: Floats, generator: np.random.Generator) -> Floats:
    """Return the means of RESAMPLES samples drawn with replacement, in blocks that bound the memory."""
    rows = max(1, BLOCK // values.size)
    blocks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([values[generator.integers(values.size, size=(n, values.size))].mean(axis=1) for n in blocks])


def _sign_flip_p(difference: Floats, generator: np.random.Generator) -> float:
    """Return the two-sided p of the mean under random signs: how often chance alone gives one as far from 0."""
    moved = difference[difference != 0]
    if moved.size == 0:
        return 1.0
    observed = abs(moved.sum()) * (1 - 1e-9)
    rows = max(1, BLOCK // moved.size)
    extreme = 0
    for start in range(0, RESAMPLES, rows):
        signs = generator.integers(2, size=(min(rows, RESAMPLES - start), moved.size)) * 2 - 1
        extreme += int((abs(signs @ moved) >= observed).sum())
    return (extreme + 1) / (RESAMPLES + 1)
