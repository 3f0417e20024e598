"""Linear maps across channels: the matrices they are, where they start, and padding."""

import re

import pytest
import torch
from torch import Tensor

from latentflows.bijections import Bijection, LULinear, OrthogonalLinear, TriangularLinear
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.models import presets
from tests.bijections.cases import randomize

LAYERS = {"lu": LULinear, "triangular": TriangularLinear, "orthogonal": OrthogonalLinear}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def matrix(layer: Bijection) -> Tensor:
    """Read W off the images of the unit vectors."""
    channels = layer.event_shape[0]
    return (layer(torch.eye(channels).double())[0] - layer(torch.zeros(channels).double())[0]).detach().T


def test_lu_is_the_product_of_its_factors():
    layer = LULinear(4, start="rotation").double()
    layer.sign.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    layer.order.copy_(torch.tensor([2, 0, 3, 1]))
    randomize(layer, 1.0)
    raw = layer.source.raw.detach().view(4, 4)
    lower = torch.eye(4).double() + raw.tril(-1)
    scale = (raw.diag() / (1 + raw.diag().abs() / torch.tensor(1000.0).double().log())).exp()
    upper = raw.triu(1) + (scale * layer.sign).diag()
    permutation = torch.eye(4).double()[layer.order]
    torch.testing.assert_close(matrix(layer), permutation @ lower @ upper)
    torch.testing.assert_close(layer(torch.zeros(4).double())[1], scale.log().sum())


@pytest.mark.parametrize("channels", [1, 2, 7, 48])
def test_lu_can_start_as_a_rotation_or_reflection(channels):
    layer = LULinear(channels, start="rotation").double()
    w = matrix(layer)
    torch.testing.assert_close(w @ w.T, torch.eye(channels).double(), atol=1e-5, rtol=0)
    assert layer(torch.zeros(channels).double())[1].item() == pytest.approx(0, abs=1e-5)
    assert channels < 7 or (w - torch.eye(channels)).abs().amax() > 0.1


def test_triangular_noise_has_the_covariance_of_its_factor():
    layer = TriangularLinear(3).double()
    randomize(layer, 1.0)
    w = matrix(layer)
    assert torch.equal(w.triu(1), torch.zeros(3, 3).double())
    assert (w.diag() > 0).all()
    torch.testing.assert_close(torch.stack([w[1, 0], w[2, 0], w[2, 1]]), layer.source.raw.detach()[-3:])
    torch.testing.assert_close(layer(torch.zeros(3).double())[0], layer.source.raw[:3])
    torch.testing.assert_close(layer(torch.zeros(3).double())[1], w.diag().log().sum())


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("channels", [2, 5, 8])
def test_reflections_give_a_rotation_whatever_their_length(channels, scale):
    layer = OrthogonalLinear(channels).double()
    randomize(layer, scale)
    w = matrix(layer)
    torch.testing.assert_close(w @ w.T, torch.eye(channels).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(w), torch.ones(()).double())


def test_orthogonal_is_the_product_of_its_reflections():
    layer = OrthogonalLinear(3, num_reflections=4).double()
    randomize(layer, 1.0)
    w = torch.eye(3).double()
    for v in layer.source.raw.detach().view(3, 4).T:
        w = w @ (torch.eye(3).double() - 2 * torch.outer(v, v) / v.dot(v))
    torch.testing.assert_close(matrix(layer), w)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_mirrors_that_vanish_or_coincide_have_finite_gradients(size):
    layer = OrthogonalLinear(4, start="rotation")
    layer.source.raw.data.fill_(size)
    layer(torch.randn(5, 4))[0].square().sum().backward()
    assert torch.isfinite(layer.source.raw.grad).all()


@pytest.mark.parametrize("channels", [2, 5, 32])
def test_orthogonal_starts_as_the_identity_and_can_leave_it(channels):
    layer = OrthogonalLinear(channels)
    u = torch.randn(9, channels)
    torch.testing.assert_close(layer(u)[0], u)
    (layer(u)[0] * torch.randn(9, channels)).sum().backward()
    assert (layer.source.raw.grad != 0).all()


@layers
@pytest.mark.parametrize("space", [(5,), (2, 3)])
@pytest.mark.parametrize("context_shape", [None, 2])
def test_every_position_is_mixed_alike(layer, space, context_shape):
    wide, narrow = layer((4, *space), context_shape=context_shape), layer(4, context_shape=context_shape)
    randomize(wide.double(), 1.0)
    narrow.double().load_state_dict(wide.state_dict())
    context = None if context_shape is None else torch.randn(3, 2).double()
    u = torch.randn(2, 3, 4, *space).double()
    x, log_det = wide(u, context)
    columns = u.flatten(3).unbind(-1)
    expected = [narrow(column, context) for column in columns]
    torch.testing.assert_close(x, torch.stack([value for value, _ in expected], -1).view(x.shape))
    torch.testing.assert_close(log_det, torch.stack([one for _, one in expected]).sum(0))


@layers
@pytest.mark.parametrize("context_shape", [None, 2])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_padding_stays_and_does_not_count(layer, context_shape, direction):
    padded, short = layer((3, 6), context_shape=context_shape), layer((3, 4), context_shape=context_shape)
    randomize(padded.double(), 1.0)
    short.double().load_state_dict(padded.state_dict())
    context = None if context_shape is None else torch.randn(2, 2).double()
    value, lengths = torch.randn(2, 3, 6).double(), torch.tensor([4, 0])
    out, log_det = getattr(padded, direction)(value, context, lengths=lengths)
    expected, expected_log_det = getattr(short, direction)(value[..., :4], context)
    torch.testing.assert_close(out[0, :, :4], expected[0])
    torch.testing.assert_close(log_det[0], expected_log_det[0])
    assert torch.equal(out[0, :, 4:], value[0, :, 4:])
    assert torch.equal(out[1], value[1])
    assert log_det[1] == 0


@layers
@pytest.mark.parametrize("shape", [(3,), (3, 2, 6)])
def test_only_sequences_have_lengths(layer, shape):
    with pytest.raises(ShapeError, match=f"`{layer.__name__}` takes no `lengths`"):
        layer(shape)(torch.zeros(2, *shape), lengths=torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LULinear(3, start="random"), "`start` must be 'identity' or 'rotation'; got 'random'"),
        (
            lambda: OrthogonalLinear(3, start="random"),
            "`start` must be 'identity' or 'rotation'; got 'random'",
        ),
        (lambda: OrthogonalLinear(3, num_reflections=3), "`num_reflections` must be even"),
        (
            lambda: OrthogonalLinear(3, num_reflections=0),
            "`num_reflections` must be a positive integer; got 0",
        ),
        (lambda: OrthogonalLinear(1), "`OrthogonalLinear` rotates two or more channels; got 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


@pytest.fixture
def double_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("start", ["identity", "rotation"])
@pytest.mark.parametrize("make", [LULinear, OrthogonalLinear])
def test_layers_follow_the_default_type(make, start):
    layer, u = make(3, start=start), torch.randn(4, 3)
    assert {p.dtype for p in (*layer.parameters(), *layer.buffers()) if p.is_floating_point()} <= {
        torch.float64
    }
    x, log_det = layer(u)
    assert x.dtype == log_det.dtype == torch.float64
    torch.testing.assert_close(layer.inverse(x)[0], u)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize(
    "make",
    [
        lambda: presets.nsf_coupling(3, num_layers=1, width=8),
        lambda: presets.planar(3),
        lambda: presets.sylvester_triangular(3),
    ],
)
def test_flows_run_where_double_is_the_default_type(make):
    x, log_det = make()(torch.randn(2, 3))
    assert x.dtype == log_det.dtype == torch.float64
