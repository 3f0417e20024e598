"""Convolutions of couplings: the space stays, the receptive field is as stated, padding stays out."""

import re

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import CouplingConvolution, ResidualConvolution


def glow(in_shape, out_shape, **settings):
    return CouplingConvolution(in_shape, out_shape, width=5, activation_name="tanh", **settings)


def residual(in_shape, out_shape, **settings):
    return ResidualConvolution(in_shape, out_shape, width=5, num_blocks=2, activation_name="tanh", **settings)


kinds = pytest.mark.parametrize("make", [glow, residual], ids=["glow", "residual"])
KINDS_AND_REACH = pytest.mark.parametrize(
    ("make", "kernel", "reach"), [(glow, 3, 5), (glow, 5, 9), (residual, 3, 11)]
)


@kinds
@pytest.mark.parametrize("space", [(7,), (4, 6), (1, 1)], ids=str)
def test_the_space_stays(make, space):
    network = make((2, *space), (3, *space), zero_last=False)
    assert network(torch.randn(4, 2, *space)).shape == (4, *network.out_shape) == (4, 3, *space)


@KINDS_AND_REACH
def test_an_output_sees_what_the_docstring_says(make, kernel, reach):
    network = make((1, 15, 15), (1, 15, 15), kernel=kernel, zero_last=False).double()
    x = torch.randn(1, 1, 15, 15, dtype=torch.float64, requires_grad=True)
    network(x)[0, 0, 7, 7].backward()
    seen = (x.grad[0, 0] != 0).nonzero()
    low, high = 7 - (reach - 1) // 2, 7 + (reach - 1) // 2
    assert seen.min(0).values.tolist() == [max(low, 0)] * 2
    assert seen.max(0).values.tolist() == [min(high, 14)] * 2


def test_three_layers_make_the_network_of_glow():
    network = CouplingConvolution((2, 4, 4), (6, 4, 4), width=5, zero_last=False)
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert shapes == [(5, 2, 3, 3), (5, 5, 1, 1), (6, 5, 3, 3)]
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(network(x), network.last(network.middle(network.first(x).relu()).relu()))


@kinds
@pytest.mark.parametrize("context", [3, (3, 4, 6)], ids=["vector", "map"])
def test_context_over_samples_equals_explicit_repetition(make, context):
    network = make((2, 4, 6), (3, 4, 6), context=context, zero_last=False)
    shape = (context,) if isinstance(context, int) else context
    x, h = torch.randn(8, 2, 4, 6), torch.randn(2, *shape)
    torch.testing.assert_close(network(x, h), network(x, h.repeat(4, *[1] * len(shape))))
    assert (network(x, h) != network(x, h.flip(0))).any()


@kinds
def test_padding_is_zero_and_stays_out(make):
    network = make((2, 9), (3, 9), zero_last=False, context=2)
    x, context = torch.randn(1, 2, 9), torch.randn(1, 2)
    valid = (torch.arange(9) < 5).float().view(1, 1, 9)
    other = torch.where(valid.bool(), x, torch.randn(1, 2, 9))
    out = network(x, context, valid)
    torch.testing.assert_close(network(other, context, valid), out)
    assert not out[..., 5:].any()
    short = make((2, 5), (3, 5), zero_last=False, context=2)
    short.load_state_dict(network.state_dict())
    torch.testing.assert_close(short(x[..., :5], context), out[..., :5])


@kinds
def test_they_start_at_zero(make):
    network = make((2, 4, 4), (3, 4, 4))
    out = network(torch.randn(2, 2, 4, 4))
    assert not out.any()
    out.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())


@kinds
@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((4, 4), {}, "`in_shape` must be a sequence (C, T) or an image (C, H, W)"),
        (((2, 4), 8), {}, "`out_shape` must be a sequence (C, T) or an image (C, H, W)"),
        (((2, 4), (2, 5)), {}, "must share one space; got (2, 4) and (2, 5)"),
        (((2, 4), (2, 4)), {"kernel": 4}, "`kernel` must be odd, so that the space keeps its size; got 4"),
        (((2, 4), (2, 4)), {"kernel": 0}, "`kernel` must be a positive integer; got 0"),
        (((2, 4), (2, 4)), {"context": (3, 2)}, "a map over the same space (4,); got shape (3, 2)"),
    ],
)
def test_what_does_not_fit_is_refused(make, arguments, settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make(*arguments, **settings)
