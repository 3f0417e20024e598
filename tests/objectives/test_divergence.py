"""The MMD against its closed form, and what InfoVAE and the Wasserstein autoencoder make of it."""

import itertools
import math
import re

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.distributions import LearnedGaussian
from latentflows.models import VAE
from latentflows.objectives import ELBO, InfoVAE, WassersteinAutoencoder, squared_mmd
from latentflows.objectives.divergence import kernel_values
from tests.distributions.cases import gaussian
from tests.models.parts import DATA, LATENT, LIKELIHOODS
from tests.objectives.cases import model_and_data, point_model

KERNELS = ("rbf", "inverse_multiquadratic")


def value_by_hand(a, b, kernel, scale):
    constant = 2 * len(a) * scale**2
    distance = sum((u - v) ** 2 for u, v in zip(a.tolist(), b.tolist(), strict=True))
    return math.exp(-distance / constant) if kernel == "rbf" else constant / (constant + distance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_estimate_is_the_double_sum_over_pairs_of_different_points(kernel):
    z, other = torch.randn(2, 5, 3).double()
    k = lambda a, b: value_by_hand(a, b, kernel, 0.8)  # noqa: E731
    within = [k(x[i], x[j]) for x in (z, other) for i, j in itertools.permutations(range(5), 2)]
    across = [k(a, b) for a in z for b in other]
    expected = sum(within) / 20 - 2 * sum(across) / 25
    points = squared_mmd(z, other, kernel, 0.8)
    assert points.shape == (5,)
    torch.testing.assert_close(points.mean().item(), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_points_that_coincide_are_one_in_float32_far_from_the_origin(kernel):
    z = torch.randn(20, 3) + 30
    assert (kernel_values(z, z, kernel, 1.0).diagonal() - 1).abs().max() < 1e-3
    assert kernel_values(z, z, kernel, 1.0).max() <= 1


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_the_estimate_is_unbiased(shift):
    """Two normals of one dimension, whose kernel means are known: E exp(-d^2 / C), d ~ N(shift, 2)."""
    scale, points, repeats = 0.9, 4, 40_000
    constant = 2 * scale**2
    width = math.sqrt(constant / (constant + 4))
    expected = 2 * width * (1 - math.exp(-(shift**2) / (constant + 4)))
    z, other = torch.randn(2, repeats, points, 1).double()
    found = squared_mmd(z + shift, other, "rbf", scale).mean(-1)
    assert abs(found.mean() - expected) < 5 * found.std() / repeats**0.5
    assert (found < 0).any() or shift > 1


def model_with_prior_at(mean: float, posterior_mean: float) -> VAE:
    """q(z|x) = N(m, I) whatever x is, and a prior N(mean, I) of its own."""
    prior, posterior = LearnedGaussian(LATENT), gaussian((LATENT,), DATA)
    model = VAE(posterior, prior, LIKELIHOODS["fixed"]()).double()
    with torch.no_grad():
        prior.mean.fill_(mean)
        last = list(posterior.network.parameters())
        last[-2].zero_()
        last[-1].zero_()
        last[-1].view(-1)[:LATENT] = posterior_mean
    return model


@pytest.mark.parametrize("objective", [InfoVAE(4, alpha=0.5, scale=2.0), WassersteinAutoencoder(4)], ids=repr)
def test_the_divergence_is_from_the_models_own_prior(objective):
    x = torch.rand(200, *DATA).double()
    same, other = (model_with_prior_at(5.0, mean) for mean in (5.0, 0.0))
    near, far = (objective(objective.trace(model, x)).metrics["mmd"].mean() for model in (same, other))
    assert abs(near) < 0.01
    assert far > 0.5


@pytest.mark.parametrize("objective", [InfoVAE(), WassersteinAutoencoder()], ids=repr)
def test_the_prior_learns_through_its_draws_and_moves_towards_the_posterior(objective):
    model = model_with_prior_at(1.0, 0.0)
    objective(objective.trace(model, torch.rand(200, *DATA).double())).loss.backward()
    assert (model.prior.mean.grad > 0).all()  # descent moves it down, to 0


def test_without_its_share_of_the_kl_it_is_the_elbo():
    model, x = model_and_data("gaussian", "diagonal")
    objective = InfoVAE(2, alpha=0.0, scale=1.0)
    trace = objective.trace(model, x)
    torch.testing.assert_close(objective(trace).loss, ELBO(2)(trace).loss)


def test_at_alpha_one_the_densities_of_z_have_no_gradient():
    model, x = model_and_data("gaussian", "diagonal")
    objective = InfoVAE(2)
    trace = objective.trace(model, x)
    trace.log_posterior.retain_grad()
    objective(trace).loss.backward()
    assert trace.log_posterior.grad is None


def test_a_point_posterior_trains_by_the_wasserstein_distance_and_not_by_info():
    model, x = point_model(), torch.rand(6, *DATA).double()
    objective = WassersteinAutoencoder(2)
    objective.check(model)
    objective(objective.trace(model, x)).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.posterior.parameters())
    with pytest.raises(
        CombinationError, match=r"`InfoVAE` needs log q\(z\|x\), but `AmortizedDelta` has no density"
    ):
        InfoVAE().check(model)


@pytest.mark.parametrize("objective", [InfoVAE(), WassersteinAutoencoder()], ids=repr)
def test_a_single_point_is_refused(objective):
    model, x = model_and_data("gaussian", "diagonal")
    with pytest.raises(DataError, match="needs at least 2 data points in a batch; got 1"):
        objective.trace(model, x[:1])


def test_a_batch_given_twice_has_another_loss_as_stated():
    z, other = torch.randn(2, 6, 3).double()
    twice = squared_mmd(torch.cat([z, z]), torch.cat([other, other])).mean()
    assert abs(twice - squared_mmd(z, other).mean()) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InfoVAE(alpha=1.5), "`alpha` must be at most 1, and `scale` finite and at least 1 - alpha"),
        (lambda: InfoVAE(alpha=0.5, scale=0.2), "got 0.5 and 0.2"),
        (lambda: InfoVAE(scale=math.inf), "got 1.0 and inf"),
        (lambda: InfoVAE(alpha=math.nan), "got nan"),
        (lambda: InfoVAE(kernel="linear"), "`kernel` must be one of ('rbf', 'inverse_multiquadratic')"),
        (
            lambda: WassersteinAutoencoder(kernel_scale=0.0),
            "`kernel_scale` must be positive and finite; got 0.0.",
        ),
        (lambda: WassersteinAutoencoder(weight=-1.0), "`weight` must be at least 0 and finite; got -1.0."),
        (lambda: WassersteinAutoencoder(0), "`num_samples` must be a positive integer; got 0."),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
