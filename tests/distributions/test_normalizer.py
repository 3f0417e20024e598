"""The stored normalizer: its error holds, or it is said to be unknown."""

import math

import pytest
import torch

from latentflows.distributions.normalizer import Normalizer


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0, 3.0, 5.0, 20.0, 100.0, 1000.0])
def test_the_error_of_a_mean_of_log_normal_weights_holds_or_is_infinite(scale):
    """Weights exp(s e) with e ~ N(0, 1) have the mean exp(s^2 / 2), most of which few draws carry for large s."""
    log_weight = scale * torch.randn(1 << 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normalizer = Normalizer()
    value, error, effective = normalizer.store(log_weight)
    assert float(normalizer.log_mean) == pytest.approx(float(value))
    assert bool(normalizer.known) == (effective >= 100) == math.isfinite(error) == (scale < 4)
    assert abs(float(value) - scale**2 / 2) < 4 * error


def test_a_handful_of_even_weights_is_known():
    normalizer = Normalizer()
    normalizer.store(torch.zeros(4, dtype=torch.float64))
    assert bool(normalizer.known)
