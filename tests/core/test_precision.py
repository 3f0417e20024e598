"""Float32 islands and soft bounds."""

import pytest
import torch

from latentflows.core.precision import at_least_float32, full_precision, soft_bound


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32(given, expected):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == expected


def test_full_precision_switches_autocast_off_and_back_on():
    a = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_full_precision_does_nothing_without_autocast():
    with full_precision(torch.ones(1)):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("bound", [0.5, 3.0, 7.0])
def test_soft_bound_has_slope_one_at_zero_and_stays_within(bound):
    value = torch.tensor([-1e8, -1.0, 0.0, 1.0, 1e8], dtype=torch.float64, requires_grad=True)
    out = soft_bound(value, bound)
    assert (out.abs() < bound).all()
    assert out[2] == 0
    torch.testing.assert_close(out[3], -out[1])
    torch.testing.assert_close(out[3].detach(), torch.tensor(bound / (bound + 1)).double(), rtol=1e-6, atol=0)
    out.sum().backward()
    assert value.grad[2] == 1
    assert (value.grad > 0).all()
    assert (soft_bound(torch.linspace(-50, 50, 999), bound).diff() > 0).all()
