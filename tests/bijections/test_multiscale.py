"""Order of channels, what a split adds to a density, and refusals; the rest is in the property suite."""

import math
import re

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from latentflows import Flow, StandardGaussian
from latentflows.bijections import (
    ActNorm,
    Chain,
    LULinear,
    Planar,
    Rescale,
    Reshape,
    Split,
    Squeeze,
)
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.transforms import Additive, Affine
from tests.bijections.cases import convolution, mlp, randomize


def test_squeezed_channels_are_pixels_of_a_block_row_by_row():
    x = torch.arange(16.0).view(1, 4, 4)
    u, log_det = Squeeze((1, 4, 4)).inverse(x)
    assert u.tolist() == [[[0, 2], [8, 10]], [[1, 3], [9, 11]], [[4, 6], [12, 14]], [[5, 7], [13, 15]]]
    assert log_det == 0


@pytest.mark.parametrize("factor", [2, 3])
def test_squeezed_images_are_those_of_torch(factor):
    x = torch.randn(5, 3, 2 * factor, factor)
    u = Squeeze(tuple(x.shape[1:]), factor=factor).inverse(x)[0]
    assert torch.equal(u, nn.functional.pixel_unshuffle(x, factor))


def test_squeezed_frames_of_a_channel_stay_together():
    x = torch.tensor([[0.0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]])
    u = Squeeze((2, 6), factor=3).inverse(x)[0]
    assert u.tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]


def test_layers_between_squeezes_see_groups_of_frames():
    norm = ActNorm((4, 3)).double()
    nn.init.constant_(norm.log_scale, 0.5)
    chain = Chain([norm, Squeeze((2, 6))])
    u, lengths = torch.randn(2, 4, 3).double(), torch.tensor([6, 3])
    x, log_det = chain(u, lengths=lengths)
    assert log_det.tolist() == pytest.approx([6.0, 2.0])  # 4 channels, 3 groups or 1, times 0.5
    untouched = Squeeze((2, 6))(u)[0]
    assert torch.equal(x[1, :, 2:], untouched[1, :, 2:])
    assert not torch.isclose(x[1, :, :2], untouched[1, :, :2]).any()


@pytest.mark.parametrize(
    ("shape", "factor", "padded"),
    [((1, 5, 4), 2, (1, 6, 4)), ((2, 7), 3, (2, 9)), ((1, 28, 28), 8, (1, 32, 32))],
)
def test_sizes_that_are_no_multiples_are_refused(shape, factor, padded):
    message = f"needs sizes that are multiples of {factor}; got {shape}. Pad the data to {padded}, crop it"
    with pytest.raises(ShapeError, match=re.escape(message)):
        Squeeze(shape, factor=factor)


def test_a_vector_has_no_space_to_squeeze():
    with pytest.raises(
        ShapeError, match=r"`Squeeze` needs an image \(C, H, W\) or a sequence \(C, T\); got \(4,\)"
    ):
        Squeeze((4,))


def test_reshape_is_row_major():
    x, log_det = Reshape(6, (1, 2, 3))(torch.arange(6.0))
    assert x.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert log_det == 0


def test_reshape_keeps_the_count():
    message = "`base_shape` must hold as many numbers as `event_shape` (1, 2, 3), 6; got (5,), 5."
    with pytest.raises(ShapeError, match=re.escape(message)):
        Reshape(5, (1, 2, 3))


def split(network=convolution, transform=None, context=None):
    inner = Chain([Reshape(4, (2, 2, 1)), LULinear((2, 2, 1), start="rotation")])
    made = Split((5, 2, 1), inner, network=network, transform=transform or Affine(), context_shape=context)
    made = made.double()
    randomize(made, 0.5)
    return made


def test_what_is_factored_out_is_gaussian_given_what_is_kept():
    made, x = split(context=3), torch.randn(7, 5, 2, 1).double()
    context = torch.randn(7, 3).double()
    log_p = Flow(StandardGaussian(10), made).double()(context).log_prob(x)
    kept, rest = x[:, :2], x[:, 2:]
    raw = made.network(kept, context)
    mean, raw_scale = raw[:, :3], raw[:, 3:]
    scale = (raw_scale / (1 + raw_scale.abs() / 3)).exp()
    expected = Flow(StandardGaussian(4), made.inner).double()().log_prob(kept)
    expected = expected + Normal(mean, scale).log_prob(rest).sum((1, 2, 3))
    torch.testing.assert_close(log_p, expected, rtol=1e-12, atol=1e-12)


def test_without_a_network_it_is_the_noise():
    made, u = split(network=None), torch.randn(6, 10).double()
    x, log_det = made(u)
    assert torch.equal(x[:, 2:].flatten(1), u[:, 4:])
    torch.testing.assert_close(log_det, made.inner(u[:, :4])[1])


def test_a_shift_alone_keeps_the_volume():
    made, u = split(transform=Additive()), torch.randn(6, 10).double()
    x, log_det = made(u)
    assert not torch.isclose(x[:, 2:].flatten(1), u[:, 4:]).any()
    torch.testing.assert_close(log_det, made.inner(u[:, :4])[1])


def test_what_is_factored_out_depends_on_the_kept_part_and_not_the_other_way_round():
    made, u = split(), torch.randn(10).double()
    jacobian = torch.func.jacrev(lambda v: made(v)[0].flatten())(u)
    assert (jacobian[:4, 4:] == 0).all()
    assert (jacobian[4:, :4] != 0).any()


def test_passes_are_the_inner_ones_and_the_networks():
    assert split().passes == (1, 1)
    assert split(network=None).passes == (0, 0)
    assert Split(5, Planar(2), network=mlp).passes == (1, None)


def test_a_batch_initializes_the_inner_flow():
    norm = ActNorm((2, 4, 4))
    made = Split((5, 4, 4), Chain([Reshape(32, (2, 4, 4)), norm]), network=convolution)
    x = 3 * torch.randn(64, 5, 4, 4) + 2
    u = made.initialize(x)
    assert norm.initialized
    assert u[:, :32].std().item() == pytest.approx(1, abs=1e-3)
    assert u.shape == (64, 80)


@pytest.mark.parametrize("event", [(5, 2, 2), (2, 2, 1), (5, 2)])
def test_the_kept_part_must_fit(event):
    with pytest.raises(
        ShapeError, match=re.escape(f"`inner` must draw some of the {event[0]} channels of {event}")
    ):
        Split(event, Reshape(4, (2, 2, 1)), network=convolution)


@pytest.mark.parametrize("inner", [LULinear, torch.nn.Linear(3, 3), None])
def test_the_inner_flow_is_a_bijection(inner):
    with pytest.raises(
        CombinationError, match="`inner` must be a bijection, whose events `Split` keeps; got"
    ):
        Split(5, inner, network=mlp)


def test_contexts_must_agree():
    inner = LULinear((2, 2), context_shape=4)
    with pytest.raises(CombinationError, match=r"must share one context shape; got \(4,\) and \(3,\)"):
        Split((3, 2), Chain([Reshape(4, (2, 2)), inner]), network=convolution, context_shape=3)
    with pytest.raises(
        CombinationError, match="`context_shape` is that of the network, but `network` is None"
    ):
        Split(5, LULinear(3), network=None, context_shape=3)


def test_a_network_of_the_wrong_shape_is_named():
    made = Split((3, 2), Reshape(2, (1, 2)), network=lambda before, after, context: nn.Identity())
    message = "The network of `Split` must give (N, *(4, 2)) for an input (N, *(1, 2)); got (1, 1, 2)."
    with pytest.raises(ShapeError, match=re.escape(message)):
        made(torch.zeros(6))


@pytest.mark.parametrize(("scale", "shift"), [(0, 0), (math.inf, 0), (1, math.nan)])
def test_a_scale_is_finite_and_not_zero(scale, shift):
    message = re.escape(f"`scale` must be finite and not zero, `shift` finite; got {scale} and {shift}")
    with pytest.raises(ConfigurationError, match=message):
        Rescale(3, scale=scale, shift=shift)


def test_bits_per_dimension_do_not_depend_on_the_unit_of_the_data():
    """256 levels scaled to [0, 1) cost 8 bits more per dimension than the nats of the scaled density say."""
    unit = Flow(StandardGaussian(12), Rescale(12, scale=0.2, shift=0.5)).double()
    levels = Flow(StandardGaussian(12), Chain([Rescale(12, scale=0.2, shift=0.5), Rescale(12, scale=256.0)]))
    x = torch.rand(5, 12).double()
    bits = -unit().log_prob(x) / (12 * math.log(2)) + 8
    torch.testing.assert_close(-levels.double()().log_prob(256 * x) / (12 * math.log(2)), bits)
    expected = -Normal(0.5, 0.2).log_prob(x).mean(-1) / math.log(2) + 8
    torch.testing.assert_close(bits, expected)
