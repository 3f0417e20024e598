"""The continuous Bernoulli against torch.distributions, quadrature, exact arithmetic and its own draws."""

import math
from fractions import Fraction

import pytest
import torch
from torch.distributions import ContinuousBernoulli

from latentflows.core import noise
from latentflows.core.errors import DataError
from latentflows.distributions import ContinuousBernoulliValues
from latentflows.distributions.continuous_bernoulli import _SERIES

LOGITS = [0.0, 1e-30, 1e-9, -1e-4, 0.3, 0.499999, 0.5, -0.500001, -2.0, 9.0, -40.0, 90.0, 1e4, -1e6]


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def values(logits) -> ContinuousBernoulliValues:
    return ContinuousBernoulliValues(logits, event_ndim=0)


def test_the_density_is_that_of_torch():
    logits = torch.linspace(-20, 20, 81).double()
    x = torch.rand(7, 81).double()
    expected = ContinuousBernoulli(logits=logits).log_prob(x)  # which switches to a Taylor series near 1/2
    torch.testing.assert_close(values(logits).log_prob(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        values(logits).mean, ContinuousBernoulli(logits=logits).mean, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("logit", [0.0, 1e-6, -0.2, 0.4999, 0.5001, 3.0, -12.0])
def test_it_integrates_to_one_and_has_its_mean(logit):
    x = torch.linspace(0, 1, 20_001).double()
    p = values(double(logit).expand(1)).log_prob(x[:, None])[:, 0].exp()
    assert abs(torch.trapezoid(p, x) - 1) < 1e-7
    mean = values(double(logit)).mean
    assert abs(torch.trapezoid(p * x, x) - mean) < 1e-7


def exact_log_normalizer(logit: float) -> float:
    """A(l) = log((e^l - 1) / l), as a series in rational numbers; for |l| of a few."""
    total, term = Fraction(0), Fraction(1)
    for n in range(1, 60):
        total += term
        term = term * Fraction(logit) / (n + 1)
    return math.log1p(total - 1)


@pytest.mark.parametrize("logit", [1e-12, 1e-5, -1e-3, 0.1, 0.4999, -0.4999, 0.5, 0.51, -0.8, 2.0])
def test_float64_is_exact_to_rounding_near_one_half(logit):
    at_zero = -values(double(logit)).log_prob(double(0.0))
    assert at_zero.item() == pytest.approx(exact_log_normalizer(logit), abs=2e-16, rel=4e-16)


def test_the_series_is_that_of_the_hyperbolic_sine():
    """Its coefficients: those of log(sinh(y) / y) in exact arithmetic, with y = l / 2."""
    sinh = [Fraction(1)]
    for k in range(1, 7):
        sinh.append(sinh[-1] / ((2 * k) * (2 * k + 1)))
    log = [Fraction(0)] * 7
    for k in range(1, 7):
        log[k] = sinh[k] - sum((Fraction(j, k) * log[j] * sinh[k - j] for j in range(1, k)), Fraction(0))
    assert pytest.approx([float(log[k] / 4**k) for k in range(1, 7)], rel=1e-15) == _SERIES


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("logit", LOGITS)
def test_the_gradient_is_x_minus_the_mean_and_finite_everywhere(logit, dtype, tolerance):
    logits = torch.tensor(logit, dtype=dtype, requires_grad=True)
    for point in (0.0, 0.3, 1.0):
        (gradient,) = torch.autograd.grad(values(logits).log_prob(torch.tensor(point, dtype=dtype)), logits)
        expected = point - _mean_in_float64(logit)
        assert gradient.item() == pytest.approx(expected, abs=tolerance)
    mean = values(logits).mean
    assert mean.item() == pytest.approx(_mean_in_float64(logit), abs=tolerance)
    (slope,) = torch.autograd.grad(mean, logits)
    assert torch.isfinite(slope)
    assert 0 <= slope.item() <= 1 / 12 + tolerance


def _mean_in_float64(logit: float) -> float:
    """By the series 1/2 + l/12 - l^3/720 where the closed form cancels, else by the closed form."""
    if abs(logit) < 1e-2:
        return 0.5 + logit / 12 - logit**3 / 720
    value = double(logit)
    return (1 / -torch.expm1(-value) - 1 / value).item()


def test_log_probs_in_float32_are_those_in_float64():
    logits = torch.cat([torch.linspace(-1, 1, 201), torch.tensor([-300.0, 88.0, 1e5])])
    x = torch.tensor([0.0, 1e-6, 0.25, 0.5, 1 - 1e-6, 1.0])[:, None]
    single = values(logits).log_prob(x).double()
    double = values(logits.double()).log_prob(x.double())
    torch.testing.assert_close(single, double, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("logit", [0.0, 1e-8, 0.4, -0.7, 6.0, -35.0, 2000.0])
def test_draws_follow_the_inverse_of_the_cdf(logit):
    """F(x) = (e^(l x) - 1) / (e^l - 1) of a draw is the uniform number that made it, or its mirror image."""
    logits = torch.full((4000,), logit)
    with noise.stream(1):
        x = values(logits).sample().double()
    with noise.stream(1):
        u = noise.uniform((4000,), like=logits).double()
    size = abs(logit)
    rest = 1 - x if logit > 0 else x
    cdf = rest if size < 1e-6 else torch.expm1(-size * rest) / torch.expm1(double(-size))
    assert ((x >= 0) & (x <= 1)).all()
    if size < 1000:  # beyond, 1 - x is rounded in float32
        torch.testing.assert_close(cdf, u, rtol=0, atol=1e-6 * (1 + size))
    mean = values(double(logit)).mean
    assert abs(x.mean() - mean) < 5 * x.std() / 4000**0.5 + 1e-6


def test_draws_carry_no_gradient():
    x = values(torch.zeros(3, requires_grad=True)).sample((2,))
    assert not x.requires_grad


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_data_outside_the_unit_interval_are_refused(bad):
    distribution = ContinuousBernoulliValues(torch.zeros(2, 3), event_ndim=1)
    distribution.check_support(torch.tensor([[0.0, 0.5, 1.0]]))
    with pytest.raises(DataError, match=r"A continuous Bernoulli likelihood needs values in \[0, 1\]"):
        distribution.check_support(torch.tensor([[0.0, 0.5, bad]]))
