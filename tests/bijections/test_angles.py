"""Flows on the torus: couplings of angles, whose density may not depend on how angles are wrapped."""

import math
import re

import pytest
import torch
from torch import nn

from latentflows.bijections import (
    Chain,
    Coupling,
    Elementwise,
    HeightAutoregressive,
    InverseAutoregressive,
    Reshape,
    Split,
    TransformerAutoregressive,
    channel_mask,
    checkerboard_mask,
    half_mask,
)
from latentflows.core.errors import ConfigurationError
from latentflows.transforms import Additive, Affine, CircularSpline
from tests.bijections.cases import convolution, mlp, randomize, residual, wavenet

LAYOUTS = {
    "split": ((4,), half_mask, mlp),
    "channels": ((3, 2, 2), channel_mask, convolution),
    "masked": ((2, 2, 3), half_mask, residual),
    "masked sequence": ((2, 5), half_mask, wavenet),
}


def coupling(name, *, first=True, network=None):
    shape, mask, maker = LAYOUTS[name]
    return Coupling(
        shape,
        mask=mask(shape, first=first),
        network=network or maker,
        transform=CircularSpline(4),
        layout=name.split()[0],
    )


def torus(name):
    """Two couplings, each moving what the other leaves, with rotations after them, at random parameters."""
    shape = LAYOUTS[name][0]
    layers = []
    for first in (True, False):
        layers += [coupling(name, first=first), Elementwise(shape, Additive())]
    chain = Chain(layers).double()
    randomize(chain, 1.0)
    return chain


def angles(*shape):
    return (2 * torch.rand(*shape, dtype=torch.float64) - 1) * math.pi


def wrapped(angle):
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrapped_draw_has_the_density_it_was_drawn_with(name):
    chain = torus(name)
    u = angles(500, *chain.base_shape)
    with torch.no_grad():
        x, log_det = chain(u)
        back, opposite = chain.inverse(wrapped(x))
    assert (x.abs() > math.pi).any()
    torch.testing.assert_close(opposite, -log_det, rtol=0, atol=1e-10)
    torch.testing.assert_close(wrapped(back - u), torch.zeros_like(u), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_density_is_the_same_on_both_sides_of_the_cut(name):
    chain = torus(name)
    x = angles(20, *chain.event_shape)
    below, above = x.clone(), x.clone()
    below[:, 0], above[:, 0] = math.pi - 1e-12, -math.pi
    with torch.no_grad():
        torch.testing.assert_close(chain.inverse(below)[1], chain.inverse(above)[1], rtol=0, atol=1e-8)


class Noting(nn.Module):
    """Keeps what came in, and gives zeros."""

    def __init__(self, in_shape, out_shape, context):
        super().__init__()
        self.in_shape, self.out_shape = in_shape, out_shape

    def forward(self, x):
        self.seen = x
        return x.new_zeros(len(x), *self.out_shape)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_network_reads_cosines_then_sines_and_zeros_where_entries_move(name):
    made = coupling(name, network=Noting)
    u, mask = angles(3, *made.event_shape), LAYOUTS[name][1](made.event_shape, first=True)
    made(u)
    if name == "split":
        expected = torch.cat([u[:, mask].cos(), u[:, mask].sin()], 1)
    elif name == "channels":
        expected = torch.cat([u[:, :2].cos(), u[:, :2].sin()], 1)
    else:
        expected = torch.cat([u.cos() * mask, u.sin() * mask], 1)
    assert torch.equal(made.network.seen, expected)
    assert made.network.in_shape == made.network.seen.shape[1:]


@pytest.mark.parametrize("layout", ["channels", "masked"])
def test_the_network_reads_zeros_in_padding(layout):
    shape, seen = (2, 5), []
    mask = channel_mask(shape, first=True) if layout == "channels" else checkerboard_mask(shape, even=True)
    made = Coupling(shape, mask=mask, network=wavenet, transform=CircularSpline(4), layout=layout)
    made.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(angles(1, *shape).float(), lengths=torch.tensor([3]))
    assert not seen[0][..., 3:].any()
    assert seen[0][..., :3].any()


def test_one_angle_may_move_by_the_context_alone():
    torch.manual_seed(0)
    made = InverseAutoregressive(1, width=8, depth=1, transform=CircularSpline(8), context_shape=3).double()
    randomize(made, 1.0)
    u, context = angles(20, 1), torch.randn(20, 3).double()
    x, log_det = made(u, context)
    back, opposite = made.inverse(x + 2 * math.pi, context)
    torch.testing.assert_close(wrapped(back), u)
    torch.testing.assert_close(opposite, -log_det)


READS_VALUES = {
    "InverseAutoregressive": lambda transform: InverseAutoregressive(
        4, width=8, depth=1, transform=transform
    ),
    "TransformerAutoregressive": lambda transform: TransformerAutoregressive(
        4, width=8, depth=1, heads=2, transform=transform
    ),
    "HeightAutoregressive": lambda transform: HeightAutoregressive(
        (1, 4), height=2, width=4, depth=1, transform=transform
    ),
    "Split": lambda transform: Split(4, Reshape(2, (2,)), network=mlp, transform=transform),
}


@pytest.mark.parametrize("name", READS_VALUES)
def test_layers_whose_network_reads_values_refuse_angles_and_a_class(name):
    message = f"`transform` of `{name}` must be one of the real line; got CircularSpline(num_bins=4, "
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        READS_VALUES[name](CircularSpline(4))
    assert str(caught.value).endswith("Use a `Coupling`, whose network reads cosines and sines of angles.")
    with pytest.raises(ConfigurationError, match=r"got the class. Write `Affine\(\)`"):
        READS_VALUES[name](Affine)
