"""Autoregressive flows: the order of dependence, in both directions."""

import pytest
import torch

from latentflows.bijections import Inverse, InverseAutoregressive
from latentflows.core.errors import ConfigurationError
from tests.bijections.cases import randomize


def layer(dim=6, context_shape=None, **settings):
    made = InverseAutoregressive(
        dim, width=12, depth=2, activation="tanh", context_shape=context_shape, **settings
    ).double()
    randomize(made, 1.0)
    return made


@pytest.mark.parametrize("made", [layer(), Inverse(layer())], ids=["iaf", "maf"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_jacobian_is_lower_triangular_and_every_entry_below_counts(made, direction):
    run = made if direction == "forward" else made.inverse
    jacobian = torch.func.jacrev(lambda v: run(v)[0])(torch.randn(6).double())
    assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))
    assert jacobian.tril()[tuple(torch.tril_indices(6, 6))].all()


def test_the_network_reads_the_base_noise():
    made, u = layer(), torch.randn(1, 1, 6).double()
    raw = made.network(u[0])
    scale = raw[..., 1] / (1 + raw[..., 1].abs() / 3)
    torch.testing.assert_close(made(u)[0][0], u[0] * scale.exp() + raw[..., 0])
    torch.testing.assert_close(made(u)[1][0], scale.sum(-1))


def test_gradients_of_the_inverse_are_those_of_the_implicit_function():
    made = layer(4)
    x = torch.randn(4).double()
    u = made.inverse(x)[0]
    backward = torch.func.jacrev(lambda v: made.inverse(v)[0])(x)
    forward = torch.func.jacrev(lambda v: made(v)[0])(u.detach())
    torch.testing.assert_close(backward @ forward, torch.eye(4).double())


def test_the_context_reaches_the_first_variable():
    made = layer(4, context_shape=2)
    u = torch.zeros(2, 4).double()
    x, _ = made(u, torch.tensor([[0.0, 0.0], [1.0, -1.0]]).double())
    assert x[0, 0] != x[1, 0]


def test_one_variable_is_enough():
    made = layer(1)
    u = torch.randn(5, 1).double()
    x, log_det = made(u)
    torch.testing.assert_close(x, u * log_det[0].exp() + (x[0] - u[0] * log_det[0].exp()))
    torch.testing.assert_close(made.inverse(x)[0], u)


def test_scales_stay_within_their_bound():
    made = layer(2, scale_bound=0.5)
    made.network.rest[-1].bias.data.fill_(1e9)
    assert 0.99 < made(torch.zeros(2).double())[1] < 1.0


def test_a_network_too_narrow_is_refused():
    with pytest.raises(ConfigurationError, match=r"`width` must be at least 5 .* 6 variables; got 4"):
        InverseAutoregressive(6, width=4, depth=1)
    with pytest.raises(ConfigurationError, match=r"at least 6 .* 6 variables and the context; got 5"):
        InverseAutoregressive(6, width=5, depth=1, context_shape=2)
