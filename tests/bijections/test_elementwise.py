"""Maps of each variable by itself: values, shared parameters, borders of an interval."""

import math
import re

import pytest
import torch

from latentflows.bijections import Chain, Elementwise, Inverse, LeakyReLU, Sigmoid
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.transforms import Additive, Affine, CircularSpline, Leaky, RationalQuadraticSpline
from tests.bijections.cases import randomize


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "transform", [Additive(), Affine(), RationalQuadraticSpline(4), CircularSpline(4), Leaky()], ids=repr
)
def test_it_is_its_transform_at_every_entry(transform):
    layer, u = Elementwise((2, 3), transform).double(), draw(5, 2, 3)
    randomize(layer, 1.0)
    raw = layer.source.raw.view(transform.size, 2, 3)
    x, log_det = layer(u)
    expected = torch.zeros(5, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            entry, log_derivative = transform.forward(u[:, i, j], raw[:, i, j, None])
            close(x[:, i, j], entry)
            expected = expected + log_derivative
    close(log_det, expected)


@pytest.mark.parametrize("transform", [Additive(), Affine(), RationalQuadraticSpline(4)], ids=repr)
@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 0, 1, 4, 2])])
def test_positions_of_a_channel_share_its_parameters(transform, context, lengths):
    layer = Elementwise((2, 4), transform, context_shape=context, per_channel=True).double()
    randomize(layer, 1.0)
    h = None if context is None else draw(5, 3)
    u = draw(5, 2, 1).expand(5, 2, 4)
    x, log_det = layer(u, h, lengths=lengths)
    full, whole = layer(u, h)
    close(full, full[:, :, :1].expand_as(full))
    counts = torch.full((5,), 4) if lengths is None else lengths
    close(log_det, whole * counts / 4)
    close(x, torch.where(torch.arange(4) < counts[:, None, None], full, u))


def test_what_padding_holds_does_not_reach_a_gradient():
    layer = Elementwise((1, 2), RationalQuadraticSpline(4), per_channel=True)
    randomize(layer, 1.0)
    x, log_det = layer(torch.tensor([[1.0, 3e38]]), lengths=torch.tensor(1))
    (x[0, 0] + log_det).backward()
    assert x[0, 1] == 3e38
    assert layer.source.raw.grad.isfinite().all()
    assert layer.source.raw.grad.any()


def test_parameters_count():
    assert Elementwise((2, 5), RationalQuadraticSpline(8)).source.raw.numel() == 23 * 10
    assert Elementwise((2, 5), RationalQuadraticSpline(8), per_channel=True).source.raw.numel() == 23 * 2
    assert Elementwise(3, Affine(), context_shape=4).source.head.weight.shape == (6, 4)


def test_a_map_context_is_refused():
    with pytest.raises(CombinationError, match="Amortized parameters need a vector context"):
        Elementwise((2, 3), Affine(), context_shape=(2, 3))


def test_a_circular_layer_between_rotations_is_one_of_the_circle():
    layers = [
        Elementwise(3, CircularSpline(4)),
        Elementwise(3, Additive()),
        Elementwise(3, CircularSpline(4)),
    ]
    chain, angle = Chain(layers).double(), draw(6, 3)
    randomize(chain, 1.0)
    x, log_det = chain(angle)
    other, same = chain(angle + 2 * math.pi)
    close(other, x + 2 * math.pi)
    close(same, log_det)


def test_sigmoid_is_that_of_torch_and_its_inverse_the_logit():
    u = 5 * draw(7, 2)
    x, log_det = Sigmoid(2)(u)
    close(x, u.sigmoid())
    close(log_det, (u.sigmoid() * (-u).sigmoid()).log().sum(-1))
    back, opposite = Inverse(Sigmoid(2)).forward(x)
    close(back, torch.logit(x))
    close(opposite, -log_det)


@pytest.mark.parametrize(("lower", "upper"), [(-1.0, 1.0), (3.0, 3.5), (0.0, 255.0), (-2.0, -0.8)])
def test_sigmoid_covers_its_interval(lower, upper):
    layer = Sigmoid(1, lower=lower, upper=upper)
    u = torch.tensor([[-1e4], [-3.0], [0.0], [3.0], [1e4]])
    x, log_det = layer(u)
    assert x.squeeze(1).tolist() == sorted(x.squeeze(1).tolist())
    assert x[0] == torch.tensor(lower)
    assert x[-1] == torch.tensor(upper)
    close(x[2], torch.tensor([(lower + upper) / 2]), 1e-6)
    assert layer.eval().inverse(x)[0].isfinite().all()
    close(log_det[2], torch.tensor(math.log((upper - lower) / 4)), 1e-6)
    close(log_det[[0, -1]], torch.full((2,), math.log(upper - lower) - 1e4), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (-1.0, 1.0), (3.0, 3.5)])
def test_a_point_on_the_border_counts_as_the_number_beside_it(lower, upper, dtype):
    layer = Sigmoid(1, lower=lower, upper=upper).eval()
    border = torch.tensor([[lower], [upper]], dtype=dtype)
    beside = torch.nextafter(border, border.flip(0))
    if lower == 0:
        beside[0] = torch.finfo(dtype).tiny  # the smallest normal number
    u, log_det = layer.inverse(border)
    assert u.isfinite().all()
    assert log_det.isfinite().all()
    expected = (beside.double() - lower).log() - (upper - beside.double()).log()
    close(u.double(), expected, 0.06)
    assert u[0] <= layer.inverse(beside)[0][0] + 1e-6


def test_float32_points_close_to_zero_are_told_apart():
    u = torch.tensor([[-80.0], [-40.0], [-20.0]])
    x, log_det = Sigmoid(1)(u)
    back, opposite = Sigmoid(1).inverse(x)
    close(back, u, 1e-6)
    close(opposite, -log_det, 1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.1, 300.0])
def test_values_outside_the_interval_are_refused(value):
    x = torch.tensor([[0.5, 0.25], [0.5, value]])
    message = (
        f"The inverse of `Sigmoid` expects values between 0 and 1; got values from {min(0.25, value):g} to"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        Sigmoid(2).inverse(x)
    with torch.no_grad(), pytest.raises(DataError, match=re.escape(message)):
        Chain([Sigmoid(2)]).inverse(x)


def test_values_outside_the_interval_stay_finite_where_no_value_is_looked_at():
    x = torch.tensor([[-1.0, 2.0, 0.5]], requires_grad=True)
    with values_unchecked():
        u, log_det = Sigmoid(3).inverse(x)
    (u.sum() + log_det.sum()).backward()
    assert u.isfinite().all()
    assert log_det.isfinite().all()
    assert x.grad.tolist() == [[0.0, 0.0, 4.0]]


def test_padding_may_lie_outside_the_interval():
    layer, x = Sigmoid((1, 3)).eval(), torch.tensor([[0.5, 0.5, 7.0]])
    u, log_det = layer.inverse(x, lengths=torch.tensor(2))
    assert u.tolist() == [[0.0, 0.0, 7.0]]
    close(log_det, torch.tensor(2 * math.log(4)), 1e-6)


def test_a_leaky_layer_scales_what_is_negative():
    u = torch.tensor([[-2.0, 0.0, 3.0, -1.0]])
    layer = LeakyReLU(4, slope=0.5)
    x, log_det = layer(u)
    assert x.tolist() == [[-1.0, 0.0, 3.0, -0.5]]
    close(log_det, torch.tensor([2 * math.log(0.5)]), 1e-6)
    learned = Elementwise(4, Leaky(scale_bound=1.0))
    learned.source.raw.data.fill_(-math.log(2) / (1 - math.log(2)))
    close(learned(u), (x, log_det), 1e-6)
    for leaky in (layer, learned):
        close(leaky.inverse(x), (u, -log_det), 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sigmoid(2, lower=1.0, upper=1.0), "`lower` and `upper` must be finite with lower < upper"),
        (lambda: Sigmoid(2, upper=math.inf), "`lower` and `upper` must be finite with lower < upper"),
        (lambda: LeakyReLU(2, slope=0.0), "`slope` must be positive and finite; got 0.0"),
        (lambda: LeakyReLU(2, slope=-0.1), "`slope` must be positive and finite; got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


def test_repr_shows_the_settings():
    assert "RationalQuadraticSpline(num_bins=8" in repr(Elementwise(3, RationalQuadraticSpline()))
    assert "lower=-1, upper=1" in repr(Sigmoid(3, lower=-1))
    assert "slope=0.1" in repr(LeakyReLU(3))


def test_a_class_or_a_name_is_no_transform():
    with pytest.raises(
        ConfigurationError, match=r"`transform` must be .*; got the class. Write `Affine\(\)`"
    ):
        Elementwise(3, Affine)
    with pytest.raises(
        ConfigurationError, match=r"`transform` must be .*such as `Affine\(\)`.*; got 'affine'"
    ):
        Elementwise(3, "affine")
