"""Statistics of a comparison: means over seeds, Student t intervals, paired differences, and their words."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentflows.core.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and what is known about its error.

    Attributes:
        mean: Mean of the values.
        standard_deviation: Sample standard deviation (divisor n - 1); None with fewer than two values.
        low: Lower end of the Student t interval of the mean; None with fewer than two values.
        high: Upper end of the same interval.
        num: Number of values.
        level: Probability the interval is made for, such as 0.95.
    """

    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None
    num: int
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def incomplete_beta(x: float, a: float, b: float) -> float:
    r"""Regularized incomplete beta function, to about 1e-14.

    .. math:: I_x(a, b) = \frac{1}{B(a, b)} \int_0^x t^{a - 1} (1 - t)^{b - 1} dt

    Cost: one continued fraction, of the order of sqrt(max(a, b)) terms.

    Args:
        x: Upper limit, between 0 and 1.
        a: First shape, positive.
        b: Second shape, positive.

    Returns:
        A probability.

    References:
        NIST Digital Library of Mathematical Functions, 8.17.22 (the fraction) and 8.17.4 (the symmetry).
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below this point
        return 1.0 - incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) of DLMF 8.17.22, by the modified Lentz algorithm."""
    tiny = 1e-300  # stands for a zero denominator
    value, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, 100_000):
        m = term // 2
        if term % 2 == 0:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        denominator = 1.0 / ((1.0 + d * denominator) or tiny)
        numerator = (1.0 + d / numerator) or tiny
        change = numerator * denominator
        value *= change
        if abs(change - 1.0) < 1e-15:
            break
    return value


def student_t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution, by inverting the incomplete beta function.

    Cost: about 60 evaluations of `incomplete_beta`; well below a millisecond for few degrees of freedom.

    Args:
        probability: Between 0 and 1, both excluded.
        degrees: Degrees of freedom, positive.

    Returns:
        The t with P(T <= t) = `probability`.

    Raises:
        DataError: An argument lies outside its range.
    """
    if not 0.0 < probability < 1.0:
        raise DataError(f"`probability` must lie between 0 and 1, both excluded; got {probability}.")
    if not degrees > 0:
        raise DataError(f"`degrees` must be positive; got {degrees}.")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, degrees)
    two_tails = 2.0 * (1.0 - probability)

    def tails(t: float) -> float:
        return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)

    high = 1.0
    while tails(high) > two_tails:
        high *= 2.0
    low = 0.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if tails(middle) > two_tails else (low, middle)


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    r"""Mean with its Student t interval.

    .. math:: \bar v \pm t_{(1 + level) / 2,\, n - 1} \, s / \sqrt{n}

    Args:
        values: One value per seed; at least one.
        level: Probability of the interval.

    Returns:
        The estimate; without deviation and interval where there is a single value.

    Raises:
        DataError: There is no value, or one is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise DataError(f"`values` must hold at least one number and only finite ones; got {list(values)}.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, None, None, 1, level)
    deviation = statistics.stdev(values)
    half_width = student_t_quantile((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(mean, deviation, mean - half_width, mean + half_width, len(values), level)


def paired_difference(
    arm: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Estimate | None:
    """Mean of arm minus baseline over the seeds that both have.

    Pairing removes what the two share at one seed (order of the data, start of the networks).

    Args:
        arm: Value of every seed.
        baseline: The same for the baseline.
        level: Probability of the interval.

    Returns:
        The estimate; None where no seed is shared.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    return estimate([arm[seed] - baseline[seed] for seed in seeds], level) if seeds else None


def format_number(value: float, decimals: int = 2) -> str:
    """`value` with thousands separators and a true minus sign."""
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def format_interval(interval: Estimate) -> str:
    """'[low, high]' with at least two decimals, and more where the interval is narrow."""
    if interval.low is None or interval.high is None:
        return "none (one seed)"
    width = interval.high - interval.low
    decimals = min(6, max(2, 1 - math.floor(math.log10(width)))) if width > 0 else 2
    return f"[{format_number(interval.low, decimals)}, {format_number(interval.high, decimals)}]"


def verdict(
    label: str,
    baseline: str,
    difference: Estimate | None,
    *,
    num_parameters: tuple[int, int] | None,
    num_epochs: tuple[float, float] | None = None,
    quantity: str = "NLL",
    unit: str = "nats",
) -> str:
    """Say what a paired difference supports, and what it does not.

    Args:
        label: Name of the arm.
        baseline: Name of the baseline arm.
        difference: Arm minus baseline; None where no seed is shared.
        num_parameters: Total of the arm and of the baseline; None where one of them is not known.
        num_epochs: Epochs of the arm and of the baseline, over all stages and on average over seeds; None likewise.
        quantity: What was measured; lower is better.
        unit: Unit of `quantity`.

    Returns:
        One to three plain sentences.
    """
    sentences = [_verdict_on_difference(label, baseline, difference, quantity, unit)]
    if num_parameters is not None and num_parameters[0] != num_parameters[1]:
        arm_total, baseline_total = num_parameters
        sentences.append(
            "This comparison does not hold the number of parameters equal"
            f" ({arm_total:,} against {baseline_total:,})."
        )
    lengths = [format_number(epochs, 1).removesuffix(".0") for epochs in num_epochs or (0, 0)]
    if lengths[0] != lengths[1]:
        sentences.append(
            "This comparison does not hold the length of training equal"
            f" ({lengths[0]} against {lengths[1]} epochs over all stages)."
        )
    return " ".join(sentences)


def _verdict_on_difference(
    label: str, baseline: str, difference: Estimate | None, quantity: str, unit: str
) -> str:
    if difference is None:
        return f"No seed with a {quantity} is shared by {label} and {baseline}: there is nothing to compare."
    mean = f"{format_number(difference.mean)} {unit}"
    if difference.low is None:
        return (
            f"With 1 seed the difference in {quantity} of {label} to {baseline} is {mean};"
            " one seed gives no interval, so this does not show a difference."
        )
    if not difference.excludes_zero:
        finding = "does not show a difference (the interval includes zero, which is no evidence of equality)"
    else:
        direction = "lower (better)" if difference.mean < 0 else "higher (worse)"
        finding = f"supports a {direction} {quantity} of {label}"
    return (
        f"With {difference.num} seeds the paired difference in {quantity} of {label} to {baseline} is {mean} on"
        f" average, and the {100 * difference.level:g}% interval of the paired difference is"
        f" {format_interval(difference)} {unit}: {finding}."
    )
