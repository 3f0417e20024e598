"""The masked network: exactly the allowed dependencies, all of them, at any width that is accepted."""

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import MaskedMLP
from latentflows.networks.masked import MaskedLinear

SIZES = [(2, 1, 1), (5, 4, 1), (5, 4, 3), (5, 7, 2), (16, 15, 3), (9, 40, 2)]
ORDERS = [None, torch.tensor([4, 3, 2, 1, 0]), torch.tensor([2, 0, 4, 1, 3])]


def paths(network: MaskedMLP) -> torch.Tensor:
    """Return how many ways lead from each input to each output: the product of the masks."""
    product = torch.eye(network.dim)
    for layer in network.modules():
        if isinstance(layer, MaskedLinear):
            product = layer.mask @ product
    return product.view(network.outputs, network.dim, network.dim)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(("dim", "width", "depth"), SIZES)
def test_every_allowed_dependency_has_a_path_and_no_other_has(dim, width, depth, context):
    network = MaskedMLP(dim, 2, width=width + (1 if context else 0), depth=depth, context=context)
    expected = torch.ones(dim, dim).tril(-1).expand(2, dim, dim)
    assert torch.equal(paths(network) > 0, expected > 0)


@pytest.mark.parametrize("order", ORDERS, ids=["natural", "reversed", "permuted"])
def test_dependencies_follow_the_order(order):
    network = MaskedMLP(5, 3, width=9, depth=2, order=order)
    place = torch.arange(5) if order is None else order.argsort()
    assert torch.equal(paths(network)[1] > 0, place[:, None] > place)


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
    upper = torch.ones(6, 6).triu().bool().expand(2, 6, 6)
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
    network(x).sum().backward()
    assert not network.first.weight.grad[network.first.mask == 0].any()


@pytest.mark.parametrize("order", ORDERS, ids=["natural", "reversed", "permuted"])
def test_sorted_tensors_are_the_network_with_its_variables_in_order(order):
    network = MaskedMLP(
        5, 3, width=9, depth=2, context=2, zero_last=False, order=order, activation_name="tanh"
    )
    x, context = torch.randn(8, 5), torch.randn(4, 2)
    weights, biases = network.sorted_tensors(context, 8)
    place = torch.arange(5) if order is None else order
    state = x[:, place].t()
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        state = torch.tanh(weight @ state + bias)
    raw = weights[-1] @ state + biases[-1]
    torch.testing.assert_close(raw.permute(2, 1, 0), network(x, context)[..., place])
    read = (weights[0] != 0).sum(1)
    assert network.counts == [int((read <= degree).sum()) for degree in range(6)]


@pytest.mark.parametrize(("dim", "context", "least"), [(6, 0, 5), (6, 2, 6), (2, 0, 1), (1, 0, 1)])
def test_widths_below_the_least_are_refused(dim, context, least):
    MaskedMLP(dim, 2, width=least, depth=1, context=context)
    if least > 1:
        with pytest.raises(ConfigurationError, match=f"`width` must be at least {least} .*; got {least - 1}"):
            MaskedMLP(dim, 2, width=least - 1, depth=1, context=context)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [0.0, 1.0, 2.0]])
def test_an_order_is_a_permutation(order):
    with pytest.raises(ConfigurationError, match="`order` must be a permutation of 0 to 2; got"):
        MaskedMLP(3, 1, width=4, depth=1, order=torch.tensor(order))


@pytest.mark.parametrize("name", ["dim", "outputs", "width", "depth"])
def test_sizes_are_positive_integers(name):
    sizes = {"dim": 3, "outputs": 2, "width": 8, "depth": 1} | {name: 0}
    dim, outputs = sizes.pop("dim"), sizes.pop("outputs")
    with pytest.raises(ConfigurationError, match=f"`{name}` must be a positive integer; got 0"):
        MaskedMLP(dim, outputs, **sizes)
