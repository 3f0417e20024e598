"""Guidance: both rules in closed form."""

import pytest
import torch
from torch.distributions import Normal

from latentflows.core.errors import ConfigurationError
from latentflows.transforms.guidance import check_guidance, guided


def values(count=50):
    return [torch.randn(count, dtype=torch.float64) for _ in range(4)]


def test_the_gaussian_rule_is_the_normalized_product_of_densities():
    shift, shift_without, log_scale, log_scale_without = values()
    log_scale = torch.minimum(log_scale, log_scale_without)  # where the clip does nothing
    weight = 1.7
    m, s = guided(shift, shift_without, log_scale, log_scale_without, weight, "gaussian")
    x = torch.linspace(-30, 30, 8_001, dtype=torch.float64)[:, None]
    log_p = (1 + weight) * Normal(shift, log_scale.exp()).log_prob(x)
    log_p = log_p - weight * Normal(shift_without, log_scale_without.exp()).log_prob(x)
    p = (log_p - log_p.amax(0)).exp()
    p = p / p.sum(0)
    mean = (p * x).sum(0)
    inside = mean.abs() < 20  # of the grid
    assert inside.sum() > 25
    torch.testing.assert_close(m[inside], mean[inside], rtol=1e-6, atol=1e-6)
    deviation = (p * (x - mean) ** 2).sum(0).sqrt()
    torch.testing.assert_close(s.exp()[inside], deviation[inside], rtol=1e-4, atol=1e-6)


def test_the_gaussian_rule_stays_a_gaussian_where_the_quotient_is_none():
    shift, shift_without = torch.tensor([1.0]), torch.tensor([-1.0])
    m, s = guided(shift, shift_without, torch.tensor([5.0]), torch.tensor([-5.0]), 3.0, "gaussian")
    assert (m, s) == (torch.tensor([1 + 3 * 2.0]), torch.tensor([5.0]))  # r = 1, n = 1


def test_the_linear_rule_goes_on_along_the_line():
    m, s = guided(*(torch.tensor([v]) for v in (1.0, 3.0, 0.5, 0.25)), 2.0, "linear")
    assert (m, s) == (torch.tensor([-3.0]), torch.tensor([1.0]))


@pytest.mark.parametrize("rule", ["linear", "gaussian"])
def test_weight_zero_changes_nothing_and_equal_maps_stay_as_they_are(rule):
    shift, shift_without, log_scale, log_scale_without = values()
    m, s = guided(shift, shift_without, log_scale, log_scale_without, 0.0, rule)
    torch.testing.assert_close((m, s), (shift, log_scale))
    m, s = guided(shift, shift, log_scale, log_scale, 2.0, rule)
    torch.testing.assert_close((m, s), (shift, log_scale))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ConfigurationError, match="`weight` of guidance must be 0 or more"):
        check_guidance(weight, "linear")


def test_unknown_rules_are_refused():
    with pytest.raises(ConfigurationError, match=r"`rule` must be one of .*; got 'cubic'"):
        check_guidance(1.0, "cubic")
