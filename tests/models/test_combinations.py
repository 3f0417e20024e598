"""Every posterior with every prior and every likelihood: it builds, traces and trains."""

import pytest
import torch

from latentflows.distributions import has_closed_form_kl
from latentflows.objectives import ELBO, IWAE, PriorLikelihood
from tests.bijections.cases import randomize
from tests.models.parts import DATA, LATENT, LIKELIHOODS, POSTERIORS, PRIORS, vae


def objectives(model):
    yield IWAE(2)
    if model.num_parameters()["prior"]:
        yield PriorLikelihood(2)
    if has_closed_form_kl(model.posterior.distribution_type, model.prior.distribution_type):
        yield ELBO(2, kl="closed_form")
    yield ELBO(2)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_combination_traces_and_gives_finite_gradients(posterior, prior, likelihood):
    model = vae(posterior, prior, likelihood)
    randomize(model, 0.7)
    x = torch.rand(4, *DATA).round()
    for objective in objectives(model):
        objective.check(model)
        model.zero_grad(set_to_none=True)
        trace = objective.trace(model, x)
        assert trace.z.shape == (2, 4, LATENT)
        assert trace.log_weight.shape == (2, 4)
        value = objective(trace)
        assert torch.isfinite(value.loss)
        assert value.loss.shape == ()
        assert all(metric.shape == (4,) and not metric.requires_grad for metric in value.metrics.values())
        value.loss.backward()
        used = model.prior if isinstance(objective, PriorLikelihood) else model
        for name, parameter in used.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_combination_samples_and_reconstructs(posterior, prior):
    model = vae(posterior, prior)
    assert model.sample(3).shape == (3, *DATA)
    assert model.sample(3, temperature=0.5).shape == (3, *DATA)
    assert model.reconstruct(torch.rand(4, *DATA).round()).shape == (4, *DATA)
