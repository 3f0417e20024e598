"""Tests and power of paired differences: against scipy, a worked example and simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi, nct, norm, t, ttest_1samp

from latentflows.core.errors import DataError
from latentflows.studies.statistics.significance import (
    MOST_SEEDS,
    detectable_difference,
    holm,
    paired_t_p_value,
    power_of_paired_t,
    seeds_needed,
)


@pytest.mark.parametrize("num", [2, 3, 5, 20])
def test_p_values_are_those_of_scipy(num):
    values = np.random.default_rng(num).standard_normal(num) - 0.5
    assert paired_t_p_value(values.tolist()) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=1e-9)


def test_two_differences_have_the_closed_form():
    # t with one degree of freedom is Cauchy: p = 1 - 2 arctan(t) / pi, here t = 3 / 1.
    assert paired_t_p_value([1.0, 2.0]) == pytest.approx(1 - 2 * math.atan(3.0) / math.pi)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [2.0, 2.0, 2.0]])
def test_without_spread_there_is_no_t(values):
    assert paired_t_p_value(values) is None


def test_holm_by_a_worked_example():
    # m = 4: 4 * 0.005 = 0.02; 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; 1 * 0.04 = 0.04, raised to 0.06.
    assert holm([0.03, 0.005, 0.04, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_a_comparison_that_could_not_be_made_still_counts():
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]


def test_holm_keeps_the_share_of_studies_with_a_false_finding():
    rng = np.random.default_rng(1)
    num_false = 0
    for study in rng.standard_normal((1500, 4, 5)):  # four comparisons of five seeds, nothing to find
        p_values = [paired_t_p_value(values.tolist()) for values in study]
        num_false += min(p for p in holm(p_values) if p is not None) <= 0.05
    assert num_false / 1500 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1500)
    assert num_false / 1500 >= 0.03  # nor is the correction far too strict


@pytest.mark.parametrize(("effect", "num", "level"), [(1.0, 5, 0.05), (1.5, 6, 0.0125), (0.5, 20, 0.05)])
def test_power_is_the_share_of_simulated_studies_that_find_the_difference(effect, num, level):
    values = np.random.default_rng(2).standard_normal((20_000, num)) + effect
    statistic = values.mean(axis=1) * math.sqrt(num) / values.std(axis=1, ddof=1)
    found = np.mean(np.abs(statistic) > t.ppf(1 - level / 2, num - 1))
    assert power_of_paired_t(effect, num, level) == pytest.approx(found, abs=0.015)
    assert power_of_paired_t(-effect, num, level) == power_of_paired_t(effect, num, level)


@pytest.mark.parametrize(
    ("effect", "num", "level"),
    [(100.0, 2, 0.0125), (1000.0, 2, 0.0005), (50.0, 3, 0.05 / 28), (5.0, 10, 0.01)],
)
def test_power_far_out_is_that_of_quadrature(effect, num, level):
    """Over the deviation w of the differences: the normal part is above t w or below -t w."""
    critical, shift, freedom = t.ppf(1 - level / 2, num - 1), effect * math.sqrt(num), num - 1

    def density(w):
        found = norm.sf(critical * w - shift) + norm.cdf(-critical * w - shift)
        return found * chi.pdf(w * math.sqrt(freedom), freedom) * math.sqrt(freedom)

    pieces = np.concatenate([[0], np.geomspace(1e-6, 10, 80)])
    whole = sum(quad(density, low, high)[0] for low, high in pairwise(pieces))
    assert power_of_paired_t(effect, num, level) == pytest.approx(whole, abs=1e-4)


def test_power_without_a_difference_is_the_level_and_grows_to_one():
    assert power_of_paired_t(0.0, 7, 0.05) == pytest.approx(0.05)
    assert power_of_paired_t(50.0, 40, 0.01) == 1.0
    critical = t.ppf(0.995, 3)
    expected = nct.sf(critical, 3, 2.4) + nct.cdf(-critical, 3, 2.4)
    assert power_of_paired_t(1.2, 4, 0.01) == pytest.approx(expected)


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_printed_tables(effect, expected):
    # Cohen (1988) and G*Power: two-sided paired t-test, level 0.05, power 0.8.
    assert seeds_needed(effect, 1.0, 0.05) == expected
    assert seeds_needed(-3 * effect, 3.0, 0.05) == expected


def test_seeds_needed_is_the_smallest_number_that_reaches_the_power():
    num = seeds_needed(0.7, 1.0, 0.05 / 3)
    assert num is not None
    assert power_of_paired_t(0.7, num, 0.05 / 3) >= 0.8 > power_of_paired_t(0.7, num - 1, 0.05 / 3)
    assert seeds_needed(100.0, 1.0, 0.05) == 2


def test_what_would_need_too_many_seeds_has_no_number():
    assert seeds_needed(0.0, 1.0, 0.05) is None
    assert seeds_needed(1e-3, 1.0, 0.05) is None
    assert seeds_needed(0.5, 0.0, 0.05) == 2
    assert seeds_needed(0.0, 0.0, 0.05) is None
    assert power_of_paired_t(1e-3, MOST_SEEDS, 0.05) < 0.8


@pytest.mark.parametrize("num", [2, 3, 5, 30])
def test_the_detectable_difference_has_exactly_the_power(num):
    found = detectable_difference(num, 2.0, 0.05 / 4)
    assert power_of_paired_t(found / 2.0, num, 0.05 / 4) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("arguments", [(1.0, 1, 0.05), (1.0, 5, 0.0), (math.nan, 5, 0.05)])
def test_power_refuses_arguments_out_of_range(arguments):
    with pytest.raises(DataError, match="num"):
        power_of_paired_t(*arguments)


def test_differences_that_are_equal_but_for_rounding_have_no_p_value():
    differences = [0.9 - 0.7, 0.8 - 0.6, 0.5 - 0.3]  # shares: each two tenths
    assert len(set(differences)) > 1
    assert paired_t_p_value(differences) is None
    assert paired_t_p_value([1e-9, 2e-9, 4e-9]) is not None  # small is not equal


def test_wrong_arguments_are_refused():
    with pytest.raises(DataError, match="`deviation` must be at least 0; got -1"):
        seeds_needed(difference=1.0, deviation=-1.0, level=0.05)
    with pytest.raises(DataError, match=r"p-values must lie in \[0, 1\]; got \[2.0\]"):
        holm([2.0])
