"""Eval mode that gives back what was there, data brought to a model, moments of posteriors."""

import pytest
import torch
from torch import nn

from latentflows.bijections import Permutation
from latentflows.distributions import AmortizedGaussian, AmortizedLowRankGaussian, Flow
from latentflows.models.inference import evaluation_mode, posterior_mean, posterior_moments, to_model
from tests.evaluation.test_bounds import bernoulli_vae, binary, network


def test_every_module_gets_its_own_mode_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    model[2].eval()
    modes = [module.training for module in model.modules()]

    def use() -> None:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert [module.training for module in model.modules()] == modes == [True, True, True, False]


def test_numbers_get_at_least_the_precision_of_the_model_and_labels_stay():
    model = nn.Linear(2, 2).double()
    assert to_model(model, torch.zeros(3)).dtype == torch.float64
    assert to_model(model.float(), torch.zeros(3).double()).dtype == torch.float64
    assert to_model(model, torch.zeros(3, dtype=torch.int64)).dtype == torch.int64
    assert to_model(nn.Identity(), torch.zeros(3)).dtype == torch.float32


def test_moments_in_closed_form_are_those_of_draws():
    full = AmortizedGaussian(3, 6, network(6, 9), covariance="full")
    low_rank = AmortizedLowRankGaussian(3, 6, network(6, 9), rank=1)
    for posterior in (full, low_rank):
        with torch.no_grad():
            q = posterior(torch.rand(2, 6))
        mean, variance, error, draws = posterior_moments(q, 2)
        z = q.sample((40_000,))
        assert draws is None
        assert not error.any()
        torch.testing.assert_close(mean, z.mean(0).double(), rtol=0, atol=0.03)
        torch.testing.assert_close(variance, z.var(0).double(), rtol=0.04, atol=0)


def test_moments_from_draws_state_the_error_of_their_mean():
    posterior, order = AmortizedGaussian(3, 6, network(6, 6)), torch.tensor([2, 0, 1])
    flow = Flow(posterior, Permutation(3, order))
    with torch.no_grad():
        x = torch.rand(1, 6).expand(5_000, 6)
        exact, found = posterior_moments(posterior(x), 2), posterior_moments(flow(x), 8)
    assert found.num_draws == 8
    assert found.mean.dtype == found.variance.dtype == torch.float64
    deviation = found.mean - exact.mean[:, order]
    torch.testing.assert_close(found.error.mean(0), deviation.var(0), rtol=0.1, atol=0)
    torch.testing.assert_close(found.variance.mean(0), exact.variance[0, order], rtol=0.05, atol=0)


def test_a_posterior_mean_has_the_precision_of_the_model():
    model, x = bernoulli_vae(), binary(4).batch(torch.arange(4)).x
    found = posterior_mean(model, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.encode(x).mean)
    assert posterior_mean(model.double(), x.double()).dtype == torch.float64
    assert posterior_mean(model.bfloat16(), x.bfloat16()).dtype == torch.float32
