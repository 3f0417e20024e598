"""Masses of gray levels: they add up to one, agree with differences of cdfs, and read levels back exactly."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.distributions import (
    AmortizedCategorical,
    AmortizedLogisticMixture,
    CategoricalValues,
    CoupledLogisticValues,
    LogisticMixtureValues,
    categorical_raw_shape,
    logistic_raw_shape,
)
from latentflows.distributions.discretized import _log_mass
from tests.distributions import cases


def grays(levels: int, dtype=torch.float64) -> torch.Tensor:
    return torch.arange(levels, dtype=torch.uint8).to(dtype) / (levels - 1)


def mixture(levels: int, *, num_components: int = 3, dtype=torch.float64) -> LogisticMixtureValues:
    with noise.stream(2):
        logits, means, log_scales = (torch.randn(3, 1, num_components, dtype=dtype) for _ in range(3))
    return LogisticMixtureValues(logits, 0.5 + 0.4 * means, log_scales - 2, levels=levels, event_ndim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_masses_of_all_levels_add_up_to_one(levels, dtype):
    x = grays(levels, dtype)[:, None, None]
    logits = torch.randn(3, 1, levels, dtype=dtype)
    for distribution in (CategoricalValues(logits, event_ndim=1), mixture(levels, dtype=dtype)):
        total = distribution.log_prob(x).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(3, dtype=dtype), rtol=0, atol=2e-6)


@pytest.mark.parametrize("levels", [2, 5])
def test_the_masses_of_all_colors_add_up_to_one(levels):
    conditional = cases.logistic((3, 1, 1), (2,), levels, num_components=2, coupled=True).double()
    distribution = conditional(torch.randn(4, 2).double())
    colors = torch.tensor(list(itertools.product(grays(levels).tolist(), repeat=3))).double()
    total = distribution.log_prob(colors.view(-1, 1, 3, 1, 1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4).double())


def test_masses_are_differences_of_the_cdf():
    levels, mean, scale = 17, 0.41, 0.06
    level = torch.arange(17.0).double()
    logistic = stats.logistic(mean, scale)
    borders = (torch.arange(18).double() - 0.5) / 16
    cdf = torch.from_numpy(logistic.cdf(borders.numpy()))
    cdf[0], cdf[-1] = 0, 1
    parameters = torch.tensor([mean, math.log(scale)], dtype=torch.float64)
    mass = _log_mass(level, *parameters, levels)
    torch.testing.assert_close(mass.exp(), cdf.diff(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("log_scale", [-12.0, -7.0, -3.0, 0.0, 7.0, 12.0])
@pytest.mark.parametrize("mean", [-30.0, 0.0, 0.5, 1.0, 30.0])
def test_no_level_is_lost_to_rounding(mean, log_scale):
    """Log masses of all 256 levels in float32, with gradients: finite, and those of float64."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        parameters = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (mean, log_scale)]
        mass = _log_mass(torch.arange(256.0, dtype=dtype), *parameters, 256)
        gradients = [torch.autograd.grad(m, parameters, retain_graph=True) for m in mass]
        slopes = torch.tensor(gradients, dtype=dtype)
        assert torch.isfinite(mass).all()
        assert torch.isfinite(slopes).all()
        found[dtype] = mass.detach().double(), slopes.double()
    single, double = found.values()
    torch.testing.assert_close(single[0], double[0], rtol=1e-4, atol=2e-4)
    if log_scale > -12:  # there a logistic is 0.002 of a level wide, and float32 means are 1e-4 of that
        torch.testing.assert_close(single[1], double[1], rtol=1e-3, atol=1e-2)


def test_a_far_level_has_the_log_mass_of_the_tail():
    """A difference of two sigmoids would be 0 here, and a clamp would change the value."""
    mass = _log_mass(torch.tensor(200.0), torch.tensor(0.0), torch.tensor(-7.0), 256)
    lower, width = 199.5 / 255 * math.exp(7), math.exp(7) / 255
    assert mass.item() == pytest.approx(-lower + math.log(-math.expm1(-width)), rel=1e-6)
    assert mass < -800


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256])
def test_levels_are_read_back_exactly(levels):
    """Under a categorical that knows its level, every float32 gray has probability 1."""
    x = grays(levels, torch.float32)
    below = torch.nextafter(x, torch.zeros(()))  # a unit in the last place off, as arithmetic may leave it
    certain = torch.full((levels, 1, levels), -1e4).diagonal_scatter(torch.zeros(1, levels), 0, 0, 2)
    for values in (x, below):
        assert CategoricalValues(certain, event_ndim=1).log_prob(values[:, None]).abs().max() == 0


@pytest.mark.parametrize("name", ["categorical", "logistic", "logistic_mixture", "logistic_coupled"])
def test_draws_are_levels_and_come_as_often_as_their_mass(name):
    conditional = cases.build(name)
    with torch.no_grad(), noise.stream(7):
        distribution = conditional(cases.context_of(conditional))
        x = distribution.sample((20_000,)).flatten(1)
    distribution.check_support(x.view(-1, *conditional.event_shape))
    _, counts = x.unique(dim=0, return_counts=True)
    drawn, index = x.unique(dim=0, return_inverse=True)
    mass = distribution.log_prob(drawn.view(-1, *conditional.event_shape)).exp()
    counts = torch.bincount(index)
    common = mass * 20_000 > 20
    error = (counts - 20_000 * mass) / (20_000 * mass * (1 - mass)).sqrt()
    assert common.sum() > 5
    assert error[common].abs().max() < 5
    rest = 1 - mass[common].sum()
    assert abs(counts[~common].sum() / 20_000 - rest) < 5 * (rest.clamp(min=1e-3) / 20_000).sqrt()


def test_a_level_without_mass_is_not_drawn_at_the_smallest_number_either(monkeypatch):
    monkeypatch.setattr(noise, "uniform", lambda shape, like: torch.zeros(shape, dtype=like.dtype))
    logits = torch.tensor([[-torch.inf, -torch.inf, 0.0, 1.0]])
    assert CategoricalValues(logits, event_ndim=1).sample().item() == pytest.approx(2 / 3)


def test_a_component_without_weight_is_never_drawn():
    logits = torch.tensor([[[-torch.inf, 0.0, -torch.inf]]])
    means = torch.tensor([[[0.0, 0.5, 1.0]]])
    distribution = LogisticMixtureValues(logits, means, torch.tensor(-9.0), levels=3, event_ndim=1)
    assert (distribution.sample((5000,)) == 0.5).all()
    assert distribution.mean.item() == pytest.approx(0.5)


def test_the_mean_is_that_over_all_levels():
    x = grays(17)
    for distribution in (mixture(17), CategoricalValues(torch.randn(3, 1, 17).double(), event_ndim=1)):
        expected = (distribution.log_prob(x[:, None, None]).exp() * x[:, None]).sum(0)
        torch.testing.assert_close(distribution.mean[:, 0], expected)


def test_channels_are_independent_or_coupled_as_asked():
    """Raising red moves green and blue, by the coefficients, only where they are coupled."""
    zeros = torch.zeros(3, 1, 1, 1).double()
    coefficients = torch.tensor([0.8, -0.5, 0.3]).double().view(3, 1, 1, 1)
    coupled = CoupledLogisticValues(zeros[0], zeros + 0.5, zeros - 4, coefficients, levels=256)
    for red, green in ((0.5, 0.5), (0.9, 0.5), (0.5, 0.2), (0.9, 0.2)):
        r, g = (round(v * 255) / 255 for v in (red, green))
        blue = grays(256)
        x = torch.stack([torch.full_like(blue, r), torch.full_like(blue, g), blue], 1).view(256, 3, 1, 1)
        log_p = coupled.log_prob(x)
        most = blue[log_p.argmax()].item()
        assert most == pytest.approx(0.5 - 0.5 * (r - 0.5) + 0.3 * (g - 0.5), abs=1 / 255)
    free = cases.build("logistic_mixture")(torch.zeros(3).double())
    x = free.sample()
    assert free.batch_shape == ()
    per_channel = []
    for channel in range(3):
        moved = x.clone()
        moved[channel] = 1 - moved[channel]
        per_channel.append(free.log_prob(moved) - free.log_prob(x))
    torch.testing.assert_close(free.log_prob(1 - x) - free.log_prob(x), torch.stack(per_channel).sum())


def test_one_component_is_a_discretized_logistic_in_the_published_coordinates():
    raw = torch.tensor([[0.3, -1.2]]).double()
    single = AmortizedLogisticMixture(1, 1, _Fixed(raw), levels=256)(torch.zeros(1, 1))
    x = grays(256)
    borders = (2 * (torch.arange(257).double() - 0.5) / 255) - 1  # data from -1 to 1
    cdf = torch.sigmoid((borders - 0.3) * math.exp(1.2 / (1 + 1.2 / 7)))
    cdf[0], cdf[-1] = 0, 1
    torch.testing.assert_close(single.log_prob(x[:, None, None]).exp()[:, 0], cdf.diff())


class _Fixed(nn.Module):
    """A network that gives one answer."""

    def __init__(self, raw: torch.Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.raw


def test_raw_outputs_lie_where_the_documentation_says():
    """Weights, means, scales, coefficients, each M per channel; the levels of an entry side by side."""
    raw = torch.randn(1, 20, 2, 2).double()
    made = AmortizedLogisticMixture((3, 2, 2), 1, _Fixed(raw), num_components=2, coupled=True)(
        torch.zeros(1, 1)
    )
    torch.testing.assert_close(made.logits[0, 1, 0], raw[0, :2, 1, 0])
    torch.testing.assert_close(made.means[0, 2, 0, 1], 0.5 + 0.5 * raw[0, 6:8, 0, 1])
    torch.testing.assert_close(made.coefficients[0, 1, 1, 1], raw[0, 16:18, 1, 1].tanh())
    levels = AmortizedCategorical((5, 2, 2), 1, _Fixed(raw), levels=4)(torch.zeros(1, 1))
    torch.testing.assert_close(levels.logits[0, 3, 1, 0], raw[0, 12:16, 1, 0])


def test_raw_shapes():
    assert categorical_raw_shape((3, 4, 5), 256) == (768, 4, 5)
    assert logistic_raw_shape((3, 4, 5)) == (6, 4, 5)
    assert logistic_raw_shape((3, 4, 5), scale="shared") == (3, 4, 5)
    assert logistic_raw_shape((3, 4, 5), num_components=10) == (90, 4, 5)
    assert logistic_raw_shape((3, 4, 5), num_components=10, coupled=True) == (100, 4, 5)  # as published


@pytest.mark.parametrize("bad", [0.3, -1 / 255, 256 / 255, float("nan")])
@pytest.mark.parametrize("name", ["categorical", "logistic"])
def test_values_that_are_no_levels_are_refused(name, bad):
    build = getattr(cases, name)
    distribution = build((3,), (2,), 256)(torch.zeros(1, 2))
    x = grays(256, torch.float32)[:255].view(85, 3)
    distribution.check_support(x)
    x[7, 1] = bad
    with pytest.raises(DataError, match=r"needs gray levels v / 255, v from 0 to 255; got values from"):
        distribution.check_support(x)


def test_data_of_other_levels_are_refused():
    distribution = cases.logistic((3,), (2,), 256)(torch.zeros(1, 2))
    with pytest.raises(DataError, match="State the `levels` of the data"):
        distribution.check_support(grays(17, torch.float32)[:15].view(5, 3))


def test_settings_out_of_range_are_refused():
    for levels in (1, 257, 2.5):
        for kind in (AmortizedCategorical, AmortizedLogisticMixture):
            with pytest.raises(ConfigurationError, match="`levels` must be an integer from 2 to 256"):
                kind((3, 4, 4), 2, nn.Identity(), levels=levels)
    with pytest.raises(ConfigurationError, match="`num_components` must be a positive integer; got 0"):
        AmortizedLogisticMixture((3, 4, 4), 2, nn.Identity(), num_components=0)
    with pytest.raises(ConfigurationError, match='`scale` must be "amortized" or "shared"'):
        AmortizedLogisticMixture((3, 4, 4), 2, nn.Identity(), scale="fixed")
    for shape in ((1, 4, 4), (3,), (3, 4)):
        with pytest.raises(CombinationError, match="Coupled channels are red, green and blue"):
            AmortizedLogisticMixture(shape, 2, nn.Identity(), coupled=True)
