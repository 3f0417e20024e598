"""The splines agree with other libraries' at equal knots; they are no dependency, so most runs skip this."""

import math

import pytest
import torch

from latentflows.transforms import CircularSpline, RationalQuadraticSpline
from tests.peers import peer
from tests.transforms.knots import knots

ROWS = 400


def problem(spline, bound):
    """Values over the interval and beyond, raw parameters, and the shares and slopes they stand for, (N, ...)."""
    raw = 2 * torch.randn(spline.size, ROWS, dtype=torch.float64)
    u, x, slopes = knots(spline, raw)
    value = 1.2 * bound * (2 * torch.rand(ROWS, dtype=torch.float64) - 1)
    return value, raw, u.diff() / (2 * bound), x.diff() / (2 * bound), slopes


def check(apply, value, raw, theirs, tolerance=1e-8):
    for got, expected in zip(apply(value, raw), theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def unsoftplus(slopes):
    return slopes.expm1().log()


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize(
    "name",
    ["nflows.transforms.splines.rational_quadratic", "normflows.utils.splines"],
    ids=["nflows", "normflows"],
)
def test_it_agrees_with_nflows_and_normflows(name, inverse):
    spline = RationalQuadraticSpline(bound=2.0)
    value, raw, widths, heights, slopes = problem(spline, 2.0)
    theirs = peer(name).unconstrained_rational_quadratic_spline(
        value,
        widths.log(),
        heights.log(),
        unsoftplus(slopes[:, 1:-1]),
        inverse=inverse,
        tail_bound=2.0,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    check(spline.inverse if inverse else spline.forward, value, raw, theirs)


def test_it_agrees_with_zuko():
    spline = RationalQuadraticSpline(bound=2.0)
    value, raw, widths, heights, slopes = problem(spline, 2.0)
    floor = 1e-6

    def unbounded(log, bound):
        return log / (1 - log.abs() / bound)

    logs = [part.log() - part.log().mean(-1, keepdim=True) for part in (widths, heights)]
    bound = -math.log(floor)
    transform = peer("zuko.transforms").MonotonicRQSTransform(
        *(unbounded(log, bound / 2) for log in logs),
        unbounded(slopes[:, 1:-1].log(), bound),
        bound=2.0,
        slope=floor,
    )
    check(spline.forward, value, raw, transform.call_and_ladj(value))
    x = spline.forward(value, raw)[0]
    torch.testing.assert_close(transform._inverse(x), spline.inverse(x, raw)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_the_circular_spline_agrees_with_normflows(inverse):
    spline = CircularSpline()
    value, raw, widths, heights, slopes = problem(spline, math.pi / 1.2)
    theirs = peer("normflows.utils.splines").unconstrained_rational_quadratic_spline(
        value,
        widths.log(),
        heights.log(),
        unsoftplus(slopes[:, :-1]),
        inverse=inverse,
        tails="circular",
        tail_bound=math.pi,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    check(spline.inverse if inverse else spline.forward, value, raw, theirs)
