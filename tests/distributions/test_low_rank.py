"""The low-rank normal against torch.distributions, and its closed-form KL against dense ones and Monte Carlo."""

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions import (
    AmortizedLowRankGaussian,
    DiagonalNormal,
    FullNormal,
    LowRankNormal,
    StandardNormal,
    kl_divergence,
    low_rank_raw_shape,
)
from latentflows.models import VAE
from latentflows.objectives import ELBO
from tests.distributions.cases import bernoulli, low_rank, network


def normal(*batch: int, dim: int = 5, rank: int = 2) -> LowRankNormal:
    mean = torch.randn(*batch, dim).double()
    return LowRankNormal(mean, 0.5 * torch.randn_like(mean), torch.randn(*batch, dim, rank).double())


def dense(q: LowRankNormal) -> FullNormal:
    covariance = q.factor @ q.factor.mT + torch.diag_embed((2 * q.log_scale).exp())
    return FullNormal(q.mean, torch.linalg.cholesky(covariance))


@pytest.mark.parametrize("rank", [1, 2, 7])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_density_is_that_of_torch(batch, rank):
    q = normal(*batch, rank=rank)
    expected = torch.distributions.LowRankMultivariateNormal(q.mean, q.factor, (2 * q.log_scale).exp())
    x = 2 * torch.randn(4, *batch, 5).double()
    torch.testing.assert_close(q.log_prob(x), expected.log_prob(x))


def test_covariance_of_draws():
    q = normal(dim=3)
    x = q.sample((100_000,))
    expected = dense(q).scale_tril @ dense(q).scale_tril.mT
    torch.testing.assert_close(x.T.cov(), expected, rtol=0.05, atol=0.05)
    cold = q.tempered(0.5).sample((100_000,))
    torch.testing.assert_close(cold.T.cov(), 0.25 * expected, rtol=0.05, atol=0.05)


def test_a_factor_far_larger_than_the_diagonal_loses_nothing_in_float32():
    factor = 30 * torch.randn(5, 2)
    q = LowRankNormal(torch.zeros(5), torch.full((5,), -4.0), factor)
    exact = LowRankNormal(torch.zeros(5).double(), torch.full((5,), -4.0).double(), factor.double())
    x = q.sample((50,))
    torch.testing.assert_close(q.log_prob(x).double(), exact.log_prob(x.double()), rtol=1e-3, atol=0.05)


def test_columns_that_are_nearly_parallel_lose_nothing_in_float32():
    factor = 5 * torch.randn(40, 1).expand(40, 4) + 0.01 * torch.randn(40, 4)
    q = LowRankNormal(torch.zeros(40), torch.full((40,), -5.0), factor)
    exact = LowRankNormal(torch.zeros(40).double(), torch.full((40,), -5.0).double(), factor.double())
    x = q.sample((50,))
    log_p = q.log_prob(x)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double(), exact.log_prob(x.double()), rtol=1e-5, atol=1e-3)
    standard = StandardNormal((40,), like=torch.zeros(()))
    torch.testing.assert_close(
        kl_divergence(q, standard).double(), kl_divergence(exact, standard), rtol=1e-5, atol=1e-3
    )


def other(kind: str):
    if kind == "standard":
        return StandardNormal((5,), like=torch.zeros(()).double()).tempered(1.7)
    mean = torch.randn(3, 5).double()
    if kind == "diagonal":
        return DiagonalNormal(mean, 0.5 * torch.randn_like(mean))
    return FullNormal(mean, torch.randn(3, 5, 5).double().tril(-1) + torch.eye(5).double())


@pytest.mark.parametrize("kind", ["standard", "diagonal", "full"])
def test_closed_form_kl_is_that_of_the_dense_normal_and_of_monte_carlo(kind):
    q, p = normal(3), other(kind)
    kl = kl_divergence(q, p)
    torch.testing.assert_close(kl, kl_divergence(dense(q), p))
    z, log_q = q.sample_and_log_prob((20_000,))
    difference = log_q - p.log_prob(z)
    assert ((difference.mean(0) - kl).abs() < 5 * difference.std(0) / len(z) ** 0.5).all()


def test_gradients_are_those_of_finite_differences():
    values = [torch.randn(2, 3), torch.randn(3), 0.3 * torch.randn(3), torch.randn(3, 2)]
    inputs = tuple(value.double().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(lambda x, m, s, u: LowRankNormal(m, s, u).log_prob(x), inputs)


def test_detached_carries_no_gradient_to_the_parameters():
    posterior = low_rank(3, (2,))
    q = posterior(torch.randn(4, 2))
    z = q.sample()
    torch.testing.assert_close(q.detached().log_prob(z), q.log_prob(z))
    assert not q.detached().log_prob(z.detach()).requires_grad
    assert q.detached().log_prob(z).requires_grad


def test_it_is_a_posterior_with_a_closed_form_kl():
    model = VAE(low_rank(2, (1, 3)), torch_standard(2), bernoulli((1, 3), (2,)))
    x = (torch.rand(6, 1, 3) < 0.5).float()
    exact, estimate = (ELBO(num_samples=2000, kl=kl) for kl in ("closed_form", "monte_carlo"))
    for objective in (exact, estimate):
        objective.check(model)
    one, two = (objective(objective.trace(model, x)).metrics["kl"] for objective in (exact, estimate))
    torch.testing.assert_close(one, two, rtol=0.2, atol=0.1)


def torch_standard(dim: int):
    from latentflows.distributions import StandardGaussian

    return StandardGaussian(dim)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="`rank` must be a positive integer; got 0"):
        low_rank_raw_shape((3,), 0)
    with pytest.raises(CombinationError, match=r"vector event \(D,\); got \(2, 2\)"):
        AmortizedLowRankGaussian((2, 2), 3, network((3,), (4,)), rank=1)
