"""Autoencoders: which posteriors they take, and their penalties against formulas by hand."""

import math
import re
from contextlib import nullcontext

import pytest
import torch

from latentflows.bijections import LeakyReLU
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions import AmortizedStudentT, Flow
from latentflows.models import Trace
from latentflows.networks import MLP
from latentflows.objectives import (
    ELBO,
    GECO,
    IWAE,
    Autoencoder,
    BetaTC,
    Capacity,
    FactorVAE,
    PriorLikelihood,
    RegularizedAutoencoder,
    SparseAutoencoder,
)
from latentflows.training import Stage
from tests.models.parts import DATA, LATENT
from tests.objectives.cases import noisy_model, point_model

AUTOENCODERS = {
    "plain": Autoencoder(2),
    "gradient": RegularizedAutoencoder(2),
    "decay": RegularizedAutoencoder(2, decoder="weight_decay"),
    "sparse": SparseAutoencoder(2),
}
DENSE = [ELBO(), IWAE(), BetaTC(100), FactorVAE(), GECO(0.1), Capacity(1.0), ELBO(anneal="joint")]


def data(count=6):
    return torch.rand(count, *DATA).double()


@pytest.mark.parametrize("make", [point_model, noisy_model])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_points_and_fixed_noise_train(name, make):
    objective, model = AUTOENCODERS[name], make()
    objective.check(model)
    value = objective(objective.trace(model, data()))
    value.loss.backward()
    for place, parameter in model.named_parameters():
        assert parameter.grad is not None, place
        assert parameter.grad.isfinite().all(), place


@pytest.mark.parametrize("objective", DENSE, ids=lambda objective: type(objective).__name__)
def test_a_point_is_refused_where_a_density_is_needed(objective):
    with pytest.raises(
        CombinationError, match=r"needs log q\(z\|x\), but `AmortizedDelta` has no density. Use a"
    ):
        objective.check(point_model())


def test_the_prior_is_fitted_to_points_in_a_second_stage():
    model = point_model(prior="maf")
    objective = PriorLikelihood(1)
    objective.check(model)
    trace = objective.trace(model, data())
    value = objective(trace)
    torch.testing.assert_close(value.loss, -model.prior().log_prob(model.posterior(trace.x).point).mean())
    assert value.metrics["kl"].isnan().all()  # of a point there is none


def test_a_prior_cannot_be_said_to_learn_from_reconstruction_alone():
    model = point_model(prior="diagonal")
    for objective in AUTOENCODERS.values():
        with pytest.raises(
            CombinationError, match=r"says nothing about the prior, so it cannot learn in stage 'one'"
        ):
            Stage("one", objective).check(model)
        Stage("one", objective, ("posterior", "likelihood")).check(model)
        Stage("one", objective).check(point_model())


def test_the_gradient_penalty_is_the_squared_jacobian_of_the_mean():
    model, x = noisy_model(), data(2)
    objective = RegularizedAutoencoder(4_000, latent_weight=0.0, decoder_weight=1.0)
    with torch.no_grad():
        model.posterior.scale = 1e-6  # all samples at one latent
        found = objective(objective.trace(model, x)).metrics["decoder_penalty"]
    z = model.posterior(x).mean.detach()
    for point, value in zip(z, found, strict=True):
        jacobian = torch.func.jacrev(lambda v: model.decode(v[None]).mean[0].flatten())(point)
        assert value.item() == pytest.approx(jacobian.square().sum().item(), rel=0.1)


def test_the_gradient_penalty_trains_the_decoder_by_its_second_derivative():
    model, x = point_model(), data(3)
    objective = RegularizedAutoencoder(latent_weight=0.0, decoder_weight=1.0)
    trace = objective.trace(model, x)
    parameters = list(model.likelihood.parameters())
    found = torch.autograd.grad(trace.penalties["decoder"].mean(), parameters, allow_unused=True)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in found) >= 2


def test_a_gradient_penalty_needs_a_mean_of_the_likelihood():
    model = point_model()
    model.likelihood = Flow(model.likelihood, LeakyReLU(DATA, slope=0.5))
    RegularizedAutoencoder(decoder="weight_decay").check(model)
    with pytest.raises(CombinationError, match=r'not in closed form\. Use decoder="weight_decay"'):
        RegularizedAutoencoder().check(model)


@pytest.mark.parametrize(("degrees", "has_mean"), [(1.0, False), (1.01, True), ("shared", True)])
def test_a_gradient_penalty_needs_tails_with_a_mean(degrees, has_mean):
    model = point_model()
    shape = model.likelihood.context_shape
    model.likelihood = AmortizedStudentT(DATA, shape, MLP(shape, DATA, width=4, depth=1), degrees=degrees)
    RegularizedAutoencoder(decoder="weight_decay").check(model)
    with (
        nullcontext()
        if has_mean
        else pytest.raises(CombinationError, match="has not at 1 degrees of freedom")
    ):
        RegularizedAutoencoder().check(model)


def test_weight_decay_is_that_of_the_decoder_alone():
    model, x = point_model(), data(3)
    objective = RegularizedAutoencoder(latent_weight=0.0, decoder="weight_decay", decoder_weight=2.0)
    value = objective(objective.trace(model, x))
    expected = sum(p.square().sum() for p in model.likelihood.parameters())
    torch.testing.assert_close(value.metrics["decoder_penalty"], expected.detach().expand(3))
    reconstruction = value.metrics["reconstruction"].mean()
    torch.testing.assert_close(value.loss, 2 * expected - reconstruction)


def test_the_latent_penalty_is_half_the_squared_norm():
    model, x = point_model(), data(3)
    objective = RegularizedAutoencoder(latent_weight=3.0, decoder_weight=0.0)
    value = objective(objective.trace(model, x))
    expected = 0.5 * model.posterior(x).point.square().sum(-1)
    torch.testing.assert_close(value.metrics["latent_penalty"], expected.detach())


def sparse_trace(z):
    nothing = torch.zeros(z.shape[:2]).double()
    return Trace(torch.zeros(z.shape[1], 1), z, nothing, nothing, nothing, levels=())


def test_sparsity_is_the_bernoulli_kl_of_the_mean_activation():
    z = torch.randn(2, 7, LATENT).double() * 2
    rate = torch.tensor(0.2).double()
    activity = z.sigmoid().mean((0, 1))
    expected = (rate * (rate / activity).log() + (1 - rate) * ((1 - rate) / (1 - activity)).log()).sum()
    value = SparseAutoencoder(2, weight=4.0, rate=0.2)(sparse_trace(z))
    torch.testing.assert_close(value.metrics["sparsity_penalty"], expected.expand(7))
    torch.testing.assert_close(value.loss, 4 * expected)


def test_sparsity_is_zero_at_its_rate_and_finite_for_latents_that_are_always_on_or_off():
    at_rate = torch.full((1, 5, LATENT), math.log(0.05 / 0.95)).double()
    assert SparseAutoencoder()(sparse_trace(at_rate)).loss.abs() < 1e-12
    for sign in (-1, 1):
        z = torch.full((1, 5, LATENT), sign * 200.0).requires_grad_()
        loss = SparseAutoencoder()(sparse_trace(z)).loss
        loss.backward()
        assert loss.isfinite()
        assert z.grad.abs().min() > 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegularizedAutoencoder(latent_weight=-1.0), "`latent_weight` must be at least 0 and finite"),
        (lambda: RegularizedAutoencoder(decoder="spectral"), "`decoder` must be one of"),
        (lambda: SparseAutoencoder(rate=1.0), "`rate` must be between 0 and 1; got 1.0."),
        (lambda: SparseAutoencoder(weight=math.nan), "`weight` must be at least 0 and finite; got nan."),
        (lambda: Autoencoder(0), "`num_samples` must be a positive integer; got 0."),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
