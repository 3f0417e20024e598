"""Estimates and paired differences against printed tables, and how they are shown."""

import math

import numpy as np
import pytest

from latentflows.core.errors import DataError
from latentflows.studies.statistics.means import (
    Estimate,
    estimate,
    format_interval,
    format_mean,
    format_number,
    format_p_value,
)
from latentflows.studies.statistics.resampling import BootstrapInterval

# Printed tables of Student's t: probability, degrees of freedom, quantile.
TABLE = [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.9, 5, 2.015), (0.99, 3, 5.841)]


@pytest.mark.parametrize(("level", "degrees", "quantile"), TABLE)
def test_the_interval_is_that_of_printed_tables(level, degrees, quantile):
    values = [float(value) for value in range(degrees + 1)]
    result = estimate(values, level)
    assert result.high is not None
    assert result.standard_deviation is not None
    expected = quantile * result.standard_deviation / math.sqrt(degrees + 1)
    assert result.high - result.mean == pytest.approx(expected, rel=3e-4)


def test_estimate_is_mean_deviation_and_both_intervals():
    result = estimate([1.0, 2.0, 3.0])
    half_width = 4.302653 / math.sqrt(3)
    assert (result.mean, result.standard_deviation, result.num) == (2.0, 1.0, 3)
    assert result.low == pytest.approx(2 - half_width, rel=1e-6)
    assert result.high == pytest.approx(2 + half_width, rel=1e-6)
    assert not result.excludes_zero
    assert result.bootstrap is not None
    assert (result.bootstrap.low, result.bootstrap.high) == (1.0, 3.0)  # 1 of 27 resamples is (1, 1, 1)
    assert result.bootstrap.method == "BCa"


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for values in rng.standard_normal((1000, 3)):
        result = estimate(values.tolist(), level=0.8)
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= 0 <= result.high
    assert abs(covered / 1000 - 0.8) < 5 * math.sqrt(0.8 * 0.2 / 1000)


def test_one_value_has_no_interval():
    result = estimate([4.0])
    assert (result.standard_deviation, result.low, result.high, result.bootstrap) == (None, None, None, None)
    assert not result.excludes_zero


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_estimate_refuses_nothing_and_what_is_not_finite(values):
    with pytest.raises(DataError, match="finite"):
        estimate(values)


@pytest.mark.parametrize(
    ("values", "excludes"), [([1.0, 1.1, 0.9], True), ([-1.0, -1.1], True), ([1.0, -1.0], False)]
)
def test_excluding_zero_works_on_both_sides(values, excludes):
    assert estimate(values).excludes_zero is excludes


def test_numbers_have_a_true_minus_sign_and_narrow_intervals_enough_digits():
    narrow = Estimate(0.0004, 1.0, -0.0004, 0.0012, 3, 0.95)
    assert format_number(-1234.567) == "−1,234.57"
    assert format_interval(narrow) == "[−0.0004, 0.0012]"
    assert format_mean(narrow) == "0.0004"
    assert format_interval(Estimate(0.0, 0.0, 0.0, 0.0, 3, 0.95)) == "[0.00, 0.00]"
    assert format_interval(BootstrapInterval(-1.0, 20.0, 0.95, "BCa")) == "[−1.00, 20.00]"
    assert format_interval(estimate([1.0])) == format_interval(None) == "none (one seed)"


def test_p_values_beside_the_level_are_told_from_it():
    assert [format_p_value(p) for p in (0.05, 0.0499, 0.0496, 0.050056, 0.0500001)] == [
        "0.050",
        "0.050",
        "0.050",
        "0.0501",
        "0.0500001",
    ]


def test_p_values_are_never_shown_as_zero():
    assert [format_p_value(p) for p in (None, 0.0, 0.00099, 0.001, 0.0494, 1.0)] == [
        "–",
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.049",
        "1.000",
    ]
