"""Densities in the plane: energies are those that are stated, draws follow them, and their normalizer is right."""

import math

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.data import EnergySplit, PlaneEnergy, energy_points

LOG_Z = {  # by the trapezoid rule on 5,000 x 5,000 cells, in docs/energies.md
    "ring": 1.877502,
    "wave": 2.112941,
    "parting_wave": 2.672557,
    "forked_wave": 2.724694,
}


@pytest.mark.parametrize("name", LOG_Z)
def test_the_normalizer_is_the_known_one(name):
    assert PlaneEnergy(name).log_normalizer == pytest.approx(LOG_Z[name], abs=1e-6)


def test_energies_are_those_stated():
    """By hand at (1, -0.5), where sin(pi / 2) = 1."""
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    expected = {
        "ring": 0.5 * ((math.hypot(1, 0.5) - 2) / 0.4) ** 2
        - math.log(math.exp(-0.5 / 0.36) + math.exp(-4.5 / 0.36)),
        "wave": 0.5 * (1.5 / 0.4) ** 2,
        "parting_wave": -math.log(math.exp(-0.5 * (1.5 / 0.35) ** 2) + math.exp(-0.5 * (1.5 / 0.35) ** 2)),
        "forked_wave": -math.log(math.exp(-0.5 * (1.5 / 0.4) ** 2) + 1),
    }
    for name, value in expected.items():
        assert PlaneEnergy(name)(x).item() == pytest.approx(value)
    outside = torch.tensor([[4.2, 0.0], [0.0, -4.1]], dtype=torch.float64)  # of the box, where the wall rises
    wave = 0.5 * (torch.tensor([math.sin(2.1 * math.pi), -4.1]) / 0.4).square().double()
    torch.testing.assert_close(PlaneEnergy("wave")(outside), wave + torch.tensor([2.0, 0.5]))


@pytest.mark.parametrize("name", LOG_Z)
def test_no_energy_is_below_what_draws_assume(name):
    places = torch.arange(-5, 5, 0.05, dtype=torch.float64)
    assert PlaneEnergy(name)(torch.cartesian_prod(places, places)).min() >= -math.log(2) - 1e-9


@pytest.mark.parametrize("name", LOG_Z)
def test_draws_follow_the_density(name):
    """By moments, those of the energy among them, against quadrature."""
    energy = PlaneEnergy(name)
    with noise.stream(3):
        x = energy.sample(4000).double()
    places = torch.arange(-5, 5, 0.05, dtype=torch.float64) + 0.025
    grid = torch.cartesian_prod(places, places)
    weights = (-energy(grid) - energy.log_normalizer).exp() * 0.05**2
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    for moment in (lambda p: p[:, 0], lambda p: p[:, 0].square(), lambda p: p.prod(1), energy):
        expected = (weights * moment(grid)).sum()
        values = moment(x)
        assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(x))


def test_the_splits_differ_and_repeat():
    one, other = (energy_points("wave", 20, 10, 10, seed=4) for _ in range(2))
    assert torch.equal(one.train.batch(torch.arange(20)).x, other.train.batch(torch.arange(20)).x)
    assert not torch.equal(one.train.batch(torch.arange(10)).x, one.test.batch(torch.arange(10)).x)
    assert isinstance(one.test, EnergySplit)
    assert one.test.energy == PlaneEnergy("wave")
    assert len(one.validation) == 10


def test_the_gradient_of_an_energy_is_finite_at_the_origin():
    x = torch.zeros(1, 2, requires_grad=True)
    PlaneEnergy("ring")(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_what_is_no_point_and_no_name_is_refused():
    with pytest.raises(ShapeError, match=r"`x` must be points \(N, 2\); got shape \(3,\)"):
        PlaneEnergy("wave")(torch.zeros(3))
    with pytest.raises(ConfigurationError, match="`name` of an energy must be one of"):
        PlaneEnergy("moons")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="Numbers of points must be positive integers"):
        energy_points("wave", 0)
