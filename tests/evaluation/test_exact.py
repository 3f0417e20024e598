"""Log-likelihood of flows on data against known densities."""

import math

import pytest
import torch
from torch import distributions

from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.errors import (
    CombinationError,
    ConfigurationError,
    DataError,
    NonFiniteError,
    ShapeError,
)
from latentflows.data.base import ImageSplit
from latentflows.distributions import Flow, LearnedGaussian, StandardGaussian
from latentflows.evaluation import evaluate_likelihood
from latentflows.models import DensityModel
from latentflows.models.presets import planar
from tests.distributions.cases import gaussian
from tests.objectives.cases import density_model


class Source:
    """Points of any shape, with a context or without."""

    values = "continuous"
    bits_offset = None

    def __init__(self, x, context=None, **kinds) -> None:
        self.x, self.context, self.event_shape = x, context, tuple(x.shape[1:])
        vars(self).update(kinds)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices) -> Batch:
        return Batch(self.x[indices], None if self.context is None else self.context[indices])


def test_it_is_minus_the_log_density_of_every_point_with_its_error():
    model = DensityModel(LearnedGaussian((2, 3)))
    with torch.no_grad():
        model.density.mean.normal_()
    x = torch.randn(40, 2, 3)
    measured = evaluate_likelihood(model, Source(x))
    expected = -distributions.Normal(model.density.mean.detach(), 1.0).log_prob(x).sum((1, 2)).double()
    torch.testing.assert_close(measured.nll, expected, rtol=1e-5, atol=1e-5)
    figures = measured.figures()
    assert figures["nll"]["mean"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert figures["nll"]["standard_error"] == pytest.approx(expected.std().item() / 40**0.5, rel=1e-4)
    assert figures["nll"]["unit"] == "nats"
    assert figures["bits_per_dim"] is None
    assert measured.density == "exact"


def test_uniform_gray_levels_under_a_uniform_density_take_eight_bits():
    """N(0, s) with s large is flat over [0, 1): -log2 of its density per dimension, plus 8."""
    pixels = torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8)
    model = DensityModel(LearnedGaussian((1, 2, 2)))
    source = ImageSplit(pixels, "dequantized")
    bits = evaluate_likelihood(model, source).figures()["bits_per_dim"]
    with noise.stream(0):
        x = (pixels + torch.rand(pixels.shape)) / 256
    expected = -distributions.Normal(0.0, 1.0).log_prob(x).mean().item() / math.log(2) + 8
    assert bits["mean"] == pytest.approx(expected, abs=0.01)
    assert bits["unit"] == "bits/dim"


def test_the_first_points_are_the_same_whatever_their_number_and_the_model_is_given_back():
    model, x = density_model().train(), torch.randn(70, 3).double()
    whole, few = (evaluate_likelihood(model, Source(x), num_images=n).nll for n in (None, 7))
    torch.testing.assert_close(whole[:7], few)
    assert model.training
    assert len(whole) == 70


def test_large_points_are_scored_in_blocks(monkeypatch):
    from latentflows.evaluation import exact

    model, x = density_model(), torch.randn(10, 3).double()
    expected = evaluate_likelihood(model, Source(x)).nll
    monkeypatch.setattr(exact, "_BLOCK_NUMBERS", 9)
    torch.testing.assert_close(evaluate_likelihood(model, Source(x)).nll, expected)


def test_a_conditional_density_reads_the_context():
    model = DensityModel(gaussian((2,), (3,)))
    x, context = torch.randn(6, 2), torch.randn(6, 3)
    measured = evaluate_likelihood(model, Source(x, context)).nll
    torch.testing.assert_close(measured, -model.density(context).log_prob(x).detach().double())
    unconditional = density_model()
    evaluate_likelihood(unconditional, Source(torch.randn(4, 3).double(), torch.randn(4, 5)))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Source(torch.zeros(4, 2)), ShapeError, r"must have the model's shape \(3,\); got \(2,\)"),
        (
            Source(torch.zeros(4, 3), values="binary"),
            CombinationError,
            r"\['continuous'\] values, but the data are binary",
        ),
        (Source(torch.full((4, 3), torch.nan)), DataError, "must be finite"),
        (
            Source(torch.full((4, 3), 1e300, dtype=torch.float64)),
            NonFiniteError,
            "Log-densities must be finite; got others for 4 of 4",
        ),
    ],
)
def test_what_has_no_likelihood_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        evaluate_likelihood(DensityModel(StandardGaussian(3)), source)


def test_a_number_of_points_that_are_not_there_and_a_flow_without_an_inverse_are_refused():
    source = Source(torch.zeros(4, 3))
    with pytest.raises(ConfigurationError, match="`num_images` must be from 1 to the 4 data points"):
        evaluate_likelihood(DensityModel(StandardGaussian(3)), source, num_images=5)
    with pytest.raises(CombinationError, match="`Flow` has no inverse or no known constant"):
        evaluate_likelihood(DensityModel(Flow(StandardGaussian(3), planar(3, num_layers=1))), source)
