"""The Bernoulli on gray values, and which kinds of data every likelihood is one of."""

import math
import warnings

import pytest
import torch
from torch import nn

from latentflows.core.errors import CombinationError, DataError, ShapeError
from latentflows.distributions import AmortizedBernoulli, GrayBernoulliValues, as_torch
from tests.distributions import cases

GRAY = "is no likelihood: it does not integrate to one"


def gray_bernoulli() -> AmortizedBernoulli:
    with pytest.warns(UserWarning, match=GRAY):
        return AmortizedBernoulli(4, 2, nn.Linear(2, 4), gray=True)


def test_gray_values_are_taken_when_asked_and_called_no_likelihood():
    distribution = gray_bernoulli()(torch.randn(3, 2))
    x = torch.rand(3, 4)
    distribution.check_support(x)
    logits = distribution.mean.logit()
    expected = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(distribution.log_prob(x), expected.sum(-1))
    assert (distribution.normalized, distribution.density) == (False, "unnormalized")
    with pytest.raises(CombinationError, match="unnormalized"):
        as_torch(distribution)


@pytest.mark.parametrize("logit", [0.0, 1.0, -4.0])
def test_the_cross_entropy_of_gray_values_integrates_to_what_is_said(logit):
    x = torch.linspace(0, 1, 2001).double()
    p = GrayBernoulliValues(torch.full((1,), logit).double(), event_ndim=1).log_prob(x[:, None]).exp()
    said = 0.5 if logit == 0 else math.expm1(logit) / (logit * (1 + math.exp(logit)))
    assert torch.trapezoid(p, x).item() == pytest.approx(said, rel=1e-6)
    assert said <= 0.5


def test_the_warning_comes_at_construction_alone():
    likelihood = gray_bernoulli()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        likelihood(torch.randn(3, 2)).log_prob(torch.rand(3, 4))
        AmortizedBernoulli(4, 2, nn.Linear(2, 4))


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_gray_values_lie_in_the_unit_interval(bad):
    distribution = GrayBernoulliValues(torch.zeros(4), event_ndim=1)
    with pytest.raises(DataError, match=r"needs values in \[0, 1\]"):
        distribution.check_support(torch.tensor([0.0, 1.0, 0.5, bad]))


def test_binary_draws_carry_no_gradient():
    logits = torch.zeros(3, 2, requires_grad=True)
    assert not GrayBernoulliValues(logits, event_ndim=1).sample((4,)).requires_grad


def test_binary_draws_have_the_mean_of_their_logits():
    distribution = GrayBernoulliValues(torch.tensor([-2.0, 0.0, 3.0]), event_ndim=1)
    x = distribution.sample((4000,))
    assert ((x == 0) | (x == 1)).all()
    torch.testing.assert_close(x.mean(0), distribution.mean, rtol=0, atol=0.04)


VALUES = {
    "bernoulli": {"binary"},
    "continuous_bernoulli": {"unit", "continuous"},
    "categorical": {"unit"},
    "logistic": {"unit"},
    "logistic_coupled": {"unit"},
    "laplace_shared": {"continuous"},
    "laplace": {"continuous"},
    "student_t": {"continuous"},
    "optimal_shared": {"continuous"},
    "amortized": {"continuous"},
    "amortized_shared": {"continuous"},
    "amortized_fixed": {"continuous", "unit"},
    "flow": {"continuous"},
}


@pytest.mark.parametrize("name", VALUES)
def test_each_says_which_data_it_is_a_likelihood_of(name):
    assert cases.build(name).values == VALUES[name]


def test_a_fixed_scale_takes_gray_levels_too():
    assert cases.laplace((2,), (3,), 0.2).values == {"unit", "continuous"}
    assert cases.student_t((2,), (3,), 0.2).values == {"unit", "continuous"}
    assert gray_bernoulli().values == {"unit"}


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "continuous_bernoulli",
        "categorical",
        "logistic_mixture",
        "laplace",
        "student_t",
        "optimal_shared",
    ],
)
def test_a_network_of_the_wrong_shape_is_refused(name):
    conditional = cases.build(name)
    raw = getattr(conditional, "raw_shape", conditional.event_shape)
    conditional.network = nn.Sequential(conditional.network, nn.Flatten(), nn.LazyLinear(5).double())
    kind = type(conditional).__name__
    with pytest.raises(ShapeError, match=rf"network of `{kind}` must give \({raw[0]},.*; got \(5,\)"):
        conditional(cases.context_of(conditional, 4))


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_draws_of_nan_are_neither_black_nor_a_level(name):
    likelihood = cases.bernoulli((3,), (2,)) if name == "bernoulli" else cases.categorical((3,), (2,), 5)
    nn.init.constant_(next(likelihood.parameters()), math.nan)
    assert likelihood(torch.randn(2, 2)).sample((4,)).isnan().all()
