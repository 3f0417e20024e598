"""KL in both directions agrees with closed forms, and a model that lacks a mode is told by the forward one alone."""

import math

import pytest
import torch
from torch import Tensor

from latentflows import DensityModel, StandardGaussian
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, NonFiniteError
from latentflows.data import from_tensors
from latentflows.distributions import LearnedGaussian
from latentflows.evaluation import evaluate_target


def wide(x: Tensor) -> Tensor:
    """The energy of N(1, 4 I), without its constant."""
    return (x - 1).square().sum(1) / 8


LOG_Z = math.log(2 * math.pi * 4)


def wide_points(count: int = 4000):
    with noise.stream(2):
        x = 1 + 2 * torch.randn(count, 2)
    return from_tensors(x, x[:10], x, values="continuous").test


def within(found: Tensor, expected: float) -> bool:
    return abs(float(found.mean()) - expected) < 5 * float(found.std()) / math.sqrt(len(found))


def test_both_directions_are_those_of_two_gaussians():
    found = evaluate_target(DensityModel(StandardGaussian(2)), wide_points(), wide, LOG_Z)
    assert found.density == "exact"
    # KL of N(1, 4) from N(0, 1), and the other way, in each of two dimensions
    assert within(found.forward, 2 * (0.5 * (4 + 1) - 0.5 - math.log(2)))
    assert within(found.reverse, 2 * (math.log(2) + (1 + 1) / 8 - 0.5))
    figures = found.figures()
    assert figures["forward_kl"] is not None
    assert figures["forward_kl"]["mean"] == pytest.approx(float(found.forward.mean()))
    assert figures["effective_share"] is not None
    weights = (-found.reverse).exp()
    share = weights.sum() ** 2 / weights.square().sum() / len(weights)
    assert figures["effective_share"]["mean"] == pytest.approx(float(share))


def test_the_target_itself_is_at_no_distance():
    model = DensityModel(LearnedGaussian(2))
    with torch.no_grad():
        model.density.mean.fill_(1.0)
        model.density.raw_scale.fill_(math.log(2) / (1 - math.log(2) / 7))
    found = evaluate_target(model, wide_points(200), wide, LOG_Z)
    assert found.forward.abs().max() < 1e-5
    assert found.reverse.abs().max() < 1e-5
    share = found.figures()["effective_share"]
    assert share is not None
    assert share["mean"] == pytest.approx(1)


def test_it_is_of_so_many_points_and_repeats():
    model, source = DensityModel(StandardGaussian(2)), wide_points(50)
    one, other = (evaluate_target(model, source, wide, LOG_Z, num_points=20, seed=3) for _ in range(2))
    assert len(one.forward) == len(one.reverse) == 20
    assert torch.equal(one.reverse, other.reverse)
    assert torch.equal(one.forward, evaluate_target(model, source, wide, LOG_Z).forward[:20])
    with pytest.raises(ConfigurationError, match="`num_points` must be from 1 to the 50 data points; got 51"):
        evaluate_target(model, source, wide, LOG_Z, num_points=51)


def test_energies_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteError, match="must be finite"):
        evaluate_target(
            DensityModel(StandardGaussian(2)), wide_points(20), lambda x: x[:, 0] * torch.nan, 0.0
        )


def test_an_estimated_log_density_is_not_weighed():
    density = StandardGaussian(2)
    density.weighable = False
    with pytest.raises(CombinationError, match=r"biased upward.*Make the divergence exact"):
        evaluate_target(DensityModel(density), wide_points(), wide, LOG_Z)
