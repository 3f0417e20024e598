"""Resampling of a few values: bootstrap intervals of a mean, and the exact sign-flip test of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Literal

from latentflows.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_ENUMERATED = 8  # values: 6,435 different resamples; 9 have 24,310
NUM_RESAMPLES = 20_000  # where not all are enumerated
MOST_FLIPPED = 20  # differences: half a million signs up to one for all; 21 have a million
NUM_FLIPS = 100_000  # where not all are enumerated


@dataclass(frozen=True)
class BootstrapInterval:
    """A bootstrap interval of a mean, and how it was made."""

    low: float
    high: float
    level: float
    method: Literal["BCa", "percentile"]


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> BootstrapInterval | None:
    r"""Bootstrap interval of the mean: bias-corrected and accelerated (BCa), else the percentile interval.

    With G the distribution of the mean of n values drawn with replacement, the percentile interval is

    .. math:: [G^{-1}(\alpha), G^{-1}(1 - \alpha)], \quad \alpha = (1 - \mathrm{level}) / 2.

    BCa moves both ends to :math:`G^{-1}(\Phi(z_0 + \frac{z_0 + z}{1 - a (z_0 + z)}))`, with z the normal quantile of
    the end, :math:`z_0 = \Phi^{-1}(G(\bar v))` (half of G at the mean itself) and
    :math:`a = \sum (v_i - \bar v)^3 / (6 (\sum (v_i - \bar v)^2)^{3/2})`. It cannot be computed where all values are
    equal or where the fraction breaks down; then the percentile interval is given, and `method` says so.

    Up to 8 values G is exact, from all resamples with their probabilities; beyond, it is that of 20,000 random ones,
    drawn by a fixed seed, so that the same values always give the same interval.

    At few values both are too narrow: G has (n - 1) / n of the variance that it should have, and light tails. Of normal
    values the BCa interval for 0.95 covers the mean in about 0.73 of all cases at n = 3, 0.84 at 5 and 0.89 at 8
    (3,000 simulations each). So the t interval stands beside it.

    Cost: n additions per resample, 20,000 at most; memory 16 n bytes per resample.

    Args:
        values: Finite numbers.
        level: Probability that the interval is made for, in (0, 1).

    Returns:
        The interval; None with fewer than two values.

    Raises:
        DataError: `level` is out of range.

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987, sections 2 to 4; Efron & Tibshirani, An Introduction to the
        Bootstrap, 1993, chapter 14; Hesterberg, What Teachers Should Know About the Bootstrap, 2015, arXiv 1411.5279.
    """
    import numpy as np
    from scipy.special import ndtr, ndtri

    if not 0.0 < level < 1.0:
        raise DataError(f"`level` must lie between 0 and 1, both excluded; got {level}.")
    if len(values) < 2:
        return None
    centered = np.asarray(values, dtype=np.float64) - math.fsum(values) / len(values)
    means, weights = _resampled_means(centered)
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    method: Literal["BCa", "percentile"] = "percentile"
    squares = float(np.sum(centered**2))
    if squares > 0:
        tie = 1e-12 * math.sqrt(squares)
        below = float(weights[means < -tie].sum() + 0.5 * weights[np.abs(means) <= tie].sum())
        shift = float(ndtri(below)) + ndtri(ends)
        denominator = 1 - float(np.sum(centered**3)) / (6 * squares**1.5) * shift
        if np.isfinite(shift).all() and (denominator > 0).all():
            ends, method = ndtr(float(ndtri(below)) + shift / denominator), "BCa"
    order = np.argsort(means, kind="stable")
    reached = np.cumsum(weights[order]) - 1e-12  # rounding of the sum must not push an end by one resample
    places = np.minimum(np.searchsorted(reached, ends), len(order) - 1)
    low, high = (float(end) for end in means[order][places] + math.fsum(values) / len(values))
    return BootstrapInterval(low, high, level, method)


def _resampled_means(values: NDArray) -> tuple[NDArray, NDArray]:
    """Means of resamples with their probabilities."""
    import numpy as np

    num = len(values)
    if num <= MOST_ENUMERATED:
        counts, weights = _all_resamples(num)
        return counts @ values / num, weights
    drawn = np.random.default_rng(0).integers(num, size=(NUM_RESAMPLES, num))
    return values[drawn].mean(axis=1), np.full(NUM_RESAMPLES, 1 / NUM_RESAMPLES)


@cache
def _all_resamples(num: int) -> tuple[NDArray, NDArray]:
    """How often each of `num` values is drawn, for every resample, with its multinomial probability."""
    import numpy as np

    drawn = np.array(list(combinations_with_replacement(range(num), num)))
    counts = np.stack([(drawn == value).sum(axis=1) for value in range(num)], axis=1)
    factorials = np.array([math.factorial(count) for count in range(num + 1)], dtype=np.float64)
    weights = factorials[num] / factorials[counts].prod(axis=1) / float(num) ** num
    return counts.astype(np.float64), weights


def sign_flip_p_value(differences: Sequence[float]) -> float | None:
    r"""Two-sided p-value of the sign-flip (randomization) test that differences are symmetric about zero.

    .. math:: p = 2^{-n} \, \#\{s \in \{-1, 1\}^n : |\sum_i s_i d_i| \ge |\sum_i d_i|\}

    It assumes no normal distribution. But n differences give no p below 2 / 2^n, so few seeds cannot reach a small
    level, whatever they show; see `smallest_sign_flip_p_value`.

    Up to 20 differences all signs are counted; beyond, 100,000 random ones by a fixed seed, with the observed one
    among them: (1 + count) / (1 + 100,000), which keeps the test valid.

    Cost: 2^(n - 1) additions and 8 * 2^(n - 1) bytes, 4 MiB at most.

    Args:
        differences: Finite numbers, one per pair.

    Returns:
        The p-value; None without differences.

    References:
        Fisher, The Design of Experiments, 1935, section 21; Phipson & Smyth, Permutation P-values Should Never Be
        Zero, 2010, arXiv 1603.05766.
    """
    import numpy as np

    if len(differences) == 0:
        return None
    values = np.asarray(differences, dtype=np.float64)
    reached = abs(math.fsum(differences)) - 1e-12 * float(np.abs(values).sum())
    if len(values) > MOST_FLIPPED:
        random = np.random.default_rng(0)
        count = 1
        for _ in range(NUM_FLIPS // 10_000):
            signs = 2.0 * random.integers(2, size=(10_000, len(values))) - 1
            count += int(np.count_nonzero(np.abs(signs @ values) >= reached))
        return count / (NUM_FLIPS + 1)
    sums = values[:1]  # the first sign stays: all flipped together give the same absolute sum
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.count_nonzero(np.abs(sums) >= reached) / len(sums))


def smallest_sign_flip_p_value(num: int) -> float:
    """Smallest p-value that the sign-flip test can give for `num` differences, 2 / 2^num."""
    return 2.0 / 2.0**num
