"""Solving through a masked network: every method equals one pass per variable, in values and gradients."""

import pytest
import torch

from latentflows.networks import MaskedMLP, inversion
from latentflows.networks.inversion import Problem, invert
from latentflows.testing import randomize
from latentflows.transforms import Additive, Affine, RationalQuadraticSpline

METHODS = ["incremental", "jacobi"]
TRANSFORMS = [Affine(2.0), Additive(), RationalQuadraticSpline(num_bins=2)]


def network_of(dim, context=0, *, transform=TRANSFORMS[0], width=None, depth=2, scale=1.0, activation="tanh"):
    made = MaskedMLP(
        dim, transform.size, width=width or 2 * dim, depth=depth, context=context, activation_name=activation
    ).double()
    randomize(made, scale)
    return made


def problem_of(network, method, transform=TRANSFORMS[0]):
    bound = transform.scale_bound if isinstance(transform, Affine) else None
    return Problem(network.activation_name, network.counts, transform.inverse, method, bound)


def solved(network, method, x, context=None, transform=TRANSFORMS[0]):
    weights, biases = network.sorted_tensors(context, len(x))
    u, log_det = invert(problem_of(network, method, transform), x.t(), weights, biases)
    return u.t(), log_det


def one_by_one(network, x, context=None, transform=TRANSFORMS[0]):
    u, logs = torch.zeros_like(x), []
    for i in range(x.shape[1]):
        raw = network(u, context).transpose(0, 1)
        value, log = transform.inverse(x[:, i], raw[..., i])
        u = torch.cat([u[:, :i], value[:, None], u[:, i + 1 :]], 1)
        logs.append(log.expand(len(x)))
    return u, torch.stack(logs).sum(0)


def with_gradients(run, network, x, context):
    inputs = [value.clone().requires_grad_() for value in (x, context) if value is not None]
    u, log_det = run(*inputs)
    weight = torch.linspace(-1, 2, u.numel(), dtype=u.dtype).view_as(u)
    total = (u * weight).sum() + (log_det * weight[:, 0]).sum()
    return [u, log_det, *torch.autograd.grad(total, [*inputs, *network.parameters()], allow_unused=True)]


def assert_equal_to_one_by_one(network, method, x, context=None, transform=TRANSFORMS[0], tolerance=1e-10):
    actual = with_gradients(lambda x, c=None: solved(network, method, x, c, transform), network, x, context)
    expected = with_gradients(lambda x, c=None: one_by_one(network, x, c, transform), network, x, context)
    for a, b in zip(actual, expected, strict=True):
        if a is None or b is None:  # a parameter that nothing depends on
            assert a is None or not a.any()
            assert b is None or not b.any()
        else:
            assert (a - b).abs().max() < tolerance * (1 + b.abs().max())


def count_rows(monkeypatch):
    """Return a list that gets the number of rows whenever rows are solved incrementally."""
    rows, original = [], inversion._incremental

    def counting(problem, x, *rest):
        rows.append(x.shape[1])
        return original(problem, x, *rest)

    monkeypatch.setattr(inversion, "_incremental", counting)
    return rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("context", [0, 3])
def test_values_and_gradients_are_those_of_one_pass_per_variable(method, scale, transform, context):
    network = network_of(11, context, transform=transform, width=15, scale=scale)
    features = torch.randn(4, context).double() if context else None
    x = torch.randn(8, 11).double() * (1 + scale)  # two samples for each of four contexts
    assert_equal_to_one_by_one(network, method, x, features, transform)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("activation", ["relu", "elu", "silu", "tanh", "gelu"])
def test_any_depth_and_activation(method, depth, activation):
    network = network_of(6, 2, depth=depth, activation=activation)
    assert_equal_to_one_by_one(network, method, torch.randn(5, 6).double(), torch.randn(5, 2).double())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dim", "width"), [(1, 3), (2, 1), (3, 50), (40, 40), (33, 64)])
def test_any_number_of_variables(method, dim, width):
    network = network_of(dim, width=width)  # 33 and 40 variables are halved several times
    assert_equal_to_one_by_one(network, method, torch.randn(3, dim).double())


def test_large_products_by_the_other_library_change_nothing(monkeypatch):
    monkeypatch.setattr(inversion, "_LARGE", 0)
    assert_equal_to_one_by_one(
        network_of(20, 2), "incremental", torch.randn(4, 20).double(), torch.randn(4, 2).double()
    )


def test_jacobi_falls_back_at_weights_that_defeat_it(monkeypatch):
    network, x = network_of(60, activation="relu", scale=20.0), torch.randn(7, 60).double()
    rows = count_rows(monkeypatch)
    assert_equal_to_one_by_one(network, "jacobi", x, tolerance=1e-8)
    assert rows == [7]


def test_only_rows_that_are_not_at_rest_are_solved_again(monkeypatch):
    monkeypatch.setattr(inversion, "_MOST_PASSES", 1)
    network, context = network_of(9, 2), torch.randn(7, 2).double()
    u = torch.randn(7, 9).double()
    u[:3] = 0  # where the iteration starts
    with torch.no_grad():
        x = Affine(2.0).forward(u, network(u, context).transpose(0, 1))[0]
    rows = count_rows(monkeypatch)
    assert_equal_to_one_by_one(network, "jacobi", x, context)
    assert rows == [4]


@pytest.mark.parametrize("most", range(1, 10))
def test_jacobi_returns_no_value_unchecked(monkeypatch, most):
    monkeypatch.setattr(inversion, "_MOST_PASSES", most)
    network, x = network_of(9), torch.randn(50, 9).double()
    u, log_det = solved(network, "jacobi", x)
    back, opposite = Affine(2.0).forward(u, network(u).transpose(0, 1))
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(opposite.sum(1), -log_det, rtol=1e-12, atol=1e-12)


def test_a_transient_that_overflows_spoils_nothing(monkeypatch):
    network = network_of(6, transform=Additive(), activation="relu", depth=1).float()
    with torch.no_grad():
        for layer in network.layers():
            layer.weight.fill_(2.0**20)  # sums are exact
            layer.bias.zero_()
        network.first.weight[::2] *= -1  # of every two units one is on
    expected = torch.eye(6)[:1]
    x, _ = Additive().forward(expected, network(expected).transpose(0, 1))
    u = torch.zeros(1, 6)
    for _ in range(6):
        u, _ = Additive().inverse(x, network(u).transpose(0, 1))
    assert not u.isfinite().all()  # so a plain iteration ends
    rows = count_rows(monkeypatch)
    torch.testing.assert_close(solved(network, "jacobi", x, transform=Additive())[0], expected)
    assert not rows  # it came to rest by itself


def test_what_overflows_under_a_mask_gives_no_gradient():
    network = network_of(4, activation="relu").float()
    x = torch.tensor([[1.0, 2.0, 3.0, 1e30]], requires_grad=True)
    u, _ = solved(network, "incremental", x)
    (u * torch.tensor([1e20, 1, 1, 1])).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_an_input_that_depends_on_another_counts_once(method, create_graph):
    network, base = network_of(3, width=6, depth=1), torch.randn(3, 4).double()
    weights, biases = ([v.detach() for v in part] for part in network.sorted_tensors(None, 4))

    def loss(shift):  # every input is a function of `first`, and so of each other
        first = weights[0] * (1 + shift)  # zeros stay under the masks
        others = (
            [weight * (1 + first.mean()) for weight in weights[1:]],
            [bias - first.mean() for bias in biases],
        )
        u, log_det = invert(
            problem_of(network, method), base + 0.1 * first.sum(), [first, *others[0]], others[1]
        )
        return u.square().sum() + log_det.sum()

    shift, step = torch.zeros(6, 3).double().requires_grad_(), 1e-6
    (gradient,) = torch.autograd.grad(loss(shift), shift, create_graph=create_graph)
    way = torch.randn(6, 3).double()
    with torch.no_grad():
        expected = (loss(shift + step * way) - loss(shift - step * way)) / (2 * step)
    torch.testing.assert_close((gradient * way).sum(), expected, rtol=1e-6, atol=1e-6)
