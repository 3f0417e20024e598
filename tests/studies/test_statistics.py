"""Statistics against printed tables, scipy-free, and the words made from them."""

import math
import statistics

import pytest

from latentflows.core.errors import DataError
from latentflows.studies.statistics import (
    Estimate,
    estimate,
    format_interval,
    format_number,
    incomplete_beta,
    paired_difference,
    student_t_quantile,
    verdict,
)

# Printed tables of Student's t, to the digits they give.
TABLE = [
    (0.975, 1, 12.706),
    (0.975, 2, 4.303),
    (0.975, 4, 2.776),
    (0.975, 9, 2.262),
    (0.975, 30, 2.042),
    (0.975, 120, 1.980),
    (0.95, 5, 2.015),
    (0.995, 3, 5.841),
    (0.9995, 2, 31.599),
    (0.75, 10, 0.700),
]


@pytest.mark.parametrize(("probability", "degrees", "expected"), TABLE)
def test_quantiles_are_those_of_printed_tables(probability, degrees, expected):
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize("probability", [0.51, 0.8, 0.975, 0.9999])
def test_quantiles_have_their_closed_forms_with_one_and_two_degrees(probability):
    assert student_t_quantile(probability, 1) == pytest.approx(
        math.tan(math.pi * (probability - 0.5)), rel=1e-11
    )
    doubled = 2 * probability - 1
    two = doubled * math.sqrt(2 / (1 - doubled**2))
    assert student_t_quantile(probability, 2) == pytest.approx(two, rel=1e-11)


def test_quantiles_approach_the_normal_distribution():
    normal = statistics.NormalDist().inv_cdf(0.975)
    assert student_t_quantile(0.975, 1e7) == pytest.approx(normal, rel=1e-6)


def test_quantiles_are_symmetric_about_zero():
    assert student_t_quantile(0.025, 7) == pytest.approx(-student_t_quantile(0.975, 7), rel=1e-12)
    assert student_t_quantile(0.5, 7) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0), (math.nan, 3)])
def test_quantiles_refuse_arguments_out_of_range(probability, degrees):
    with pytest.raises(DataError, match="must"):
        student_t_quantile(probability, degrees)


def test_incomplete_beta_is_the_binomial_tail_for_whole_numbers():
    # I_x(a, b) = P(at least a successes in a + b - 1 trials of probability x)
    for a, b, x in [(1, 1, 0.3), (2, 5, 0.2), (7, 3, 0.9), (4, 4, 0.5)]:
        trials = a + b - 1
        tail = sum(math.comb(trials, k) * x**k * (1 - x) ** (trials - k) for k in range(a, trials + 1))
        assert incomplete_beta(x, a, b) == pytest.approx(tail, rel=1e-13)
    assert (incomplete_beta(0.0, 2, 3), incomplete_beta(1.0, 2, 3)) == (0.0, 1.0)


def test_estimate_is_mean_deviation_and_interval():
    result = estimate([1.0, 2.0, 3.0])
    half_width = 4.302653 / math.sqrt(3)
    assert (result.mean, result.standard_deviation, result.num) == (2.0, 1.0, 3)
    assert result.low == pytest.approx(2 - half_width, rel=1e-6)
    assert result.high == pytest.approx(2 + half_width, rel=1e-6)
    assert not result.excludes_zero


def test_interval_covers_the_mean_as_often_as_it_says():
    import numpy as np

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
    assert (result.standard_deviation, result.low, result.high) == (None, None, None)
    assert not result.excludes_zero


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_estimate_refuses_nothing_and_what_is_not_finite(values):
    with pytest.raises(DataError, match="finite"):
        estimate(values)


def test_paired_difference_uses_shared_seeds_alone_and_keeps_its_sign():
    result = paired_difference({0: 1.0, 1: 3.0, 5: 99.0}, {1: 4.0, 0: 3.0, 7: -99.0})
    assert result is not None
    assert (result.mean, result.num) == (-1.5, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "excludes"), [([1.0, 1.1, 0.9], True), ([-1.0, -1.1], True), ([1.0, -1.0], False)]
)
def test_excluding_zero_works_on_both_sides(values, excludes):
    assert estimate(values).excludes_zero is excludes


def test_verdict_supports_a_lower_and_a_higher_value():
    numbers = {"num_parameters": (10, 10), "num_epochs": (120, 120)}
    lower = verdict("Flow", "Gaussian", estimate([-1.0, -1.1, -0.9]), quantity="test NLL", **numbers)
    assert "With 3 seeds" in lower
    assert "[−1.25, −0.75] nats: supports a lower (better) test NLL of Flow" in lower
    assert "does not hold" not in lower
    higher = verdict("Flow", "Gaussian", estimate([1.0, 1.1, 0.9]), num_parameters=None)
    assert "supports a higher (worse) NLL of Flow" in higher


def test_verdict_is_modest_where_zero_is_inside_or_there_is_no_interval():
    assert "does not show a difference" in verdict(
        "A", "B", estimate([1.0, -1.2, 0.3]), num_parameters=(1, 1)
    )
    single = verdict("A", "B", estimate([-50.0]), num_parameters=(1, 1))
    assert "With 1 seed" in single
    assert "does not show a difference" in single
    assert "nothing to compare" in verdict("A", "B", None, num_parameters=None)


def test_verdict_names_unequal_numbers_of_parameters():
    text = verdict("A", "B", estimate([1.0, 2.0]), num_parameters=(12_000, 11_999))
    assert "does not hold the number of parameters equal (12,000 against 11,999)" in text


def test_verdict_names_unequal_lengths_of_training():
    def text(arm, baseline):
        return verdict("A", "B", estimate([1.0, 2.0]), num_parameters=None, num_epochs=(arm, baseline))

    assert text(180, 120).endswith("the length of training equal (180 against 120 epochs over all stages).")
    assert "(1,333.3 against 1,333 epochs over all stages)" in text(1333 + 1 / 3, 1333)
    assert "length of training" not in text(120.0, 120)


def test_numbers_have_a_true_minus_sign_and_narrow_intervals_enough_digits():
    assert format_number(-1234.567) == "−1,234.57"
    assert format_interval(Estimate(0.0, 1.0, -0.0004, 0.0012, 3, 0.95)) == "[−0.0004, 0.0012]"
    assert format_interval(Estimate(0.0, 0.0, 0.0, 0.0, 3, 0.95)) == "[0.00, 0.00]"
    assert format_interval(estimate([1.0])) == "none (one seed)"
