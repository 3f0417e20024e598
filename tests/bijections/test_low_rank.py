"""Planar layers: the constraint that makes them invertible, at the ends of its range."""

import pytest
import torch

from latentflows.bijections import Chain, Planar


def with_raw(v, w, b=0.0, dtype=torch.float64) -> Planar:
    layer = Planar(len(v)).to(dtype)
    layer.source.raw.data = torch.tensor([*v, *w, b], dtype=dtype)
    return layer


def v_hat(layer: Planar, dim: int) -> torch.Tensor:
    """Read it off where the tanh saturates: x - u = v_hat tanh(w u + b) with b large."""
    layer.source.raw.data[-1] = 50.0
    return layer(torch.zeros(dim, dtype=layer.source.raw.dtype))[0]


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-6, 1e-12, 1e-18, 1e-24, 1e-30, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_v_hat_is_no_longer_than_v_however_small_w_is(size, dtype):
    layer = with_raw([0.1, -0.2, 0.05], [size, 2 * size, -size], dtype=dtype)
    length = v_hat(layer, 3).norm()
    assert 0 < length <= torch.tensor([0.1, -0.2, 0.05]).norm() + 1e-6
    length.backward()
    assert torch.isfinite(layer.source.raw.grad).all()


@pytest.mark.parametrize("product", [-1e4, -30.0, -1.5, -1.0, 0.0, 1.0, 40.0])
def test_w_v_hat_stays_above_minus_one(product):
    w = torch.tensor([0.6, 0.8]).double()
    inner = torch.dot(w, v_hat(with_raw([0.6 * product, 0.8 * product], w.tolist()), 2))
    assert inner >= -(1 - 1e-3) - 1e-9
    floor = torch.tensor(1 - 1e-3).double()
    offset = torch.log(torch.expm1(floor))
    expected = torch.nn.functional.softplus(product + offset) - floor
    torch.testing.assert_close(inner, expected)


@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0])
def test_the_map_along_w_increases_whatever_the_parameters(scale):
    for _ in range(10):
        v, w, b = torch.randn(2) * scale, torch.randn(2) * scale, torch.randn(()).item()
        layer = with_raw(v.tolist(), w.tolist(), b)
        along = torch.linspace(-5, 5, 2001).double()[:, None] * w / w.norm()
        x, log_det = layer(along.double())
        assert (((x @ w.double()) / w.norm()).diff() > 0).all()
        assert torch.isfinite(log_det).all()


def test_v_bends_space_along_itself_only():
    layer = with_raw([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], 0.3)
    u = torch.randn(5, 3).double()
    moved = layer(u)[0] - u
    torch.testing.assert_close(moved[:, 0].abs().max(), torch.tensor(0.0).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(moved[:, 1], (u[:, 0] + 0.3).tanh())


def test_layers_together_are_a_chain_of_single_layers():
    many = Planar(3, num_layers=4).double()
    with torch.no_grad():
        many.source.raw.copy_(2 * torch.randn_like(many.source.raw))
    v, w, b = (value.detach() for value in many.source(None))
    chain = Chain([with_raw(v[i].tolist(), w[i].tolist(), b[i].item()) for i in range(4)])
    u = torch.randn(2, 5, 3).double()
    for got, expected in zip(many(u), chain(u), strict=True):
        torch.testing.assert_close(got, expected)
