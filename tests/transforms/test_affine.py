"""Shift, and scale and shift: values, derivatives, bounds."""

import math

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.transforms import Additive, Affine


@pytest.mark.parametrize("transform", [Additive(), Affine(), Affine(0.5)])
def test_inverse_undoes_forward_and_derivatives_are_those_of_autograd(transform):
    u = torch.randn(20, dtype=torch.float64, requires_grad=True)
    raw = 5 * torch.randn(transform.size, 20, dtype=torch.float64)
    x, log_derivative = transform.forward(u, raw)
    back, opposite = transform.inverse(x, raw)
    (slope,) = torch.autograd.grad(x.sum(), u)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(log_derivative.expand_as(u), slope.log())
    torch.testing.assert_close(opposite, -log_derivative)


@pytest.mark.parametrize("transform", [Additive(), Affine()])
def test_zero_parameters_are_the_identity(transform):
    u = torch.randn(20)
    x, log_derivative = transform.forward(u, torch.zeros(transform.size, 20))
    assert torch.equal(x, u)
    assert not log_derivative.any()


def test_the_shift_comes_first():
    x, log_derivative = Affine().forward(torch.zeros(1), torch.tensor([[2.0], [1.0]]))
    assert x.item() == 2.0
    assert math.isclose(log_derivative.item(), 1 / (1 + 1 / 3), rel_tol=1e-6)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_must_be_positive_and_finite(bound):
    with pytest.raises(ConfigurationError, match="`scale_bound` must be positive and finite"):
        Affine(bound)
