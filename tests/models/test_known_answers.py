"""Models whose numbers are known: a linear-Gaussian VAE, and one flow read as prior or as posterior."""

import pytest
import torch
from torch import distributions, nn

from latentflows.bijections import Inverse
from latentflows.core import noise
from latentflows.distributions import Flow, StandardGaussian
from latentflows.models import VAE, presets
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, gaussian
from tests.linear_gaussian import LinearGaussian

EVENTS = pytest.mark.parametrize("event_shape", [(5,), (1, 2, 3)], ids=str)


@pytest.mark.parametrize("samples", [1, 3])
@EVENTS
def test_with_the_exact_posterior_every_weight_is_the_evidence(event_shape, samples):
    known = LinearGaussian(event_shape)
    x = known.data(20)
    weights = known.model.trace(x, samples).log_weight
    torch.testing.assert_close(weights, known.log_evidence(x).expand(samples, 20), rtol=1e-10, atol=1e-10)


@EVENTS
def test_posterior_and_likelihood_are_the_ones_written_down(event_shape):
    known = LinearGaussian(event_shape)
    x = known.data(7)
    q, p = known.model.posterior(x), known.posterior(x)
    torch.testing.assert_close(q.mean, p.mean)
    z = p.sample((3,))
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z))


def test_data_of_the_model_have_the_moments_of_the_evidence():
    known = LinearGaussian()
    x = known.data(20_000)
    covariance = known.weight @ known.weight.T + known.sigma**2 * torch.eye(5)
    assert ((x.mean(0) - known.bias) / (covariance.diagonal() / len(x)).sqrt()).abs().max() < 5
    drawn = known.model.sample(20_000)
    assert ((drawn.mean(0) - known.bias) / (covariance.diagonal() / len(x)).sqrt()).abs().max() < 5
    variances = covariance.diagonal()
    spread = ((variances[:, None] * variances + covariance**2) / len(x)).sqrt()
    assert ((drawn.T.cov() - covariance) / spread).abs().max() < 5


def test_with_another_posterior_the_gap_is_the_divergence_from_the_exact_one():
    known = LinearGaussian(exact=False)
    x = known.data(5)
    with torch.no_grad():
        q = known.model.posterior(x)
        gap = distributions.kl_divergence(
            distributions.MultivariateNormal(q.mean, scale_tril=q.scale_tril), known.posterior(x)
        )
        weights = known.model.trace(x, 20_000).log_weight
    error = (weights.mean(0) - (known.log_evidence(x) - gap)) / (weights.std(0) / 20_000**0.5)
    assert (gap > 0.1).all()
    assert error.abs().max() < 5


class Through(nn.Module):
    """A decoder behind a flow: eps -> z = f(eps) -> network(z)."""

    def __init__(self, bijection, network) -> None:
        super().__init__()
        self.bijection, self.network = bijection, network

    def forward(self, eps):
        return self.network(self.bijection(eps)[0])


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("preset", [presets.maf, presets.real_nvp], ids=["maf", "real_nvp"])
def test_a_flow_prior_is_a_flow_posterior_seen_from_its_base(preset, samples):
    """Chen et al., Variational Lossy Autoencoder, 2017, section 3.2: the same bound, term by term."""
    encoder, likelihood, f = gaussian((3,), (4,)), bernoulli((4,), (3,)), preset(3, num_layers=2, width=6)
    for part in (encoder, likelihood, f):
        randomize(part.double(), 0.7)
    as_prior = VAE(encoder, Flow(StandardGaussian(3), f), likelihood).double()
    behind = bernoulli((4,), (3,))
    behind.network = Through(f, likelihood.network)
    as_posterior = VAE(Flow(encoder, Inverse(f)), StandardGaussian(3), behind).double()
    x = torch.rand(6, 4).round().double()
    with noise.stream(1):
        one = as_prior.trace(x, samples)
    with noise.stream(1):
        two = as_posterior.trace(x, samples)
    torch.testing.assert_close(one.log_weight, two.log_weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.log_likelihood, two.log_likelihood, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(f(two.z)[0], one.z, rtol=1e-9, atol=1e-9)
    assert (one.log_prior != two.log_prior).all()
