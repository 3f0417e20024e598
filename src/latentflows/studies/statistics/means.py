"""Statistics over seeds: means with Student t and bootstrap intervals, and how they are shown."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from latentflows.core.errors import DataError
from latentflows.studies.statistics.resampling import BootstrapInterval, bootstrap_interval

_LEVEL = 0.05  # of the tests on every page


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and what is known about its error.

    Attributes:
        mean: Mean of the values.
        standard_deviation: Sample standard deviation (divisor n - 1); None with fewer than two values.
        low: Lower end of the Student t interval of the mean; None with fewer than two values.
        high: Upper end of the same interval.
        num: Number of values.
        level: Probability that both intervals are made for, such as 0.95.
        bootstrap: Bootstrap interval of the mean, too narrow at few seeds; None with fewer than two values.
    """

    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None
    num: int
    level: float
    bootstrap: BootstrapInterval | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    r"""Mean with its Student t interval, and its bootstrap interval beside it.

    .. math:: \bar v \pm t_{(1 + level) / 2,\, n - 1} \, s / \sqrt{n}

    The t interval is exact where values are normally distributed over seeds. `bootstrap_interval` assumes no such
    distribution, and is too narrow at few seeds.

    Args:
        values: One value per seed; at least one.
        level: Probability of the interval.

    Returns:
        The estimate; without deviation and interval where there is a single value.

    Raises:
        DataError: There is no value, or one is not finite.
    """
    from scipy.special import stdtrit

    if not values or not all(math.isfinite(value) for value in values):
        raise DataError(f"`values` must hold at least one number and only finite ones; got {list(values)}.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, None, None, 1, level)
    deviation = statistics.stdev(values)
    resampled = bootstrap_interval(values, level)
    half_width = float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / math.sqrt(len(values))
    return Estimate(mean, deviation, mean - half_width, mean + half_width, len(values), level, resampled)


def format_number(value: float, decimals: int = 2) -> str:
    """`value` with thousands separators and a true minus sign."""
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def decimals_of(interval: Estimate | BootstrapInterval) -> int:
    """Decimals that an interval needs: at least two, and more where it is narrow."""
    if interval.low is None or interval.high is None:
        return 2
    width = interval.high - interval.low
    return min(6, max(2, 1 - math.floor(math.log10(width)))) if width > 0 else 2


def format_mean(value: Estimate, decimals: int | None = None) -> str:
    """The mean with the decimals of its interval, or those of a column."""
    return format_number(value.mean, decimals_of(value) if decimals is None else decimals)


def format_interval(interval: Estimate | BootstrapInterval | None, decimals: int | None = None) -> str:
    """'[low, high]' with the decimals that it needs, or those of a column."""
    if interval is None or interval.low is None or interval.high is None:
        return "none (one seed)"
    decimals = decimals_of(interval) if decimals is None else decimals
    return f"[{format_number(interval.low, decimals)}, {format_number(interval.high, decimals)}]"


def format_p_value(p_value: float | None) -> str:
    """A p-value with three decimals, or those that tell it from 0.05; a dash where there is none."""
    if p_value is None:
        return "–"
    texts = (f"{p_value:.{decimals}f}" for decimals in range(3, 16))
    told = (text for text in texts if (float(text) <= _LEVEL) == (p_value <= _LEVEL))
    return "< 0.001" if p_value < 0.001 else next(told, f"{p_value:.3f}")
