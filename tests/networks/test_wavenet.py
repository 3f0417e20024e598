"""WaveNet: its receptive field, its gates, its context, and padding that never leaks."""

import re

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import WaveNet


def net(frames=9, **settings):
    return WaveNet((2, frames), (3, frames), **({"width": 4, "depth": 3, "zero_last": False} | settings))


@pytest.mark.parametrize(
    ("kernel", "depth", "growth", "field"), [(3, 8, 2, 511), (5, 4, 1, 17), (3, 1, 2, 3), (1, 3, 2, 1)]
)
def test_receptive_field_is_the_published_one(kernel, depth, growth, field):
    assert net(kernel=kernel, depth=depth, growth=growth).receptive_field == field


def test_an_output_sees_both_sides_as_far_as_the_receptive_field():
    network = net(31, depth=3).double()
    x = torch.randn(1, 2, 31, dtype=torch.float64, requires_grad=True)
    network(x)[0, 0, 15].backward()
    seen = (x.grad != 0).any(1)[0].nonzero()
    reach = (network.receptive_field - 1) // 2
    assert seen.min() == 15 - reach
    assert seen.max() == 15 + reach


def test_a_layer_is_a_gate_a_residual_and_a_skip():
    network = net(depth=2)
    x = torch.randn(5, 2, 9)
    h = network.first(x)
    value, gate = network.gates[0](h).chunk(2, 1)
    skip, residual = network.mixes[0](value.tanh() * gate.sigmoid()).chunk(2, 1)
    value, gate = network.gates[1](h + residual).chunk(2, 1)
    skip = skip + network.mixes[1](value.tanh() * gate.sigmoid())
    torch.testing.assert_close(network(x), network.last(skip))


def test_parameters_are_as_many_as_the_cost_says():
    width, depth, kernel = 4, 3, 5
    network = net(width=width, depth=depth, kernel=kernel)
    weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert weights == 2 * width + depth * (2 * kernel + 2) * width**2 - width**2 + width * 3


@pytest.mark.parametrize("context", [3, (3, 9)], ids=["vector", "map"])
def test_context_over_samples_equals_explicit_repetition(context):
    network = net(context=context)
    shape = (context,) if isinstance(context, int) else context
    x, h = torch.randn(8, 2, 9), torch.randn(2, *shape)
    torch.testing.assert_close(network(x, h), network(x, h.repeat(4, *[1] * len(shape))))
    assert (network(x, h) != network(x, h.flip(0))).any()


def test_every_layer_hears_its_own_features_of_the_context():
    network = net(context=3)
    x, h = torch.randn(1, 2, 9), torch.randn(1, 3)
    for layer in range(3):
        changed = network.context.projection.weight.data.clone()
        kept = changed[8 * layer : 8 * layer + 8].clone()
        out = network(x, h)
        network.context.projection.weight.data[8 * layer : 8 * layer + 8] = 0
        assert (network(x, h) != out).any()
        network.context.projection.weight.data[8 * layer : 8 * layer + 8] = kept


def test_a_map_of_context_is_heard_frame_by_frame():
    network = net(depth=1, kernel=1, context=(3, 9))
    x, h = torch.randn(1, 2, 9), torch.randn(1, 3, 9)
    changed = h.clone()
    changed[..., 4] += 1
    assert (network(x, h) != network(x, changed)).any(1).nonzero()[:, 1].tolist() == [4]


def test_padding_is_zero_and_stays_out():
    long, short = net(9, context=(3, 9)), net(5, context=(3, 5))
    short.load_state_dict(long.state_dict())
    x, h = torch.randn(2, 2, 9), torch.randn(2, 3, 9)
    valid = (torch.arange(9) < 5).float().expand(2, 1, 9)
    out = long(x, h, valid)
    torch.testing.assert_close(out[..., :5], short(x[..., :5], h[..., :5]))
    assert not out[..., 5:].any()
    assert (long(x, h)[..., :5] != out[..., :5]).any()


def test_it_starts_at_zero_and_can_leave_it():
    network = net(zero_last=True)
    out = network(torch.randn(2, 2, 9))
    assert not out.any()
    out.sum().backward()
    assert network.last.weight.grad.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: WaveNet(4, 4, width=3, depth=1),
            "maps a sequence (C, T) to one of the same length; got (4,)",
        ),
        (lambda: WaveNet((2, 4), (2, 5), width=3, depth=1), "got (2, 4) and (2, 5)"),
        (lambda: WaveNet((2, 4, 4), (2, 4, 4), width=3, depth=1), "got (2, 4, 4) and (2, 4, 4)"),
        (lambda: net(kernel=2), "`kernel` must be odd, so that the length stays; got 2"),
        (lambda: net(growth=0), "`growth` must be a positive integer; got 0"),
        (lambda: net(context=(3, 4)), "a map over the same space (9,); got shape (3, 4)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
