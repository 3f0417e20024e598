"""The residual multilayer perceptron: where its blocks start, and how a context gates them."""

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import ResidualMLP


def test_shapes_are_flattened_in_and_made_out():
    network = ResidualMLP((2, 3), (4, 1), width=6, num_blocks=2)
    assert network(torch.randn(7, 2, 3)).shape == (7, *network.out_shape) == (7, 4, 1)
    assert ResidualMLP(4, None, width=6, num_blocks=1)(torch.randn(3, 4)).shape == (3, 6)


def test_a_block_adds_two_layers_of_its_activated_input():
    network = ResidualMLP(4, None, width=3, num_blocks=1)
    _, first, _, second = network.blocks[0].body
    h = torch.nn.functional.linear(x := torch.randn(5, 4), network.first.weight, network.first.bias)
    expected = h + second(first(h.relu()).relu())
    torch.testing.assert_close(network(x), expected)


def test_blocks_start_near_the_identity():
    network = ResidualMLP(4, None, width=8, num_blocks=3)
    x = torch.randn(50, 4)
    assert 0 < (network(x) - network.first(x)).abs().max() < 0.05


def test_the_context_gates_every_block():
    network = ResidualMLP(4, None, width=3, num_blocks=1, context=2)
    x, context = torch.randn(6, 4), torch.randn(3, 2)
    h = network.first(x) + network.context(context.repeat(2, 1))
    gate = network.blocks[0].gate(context.repeat(2, 1)).sigmoid()
    torch.testing.assert_close(network(x, context), h + network.blocks[0].body(h) * gate)


def test_context_over_samples_equals_explicit_repetition():
    network = ResidualMLP(4, 5, width=6, num_blocks=2, context=(3, 2))
    x, context = torch.randn(8, 4), torch.randn(2, 3, 2)
    torch.testing.assert_close(network(x, context), network(x, context.repeat(4, 1, 1)))
    assert (network(x, context) != network(x, context.flip(0))).any()


def test_zero_last_starts_at_zero():
    assert not ResidualMLP(4, 5, width=6, num_blocks=2, zero_last=True)(torch.randn(3, 4)).any()


@pytest.mark.parametrize("name", ["width", "num_blocks"])
def test_sizes_are_positive(name):
    with pytest.raises(ConfigurationError, match=f"`{name}` must be a positive integer; got 0"):
        ResidualMLP(4, 5, **({"width": 6, "num_blocks": 2} | {name: 0}))
