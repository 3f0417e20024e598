"""Planar and radial layers: the constraints that make them invertible, at the ends of their range."""

import math

import pytest
import torch

from latentflows.bijections import Chain, Planar, Radial


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


def bound_of(raw: float) -> float:
    """Compute softplus(raw + c) - softplus(c) with softplus(c) = 0.999."""
    return math.log1p(math.expm1(0.999) * math.exp(raw)) - 0.999


def radial(center, alpha, strength, dtype=torch.float64) -> Radial:
    """One layer around `center` with radius alpha and the raw strength."""
    layer = Radial(len(center)).to(dtype)
    ratio = math.log(alpha / math.sqrt(len(center)))
    raw = ratio / (1 - abs(ratio) / math.log(1000))  # undoes the soft bound
    layer.source.raw.data = torch.tensor([*center, raw, strength], dtype=dtype)
    return layer


def test_radial_is_the_published_formula_with_the_euclidean_norm():
    center, alpha = torch.tensor([0.5, -1.0, 2.0]).double(), 0.7
    beta = alpha * bound_of(1.3)
    u = 2 * torch.randn(6, 3).double()
    r = (u - center).square().sum(-1).sqrt()
    h, slope = 1 / (alpha + r), -1 / (alpha + r) ** 2
    x, log_det = radial(center.tolist(), alpha, 1.3)(u)
    torch.testing.assert_close(x, u + beta * h[:, None] * (u - center))
    torch.testing.assert_close(log_det, 2 * (1 + beta * h).log() + (1 + beta * h + beta * slope * r).log())


@pytest.mark.parametrize("strength", [-1e4, -3.0, 0.0, 2.0, 70.0])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 500.0])
def test_radii_increase_and_are_found_again_near_and_far(alpha, strength):
    layer = radial([0.0, 0.0], alpha, strength)
    radii = torch.cat([torch.zeros(1), torch.logspace(-12, 12, 49)]).double()
    u = radii[:, None] * torch.tensor([0.6, -0.8]).double()
    x, log_det = layer(u)
    assert (x.norm(dim=-1).diff() > 0).all()
    back, opposite = layer.inverse(x)
    torch.testing.assert_close(back, u, rtol=1e-10, atol=0)
    torch.testing.assert_close(opposite, -log_det, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strength", [-50.0, 70.0])
def test_radial_keeps_float32_precision_through_the_root(strength):
    layer = radial([0.0, 0.0], 1.0, strength, torch.float32)
    u = torch.logspace(-4, 4, 200)[:, None] * torch.tensor([0.6, -0.8])
    limit = 2e-6 if strength > 0 else 2e-4  # expanding by 1000 multiplies rounding by as much
    torch.testing.assert_close(layer.inverse(layer(u)[0])[0], u, rtol=limit, atol=0)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("strength", [-50.0, 0.7, 50.0])
@pytest.mark.parametrize("where", [0.0, 1e-30, 1e-10, 1e10, 1e15])
def test_radial_is_finite_at_its_center_and_far_out_in_float32(where, strength, direction):
    layer = radial([1.0, -1.0], 1.0, strength, torch.float32)
    value = torch.tensor([1.0 + where, -1.0]).requires_grad_()
    out, log_det = getattr(layer, direction)(value)
    assert torch.isfinite(out).all()
    (out.sum() + log_det).backward()
    assert torch.isfinite(value.grad).all()
    assert torch.isfinite(layer.source.raw.grad).all()
    if where == 0:
        torch.testing.assert_close(out, torch.tensor([1.0, -1.0]))
        expected = 2 * math.log1p(bound_of(strength)) * (1 if direction == "forward" else -1)
        assert log_det.item() == pytest.approx(expected, rel=1e-3)


def test_radial_layers_together_are_a_chain_of_single_layers():
    many = Radial(3, num_layers=3).double()
    with torch.no_grad():
        many.source.raw.normal_()
    singles = []
    for center, radius, strength in zip(*(value.detach() for value in many.source(None)), strict=True):
        singles.append(Radial(3).double())
        singles[-1].source.raw.data = torch.cat([center, radius, strength])
    chain, u = Chain(singles), torch.randn(2, 5, 3).double()
    for got, expected in zip((*many(u), *many.inverse(u)), (*chain(u), *chain.inverse(u)), strict=True):
        torch.testing.assert_close(got, expected)
