"""Flows on data: the likelihood, and the two KLs whose bounds enclose the normalizer."""

import math
import re

import pytest
import torch
from torch import Tensor, distributions

from latentflows.bijections import ActNorm, Chain
from latentflows.core import noise
from latentflows.core.batches import Batch, Values
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.core.shapes import Shape
from latentflows.distributions import Flow, LearnedGaussian, StandardGaussian
from latentflows.models import DensityModel
from latentflows.models.presets import planar, real_nvp
from latentflows.objectives import ForwardKL, MaximumLikelihood, ReverseKL
from latentflows.training import Callback, Options, Stage, fit
from tests.distributions.cases import bernoulli, gaussian
from tests.objectives.cases import density_model

LOG_Z = 0.5 * math.log(2 * math.pi * 0.25) + math.log(3.0)  # of `energy`, for each of two dimensions


def energy(x: Tensor) -> Tensor:
    """That of N(2, 0.5^2), times 3, in each dimension."""
    return (0.5 * (x - 2) ** 2 / 0.25 - math.log(3.0)).flatten(1).sum(-1)


class DiesAt(Callback):
    """A run that ends after some epochs."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, line) -> None:
        if line["epoch"] == self.epoch:
            raise RuntimeError("dies")


class Points:
    """Draws of the target, or any other points in the plane."""

    event_shape: Shape = (2,)
    values: Values = "continuous"
    bits_offset: float | None = None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        return Batch(self.x[indices])


def target(count=256) -> Points:
    return Points(2 + 0.5 * torch.randn(count, 2))


def matched() -> DensityModel:
    """The model that is the target."""
    model = DensityModel(LearnedGaussian(2)).double()
    with torch.no_grad():
        model.density.mean.fill_(2)
        raw = math.log(0.5)
        model.density.raw_scale.fill_(raw / (1 - abs(raw) / 7))
    return model


def flow(seed=1) -> DensityModel:
    with noise.stream(seed):
        return DensityModel(Flow(StandardGaussian(2), real_nvp(2, num_layers=2, width=8, depth=1)))


def test_the_loss_is_minus_the_log_density():
    model = matched()
    x = torch.randn(5, 2).double()
    value = MaximumLikelihood()(MaximumLikelihood().trace(model, x))
    expected = -distributions.Normal(2, 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(value.metrics["nll"], expected)
    torch.testing.assert_close(value.loss, expected.mean())


def test_at_the_target_both_divergences_are_the_normalizer_at_every_draw():
    model, x = matched(), target(6).x.double()
    forward, reverse = ForwardKL(energy), ReverseKL(energy, 3)
    above = forward(forward.trace(model, x)).metrics["loss"]
    below = reverse(reverse.trace(model, x)).metrics["free_energy"]
    torch.testing.assert_close(above, torch.full_like(above, 2 * LOG_Z))
    torch.testing.assert_close(below, torch.full_like(below, -2 * LOG_Z))


def test_elsewhere_they_enclose_it():
    model = DensityModel(LearnedGaussian(2)).double()
    forward, reverse = ForwardKL(energy), ReverseKL(energy, 2000)
    above = forward(forward.trace(model, target(4000).x.double())).loss.item()
    below = -reverse(reverse.trace(model, torch.zeros(2, 2).double())).loss.item()
    p, q = distributions.Normal(2.0, 0.5), distributions.Normal(0.0, 1.0)
    assert above == pytest.approx(2 * (LOG_Z + distributions.kl_divergence(p, q).item()), rel=0.03)
    assert below == pytest.approx(2 * (LOG_Z - distributions.kl_divergence(q, p).item()), rel=0.05)


def test_the_gradient_of_the_forward_divergence_is_that_of_the_likelihood():
    model, x = density_model(), torch.randn(4, 3).double()
    parameters = list(model.parameters())
    found = [
        torch.autograd.grad(objective(objective.trace(model, x)).loss, parameters)
        for objective in (MaximumLikelihood(), ForwardKL(lambda x: x.sum(-1)))
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("epoch", "beta"), [(0.0, 0.01), (5.0, 0.51), (math.inf, 1.0)])
def test_the_energy_is_annealed_and_the_free_energy_is_not(epoch, beta):
    model, objective = flow(), ReverseKL(energy, 2, warmup_epochs=10)
    trace = objective.trace(model, torch.zeros(5, 2))
    value = objective(trace, epoch)
    log_density, points = trace.log_posterior.mean(0), energy(trace.z.flatten(0, 1)).view(2, 5).mean(0)
    torch.testing.assert_close(value.loss, (log_density + beta * points).mean())
    torch.testing.assert_close(value.metrics["free_energy"], (log_density + points).detach())
    torch.testing.assert_close(trace.log_posterior, model.density().log_prob(trace.z), rtol=1e-4, atol=1e-4)
    assert objective.settings(epoch) == {"beta": pytest.approx(beta)}


@pytest.mark.parametrize(
    "objective", [MaximumLikelihood(), ForwardKL(energy), ReverseKL(energy, warmup_epochs=2)]
)
def test_a_flow_is_fitted_and_its_samples_are_those_of_the_target(objective):
    model = DensityModel(Flow(LearnedGaussian(2), real_nvp(2, num_layers=2, width=8, depth=1)))
    source = target()
    data = Points(torch.zeros(256, 2)) if isinstance(objective, ReverseKL) else source
    stage = Stage("fit", objective, max_epochs=40, batch_size=64, learning_rate=2e-2, schedule="cosine")
    history = fit(model, [stage], data, validation=data)
    assert history.status == "finished"
    drawn = model.sample(4_000)
    assert (drawn.mean(0) - 2).abs().max() < 0.15
    assert (drawn.std(0) - 0.5).abs().max() < 0.1
    assert model.sample(500, temperature=0.1).std() < 0.3


def test_fit_resumes_a_density_bit_by_bit(tmp_path):
    source = target()

    def run(model, folder, epochs, **settings):
        stage = Stage("fit", MaximumLikelihood(), max_epochs=epochs, batch_size=64)
        fit(model, [stage, Stage("more", MaximumLikelihood(), max_epochs=1)], source, out=folder, **settings)
        return model.state_dict()

    whole = run(flow(), tmp_path / "whole", 3)
    model, options = flow(), Options(checkpoint_every=1)
    with pytest.raises(RuntimeError, match="dies"):
        fit(
            model,
            [
                Stage("fit", MaximumLikelihood(), max_epochs=3, batch_size=64),
                Stage("more", MaximumLikelihood(), max_epochs=1),
            ],
            source,
            out=tmp_path / "parts",
            options=options,
            callbacks=[DiesAt(2)],
        )
    resumed = run(flow(seed=2), tmp_path / "parts", 3, resume=True, options=options)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_layers_that_wait_for_data_are_set_by_the_first_batch():
    layers = Chain([real_nvp(2, num_layers=1, width=4, depth=1), ActNorm(2)])
    model = DensityModel(Flow(StandardGaussian(2), layers))
    source = Points(5 + 3 * torch.randn(256, 2))
    fit(model, [Stage("fit", MaximumLikelihood(), max_epochs=1, batch_size=128, learning_rate=1e-6)], source)
    u, _ = model.density.bijection.inverse(source.x)
    assert u.mean(0).abs().max() < 0.3
    assert (u.std(0) - 1).abs().max() < 0.3


def test_draws_look_at_no_data_so_layers_may_not_wait_for_them():
    model = DensityModel(Flow(StandardGaussian(2), ActNorm(2)))
    with pytest.raises(
        CombinationError, match=r"looks at no data, which the model's `ActNorm` waits for\. Call"
    ):
        ReverseKL(energy).check(model)
    model.density().initialize(sample_shape=(100,))
    ReverseKL(energy).check(model)


def test_a_flow_without_an_inverse_learns_from_an_energy_alone():
    model = DensityModel(Flow(StandardGaussian(2), planar(2, num_layers=2)))
    ReverseKL(energy).check(model)
    ReverseKL(energy)(ReverseKL(energy).trace(model, torch.zeros(4, 2))).loss.backward()
    for objective in (MaximumLikelihood(), ForwardKL(energy)):
        with pytest.raises(CombinationError, match=r"needs log p\(x\) of data that the model did not draw"):
            objective.check(model)


def test_a_conditional_density_learns_from_data_and_not_from_an_energy():
    model = DensityModel(gaussian((2,), (3,)))
    assert model.context_shape == (3,)
    x, context = torch.randn(5, 2), torch.randn(5, 3)
    trace = MaximumLikelihood().trace(model, x, context)
    torch.testing.assert_close(trace.log_likelihood[0], model.density(context).log_prob(x))
    assert model.sample(5, context=context).shape == (5, 2)
    with pytest.raises(ShapeError, match=r"must hold one row per sample, 4; got batch shape \(5,\)"):
        model.sample(4, context=context)
    with pytest.raises(
        CombinationError, match=r"fits one target, so the density takes no context; got one of shape \(3,\)"
    ):
        ReverseKL(energy).check(model)


def test_discrete_draws_carry_no_gradient():
    model = DensityModel(bernoulli((2,), (3,)))
    model.density.context_shape = None
    with pytest.raises(
        CombinationError, match="needs draws with gradients, which `AmortizedBernoulli` does not give"
    ):
        ReverseKL(energy).check(model)


def test_an_energy_gives_one_number_for_each_point():
    objective = ReverseKL(lambda x: x)
    with pytest.raises(
        ShapeError, match=r"`energy` must give one number for each of 12 points; got \(12, 2\)"
    ):
        ReverseKL(objective.energy, 3).trace(flow(), torch.zeros(4, 2))


def test_the_parts_of_a_stage_are_those_of_the_model():
    model = flow()
    assert Stage("fit", MaximumLikelihood()).parts(model) == ("density",)
    Stage("fit", MaximumLikelihood(), ("density",)).check(model)
    with pytest.raises(
        ConfigurationError, match=re.escape("must name some of ('density',), each once; got ('prior',)")
    ):
        Stage("fit", MaximumLikelihood(), ("prior",)).check(model)
    count = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == {"density": count, "total": count}
