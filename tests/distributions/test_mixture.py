"""Mixtures against torch.distributions; draws against weights; the Gaussian mixture as a prior."""

import math
import re

import pytest
import torch
from torch import distributions as reference

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.distributions import (
    DiagonalNormal,
    Flow,
    FullNormal,
    GaussianMixture,
    Mixture,
    StandardNormal,
)
from latentflows.distributions import mixture as module
from latentflows.models import VAE
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, nvp


def mixture(*batch: int, full: bool = False, count: int = 4, dim: int = 3, dtype=torch.float64) -> Mixture:
    mean = 2 * torch.randn(*batch, count, dim, dtype=dtype)
    weights = torch.randn(*batch, count, dtype=dtype)
    if full:
        tril = 0.5 * torch.randn(*batch, count, dim, dim, dtype=dtype).tril(-1) + torch.eye(dim, dtype=dtype)
        return Mixture(weights, FullNormal(mean, tril))
    return Mixture(weights, DiagonalNormal(mean, 0.5 * torch.randn_like(mean)))


def as_torch(p: Mixture) -> reference.MixtureSameFamily:
    parts = p.components
    if isinstance(parts, FullNormal):
        each = reference.MultivariateNormal(parts.mean, scale_tril=parts.scale_tril)
    else:
        assert isinstance(parts, DiagonalNormal)
        each = reference.Independent(reference.Normal(parts.mean, parts.log_scale.exp()), 1)
    return reference.MixtureSameFamily(reference.Categorical(logits=p.log_weights), each)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_density_and_mean_are_those_of_torch(batch, full):
    p = mixture(*batch, full=full)
    x = 3 * torch.randn(7, *batch, 3).double()
    torch.testing.assert_close(p.log_prob(x), as_torch(p).log_prob(x))
    torch.testing.assert_close(p.mean, as_torch(p).mean)


def test_weights_of_a_batch_may_share_their_components():
    parts = mixture().components
    weights = torch.randn(5, 4).double()
    x = torch.randn(6, 5, 3).double()
    shared = Mixture(weights, parts)
    assert isinstance(parts, DiagonalNormal)
    spread = Mixture(weights, DiagonalNormal(parts.mean.expand(5, 4, 3), parts.log_scale.expand(5, 4, 3)))
    torch.testing.assert_close(shared.log_prob(x), spread.log_prob(x))
    with noise.stream(1):
        draws = shared.sample((2,))
    with noise.stream(1):
        torch.testing.assert_close(draws, spread.sample((2,)))


@pytest.mark.parametrize("full", [False, True])
def test_pieces_without_gradients_change_nothing(full, monkeypatch):
    p = mixture(5, full=full)
    x = torch.randn(11, 5, 3).double()
    whole = p.log_prob(x)
    monkeypatch.setattr(module, "_BLOCK", 90)
    with torch.no_grad():
        torch.testing.assert_close(p.log_prob(x), whole)
        assert p.log_prob(x[:0]).shape == (0, 5)


def test_narrow_components_far_from_zero_are_scored_exactly_in_float32():
    mean = torch.tensor([[100.0, -50.0], [100.01, -50.0]])
    p = Mixture(torch.zeros(2), DiagonalNormal(mean, torch.full((2, 2), -6.0)))
    x = torch.tensor([[100.004, -50.002], [100.01, -49.99]])
    expected = Mixture(
        torch.zeros(2).double(), DiagonalNormal(mean.double(), torch.full((2, 2), -6.0).double())
    )
    torch.testing.assert_close(p.log_prob(x).double(), expected.log_prob(x.double()), rtol=1e-6, atol=1e-5)


def test_one_point_far_from_everything_has_a_finite_density_and_gradient():
    p = mixture(dtype=torch.float32)
    x = torch.full((3,), 1e6, requires_grad=True)
    log_p = p.log_prob(x)
    log_p.backward()
    assert log_p < -1e9
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


def test_an_empty_corner_is_empty():
    """A product of mixtures in each dimension would put as much mass at (4, -4) as at a component."""
    mean = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).double()
    p = Mixture(torch.zeros(2).double(), DiagonalNormal(mean, torch.zeros(2, 2).double()))
    corner, top = p.log_prob(torch.tensor([[4.0, -4.0], [4.0, 4.0]]).double())
    assert top == pytest.approx(-math.log(2) - math.log(2 * math.pi))
    assert corner == pytest.approx(top - 32 + math.log(2))


def test_components_are_drawn_by_their_weights():
    weights = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.5, 0.0]]).double()
    means = 100 * torch.arange(8.0).double().view(2, 4, 1)
    p = Mixture(weights.log(), DiagonalNormal(means, torch.zeros_like(means)))
    with noise.stream(2):
        x = p.sample((20_000,)).squeeze(-1)
    chosen = (x / 100).round().long() - torch.tensor([0, 4])
    for row in range(2):
        found = torch.bincount(chosen[:, row], minlength=4) / len(x)
        error = (weights[row] * (1 - weights[row]) / len(x)).sqrt()
        assert ((found - weights[row]).abs() <= 5 * error).all()


def test_a_component_without_weight_is_never_drawn(monkeypatch):
    weights = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).double()
    p = Mixture(weights.log(), DiagonalNormal(torch.zeros(5, 1).double(), torch.zeros(5, 1).double()))
    draws = torch.tensor([0.0, 0.25, 0.75, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(module.noise, "uniform", lambda shape, like: draws)
    assert p.sample_components((4,)).tolist() == [1, 1, 3, 3]


def test_temperature_scales_the_components_and_leaves_the_weights():
    p = mixture()
    draws = []
    for temperature in (0.5, 1.0, 1.5):
        with noise.stream(1):
            draws.append(p.tempered(temperature).sample((50,)))
    torch.testing.assert_close(draws[2] - draws[1], draws[1] - draws[0])
    torch.testing.assert_close(p.tempered(0.5).log_weights, p.log_weights)


def test_draws_have_no_gradient_and_detached_keeps_that_of_the_point():
    prior = GaussianMixture(2, 3)
    randomize(prior, 0.5)
    assert not prior().sample((4,)).requires_grad
    x = torch.randn(4, 2, requires_grad=True)
    log_p = prior().detached().log_prob(x)
    torch.testing.assert_close(log_p, prior().log_prob(x))
    log_p.sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_gradients_are_those_of_finite_differences():
    x, mean, log_scale, weights = (
        torch.randn(3, 2),
        torch.randn(4, 2),
        0.3 * torch.randn(4, 2),
        torch.randn(4),
    )
    inputs = [value.double().requires_grad_() for value in (x, mean, log_scale, weights)]
    assert torch.autograd.gradcheck(
        lambda x, m, s, w: Mixture(w, DiagonalNormal(m, s)).log_prob(x), tuple(inputs)
    )


def test_components_that_do_not_fit_or_cannot_be_drawn_are_refused():
    with pytest.raises(CombinationError, match=r"need the batch shape of its weights, \(3,\)"):
        Mixture(torch.zeros(3), DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2)))
    standard = StandardNormal((2,), like=torch.zeros(()))
    with pytest.raises(CombinationError, match="A mixture of `StandardNormal` cannot be drawn"):
        module.selected(standard, torch.tensor(0))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("classes", [None, 4])
def test_the_spread_start_has_unit_variance(covariance, classes):
    with noise.stream(5):
        prior = GaussianMixture(3, 500, covariance=covariance, num_classes=classes, spread=0.8)
        p = prior(None if classes is None else torch.full((4,), 0.25))
        x = p.sample((20_000,))
    assert (x.var(0) - 1).abs().max() < 0.15
    assert len(prior.means.unique(dim=0)) == len(prior.means)
    scale = (
        p.components.tempered(1).log_scale
        if covariance == "diagonal"
        else p.components.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    )
    torch.testing.assert_close(scale, torch.full_like(scale, math.log(0.6)))


def test_a_label_chooses_its_mixture_and_a_soft_one_mixes():
    prior = GaussianMixture(2, 3, num_classes=2, covariance="full").double()
    randomize(prior, 0.7)
    x = torch.randn(5, 2).double()
    alone = []
    for label in (0, 1):
        rows = slice(3 * label, 3 * label + 3)
        parts = prior.components()
        own = Mixture(prior.raw_weights[label], FullNormal(parts.mean[rows], parts.scale_tril[rows]))
        alone.append(own.log_prob(x))
        hot = torch.eye(2).double()[torch.full((5,), label)]
        torch.testing.assert_close(prior(hot).log_prob(x), alone[-1])
    soft = torch.tensor([0.2, 0.8]).double()
    expected = (0.2 * alone[0].exp() + 0.8 * alone[1].exp()).log()
    torch.testing.assert_close(prior(soft.expand(5, 2)).log_prob(x), expected)
    torch.testing.assert_close(prior(10 * soft).log_prob(x), expected)
    equal = (0.5 * alone[0].exp() + 0.5 * alone[1].exp()).log()
    torch.testing.assert_close(prior(torch.zeros(2).double()).log_prob(x), equal)


@pytest.mark.parametrize("label", [[-1.0, 1.0], [float("nan"), 1.0], [0.0, -1.0]])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(DataError, match="A label must hold numbers of at least 0"):
        GaussianMixture(2, 3, num_classes=2)(torch.tensor([label]))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_components": 0}, ConfigurationError, "`num_components` must be a positive integer; got 0"),
        ({"num_classes": 0}, ConfigurationError, "`num_classes` must be a positive integer; got 0"),
        ({"covariance": "low"}, ConfigurationError, '"diagonal" or "full"'),
        ({"spread": 1.0}, ConfigurationError, "below 1; got 1.0"),
        ({"start": "kmeans"}, ConfigurationError, '"spread" or "em"'),
        ({"scale_bound": 0.0}, ConfigurationError, "`scale_bound` must be positive"),
        ({"initialization_points": 0}, ConfigurationError, "`initialization_points`"),
        (
            {"event_shape": (2, 2), "covariance": "full"},
            CombinationError,
            r"vector event \(D,\); got \(2, 2\)",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        GaussianMixture(**{"event_shape": 2, "num_components": 3} | settings)


def test_a_mixture_is_no_posterior_and_neither_is_a_flow_over_one():
    class Asked(GaussianMixture):
        """A mixture that reads data."""

    likelihood = bernoulli((1, 2), (2,))
    mixed = Asked(2, 2, num_classes=3)
    mixed.context_shape = (1, 2)
    flow = Flow(GaussianMixture(2, 2), nvp(3), embed=torch.nn.Flatten(), context_shape=(1, 3))
    with pytest.raises(CombinationError, match="must draw with gradients, but `Mixture` does not"):
        VAE(mixed, GaussianMixture(2, 2), likelihood)
    with pytest.raises(CombinationError, match="must draw with gradients, but `Mixture` does not"):
        VAE(flow, GaussianMixture(2, 2), bernoulli((1, 3), (2,)))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_latent_is_enough(covariance):
    prior = GaussianMixture(1, 3, covariance=covariance, start="em")
    z = torch.randn(200, 1)
    prior.initialize(z)
    x, log_p = prior().sample_and_log_prob((5,))
    assert x.shape == (5, 1)
    assert torch.isfinite(log_p).all()


def test_em_sets_the_parameters_once_and_is_remembered():
    prior, other = (GaussianMixture(2, 3, covariance="full", start="em") for _ in range(2))
    assert prior.waits_for_data
    z = torch.cat([torch.randn(300, 2) @ torch.randn(2, 2) + center for center in (-8.0, 0.0, 8.0)])
    before = prior().log_prob(z).mean()
    prior.initialize(z)
    assert not prior.waits_for_data
    assert prior().log_prob(z).mean() > before + 1
    other.load_state_dict(prior.state_dict())
    assert not other.waits_for_data
    torch.testing.assert_close(other().log_prob(z), prior().log_prob(z))
    assert not GaussianMixture(2, 3).waits_for_data


def test_em_never_makes_it_worse():
    """Here the prior is the truth, and EM of fewer effective components from these points is not."""
    prior = GaussianMixture(2, 2, start="em", scale_bound=0.5)
    z = 1e-3 * torch.randn(100, 2)  # narrower than the bound allows: what EM finds cannot be kept
    with torch.no_grad():
        prior.means.zero_()
        prior.raw_scales.fill_(-1e6)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    score = prior().log_prob(z).mean()
    prior.initialize(z)
    assert prior().log_prob(z).mean() >= score
    for name, value in prior.state_dict().items():
        assert name == "initialized" or torch.equal(value, before[name])


def test_a_conditional_refuses_a_state_of_other_sizes():
    with pytest.raises(RuntimeError, match=re.escape("size mismatch for means")):
        GaussianMixture(2, 3).load_state_dict(GaussianMixture(2, 4).state_dict())


def test_a_mixture_of_unknown_weights_draws_nan():
    weights = torch.tensor([[0.0, 1.0], [0.0, math.nan]])
    p = Mixture(weights, DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3)))
    drawn = p.sample((4,))
    assert drawn[:, 0].isfinite().all()
    assert drawn[:, 1].isnan().all()
