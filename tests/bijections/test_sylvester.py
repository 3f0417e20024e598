"""Sylvester layers: against dense matrices written out, and at parameters where the constraints bind."""

import re

import pytest
import torch
from torch import Tensor

from latentflows.bijections import Chain, Sylvester
from latentflows.core.errors import ConfigurationError, MissingDirectionError
from tests.bijections.cases import randomize

KINDS = {
    "orthogonal": {"kind": "orthogonal", "rank": 3},
    "householder": {"kind": "householder", "num_householder": 2},
    "triangular": {"kind": "triangular"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def layer_of(kind: str, scale: float, *, dim: int = 5, num_layers: int = 2, context_shape: int | None = None):
    layer = Sylvester(dim, **KINDS[kind], num_layers=num_layers, context_shape=context_shape).double()
    randomize(layer, scale)
    return layer


def dense(layer: Sylvester, kind: str, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write out Q (D, M), R, R~ (M, M) and b of one layer with global parameters."""
    factors, diagonal, b, *mirrors = (value.detach()[index] for value in layer.source(None))
    largest = (1 - 1e-3) ** 0.5
    r = factors.triu(1) + largest * factors.diag().tanh().diag()
    r_inner = factors.tril(-1).T + largest * diagonal.tanh().diag()
    q = torch.eye(layer.event_shape[0]).double()
    if kind == "triangular":
        return q.flip(0) if index % 2 else q, r, r_inner, b[0]
    for v in mirrors[0].T:
        q = q @ (torch.eye(len(v)).double() - 2 * torch.outer(v, v) / v.dot(v))
    return q[:, : layer.rank], r, r_inner, b[0]


@kinds
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_a_layer_is_the_published_formula(kind, scale):
    layer = layer_of(kind, scale)
    u = torch.randn(7, 5).double()
    x, log_det = u, torch.zeros(7).double()
    for index in range(2):
        q, r, r_inner, b = dense(layer, kind, index)
        torch.testing.assert_close(q.T @ q, torch.eye(layer.rank).double())
        bend = torch.stack([r_inner @ (q.T @ row) + b for row in x]).tanh()
        log_det = log_det + (1 + (1 - bend**2) * r.diag() * r_inner.diag()).log().sum(-1)
        x = x + torch.stack([q @ (r @ row) for row in bend])
    got, got_log_det = layer(u)
    torch.testing.assert_close(got, x)
    torch.testing.assert_close(got_log_det, log_det)


@kinds
def test_log_dets_are_those_of_the_jacobian_at_large_parameters(kind):
    """At parameters near 0, where other packages test, untransposed factors cannot be told from right ones."""
    layer = layer_of(kind, 2.0, num_layers=1)
    for u in torch.randn(10, 5).double():
        jacobian = torch.func.jacrev(lambda v: layer(v)[0])(u)
        torch.testing.assert_close(layer(u)[1], torch.linalg.slogdet(jacobian).logabsdet)
        assert torch.linalg.det(jacobian) > 0


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_determinant_stays_positive_where_both_diagonals_saturate(kind, dtype):
    layer = Sylvester(4, **KINDS[kind]).to(dtype)
    start = layer.source(None)
    with torch.no_grad():
        start[0].zero_().diagonal(dim1=-2, dim2=-1).fill_(-100.0)
        start[1].fill_(100.0)
    log_det = layer(torch.zeros(4, dtype=dtype))[1]
    assert log_det.item() == pytest.approx(layer.rank * torch.tensor(1e-3).log().item(), rel=1e-3)


@pytest.mark.parametrize("kind", ["orthogonal", "householder"])
@pytest.mark.parametrize("size", [1e-25, 1e-12, 1.0, 1e12, 0.0])
def test_mirrors_of_any_length_are_orthogonal_in_float32(kind, size):
    layer = Sylvester(6, **KINDS[kind])
    mirrors = torch.randn(1, 1, 6, 3 if kind == "orthogonal" else 2) * size
    ((unit, weights),) = layer._frames(mirrors)
    q = torch.eye(6)[:, : layer.rank] - unit[0] @ weights[0]
    torch.testing.assert_close(q.T @ q, torch.eye(layer.rank), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["orthogonal", "householder"])
def test_equal_mirrors_keep_their_gradients_finite(kind):
    layer = layer_of(kind, 1.0, num_layers=1)
    with torch.no_grad():
        layer.source(None)[-1].fill_(1.0)
    x, log_det = layer(torch.randn(4, 5).double())
    (x.square().sum() + log_det.sum()).backward()
    assert torch.isfinite(layer.source.raw.grad).all()


@kinds
def test_a_new_layer_can_learn(kind):
    """R = 0 is the identity; R~ must not be 0 as well, or every gradient would be."""
    layer = Sylvester(5, **KINDS[kind]).double()
    u = torch.randn(20, 5).double()
    assert torch.equal(layer(u)[0], u)
    (layer(u)[0] * torch.randn(20, 5)).sum().backward()
    factors = layer.source.raw.grad[: layer.rank**2].view(layer.rank, layer.rank)
    assert (factors[torch.ones_like(factors).triu().bool()] != 0).all()


@pytest.mark.parametrize("kind", ["orthogonal", "householder"])
def test_layers_together_are_a_chain_of_single_layers(kind):
    many = layer_of(kind, 1.0, num_layers=3)
    singles = []
    for index in range(3):
        singles.append(Sylvester(5, **KINDS[kind]).double())
        pieces = [value.detach()[index].reshape(-1) for value in many.source(None)]
        singles[-1].source.raw.data = torch.cat(pieces)
    u = torch.randn(2, 5, 5).double()
    for got, expected in zip(many(u), Chain(singles)(u), strict=True):
        torch.testing.assert_close(got, expected)


@kinds
def test_samples_of_one_context_share_its_parameters(kind):
    layer = layer_of(kind, 1.0, context_shape=2)
    u, context = torch.randn(3, 4, 5).double(), torch.randn(4, 2).double()
    x, log_det = layer(u, context)
    for k in range(3):
        torch.testing.assert_close(layer(u[k], context), (x[k], log_det[k]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "other"}, "`kind` must be 'orthogonal', 'householder' or 'triangular'; got 'other'"),
        ({"kind": "orthogonal"}, "`rank` belongs to kind 'orthogonal', and only to it; got none"),
        ({"kind": "triangular", "rank": 2}, "`rank` belongs to kind 'orthogonal', and only to it; got 2"),
        ({"kind": "orthogonal", "rank": 5}, "`rank` must be at most `dim`, 4; got 5"),
        ({"kind": "orthogonal", "rank": 0}, "`rank` must be a positive integer; got 0"),
        (
            {"kind": "householder"},
            "`num_householder` belongs to kind 'householder', and only to it; got none",
        ),
        (
            {"kind": "householder", "num_householder": -1},
            "`num_householder` must be a positive integer; got -1",
        ),
        ({"kind": "triangular", "num_layers": 0}, "`num_layers` must be a positive integer; got 0"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Sylvester(4, **settings)


def test_there_is_no_inverse():
    with pytest.raises(MissingDirectionError, match="`Sylvester` has no inverse"):
        Sylvester(4, kind="triangular").inverse(torch.zeros(4))
