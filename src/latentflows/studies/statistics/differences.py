"""The comparisons of a study: paired differences, tests corrected for their number, and what would be needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from latentflows.core.errors import DataError
from latentflows.studies.statistics.means import Estimate, estimate
from latentflows.studies.statistics.resampling import sign_flip_p_value, smallest_sign_flip_p_value
from latentflows.studies.statistics.significance import (
    ROUNDING,
    Power,
    detectable_difference,
    holm,
    paired_t_p_value,
    seeds_needed,
)

POWER = 0.8


@dataclass(frozen=True)
class Interaction:
    r"""Four arms that cross two changes, by name, and whether the changes do more together than each alone.

    .. math:: v(\text{both}) - v(\text{first}) - v(\text{second}) + v(\text{neither})

    It is what the second change does where the first one was made, less what it does where that was not made: 0 where
    the two add up. Of a figure that is better when lower, negative means that together they gain more than the sum of
    what each gains alone, positive that they gain less.

    Attributes:
        both: Arm with both changes.
        first: Arm with the first one alone.
        second: Arm with the second one alone.
        neither: Arm with none.
    """

    both: str
    first: str
    second: str
    neither: str


@dataclass(frozen=True)
class PairedComparison:
    """One comparison of two arms by one figure, or the interaction of two changes.

    Attributes:
        arm: Name of the arm; of an interaction the one with both changes.
        other: Name of the arm that it is compared with; of an interaction the one with neither.
        metric: The figure.
        lower_is_better: Whether a smaller value is better; None where it is not known.
        num_comparisons: Comparisons of the study, for which p-values and power are corrected.
        level: Level of the tests together, such as 0.05.
        by_seed: Arm minus other, or the interaction, at every seed that all of its arms have.
        difference: Mean of these with its intervals; None where no seed is shared.
        p_value: Of the paired t-test; None with fewer than two seeds, or where all differences are equal.
        corrected_p_value: The same after Holm's correction.
        sign_flip_p_value: Of the exact sign-flip test; None where no seed is shared.
        corrected_sign_flip_p_value: The same after Holm's correction.
        power: What the t-test can find at this spread; None where there is no spread.
        error_over_images: Standard error of the mean difference over the images that both were measured on, at the
            models that were trained; None where it is not known. No interval and no test holds it.
        interaction: Its four arms; None for a comparison of two.
    """

    arm: str
    other: str
    metric: str
    lower_is_better: bool | None
    num_comparisons: int
    level: float
    by_seed: dict[int, float]
    difference: Estimate | None
    p_value: float | None = None
    corrected_p_value: float | None = None
    sign_flip_p_value: float | None = None
    corrected_sign_flip_p_value: float | None = None
    power: Power | None = None
    error_over_images: float | None = None
    interaction: Interaction | None = None

    @property
    def weights(self) -> dict[str, int]:
        """What each arm counts, 1 or -1."""
        return _weights(self.interaction or (self.arm, self.other))

    @property
    def contrast(self) -> str:
        """The same as a sum of names, such as "flow - standard"."""
        parts = (f"{'+' if weight > 0 else '-'} {arm}" for arm, weight in self.weights.items())
        return " ".join(parts).removeprefix("+ ")

    @property
    def significant(self) -> bool:
        """Whether the t-test finds a difference after the correction."""
        return self.corrected_p_value is not None and self.corrected_p_value <= self.level

    @property
    def better(self) -> bool | None:
        """Whether the mean difference is to the better side; None where it is zero or the side is not known."""
        if self.lower_is_better is None or self.difference is None or self.difference.mean == 0:
            return None
        return (self.difference.mean < 0) == self.lower_is_better

    @property
    def sign_flip_can_find(self) -> bool:
        """Whether the sign-flip test could reach the corrected level with these seeds at all."""
        return self.num_comparisons * smallest_sign_flip_p_value(len(self.by_seed)) <= self.level

    def row(self) -> dict[str, Any]:
        """Return plain values, one for each column of a table."""
        found, resampled = self.difference, None if self.difference is None else self.difference.bootstrap
        return {
            "arm": self.arm,
            "other": None if self.interaction else self.other,
            "contrast": self.contrast,
            "metric": self.metric,
            "seeds": len(self.by_seed),
            "difference": None if found is None else found.mean,
            "standard_deviation": None if found is None else found.standard_deviation,
            "t_low": None if found is None else found.low,
            "t_high": None if found is None else found.high,
            "bootstrap_low": None if resampled is None else resampled.low,
            "bootstrap_high": None if resampled is None else resampled.high,
            "bootstrap_method": None if resampled is None else resampled.method,
            "interval_level": None if found is None else found.level,
            "error_over_images": self.error_over_images,
            "p_value": self.p_value,
            "corrected_p_value": self.corrected_p_value,
            "sign_flip_p_value": self.sign_flip_p_value,
            "corrected_sign_flip_p_value": self.corrected_sign_flip_p_value,
            "comparisons": self.num_comparisons,
            "significant": self.significant,
            "better": self.better,
            "detectable_difference": None if self.power is None else self.power.detectable,
            "seeds_for_observed": None if self.power is None else self.power.seeds_for_observed,
            "smallest_difference": None if self.power is None else self.power.smallest_difference,
            "seeds_for_smallest": None if self.power is None else self.power.seeds_for_smallest,
        }


def compare_pairs(
    values: Mapping[str, Mapping[int, float]],
    pairs: Sequence[tuple[str, str]],
    *,
    metric: str,
    lower_is_better: bool | None = None,
    smallest_difference: float | None = None,
    level: float = 0.95,
    interaction: Interaction | None = None,
) -> list[PairedComparison]:
    """Compare pairs of arms at the seeds that both have, and correct for the number of comparisons.

    Cost: microseconds per pair, but for the sign-flip test (`sign_flip_p_value`) and the bootstrap.

    Args:
        values: For every arm, the figure of every seed.
        pairs: Arm and the one that it is compared with. All count in the correction, also those without values.
        metric: Name of the figure.
        lower_is_better: Whether a smaller value is better; None where it is not known.
        smallest_difference: Smallest difference of interest, above 0; None where none is stated.
        level: Probability of the intervals; one minus it is the level of the tests together.
        interaction: Of four of the arms, tested as one comparison more; None for none.

    Returns:
        One comparison for each pair, and the interaction last.

    Raises:
        DataError: if `smallest_difference` is no finite number above 0.
    """
    if smallest_difference is not None and not 0 < smallest_difference < math.inf:
        raise DataError(
            f"`smallest_difference` must be a finite number above 0; got {smallest_difference}. Give its size without "
            "a sign, or None."
        )
    asked = [*pairs, *([] if interaction is None else [interaction])]
    alone = [_by_seed(values, _weights(each)) for each in asked]
    tests = [paired_t_p_value(list(by_seed.values())) for by_seed in alone]
    flips = [sign_flip_p_value(list(by_seed.values())) for by_seed in alone]
    found = []
    for each, by_seed, p, corrected, flip, corrected_flip in zip(
        asked, alone, tests, holm(tests), flips, holm(flips), strict=True
    ):
        crossed = each if isinstance(each, Interaction) else None
        arm, other = (each.both, each.neither) if isinstance(each, Interaction) else each
        comparison = PairedComparison(
            arm=arm,
            other=other,
            metric=metric,
            lower_is_better=lower_is_better,
            num_comparisons=len(asked),
            level=round(1 - level, 12),
            by_seed=by_seed,
            difference=estimate(list(by_seed.values()), level) if by_seed else None,
            p_value=p,
            corrected_p_value=corrected,
            sign_flip_p_value=flip,
            corrected_sign_flip_p_value=corrected_flip,
            interaction=crossed,
        )
        found.append(replace(comparison, power=_power(comparison, smallest_difference)))
    return found


def _weights(of: tuple[str, str] | Interaction) -> dict[str, int]:
    if isinstance(of, Interaction):
        return {of.both: 1, of.first: -1, of.second: -1, of.neither: 1}
    return {of[0]: 1, of[1]: -1}


def _by_seed(values: Mapping[str, Mapping[int, float]], weights: Mapping[str, int]) -> dict[int, float]:
    """The weighted sum at every seed that all arms have; 0 where it is no more than rounding of what is summed."""
    shared = set.intersection(*(set(values[arm]) for arm in weights))
    found = {}
    for seed in sorted(shared):
        terms = [weight * values[arm][seed] for arm, weight in weights.items()]
        total = math.fsum(terms)
        found[seed] = total if abs(total) > ROUNDING * max(map(abs, terms)) else 0.0
    return found


def _power(comparison: PairedComparison, smallest_difference: float | None) -> Power | None:
    """What the t-test can find at the level that Holm asks of the smallest p-value."""
    difference = comparison.difference
    if difference is None or not difference.standard_deviation or comparison.p_value is None:
        return None
    level, deviation = comparison.level / comparison.num_comparisons, difference.standard_deviation
    return Power(
        level=level,
        power=POWER,
        detectable=detectable_difference(difference.num, deviation, level, POWER),
        seeds_for_observed=seeds_needed(difference.mean, deviation, level, POWER),
        smallest_difference=smallest_difference,
        seeds_for_smallest=None
        if smallest_difference is None
        else seeds_needed(smallest_difference, deviation, level, POWER),
    )
