"""Gradient estimators against exact gradients: by quadrature over the noise of a model with one latent."""

import math

import numpy as np
import pytest
import torch
from torch import distributions

from latentflows.core import noise
from latentflows.core.errors import CombinationError
from latentflows.distributions import DiagonalNormal, StandardNormal
from latentflows.models import Trace
from latentflows.objectives import ELBO, IWAE
from tests.linear_gaussian import LinearGaussian
from tests.models.parts import DATA, vae
from tests.objectives.cases import model_and_data

X, SIGMA = 1.3, 0.6  # x = a z + SIGMA e, and one data point
MEAN, LOG_SCALE, SLOPE = 0.2, -0.35, 0.8


def leaves(count):
    """Mean and log-scale of q, and the slope of the likelihood, one of each per noise: gradients stay apart."""
    return [torch.full((count, 1), value).double().requires_grad_() for value in (MEAN, LOG_SCALE, SLOPE)]


def trace_of(mean, log_scale, slope, epsilon) -> Trace:
    """A pass of the model at the noise epsilon (K, B, 1)."""
    q = DiagonalNormal(mean, log_scale)
    z = mean + log_scale.exp() * epsilon
    x = torch.full_like(mean, X)
    likelihood = distributions.Normal(slope * z, SIGMA).log_prob(x).sum(-1)
    p = StandardNormal((1,), like=x)
    return Trace(x, z, likelihood, p.log_prob(z), q.log_prob(z), levels=((q, p),))


def gradients(objective, epsilon):
    """The gradient of each column's own loss with respect to mean, log-scale and slope: (3, B)."""
    made = leaves(epsilon.shape[1])
    value = objective(trace_of(*made, epsilon))
    (value.loss * epsilon.shape[1]).backward()
    return torch.stack([leaf.grad[:, 0] for leaf in made])


def quadrature(samples, nodes):
    """Noise (K, nodes^K, 1) and its weights, Gauss-Hermite."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grids = torch.meshgrid(*[torch.tensor(points)] * samples, indexing="ij")
    masses = torch.meshgrid(*[torch.tensor(weights / weights.sum())] * samples, indexing="ij")
    return torch.stack([g.flatten() for g in grids]).unsqueeze(-1), torch.stack(masses).prod(0).flatten()


def exact_elbo_gradient():
    made = leaves(1)
    mean, log_scale, slope = made
    variance = (2 * log_scale).exp()
    error = ((X - slope * mean) ** 2 + slope**2 * variance) / (2 * SIGMA**2)
    (error + 0.5 * (variance + mean**2) - log_scale).sum().backward()
    return torch.stack([leaf.grad[0, 0] for leaf in made])


@pytest.mark.parametrize("gradient", ["reparameterized", "stick_the_landing"])
def test_both_gradients_of_the_elbo_are_the_exact_one_on_average(gradient):
    epsilon, masses = quadrature(1, 40)
    found = gradients(ELBO(gradient=gradient), epsilon) @ masses
    torch.testing.assert_close(found, exact_elbo_gradient(), rtol=1e-10, atol=1e-10)


def test_the_two_gradients_of_the_elbo_differ_draw_by_draw_in_the_posterior_alone():
    epsilon, _ = quadrature(1, 10)
    one, other = (gradients(ELBO(gradient=g), epsilon) for g in ("reparameterized", "stick_the_landing"))
    assert (one[:2] - other[:2]).abs().min() > 1e-3
    torch.testing.assert_close(one[2], other[2])


def posterior_gradients(model, objective, x):
    model.zero_grad()
    objective(objective.trace(model, x)).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.posterior.parameters()])


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(3, gradient="stick_the_landing"),
        IWAE(3, gradient="stick_the_landing"),
        IWAE(3, gradient="doubly_reparameterized"),
    ],
    ids=repr,
)
def test_where_the_posterior_is_exact_its_gradient_is_zero_at_every_draw(objective):
    known = LinearGaussian()
    x = known.data(8)
    assert posterior_gradients(known.model, objective, x).abs().max() < 1e-10
    assert posterior_gradients(known.model, type(objective)(3), x).abs().max() > 1e-3


@pytest.mark.parametrize("posterior", ["gaussian", "full", "real_nvp", "iaf", "nice"])
def test_sticking_leaves_values_and_the_other_parts_gradients_alone(posterior):
    model, x = model_and_data(posterior, "diagonal")
    grads, losses = [], []
    for gradient in ("reparameterized", "stick_the_landing"):
        objective = ELBO(2, gradient=gradient)
        model.zero_grad()
        with noise.stream(5):
            value = objective(objective.trace(model, x))
        value.loss.backward()
        losses.append(value.loss.detach())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    for name, one in grads[0].items():
        same = torch.allclose(one, grads[1][name], rtol=1e-8, atol=1e-10)
        assert same or name.startswith("posterior"), name
    assert any(not torch.allclose(g, grads[1][n]) for n, g in grads[0].items() if n.startswith("posterior"))


def test_what_sticking_leaves_out_of_an_amortized_flow_has_mean_zero():
    """Encoder, base and bijection: all that the features of one encoder reach."""
    model, x = model_and_data("real_nvp", "diagonal")
    x = x[:1].expand(500, *DATA)
    rows = []
    for repeat in range(40):
        pair = []
        for gradient in ("reparameterized", "stick_the_landing"):
            with noise.stream(repeat):
                pair.append(posterior_gradients(model, ELBO(gradient=gradient), x))
        rows.append(pair[0] - pair[1])
    score = torch.stack(rows)
    used = score.std(0) > 1e-6
    assert used.float().mean() > 0.5
    t = score.mean(0)[used] / (score.std(0)[used] / len(rows) ** 0.5)
    assert t.abs().max() < 5


@pytest.mark.parametrize("gradient", ["standard", "doubly_reparameterized"])
def test_gradients_of_the_importance_weighted_bound_are_exact_on_average(gradient):
    epsilon, masses = quadrature(2, 60)
    made = leaves(1)
    bound = trace_of(*made, epsilon).log_weight.logsumexp(0) - math.log(2)
    (-(bound * masses).sum()).backward()  # the expectation itself, differentiated
    exact = torch.stack([leaf.grad[0, 0] for leaf in made])
    found = gradients(IWAE(2, gradient=gradient), epsilon) @ masses
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_sticking_the_landing_is_biased_for_more_than_one_sample():
    epsilon, masses = quadrature(2, 60)
    exact, found = (
        gradients(IWAE(2, gradient=g), epsilon) @ masses for g in ("standard", "stick_the_landing")
    )
    assert ((found - exact).abs()[:2] > 0.02).all()
    torch.testing.assert_close(found[2], exact[2])


def test_at_one_sample_all_bounds_and_gradients_are_those_of_the_elbo():
    epsilon = torch.randn(1, 6, 1).double()
    for iwae, elbo in (
        ("standard", "reparameterized"),
        ("doubly_reparameterized", "stick_the_landing"),
        ("stick_the_landing", "stick_the_landing"),
    ):
        one, other = gradients(IWAE(1, gradient=iwae), epsilon), gradients(ELBO(gradient=elbo), epsilon)
        torch.testing.assert_close(one, other)


def test_prior_and_likelihood_keep_their_gradient_draw_by_draw():
    epsilon = torch.randn(5, 200, 1).double()
    standard, doubly = (
        gradients(IWAE(5, gradient=g), epsilon) for g in ("standard", "doubly_reparameterized")
    )
    torch.testing.assert_close(standard[2], doubly[2])


def signal_to_noise(gradient, samples):
    with noise.stream(1):
        found = gradients(IWAE(samples, gradient=gradient), torch.randn(samples, 20_000, 1).double())[:2]
    return found.mean(1).abs() / found.std(1)


def test_the_doubly_reparameterized_signal_stands_out_where_the_standard_one_drowns():
    few, many = ([signal_to_noise(g, k) for g in ("standard", "doubly_reparameterized")] for k in (4, 64))
    assert (many[1] > 3 * many[0]).all()
    assert (many[0] < few[0]).all()
    assert (many[1] > few[1]).all()


def test_one_trace_may_be_used_twice():
    epsilon = torch.randn(3, 4, 1).double()
    made, again = leaves(4), leaves(4)
    objective = IWAE(3, gradient="doubly_reparameterized")
    trace = trace_of(*made, epsilon)
    objective(trace)
    objective(trace).loss.backward()
    objective(trace_of(*again, epsilon)).loss.backward()
    for one, other in zip(made, again, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    "objective", [ELBO(gradient="stick_the_landing"), IWAE(gradient="stick_the_landing")]
)
def test_posteriors_without_an_inverse_are_refused_where_the_gradient_needs_it(objective):
    with pytest.raises(
        CombinationError, match=r"with this gradient .* `Flow` through `Planar` does not offer"
    ):
        objective.check(vae("planar", "standard"))
    for posterior in ("gaussian", "full", "iaf"):
        objective.check(vae(posterior, "standard"))
