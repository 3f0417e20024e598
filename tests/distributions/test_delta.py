"""The posterior of an autoencoder has draws and no density, and everything that needs one says so."""

import pytest
import torch

from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedDelta, GaussianMixture, Hierarchical, StandardGaussian
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE
from latentflows.objectives import ELBO, IWAE, PriorLikelihood
from latentflows.training import Stage, fit
from tests.distributions.cases import bernoulli, network


def delta(dim: int = 2, shape=(1, 3)) -> AmortizedDelta:
    return AmortizedDelta(dim, shape, network(shape, (dim,)))


def data(count: int = 16) -> ArraySplit:
    return ArraySplit((torch.rand(count, 1, 3) < 0.5).float(), values="binary")


def test_draws_repeat_the_point_with_its_gradient():
    posterior = delta()
    q = posterior(torch.randn(4, 1, 3))
    z = q.sample((3,))
    assert z.shape == (3, 4, 2)
    assert torch.equal(z, q.mean.expand(3, 4, 2))
    assert not q.detached().sample().requires_grad
    z.sum().backward()
    assert all(parameter.grad is not None for parameter in posterior.parameters())


def test_it_has_no_density():
    q = delta()(torch.randn(4, 1, 3))
    assert (q.density, q.normalized) == ("unnormalized", False)
    for call in (lambda: q.log_prob(torch.zeros(4, 2)), q.sample_and_log_prob):
        with pytest.raises(CombinationError, match=r"`Delta`, which has no density: there is no ELBO"):
            call()


@pytest.mark.parametrize("objective", [ELBO(), IWAE(), ELBO(kl="closed_form")])
def test_objectives_that_need_a_density_refuse_it(objective):
    model = VAE(delta(), StandardGaussian(2), bernoulli((1, 3), (2,)))
    with pytest.raises(CombinationError, match=r"density|No closed-form KL"):
        fit(model, [Stage("joint", objective, max_epochs=1, batch_size=4)], data())


def test_bounds_refuse_it():
    model = VAE(delta(), StandardGaussian(2), bernoulli((1, 3), (2,)))
    with pytest.raises(CombinationError, match="has no density"):
        evaluate_bounds(model, data(), num_importance_samples=2)


def test_a_trace_scores_the_prior_alone_and_a_prior_is_fitted_to_the_points():
    model = VAE(delta(), GaussianMixture(2, 2), bernoulli((1, 3), (2,)))
    trace = model.trace(Batch(data().x).x, 2)
    assert trace.log_posterior.isnan().all()
    assert trace.log_prior.isfinite().all()
    stage = Stage("prior", PriorLikelihood(), ("prior",), max_epochs=30, batch_size=16, learning_rate=0.05)
    history = fit(model, [stage], data())
    losses = [line["train"]["loss"] for line in history.epochs]
    assert losses[-1] < losses[0] - 0.2


def test_a_level_without_a_density_is_refused():
    with pytest.raises(CombinationError, match="must be continuous and have a density; got `AmortizedDelta`"):
        Hierarchical([delta()], context_shape=(1, 3))
