"""Rational-quadratic splines: values, derivatives, tails, periods, knots, numbers of float32."""

import math
import re

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.transforms import CircularSpline, Leaky, RationalQuadraticSpline
from tests.transforms.knots import bound_of, evaluate, knots

LINE, CIRCLE = RationalQuadraticSpline(), CircularSpline()
SPLINES = [
    LINE,
    RationalQuadraticSpline(2, bound=0.5, min_share=0.1, min_slope=0.3),
    RationalQuadraticSpline(16, bound=10.0),
    CIRCLE,
    CircularSpline(3, min_share=0.05),
]
each = pytest.mark.parametrize("spline", SPLINES, ids=repr)
scaled = pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def draw(spline, *axes, scale=1.0, dtype=torch.float64):
    """Values inside the interval and in its tails, and raw parameters."""
    return bound_of(spline) * torch.randn(*axes, dtype=dtype), scale * torch.randn(
        spline.size, *axes, dtype=dtype
    )


@scaled
@pytest.mark.parametrize("spline", [*SPLINES, Leaky(), Leaky(0.5)], ids=repr)
def test_inverse_undoes_forward_and_derivatives_are_those_of_autograd(spline, scale):
    u = 2 * torch.randn(200, dtype=torch.float64)
    raw = scale * torch.randn(spline.size, 200, dtype=torch.float64)
    x, log_derivative = spline.forward(u.requires_grad_(), raw)
    (slope,) = torch.autograd.grad(x.sum(), u)
    close(log_derivative, slope.log())
    back, opposite = spline.inverse(x.detach().requires_grad_(), raw)
    close(back, u.detach())
    close(opposite, -log_derivative)


@scaled
@each
def test_it_is_the_published_formula_between_the_documented_knots(spline, scale):
    bound = bound_of(spline)
    raw = draw(spline, 300, scale=scale)[1]
    u = bound * (2 * torch.rand(300, dtype=torch.float64) - 1)
    x, slope = evaluate(knots(spline, raw), u)
    got, log_derivative = spline.forward(u, raw)
    close(got, x)
    close(log_derivative, slope.log())


@each
def test_values_on_knots_map_to_knots(spline):
    raw = draw(spline, 50, scale=2.0)[1]
    for u, x, slope in zip(*(part.T for part in knots(spline, raw)), strict=True):
        got, log_derivative = spline.forward(u, raw)
        close(got, x)
        close(log_derivative, slope.log(), 1e-6)  # a rounding error to the left or to the right of the knot
        back, opposite = spline.inverse(x, raw)
        close(back, u)
        close(opposite, -slope.log(), 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
@each
def test_zero_parameters_are_the_identity(spline, dtype, tolerance):
    u, raw = draw(spline, 500, scale=0.0, dtype=dtype)
    for out, log_derivative in (spline.forward(u, raw), spline.inverse(u, raw)):
        close(out, u, 2 * tolerance)
        close(log_derivative, torch.zeros_like(u), 2 * tolerance)


@pytest.mark.parametrize("scale", [1.0, 20.0])
@each
def test_it_increases_strictly(spline, scale):
    bound = bound_of(spline)
    raw = draw(spline, 20, 1, scale=scale)[1]
    u = torch.linspace(-1.5 * bound, 1.5 * bound, 3001, dtype=torch.float64).expand(20, -1)
    for apply in (spline.forward, spline.inverse):
        x, log_derivative = apply(u, raw)
        assert (x.diff() > 0).all()
        assert log_derivative.isfinite().all()


@scaled
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_tails_are_the_identity_and_join_smoothly(direction, scale):
    raw = draw(LINE, 100, scale=scale)[1]
    for border in (-3.0, 3.0):
        at = torch.full((100,), border, dtype=torch.float64)
        for value in (at, at * (1 + 1e-12), at * (1 - 1e-12)):
            out, log_derivative = getattr(LINE, direction)(value, raw)
            close(out, at, 1e-7)
            close(log_derivative, torch.zeros_like(at), 1e-4)
        far = at * 5
        out, log_derivative = getattr(LINE, direction)(far, raw)
        assert torch.equal(out, far)
        assert not log_derivative.any()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("far", [3.1, 1e4, 1e30])
def test_a_batch_of_tails_alone_has_finite_gradients(direction, far):
    value = torch.tensor([far, -far]).repeat(8).requires_grad_()
    raw = (20 * torch.randn(LINE.size, 16)).requires_grad_()
    out, log_derivative = getattr(LINE, direction)(value, raw)
    (out.sum() + log_derivative.sum()).backward()
    assert torch.equal(value.grad, torch.ones(16))
    assert not raw.grad.any()


@scaled
@each
def test_a_density_integrates_to_one(spline, scale):
    raw = draw(spline, 1, scale=scale)[1]
    if isinstance(spline, CircularSpline):
        x = torch.linspace(-math.pi, math.pi, 400_001, dtype=torch.float64)
        log_density = spline.inverse(x, raw)[1] - math.log(2 * math.pi)
    else:
        x = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
        u, log_derivative = spline.inverse(x, raw)
        log_density = log_derivative - 0.5 * (u * u + math.log(2 * math.pi))
    close(torch.trapezoid(log_density.exp(), x), torch.tensor(1.0, dtype=torch.float64), 1e-4)


@scaled
def test_a_circular_spline_keeps_the_circle_and_goes_on_by_full_turns(scale):
    angle, raw = 3 * torch.rand(500, dtype=torch.float64), draw(CIRCLE, 500, scale=scale)[1]
    for apply in (CIRCLE.forward, CIRCLE.inverse):
        out, log_derivative = apply(angle, raw)
        assert (out.abs() <= math.pi).all()
        for turns in (-1, 1, 100):
            other, same = apply(angle + 2 * math.pi * turns, raw)
            close(other, out + 2 * math.pi * turns, 1e-7)
            close(same, log_derivative, 1e-5)


@scaled
def test_a_circular_spline_is_smooth_across_the_cut(scale):
    raw = draw(CIRCLE, 100, scale=scale)[1]
    cut = torch.full((100,), math.pi, dtype=torch.float64)
    below, above = CIRCLE.forward(cut - 1e-10, raw), CIRCLE.forward(cut + 1e-10, raw)
    close(below[0], cut, 1e-7)
    close(above[0], cut, 1e-7)
    close(below[1], above[1], 1e-5)
    assert below[1].std() > 0.1 * min(scale, 1)  # the slope there is free


@each
def test_parameters_broadcast_over_what_they_do_not_name(spline):
    u, raw = draw(spline, 2, 3, 4)
    for few in (raw[:, 0, 0], raw[:, :1], raw[:, :, :1], raw[:, 0]):
        wide = few.view(spline.size, *[1] * (4 - few.ndim), *few.shape[1:]).expand(raw.shape)
        for apply in (spline.forward, spline.inverse):
            for got, expected in zip(apply(u, few), apply(u, wide.contiguous()), strict=True):
                close(got, expected, 1e-12)


@each
def test_a_transposed_network_output_and_one_variable_at_a_time_give_the_same(spline):
    u, raw = draw(spline, 6, 5)
    strided = raw.movedim(0, 1).contiguous().movedim(1, 0)
    for apply in (spline.forward, spline.inverse):
        out, log_derivative = apply(u, raw)
        close(apply(u, strided), (out, log_derivative), 1e-12)
        for i in range(6):
            one = apply(u[i : i + 1], raw[:, i : i + 1])
            close(one, (out[i : i + 1], log_derivative[i : i + 1]), 1e-12)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("spline", [RationalQuadraticSpline(3), CircularSpline(3)], ids=repr)
def test_first_and_second_derivatives_are_those_of_finite_differences(spline, direction):
    u, raw = draw(spline, 2)
    arguments = (0.5 * u.requires_grad_(), raw.requires_grad_())
    apply = getattr(spline, direction)
    assert torch.autograd.gradcheck(apply, arguments)
    assert torch.autograd.gradgradcheck(apply, arguments)


@pytest.mark.parametrize("spline", [RationalQuadraticSpline(3), CircularSpline(3)], ids=repr)
def test_it_works_under_vmap_forward_mode_and_a_compiler(spline):
    u, raw = draw(spline, 7)
    raw = raw[:, :1].expand(spline.size, 7)
    for apply in (spline.forward, spline.inverse):
        out, log_derivative = apply(u, raw)
        alone = torch.func.vmap(lambda v, r, apply=apply: apply(v, r), in_dims=(0, 1))(u, raw)
        close(alone, (out, log_derivative), 1e-12)
        _, slope = torch.func.jvp(
            lambda v, apply=apply, raw=raw: apply(v, raw)[0], (u,), (torch.ones_like(u),)
        )
        close(slope, log_derivative.exp())
        close(torch.compile(apply, fullgraph=True, backend="eager")(u, raw), (out, log_derivative), 1e-12)


@pytest.mark.parametrize(("scale", "mean", "worst"), [(1, 2e-7, 1e-4), (20, 2e-3, 1.0), (200, 5e-3, 2.0)])
def test_round_trips_in_float32_at_wild_parameters(scale, mean, worst):
    # Where the map is flat, rounding x alone moves u; with a softmax and a softplus the mean is 0.1 at scale 20.
    u, raw = torch.randn(20_000), scale * torch.randn(LINE.size, 20_000)
    x, log_derivative = LINE.forward(u, raw)
    back, _ = LINE.inverse(x, raw)
    again, _ = LINE.forward(back, raw)
    exact = LINE.forward(u.double(), raw.double())
    assert (back - u).abs().mean() < mean
    assert (back - u).abs().max() < worst
    assert (again - x).abs().max() < 2e-5
    assert (x - exact[0]).abs().max() < 1e-3
    assert (log_derivative - exact[1]).abs().max() < 2e-2


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("spline", [LINE, CIRCLE], ids=repr)
@pytest.mark.parametrize("scale", [20.0, 1e4, 1e30])
def test_gradients_stay_finite_at_any_parameter(spline, direction, scale):
    value, raw = draw(spline, 500, scale=scale, dtype=torch.float32)
    value.requires_grad_(), raw.requires_grad_()
    out, log_derivative = getattr(spline, direction)(value, raw)
    (out.sum() + log_derivative.sum()).backward()
    for tensor in (out, log_derivative, value.grad, raw.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RationalQuadraticSpline(1), "`num_bins` must be an integer of at least 2; got 1"),
        (lambda: RationalQuadraticSpline(8.0), "`num_bins` must be an integer of at least 2; got 8.0"),
        (lambda: CircularSpline(0), "`num_bins` must be an integer of at least 2; got 0"),
        (lambda: RationalQuadraticSpline(bound=0.0), "`bound` must be positive and finite; got 0.0"),
        (
            lambda: RationalQuadraticSpline(8, min_share=0.125),
            "`min_share` must lie between 0 and 1 / num_bins = 0.125; got 0.125",
        ),
        (lambda: CircularSpline(min_share=0.0), "`min_share` must lie between 0 and 1 / num_bins"),
        (lambda: RationalQuadraticSpline(min_slope=1.0), "`min_slope` must lie between 0 and 1; got 1.0"),
        (lambda: CircularSpline(min_slope=math.nan), "`min_slope` must lie between 0 and 1; got nan"),
        (lambda: Leaky(-1.0), "`scale_bound` must be positive and finite"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
