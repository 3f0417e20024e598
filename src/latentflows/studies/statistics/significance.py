"""Tests of paired differences, corrected for how many there are, and how many seeds they would need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentflows.core.errors import DataError

ROUNDING = 1e-12  # relative
MOST_SEEDS = 10_000  # what would need more is said to need more than this


def paired_t_p_value(differences: Sequence[float]) -> float | None:
    r"""Two-sided p-value of the paired t-test that the mean difference is zero.

    .. math:: t = \bar d \sqrt{n} / s, \quad p = 2 P(T_{n - 1} \le -|t|)

    Exact where differences are normally distributed.

    Args:
        differences: Finite numbers, one per pair.

    Returns:
        The p-value; None with fewer than two differences, or where all are equal but for rounding, as differences of
        shares are: without spread there is no t.

    References:
        Student, The Probable Error of a Mean, 1908.
    """
    from statistics import stdev

    from scipy.special import stdtr

    num = len(differences)
    if num < 2 or max(differences) - min(differences) <= ROUNDING * max(map(abs, differences)):
        return None
    mean = math.fsum(differences) / num
    return float(2 * stdtr(num - 1, -abs(mean) * math.sqrt(num) / stdev(differences)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    r"""Holm's step-down correction: p-values that may be compared with the level of all tests together.

    With the p-values in ascending order, :math:`p_{(1)} \le \dots \le p_{(m)}`,

    .. math:: \tilde p_{(i)} = \min(1, \max_{j \le i} (m - j + 1) \, p_{(j)}).

    The probability of one or more false findings is at most the level, however the tests depend on each other. It
    finds at least what Bonferroni's correction (m p) finds.

    Args:
        p_values: One per comparison; None for one that was planned and could not be made, which counts in m.

    Returns:
        The corrected p-values, in the same order.

    Raises:
        DataError: if a p-value lies outside [0, 1].

    References:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    if any(p is not None and not 0 <= p <= 1 for p in p_values):
        raise DataError(f"p-values must lie in [0, 1]; got {list(p_values)}.")
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        corrected[place] = highest
    return corrected


@dataclass(frozen=True)
class Power:
    """What a paired t-test can find.

    Attributes:
        level: Level of the test, corrected for the number of comparisons.
        power: Probability with which a difference of the stated size is found.
        detectable: Smallest true difference that the present number of seeds finds with that probability.
        seeds_for_observed: Seeds in all that find a true difference as large as the observed one; None for more than
            `MOST_SEEDS`.
        smallest_difference: The smallest difference of interest; None where none was stated.
        seeds_for_smallest: Seeds in all that find it; None likewise, or where none was stated.
    """

    level: float
    power: float
    detectable: float
    seeds_for_observed: int | None
    smallest_difference: float | None = None
    seeds_for_smallest: int | None = None


def power_of_paired_t(effect: float, num: int, level: float) -> float:
    r"""Probability that the two-sided paired t-test finds a true difference.

    .. math:: P(|T'| > t_{1 - \mathrm{level} / 2,\, n - 1}), \quad
        T' \text{ noncentral t with } n - 1 \text{ degrees of freedom and noncentrality } \sqrt{n} \, \delta / \sigma

    Args:
        effect: True difference over the standard deviation of the differences.
        num: Number of pairs, at least 2.
        level: Level of the test, in (0, 1).

    Returns:
        A probability.

    Raises:
        DataError: An argument is out of range.

    References:
        Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.5; Johnson, Kotz & Balakrishnan,
        Continuous Univariate Distributions 2, 1995, chapter 31.
    """
    from scipy.special import chdtrc, nctdtr, stdtrit

    if num < 2 or not 0.0 < level < 1.0 or not math.isfinite(effect):
        raise DataError(
            f"`num` must be at least 2, `level` in (0, 1) and `effect` finite; got {num}, {level}, {effect}."
        )
    critical = float(stdtrit(num - 1, 1 - level / 2))
    shift = abs(effect) * math.sqrt(num)
    # Missed only where the normal part lies below -10, or the deviation is as large as this says. Far past that series
    # for the distribution run out of digits.
    if shift > 10 and chdtrc(num - 1, (num - 1) * ((shift - 10) / critical) ** 2) < 1e-15:
        return 1.0
    wrong_side = float(nctdtr(num - 1, shift, -critical))
    below = float(nctdtr(num - 1, shift, critical))
    return min(1.0, 1 - below + (0.0 if math.isnan(wrong_side) else wrong_side))


def seeds_needed(difference: float, deviation: float, level: float, power: float = 0.8) -> int | None:
    """Smallest number of seeds with which the paired t-test finds a true difference.

    Cost: about 30 evaluations of `power_of_paired_t`.

    Args:
        difference: The true mean difference.
        deviation: Standard deviation of the differences over seeds.
        level: Level of the test; where m comparisons are made, the level over m (what Holm asks of the first).
        power: Probability to reach.

    Returns:
        A number of at least 2; None where it is above `MOST_SEEDS`.

    Raises:
        DataError: if `deviation` is negative.
    """
    if deviation < 0:
        raise DataError(f"`deviation` must be at least 0; got {deviation}.")
    if deviation == 0:
        return 2 if difference != 0 else None
    effect = difference / deviation
    if power_of_paired_t(effect, MOST_SEEDS, level) < power:
        return None
    low, high = 1, 2  # power grows with the number of seeds
    while power_of_paired_t(effect, high, level) < power:
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of_paired_t(effect, middle, level) >= power else (middle, high)
    return high


def detectable_difference(num: int, deviation: float, level: float, power: float = 0.8) -> float:
    """Smallest true difference that the paired t-test finds with `num` seeds.

    Cost: about 60 evaluations of `power_of_paired_t`.

    Args:
        num: Number of seeds, at least 2.
        deviation: Standard deviation of the differences over seeds.
        level: Level of the test; where m comparisons are made, the level over m.
        power: Probability to reach.

    Returns:
        The difference, in the unit of `deviation`.
    """
    high = 1.0
    while power_of_paired_t(high, num, level) < power:
        high *= 2
    low = 0.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power_of_paired_t(middle, num, level) >= power else (middle, high)
    return high * deviation
