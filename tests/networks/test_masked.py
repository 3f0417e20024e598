"""The masked network: exactly the allowed dependencies, all of them, at any width that is accepted."""

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import MaskedMLP
from latentflows.networks.masked import MaskedLinear

SIZES = [(2, 1, 1), (5, 4, 1), (5, 4, 3), (5, 7, 2), (16, 15, 3), (9, 40, 2)]


def paths(network: MaskedMLP) -> torch.Tensor:
    """Return how many ways lead from each input to each output: the product of the masks."""
    product = torch.eye(network.dim)
    for layer in network.modules():
        if isinstance(layer, MaskedLinear):
            product = layer.mask @ product
    return product


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(("dim", "width", "depth"), SIZES)
def test_every_allowed_dependency_has_a_path_and_no_other_has(dim, width, depth, context):
    network = MaskedMLP(dim, 2, width=width + (1 if context else 0), depth=depth, context=context)
    expected = torch.ones(dim, dim).tril(-1).repeat_interleave(2, 0)
    assert torch.equal(paths(network) > 0, expected > 0)


@pytest.mark.parametrize(("dim", "width", "depth"), SIZES)
def test_the_context_reaches_every_output(dim, width, depth):
    network = MaskedMLP(
        dim, 2, width=width + 1, depth=depth, context=3, zero_last=False, activation_name="tanh"
    )
    jacobian = torch.func.jacrev(lambda c: network(torch.randn(1, dim), c))(torch.randn(1, 3))
    assert (jacobian != 0).all()


def test_jacobian_is_strictly_triangular():
    network = MaskedMLP(6, 2, width=20, depth=2, zero_last=False, activation_name="tanh")
    jacobian = torch.func.jacrev(lambda x: network(x[None])[0])(torch.randn(6))
    upper = torch.ones(6, 6).triu().bool()[:, None].expand(6, 2, 6)
    assert not jacobian[upper].any()
    assert (jacobian[~upper] != 0).all()


def test_masks_are_buffers_and_masked_weights_do_nothing():
    network = MaskedMLP(4, 1, width=8, depth=2, zero_last=False)
    assert sum(name.endswith("mask") for name, _ in network.named_buffers()) == 3
    x = torch.randn(3, 4)
    before = network(x)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, MaskedLinear):
                layer.weight[layer.mask == 0] = 1e6
    torch.testing.assert_close(network(x), before)


@pytest.mark.parametrize(("dim", "context", "least"), [(6, 0, 5), (6, 2, 6), (2, 0, 1), (1, 0, 1)])
def test_widths_below_the_least_are_refused(dim, context, least):
    MaskedMLP(dim, 2, width=least, depth=1, context=context)
    if least > 1:
        with pytest.raises(ConfigurationError, match=f"`width` must be at least {least} .*; got {least - 1}"):
            MaskedMLP(dim, 2, width=least - 1, depth=1, context=context)


@pytest.mark.parametrize("name", ["dim", "outputs", "width", "depth"])
def test_sizes_are_positive_integers(name):
    sizes = {"dim": 3, "outputs": 2, "width": 8, "depth": 1} | {name: 0}
    dim, outputs = sizes.pop("dim"), sizes.pop("outputs")
    with pytest.raises(ConfigurationError, match=f"`{name}` must be a positive integer; got 0"):
        MaskedMLP(dim, outputs, **sizes)
