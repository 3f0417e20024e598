"""Bootstrap intervals against enumeration, an independent BCa and simulation; the sign-flip test by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test

from latentflows.core.errors import DataError
from latentflows.studies.statistics import resampling
from latentflows.studies.statistics.resampling import (
    bootstrap_interval,
    sign_flip_p_value,
    smallest_sign_flip_p_value,
)

SKEWED = [1.0, 2.5, 2.7, 3.1, 9.0]


def test_all_resamples_of_three_values_have_their_probabilities():
    counts, weights = resampling._all_resamples(3)
    listed = [tuple(np.bincount(drawn, minlength=3)) for drawn in itertools.product(range(3), repeat=3)]
    assert len(counts) == 10
    assert weights.sum() == pytest.approx(1.0)
    for row, weight in zip(counts, weights, strict=True):
        assert weight == pytest.approx(listed.count(tuple(row.astype(int))) / 27)


@pytest.mark.parametrize("values", [SKEWED, [0.3, -0.2, 0.1, 0.05], [5.0, 7.0]])
def test_the_exact_interval_is_what_many_random_resamples_tend_to(values):
    found = bootstrap_interval(values)
    other = bootstrap((values,), np.mean, method="BCa", n_resamples=100_000, rng=0).confidence_interval
    assert found is not None
    assert found.method == "BCa"
    spread = max(values) - min(values)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.04 * spread)


def test_more_values_than_are_enumerated_are_resampled_at_random_and_always_the_same():
    values = np.random.default_rng(3).exponential(size=14).tolist()
    found = bootstrap_interval(values)
    other = bootstrap((values,), np.mean, method="BCa", n_resamples=50_000, rng=1).confidence_interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.03)
    assert bootstrap_interval(values) == found


def test_equal_values_fall_back_to_the_percentile_interval():
    found = bootstrap_interval([2.0, 2.0, 2.0])
    assert found is not None
    assert (found.low, found.high, found.method) == (2.0, 2.0, "percentile")
    assert bootstrap_interval([2.0]) is None


def test_the_correction_follows_the_skewness():
    plain = np.quantile(np.random.default_rng(0).choice(SKEWED, (50_000, 5)).mean(axis=1), [0.025, 0.975])
    found = bootstrap_interval(SKEWED)
    assert found is not None
    assert found.high > plain[1] + 0.1  # a long tail to the right moves both ends to the right
    mirrored = bootstrap_interval([-value for value in SKEWED])
    assert mirrored is not None
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(("num", "covered"), [(3, 0.73), (5, 0.84), (8, 0.89)])
def test_coverage_at_few_seeds_is_as_the_documentation_says(num, covered):
    rng = np.random.default_rng(0)
    hits = 0
    for values in rng.standard_normal((600, num)):
        found = bootstrap_interval(values.tolist())
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert hits / 600 == pytest.approx(covered, abs=4 * math.sqrt(covered * (1 - covered) / 600))
    assert hits / 600 < 0.95


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(DataError, match="level"):
        bootstrap_interval([1.0, 2.0], level)


def test_sign_flips_counted_by_hand():
    # Sums of (±1, ±2, ±4): all of 1, 3, 5, 7 with either sign; 2 of 8 reach 7, 4 of 8 reach 5.
    assert sign_flip_p_value([1.0, 2.0, 4.0]) == 2 / 8
    assert sign_flip_p_value([-1.0, 2.0, 4.0]) == 4 / 8
    assert sign_flip_p_value([-1.0, -2.0, -4.0]) == 2 / 8
    assert sign_flip_p_value([1.0]) == 1.0
    assert sign_flip_p_value([0.0, 0.0]) == 1.0
    assert sign_flip_p_value([]) is None


def test_ties_by_rounding_are_counted():
    # Every pattern reaches |0.1 + 0.1 + 0.1 - 0.4| = 0.1, one of them as 0.09999999999999998.
    assert sign_flip_p_value([0.1, 0.1, 0.1, -0.4]) == 1.0


def test_sign_flips_are_those_of_an_independent_program():
    values = np.random.default_rng(5).standard_normal(9) + 0.7

    def mean(x, axis):
        return x.mean(axis=axis)

    found = permutation_test((values,), mean, permutation_type="samples", n_resamples=np.inf, rng=0)
    assert sign_flip_p_value(values.tolist()) == pytest.approx(found.pvalue)


@pytest.mark.parametrize("num", [1, 3, 6, 10])
def test_the_smallest_p_value_is_reached_and_never_passed(num):
    assert sign_flip_p_value([1.0] * num) == smallest_sign_flip_p_value(num) == 2 / 2**num


def test_many_differences_are_flipped_at_random_and_never_give_zero():
    values = [1.0] * 30
    assert sign_flip_p_value(values) == 1 / 100_001
    rng = np.random.default_rng(0)
    noisy = (rng.standard_normal(25) + 0.3).tolist()
    p = sign_flip_p_value(noisy)
    z = abs(sum(noisy)) / math.sqrt(sum(value**2 for value in noisy))
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)  # normal limit
    assert sign_flip_p_value(noisy) == p
