"""A VAE as a prior: the exact evidence of linear-Gaussian models inside one another, draws with their noise."""

import re

import pytest
import torch
from torch import distributions

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    EnergyPrior,
    Flow,
    LearnedGaussian,
    StandardGaussian,
    VampPrior,
)
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE, LatentVariablePrior, presets, second_stage_vae
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, gaussian, network
from tests.evaluation.test_bounds import Points
from tests.linear_gaussian import Affine, LinearGaussian

INNER = LinearGaussian((2,), latent=2, sigma=0.8, exact=False)
WEIGHT = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-0.6, 0.9]], dtype=torch.float64)
BIAS, SIGMA = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64), 0.9


def evidence() -> distributions.MultivariateNormal:
    """Return p(x) of the outer model whose latents have the inner model's evidence."""
    z = INNER.weight @ INNER.weight.T + INNER.sigma**2 * torch.eye(2).double()
    covariance = WEIGHT @ z @ WEIGHT.T + SIGMA**2 * torch.eye(3).double()
    return distributions.MultivariateNormal(WEIGHT @ INNER.bias + BIAS, covariance)


def outer(prior) -> VAE:
    """An outer model with the likelihood above and a posterior close to the exact one, a little too wide."""
    z = INNER.weight @ INNER.weight.T + INNER.sigma**2 * torch.eye(2).double()
    covariance = (z.inverse() + WEIGHT.T @ WEIGHT / SIGMA**2).inverse()
    gain = covariance @ WEIGHT.T / SIGMA**2
    offset = covariance @ z.inverse() @ INNER.bias - gain @ BIAS
    std = 1.2 * covariance.diagonal().sqrt()
    raw = std.log() / (1 - std.log().abs() / 7)  # before the soft bound of log-scales
    encoder = Affine(torch.cat([gain, torch.zeros(2, 3).double()]), torch.cat([offset, raw]), (4,))
    likelihood = AmortizedGaussian(3, 2, Affine(WEIGHT, BIAS, (3,)), scale=SIGMA)
    return VAE(AmortizedGaussian(2, 3, encoder), prior, likelihood).double()


@pytest.mark.parametrize("num_samples", [1, 5])
def test_the_estimate_is_right_on_average(num_samples):
    prior = LatentVariablePrior(INNER.model, num_samples=num_samples)
    z = INNER.data(3)
    with torch.no_grad():
        log_p = prior().log_prob(z.expand(20_000, 3, 2))
    ratio = (log_p - INNER.log_evidence(z)).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 20_000**0.5).all()
    assert (log_p.mean(0) < INNER.log_evidence(z) - 0.001).all()  # the log of it is not


def test_more_inner_samples_come_closer():
    z = INNER.data(200)
    truth = INNER.log_evidence(z).mean()
    with torch.no_grad():
        gaps = [
            float(
                truth
                - LatentVariablePrior(INNER.model, num_samples=n)().log_prob(z.expand(20, 200, 2)).mean()
            )
            for n in (1, 4, 64)
        ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


@pytest.mark.parametrize("num_samples", [1, 4])
def test_the_outer_bound_agrees_with_the_exact_evidence(num_samples):
    model = outer(LatentVariablePrior(INNER.model, num_samples=num_samples))
    x = evidence().sample((40,))
    result = evaluate_bounds(model, Points(x), num_importance_samples=4000)
    truth = evidence().log_prob(x)
    error = (result.nll + truth) / result.monte_carlo_variance.sqrt()
    assert error.abs().max() < 5
    assert error.std() < 1.6
    assert result.prior_density == "estimate"
    assert float((truth - result.elbo).mean()) > 0.01
    few = evaluate_bounds(model, Points(x), num_importance_samples=2, seed=1)
    assert float(few.nll.mean()) > float(result.nll.mean())


def test_draws_include_the_noise_of_the_inner_likelihood():
    prior = LatentVariablePrior(INNER.model)
    x = prior().sample((20_000,))
    covariance = INNER.weight @ INNER.weight.T + INNER.sigma**2 * torch.eye(2).double()
    expected = distributions.MultivariateNormal(INNER.bias, covariance)
    assert ((x.mean(0) - expected.mean).abs() < 5 * x.std(0) / 20_000**0.5).all()
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.06, atol=0.06)
    cold = prior().tempered(0.5)
    y = cold.sample((20_000,))
    torch.testing.assert_close(y.T.cov(), 0.25 * covariance, rtol=0.06, atol=0.03)
    z = expected.sample((2,))
    scaled = distributions.MultivariateNormal(INNER.bias, 0.25 * covariance)
    with torch.no_grad():
        log_p = cold.log_prob(INNER.bias + 0.3 * (z - INNER.bias).expand(20_000, 2, 2))
    ratio = (log_p - scaled.log_prob(INNER.bias + 0.3 * (z - INNER.bias))).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 20_000**0.5).all()


def test_shapes_gradients_and_state():
    prior, other = (
        second_stage_vae(3, inner_dim=2, width=6, depth=2, num_samples=4).double() for _ in range(2)
    )
    randomize(prior, 0.3)
    x, log_p = prior().sample_and_log_prob((2, 5))
    assert x.shape == (2, 5, 3)
    assert log_p.shape == (2, 5)
    assert prior().log_prob(x[0, 0]).shape == ()
    prior().log_prob(x.detach()).sum().backward()
    for name, p in prior.named_parameters():
        assert p.grad.any(), name
    other.load_state_dict(prior.state_dict())
    for call in (lambda p: p().sample((4,)), lambda p: p().log_prob(x)):
        with noise.stream(1):
            first = call(prior)
        with noise.stream(1):
            assert torch.equal(first, call(other))
    assert not torch.equal(prior().log_prob(x), prior().log_prob(x))
    with pytest.raises(ShapeError, match=re.escape("must end in (3,); got shape (2,)")):
        prior().log_prob(torch.zeros(2).double())


def test_the_last_layers_read_the_input():
    prior = second_stage_vae(3, width=6, depth=1)
    for net in (prior.inner.posterior.network, prior.inner.likelihood.network):
        assert net.last.linear.in_features == 3 + 6
    assert prior.inner.likelihood.raw_scale.requires_grad


def test_a_conditional_inner_model():
    inner = VAE(gaussian((2,), (3 + 4,)), gaussian((2,), (4,)), gaussian((3,), (2,)), context_shape=4)
    prior = LatentVariablePrior(inner).double()
    randomize(prior, 0.4)
    context = torch.randn(5, 4).double()
    distribution = prior(context)
    assert distribution.batch_shape == (5,)
    x = distribution.sample((7,))
    assert x.shape == (7, 5, 3)
    assert distribution.log_prob(x).shape == (7, 5)
    with noise.stream(1):
        log_p = prior(context).log_prob(x[0])
    with noise.stream(1):
        assert (prior(context.roll(1, 0)).log_prob(x[0]) != log_p).all()


def test_the_inner_prior_may_be_a_flow():
    flow = Flow(LearnedGaussian(2), presets.real_nvp(2, num_layers=2, width=4, depth=1))
    prior = LatentVariablePrior(VAE(gaussian((2,), (3,)), flow, gaussian((3,), (2,), scale="shared")))
    randomize(prior, 0.3)
    prior().log_prob(torch.randn(6, 3)).sum().backward()
    assert all(p.grad.any() for p in prior.parameters())


def test_the_inner_prior_may_be_made_of_the_inner_posterior():
    posterior = gaussian((2,), (3,))
    inner = VAE(posterior, VampPrior(posterior, 4, value_range="free"), gaussian((3,), (2,), scale="shared"))
    model = VAE(gaussian((3,), (5,)), LatentVariablePrior(inner), bernoulli((5,), (3,)))
    randomize(model, 0.3)
    model.trace(torch.ones(2, 5)).log_prior.sum().backward()
    assert all(p.grad.any() for p in inner.parameters())


@pytest.mark.parametrize(
    "wrap", [lambda prior: prior, lambda prior: Flow(prior, presets.real_nvp(2, width=4))]
)
def test_an_inner_density_that_is_known_up_to_a_constant_or_an_error_is_refused(wrap):
    prior = wrap(EnergyPrior(StandardGaussian(2), network((2,), (1,))))
    with pytest.raises(CombinationError, match="must have an exact density, or p"):
        LatentVariablePrior(VAE(gaussian((2,), (3,)), prior, gaussian((3,), (2,))))


def test_an_inner_prior_that_would_be_given_data_for_latents_is_refused():
    posterior = gaussian((2,), (3,))
    prior = VampPrior(posterior, 4, value_range="free", start="data")
    with pytest.raises(
        CombinationError, match="starts from data points, but those of an inner VAE are latents"
    ):
        LatentVariablePrior(VAE(posterior, prior, gaussian((3,), (2,))))


def test_a_cross_entropy_is_no_inner_likelihood():
    with pytest.warns(UserWarning, match="no likelihood"):
        likelihood = AmortizedBernoulli(3, 2, network((2,), (3,)), gray=True)
    with pytest.raises(CombinationError, match="must have an exact density, or p"):
        LatentVariablePrior(VAE(gaussian((2,), (3,)), StandardGaussian(2), likelihood))


def test_what_does_not_fit_is_refused():
    with pytest.raises(CombinationError, match="likelihood of a second-stage VAE must be a density"):
        LatentVariablePrior(VAE(gaussian((2,), (3,)), StandardGaussian(2), bernoulli((3,), (2,))))
    with pytest.raises(ConfigurationError, match="`num_samples` must be a positive integer; got 0"):
        LatentVariablePrior(INNER.model, num_samples=0)
    with pytest.raises(ConfigurationError, match="`width` must be a positive integer; got 0"):
        second_stage_vae(2, width=0)


def test_nan_stays_nan():
    prior = second_stage_vae(2, width=4, depth=1)
    x = torch.zeros(3, 2)
    x[1, 0] = torch.nan
    assert prior().log_prob(x).isnan().tolist() == [False, True, False]
