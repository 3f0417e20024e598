"""Autoregressive layers agree with other libraries' at equal weights; no dependency, so most runs skip this."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from latentflows.bijections import Inverse, InverseAutoregressive
from latentflows.testing import randomize
from latentflows.transforms import Affine, Transform
from tests.peers import peer

DIM, WIDTH, FEATURES = 5, 20, 3  # the width shares out evenly over 4 degrees, and over 5 with a context


@dataclass(frozen=True)
class Softplus(Transform):
    """nflows' scale, softplus(a) + 1e-3; raw parameters (a, t)."""

    size = 2

    def _scale(self, raw):
        return functional.softplus(raw) + 1e-3

    def forward(self, u, raw):
        return u * self._scale(raw[0]) + raw[1], self._scale(raw[0]).log()

    def inverse(self, x, raw):
        return (x - raw[1]) / self._scale(raw[0]), -self._scale(raw[0]).log()


class Sigmoid(Softplus):
    """normflows' scale, sigmoid(a + 2) + 1e-3."""

    def _scale(self, raw):
        return torch.sigmoid(raw + 2) + 1e-3


def masked(layer):
    return layer.weight * layer.mask, layer.bias


def take(ours, layers, degrees, context=None):
    """Copy pairs of weight and bias: hidden units get sorted by degree, outputs go from (D, P) to (P, D)."""
    order = torch.argsort(degrees, stable=True)
    with torch.no_grad():
        for mine, (weight, bias) in zip(ours.layers(), layers, strict=True):
            weight = weight[:, order] if weight.shape[1] == len(order) else weight[:, :DIM]
            if mine is ours.layers()[-1]:
                weight = weight.view(DIM, ours.outputs, -1).transpose(0, 1).flatten(0, 1)
                bias = bias.view(DIM, ours.outputs).t().flatten()
            else:
                weight, bias = weight[order], bias[order]
            mine.weight.copy_(weight)
            mine.bias.copy_(bias)
        if context is not None:
            ours.context.weight.copy_(context[order])


def assert_agrees(made, theirs, context=None):
    """Compare both directions; theirs are (x, context) -> (value, log-determinant), the first reading like ours."""
    u = torch.randn(50, DIM).double()
    given = () if context is None else (context,)
    x, log_det = made(u, *given)
    torch.testing.assert_close((x, log_det), theirs[0](u))
    for inversion in ("loop", "incremental", "jacobi"):
        made.inversion = inversion
        torch.testing.assert_close(made.inverse(x, *given), theirs[1](x))
        torch.testing.assert_close(Inverse(made)(x, *given), theirs[1](x))


@dataclass(frozen=True)
class NflowsSpline(Transform):
    """The spline of nflows' autoregressive layer, with its parameters: 4 widths, 4 heights, 3 slopes."""

    size = 11

    def _run(self, value, raw, *, inverse):
        widths, heights, slopes = raw.movedim(0, -1).split([4, 4, 3], -1)
        spline = peer("nflows.transforms.splines.rational_quadratic").unconstrained_rational_quadratic_spline
        share = math.sqrt(WIDTH)
        return spline(value, widths / share, heights / share, slopes, inverse=inverse, tail_bound=2.0)

    def forward(self, u, raw):
        return self._run(u, raw, inverse=False)

    def inverse(self, x, raw):
        return self._run(x, raw, inverse=True)


@pytest.mark.parametrize("num_blocks", [0, 1, 2])
def test_it_agrees_with_nflows(num_blocks):
    kind = peer("nflows.transforms").MaskedAffineAutoregressiveTransform
    theirs = kind(DIM, WIDTH, num_blocks=num_blocks, use_residual_blocks=False).double()
    randomize(theirs, 1.0)
    made = InverseAutoregressive(DIM, width=WIDTH, depth=1 + num_blocks, transform=Softplus()).double()
    net = theirs.autoregressive_net
    layers = [net.initial_layer, *(block.linear for block in net.blocks), net.final_layer]
    take(made.network, [masked(layer) for layer in layers], net.initial_layer.degrees)
    assert_agrees(made, (theirs.forward, theirs.inverse))


def test_splines_agree_with_nflows():
    kind = peer("nflows.transforms").MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    theirs = kind(
        DIM, WIDTH, num_bins=4, tails="linear", tail_bound=2.0, num_blocks=1, use_residual_blocks=False
    ).double()
    randomize(theirs, 1.0)
    theirs.autoregressive_net.hidden_features = WIDTH  # the layer looks for it, and forgets to set it
    made = InverseAutoregressive(DIM, width=WIDTH, depth=2, transform=NflowsSpline()).double()
    net = theirs.autoregressive_net
    layers = [net.initial_layer, net.blocks[0].linear, net.final_layer]
    take(made.network, [masked(layer) for layer in layers], net.initial_layer.degrees)
    assert_agrees(made, (theirs.forward, theirs.inverse))


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_it_agrees_with_normflows(num_blocks):
    kind = peer("normflows").flows.MaskedAffineAutoregressive
    theirs = kind(DIM, WIDTH, num_blocks=num_blocks, use_residual_blocks=False).double()
    randomize(theirs, 1.0)
    made = InverseAutoregressive(DIM, width=WIDTH, depth=num_blocks, transform=Sigmoid()).double()
    net = theirs.autoregressive_net
    (initial, start), (first, bias) = masked(net.initial_layer), masked(net.blocks[0].linear)
    layers = [(first @ initial, first @ start + bias)]  # nothing stands between the first two
    layers += [masked(layer) for layer in (*(block.linear for block in net.blocks[1:]), net.final_layer)]
    take(made.network, layers, net.initial_layer.degrees)
    assert_agrees(made, (theirs.forward, theirs.inverse))


@pytest.mark.parametrize("features", [0, FEATURES])
@pytest.mark.parametrize("depth", [1, 2])
def test_it_agrees_with_zuko(features, depth):
    flow = peer("zuko").flows.MAF(DIM, features, transforms=1, hidden_features=[WIDTH] * depth).double()
    randomize(flow, 1.0)
    lazy = flow.transform.transforms[0]
    layers = [layer for layer in lazy.hyper if isinstance(layer, torch.nn.Linear)]
    made = InverseAutoregressive(
        DIM, width=WIDTH, depth=depth, context_shape=features or None, transform=Affine(math.log(1000))
    ).double()
    first = layers[0]
    given = first.weight[:, DIM:] if features else None
    take(made.network, [masked(layer) for layer in layers], first.mask[:, :DIM].sum(1), given)
    context = torch.randn(50, features).double() if features else None
    theirs = lazy(context)
    assert_agrees(made, (theirs.call_and_ladj, theirs.inv.call_and_ladj), context)
