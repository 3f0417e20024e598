"""How a sequence is folded, what each frame depends on, and refusals; the rest is in the property suite."""

import re

import pytest
import torch

from latentflows.bijections import Chain, HeightAutoregressive, Inverse
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.testing import check_bijection, randomize
from latentflows.transforms import Additive


def make(event_shape=(1, 12), height=3, **settings):
    layer = HeightAutoregressive(event_shape, height=height, **{"width": 4, "depth": 2, **settings}).double()
    randomize(layer, 0.7)
    return layer


@pytest.mark.parametrize("reverse", [False, True])
def test_a_frame_depends_on_the_rows_before_its_own(reverse):
    """Frame t lies in row t mod h; inside its row it meets itself alone."""
    layer, x = make(reverse=reverse), torch.randn(12).double()
    jacobian = torch.func.jacrev(lambda v: layer.inverse(v[None])[0][0])(x)
    row = torch.arange(12) % 3
    row = 2 - row if reverse else row
    expected = (row[:, None] > row[None]) | torch.eye(12).bool()
    assert torch.equal(jacobian != 0, expected)


@pytest.mark.parametrize(("height", "passes"), [(1, (1, 1)), (3, (3, 1)), (12, (12, 1))])
def test_a_draw_takes_as_many_steps_as_rows(height, passes):
    layer = make(height=height, depth=5)
    assert layer.passes == passes
    assert Inverse(layer).passes == passes[::-1]
    u = torch.randn(2, 1, 12).double()
    x, log_det = layer(u)
    back, opposite = layer.inverse(x)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(opposite, -log_det)


def test_a_context_over_frames_is_folded_like_the_sequence():
    layer = make(context_shape=(2, 12))
    check_bijection(
        lambda: HeightAutoregressive((1, 6), height=3, width=3, depth=1, context_shape=(2, 6)), scales=(0.7,)
    )
    x, context = torch.randn(1, 12).double(), torch.randn(2, 12).double()
    wide = HeightAutoregressive(
        (1, 12), height=3, width=4, depth=2, growth=100, context_shape=(2, 12)
    ).double()
    wide.load_state_dict(
        layer.state_dict()
    )  # dilations so large that no other column is seen but at the first layer
    u, _ = wide.inverse(x, context)
    other = context.clone()
    other[:, 6] += 1  # row 0, column 2
    moved = (wide.inverse(x, other)[0] != u).flatten().nonzero().flatten().tolist()
    assert 6 in moved
    assert all(abs(t // 3 - 2) <= 1 for t in moved)


def test_a_column_with_any_padding_is_left_alone():
    layer, u = make(), torch.randn(4, 1, 12).double()
    lengths = torch.tensor([12, 8, 6, 2])
    x, log_det = layer(u, lengths=lengths)
    moved = (x != u).view(4, 4, 3).any(-1).tolist()
    assert moved == [[True] * 4, [True, True, False, False], [True, True, False, False], [False] * 4]
    assert log_det[3] == 0
    alone = make((1, 6))
    alone.load_state_dict(layer.state_dict())
    torch.testing.assert_close(x[1, :, :6], alone(u[1, :, :6])[0])


def test_a_shift_keeps_the_volume():
    x, log_det = make(transform=Additive())(torch.randn(5, 1, 12).double())
    assert not log_det.any()
    assert x.shape == (5, 1, 12)


def test_alternate_orders_let_every_frame_reach_every_other():
    chain = Chain([make(reverse=reverse) for reverse in (False, True, False)])
    jacobian = torch.func.jacrev(lambda v: chain.inverse(v[None])[0][0])(torch.randn(12).double())
    assert (jacobian != 0).all()


@pytest.mark.parametrize(("shape", "height"), [((1, 10), 3), ((4,), 2), ((1, 4, 4), 2)])
def test_the_length_is_a_multiple_of_the_height(shape, height):
    message = f"must be a sequence (C, T) with T a multiple of `height` {height}; got {shape}"
    with pytest.raises(ShapeError, match=re.escape(message)):
        HeightAutoregressive(shape, height=height, width=4, depth=2)


@pytest.mark.parametrize("context", [(2, 6), (2, 12, 1)])
def test_the_context_has_the_length_of_the_sequence(context):
    message = f"`context_shape` must be a vector (F,) or a map (F, 12); got {context}"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make(context_shape=context)


def test_too_few_layers_for_the_height_are_refused():
    with pytest.raises(ConfigurationError, match="dependencies would be dropped"):
        make(height=12)
