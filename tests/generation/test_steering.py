"""Draws that are pushed away from those without a label, and priors that draw in another number of steps."""

import pytest
import torch
from torch import nn

from latentflows import DensityModel
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    EnergyPrior,
    Flow,
    FlowMatchingPrior,
    ImportanceResampling,
    Langevin,
    StandardGaussian,
)
from latentflows.generation import guided_draws, sample, sample_classes, steps_of_draws
from latentflows.models import VAE
from latentflows.models.presets import real_nvp, tarflow
from latentflows.models.tarflow import sample_guided
from latentflows.networks import MLP, ResidualMLP
from tests.generation.parts import network, small_vae

CLASSES = 3


def label_prior(make=tarflow, **settings):
    with noise.stream(4):
        flow = Flow(StandardGaussian(4), make(4, context=CLASSES, width=8, **settings))
        for parameter in flow.parameters():
            nn.init.normal_(parameter, std=0.3)
    return flow


def guided_vae(prior):
    posterior = AmortizedGaussian(4, (1, 4, 4), network((1, 4, 4), 8))
    return VAE(posterior, prior, AmortizedBernoulli((1, 4, 4), 4, network(4, (1, 4, 4))))


LABELS = torch.eye(CLASSES)[[0, 1, 2, 2, 1]]


def test_the_draws_are_those_of_the_guided_flow_at_a_temperature():
    prior = label_prior(heads=2, num_blocks=2)
    model = guided_vae(prior)
    with noise.stream(1):
        drawn = guided_draws(model, 5, LABELS, weight=1.5, temperature=0.5)
    with noise.stream(1):
        u = 0.5 * torch.randn(5, 4)
    expected = sample_guided(prior.bijection, u, LABELS, torch.zeros(CLASSES), weight=1.5)
    torch.testing.assert_close(drawn, expected)
    with noise.stream(1):
        assert torch.equal(guided_draws(DensityModel(prior), 5, LABELS, weight=1.5, temperature=0.5), drawn)


def test_pictures_are_decoded_from_guided_latents():
    model = guided_vae(label_prior(heads=2, num_blocks=2))
    plain = sample(model, 5, context=LABELS, mean=True, seed=3)
    pushed = sample(model, 5, context=LABELS, mean=True, seed=3, guidance=2.0)
    assert not torch.allclose(plain, pushed)
    with noise.stream(3, noise.Purpose.SAMPLE, 0):
        z = guided_draws(model, 5, LABELS, weight=2.0)
    assert torch.equal(pushed, model.decode_mean(z))
    classes = sample_classes(model, [0, 1], 2, mean=True, seed=3, guidance=2.0)
    context = torch.eye(CLASSES)[[0, 0, 1, 1]]
    assert torch.equal(classes, sample(model, 4, context=context, mean=True, seed=3, guidance=2.0))


def test_what_cannot_be_guided_is_refused():
    message = "Guidance needs prior=tarflow or flow_matching that is given the label; this model has none"
    for model in (small_vae(), guided_vae(label_prior(real_nvp)), small_vae(prior=continuous())):
        with pytest.raises(CombinationError, match=message):
            guided_draws(model, 5, LABELS, weight=1.0)
    model = guided_vae(label_prior(heads=2, num_blocks=2))
    with pytest.raises(ShapeError, match="a label for each of 5 draws; got none"):
        guided_draws(model, 5, None, weight=1.0)
    with pytest.raises(ShapeError, match="a label for each of 6 draws; got 5"):
        guided_draws(model, 6, LABELS, weight=1.0)
    with pytest.raises(ConfigurationError, match="`weight` of guidance must be 0 or more"):
        guided_draws(model, 5, LABELS, weight=-1.0)


def continuous(**settings) -> FlowMatchingPrior:
    with noise.stream(5):
        prior = FlowMatchingPrior(
            3, lambda i, o, c: ResidualMLP(i, o, context=c, width=8, num_blocks=1), **settings
        )
        prior.initialized.fill_(True)
    return prior


def test_a_continuous_flow_is_guided_by_its_velocity():
    """Of a velocity that is the label, as far as it reaches: it is carried 1 + w times as far."""

    class Towards(nn.Module):
        def forward(self, x, features):
            return features[:, -CLASSES:].clone()

    prior = FlowMatchingPrior(3, lambda i, o, c: Towards(), context_shape=CLASSES)
    prior.shift.fill_(1.0)
    model = small_vae(prior=prior)
    for weight, temperature in ((0.0, 1.0), (1.5, 0.5)):
        with noise.stream(1):
            z = guided_draws(model, 5, LABELS, weight=weight, temperature=temperature)
        with noise.stream(1):
            u = torch.randn(5, 3)
        torch.testing.assert_close(z, 1 + temperature * u + (1 + weight) * LABELS)


def test_a_continuous_flow_takes_as_many_steps_as_asked_for_and_then_its_own():
    prior = continuous(solver="midpoint", num_steps=10)
    model = small_vae(prior=prior)
    calls = []
    prior.velocity.register_forward_hook(lambda *_: calls.append(1))
    with steps_of_draws(model, 4) as cost:
        assert cost == "8 evaluations of the velocity for each draw"
        sample(model, 2)
    assert len(calls) == 8
    sample(model, 2)
    assert len(calls) == 28


def test_steps_of_langevin_dynamics_are_set_too():
    energy = MLP(3, 1, width=4, depth=1)
    model = small_vae(prior=EnergyPrior(StandardGaussian(3), energy, sampler=Langevin(50)))
    calls = []
    energy.register_forward_hook(lambda *_: calls.append(1))
    with steps_of_draws(model, 2) as cost:
        assert cost == "2 steps of Langevin dynamics for each draw"
        model.sample_latents(2)
    assert 0 < len(calls) < 10
    assert isinstance(model.prior, EnergyPrior)
    assert model.prior.sampler == Langevin(50)


@pytest.mark.parametrize(
    "prior",
    [
        StandardGaussian(3),
        continuous(solver="dopri5"),
        EnergyPrior(StandardGaussian(3), MLP(3, 1, width=4, depth=1), sampler=ImportanceResampling(10)),
    ],
    ids=["no steps", "a tolerance", "resampling"],
)
def test_a_prior_without_steps_to_choose_is_refused(prior):
    with (
        pytest.raises(CombinationError, match="does not draw in a number of steps"),
        steps_of_draws(small_vae(prior=prior), 3),
    ):
        pass


def test_a_number_of_steps_out_of_range_is_refused():
    model = small_vae(prior=continuous())
    with (
        pytest.raises(ConfigurationError, match="`num_steps` must be a positive integer"),
        steps_of_draws(model, 0),
    ):
        pass
