"""Every posterior of a configuration: the KL of the z that its flow ends in, its maps, and what they are given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from latentflows.core import noise
from latentflows.data import ArraySplit
from latentflows.distributions import Distribution, Pushforward
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE
from latentflows.objectives import ELBO
from latentflows.studies.building.build import build_model
from latentflows.studies.building.parts import build_flow
from latentflows.studies.settings.flows import FlowSettings
from latentflows.studies.settings.options import parts
from latentflows.training import Stage, fit
from tests.known_defects.parts import POSTERIORS, configuration, points, posterior_model
from tests.studies.matrix import SIZES

FLOWS = [kind for kind in POSTERIORS if issubclass(parts()["posterior"][kind], FlowSettings)]
RESIDUAL = ["planar", "radial", "sylvester_orthogonal", "sylvester_householder", "sylvester_triangular"]
COINS = 16
pytestmark = pytest.mark.filterwarnings("ignore")


def pushed(q: Pushforward, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, the log-determinant that the flow reports, and the Jacobian (*, D, D) by differentiation."""
    u.requires_grad_()
    z, log_det = q.bijection(u, q.context)
    rows = [torch.autograd.grad(z[..., i].sum(), u, retain_graph=True)[0] for i in range(z.shape[-1])]
    return z.detach(), log_det.detach(), torch.stack(rows, -2)


@pytest.mark.parametrize("kind", FLOWS)
def test_the_kl_of_a_flow_is_that_of_the_z_it_ends_in(kind):
    """Wrong: the closed form of the base, minus log-determinants: the prior at the z that the flow starts from."""
    model, x, objective = posterior_model(kind), points(), ELBO(4)
    with noise.stream(1):
        value = objective(objective.trace(model, x))
    q = model.encode(x)
    assert isinstance(q, Pushforward)
    with noise.stream(1):
        u = q.base.sample((4,)).detach()
    base = Normal(q.base.mean, q.base.log_scale.exp())
    z, _, jacobian = pushed(q, u)
    log_q = base.log_prob(u).sum(-1) - jacobian.slogdet().logabsdet
    kl = (log_q - Normal(0.0, 1.0).log_prob(z).sum(-1)).mean(0).detach()
    torch.testing.assert_close(value.metrics["kl"], kl, rtol=1e-4, atol=1e-3)
    reconstruction = model.decode(z).log_prob(x).mean(0).detach()
    torch.testing.assert_close(value.metrics["loss"], kl - reconstruction, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_the_kl_of_a_posterior_averages_the_prior_to_one(kind):
    """E_q[p(z) / q(z)] = 1 wherever q covers p; no Jacobian, no closed form and no inverse is trusted."""
    model = posterior_model(kind, scale=0.3)
    with torch.no_grad():
        trace = model.trace(points(1), 20_000, with_likelihood=False)
        center, scale = trace.z.mean(0), 0.5 * trace.z.std(0)  # a density inside q's, in the prior's place
        ratio = (Normal(center, scale).log_prob(trace.z).sum(-1) - trace.log_posterior).exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.05
    assert abs(ratio.mean() - 1) < 5 * error


class Coins(ArraySplit):
    """Fair coins: nothing to learn, and no model can need fewer than 16 ln 2 = 11.09 nats for fresh ones."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(torch.randint(2, (count, COINS), generator=generator).float(), values="binary")


def on_coins(kind: str) -> VAE:
    with noise.stream(2):
        c = configuration("latent_dim=4", "network.width=32", posterior=kind, likelihood="bernoulli")
        model = build_model(c, (COINS,))
        stage = Stage("joint", ELBO(), max_epochs=60, batch_size=64, learning_rate=1e-2)
        fit(model, [stage], Coins(256, 0))
    return model.eval()


@pytest.mark.parametrize("kind", ["planar", "radial", "real_nvp"])
def test_no_bound_on_fresh_coin_flips_lies_below_their_entropy(kind):
    """Overfit to 256 of them, a model pays for fresh ones; a KL at the wrong z made it gain."""
    model, entropy = on_coins(kind), COINS * math.log(2)
    fresh, objective = Coins(4000, 1), ELBO()
    with torch.no_grad():
        loss = objective(objective.trace(model, fresh.batch(torch.arange(4000)).x)).metrics["loss"]
    bounds = evaluate_bounds(model, fresh, num_importance_samples=10)
    for nats in (loss.double(), -bounds.elbo, bounds.nll):
        assert nats.mean() > entropy - 5 * nats.std() / 4000**0.5
    assert (-bounds.elbo).mean() > bounds.nll.mean()


def trained(kind: str) -> VAE:
    """A model that was trained at a rate at which layers move far."""
    with noise.stream(3):
        c = configuration(posterior=kind, likelihood="bernoulli")
        model = build_model(c, (COINS,))
        source = Coins(64, 2)
        epochs = 3 if kind == "cnf" else 15
        stage = Stage("joint", ELBO(), max_epochs=epochs, batch_size=16, learning_rate=0.05)
        fit(model, [stage], source)
    return model.double().eval()


@pytest.mark.parametrize("kind", FLOWS)
def test_a_trained_flow_is_invertible_with_the_log_determinant_it_reports(kind):
    """Wrong: a layer that folds space, log|1 + w.u| being finite there; a constant added to what is near zero."""
    model = trained(kind)
    one_to_one(model.encode(Coins(1, 2).batch(torch.arange(1)).x.double()))


@pytest.mark.parametrize("kind", RESIDUAL)
def test_a_residual_flow_of_large_parameters_is_invertible(kind):
    for scale in (1.0, 3.0):
        one_to_one(posterior_model(kind, scale=scale).encode(points(1)))


def one_to_one(q: Distribution) -> None:
    assert isinstance(q, Pushforward)
    _, log_det, jacobian = pushed(q, 3 * torch.randn(1000, 1, 2).double())
    sign, expected = jacobian.slogdet()
    assert len(sign.unique()) == 1  # a continuous map of the plane with both signs is not one to one
    torch.testing.assert_close(log_det, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "dim"), [*((kind, dim) for kind in RESIDUAL for dim in (2, 16)), ("planar", 64)]
)
def test_a_new_residual_flow_is_invertible_in_every_dimension(kind, dim):
    settings = parts()["posterior"][kind]
    sizes = {key: value for key, value in SIZES.items() if key in settings.model_fields}
    for _ in range(3):
        flow = build_flow(settings(**sizes | {"num_layers": 8}), dim).double()
        u = (2 * torch.randn(5, dim)).double()
        log_det = flow(u)[1]
        jacobian = torch.stack(
            [torch.autograd.functional.jacobian(lambda v, flow=flow: flow(v)[0], row) for row in u]
        )
        sign, expected = jacobian.slogdet()
        assert len(sign.unique()) == 1
        torch.testing.assert_close(log_det, expected)


@pytest.mark.parametrize("kind", FLOWS)
def test_the_same_noise_goes_elsewhere_for_another_x(kind):
    """Wrong: a flow without the encoder's features moves the noise of all x alike."""
    model, x = posterior_model(kind), points(2)
    q = model.encode(x)
    assert isinstance(q, Pushforward)
    u = torch.randn(1, 2).double().expand(2, 2)
    z, log_det = q.bijection(u, q.context)
    assert (z[0] - z[1]).abs().max() > 1e-3
    if kind != "nice":  # which keeps the volume
        assert (log_det[0] - log_det[1]).abs() > 1e-4
