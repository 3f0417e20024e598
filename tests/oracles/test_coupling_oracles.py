"""Couplings agree with zuko, nflows and normflows at equal weights, in both directions and in gradients.

The other libraries order a network's output by variable, here it is ordered by parameter, so the rows of the last
layer are permuted; where their scale is another function of the raw parameter, a `Transform` of the test states it.
"""

import copy
import math

import pytest
import torch
from torch import nn

from latentflows.bijections import (
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    SplineCoupling,
    alternating_mask,
    channel_mask,
    half_mask,
)
from latentflows.transforms import Transform
from tests.bijections.cases import randomize
from tests.peers import peer
from tests.transforms.knots import knots

D, MOVING = 6, 3
UNBOUNDED = 1e15  # a / (1 + |a| / b) is then a


def network(inputs, outputs):
    made = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()
    randomize(made, 1.0)
    return made


class Hears(nn.Module):
    """A network that is also given a context, and does without."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, context=None):
        return self.body(x)


def by_parameter(body, parameters, moving=MOVING):
    """Copy a network whose output is ordered by variable to one whose output is ordered by parameter."""
    made = copy.deepcopy(body)
    order = torch.arange(parameters * moving).view(moving, parameters).t().flatten()
    with torch.no_grad():
        made[-1].weight.copy_(body[-1].weight[order])
        made[-1].bias.copy_(body[-1].bias[order])
    return made


def check(ours, theirs, shape=(D,)):
    """Compare values, log-determinants and gradients of `theirs` (a pair of functions) with both directions."""
    value = 2 * torch.randn(7, *shape).double()
    for run, expected in zip((ours.forward, ours.inverse), theirs, strict=True):
        mine, other = value.clone().requires_grad_(), value.clone().requires_grad_()
        (out, log_det), (wanted, wanted_log_det) = run(mine), expected(other)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(log_det, wanted_log_det)
        for result, source in (
            (out.sin().sum() + log_det.sum(), mine),
            (wanted.sin().sum() + wanted_log_det.sum(), other),
        ):
            result.backward()
            assert source.grad is not None
        torch.testing.assert_close(mine.grad, other.grad)


# normflows: forward is sampling there too


class Two(nn.Module):
    """The two networks of `MaskedAffineFlow` as one, shift first."""

    def __init__(self, shift, scale):
        super().__init__()
        self.shift, self.scale = shift, scale

    def forward(self, x):
        return torch.cat([self.shift(x), self.scale(x)], 1)


@pytest.mark.parametrize("mask", [half_mask(D, first=True), alternating_mask(D, even=False)])
def test_masked_affine_flow_of_normflows(mask):
    normflows = peer("normflows")
    shift, scale = network(D, D), network(D, D)
    flow = normflows.flows.MaskedAffineFlow(mask.double(), shift, scale)
    ours = AffineCoupling(
        D, mask=mask, network=lambda *_: Two(shift, scale), layout="masked", scale_bound=UNBOUNDED
    )
    check(ours, (flow.forward, flow.inverse))


def test_affine_coupling_block_of_normflows():
    normflows = peer("normflows")
    body = network(MOVING, 2 * MOVING)
    block = normflows.flows.AffineCouplingBlock(body)
    ours = AffineCoupling(
        D, mask=half_mask(D, first=True), network=lambda *_: by_parameter(body, 2), scale_bound=UNBOUNDED
    )
    check(ours, (block.forward, block.inverse))


def test_affine_coupling_block_of_normflows_on_images():
    normflows = peer("normflows")
    body = nn.Sequential(nn.Conv2d(2, 5, 3, 1, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, 1, 1)).double()
    block = normflows.flows.AffineCouplingBlock(body)
    ours = AffineCoupling(
        (4, 3, 5),
        mask=channel_mask((4, 3, 5), first=True),
        network=lambda *_: by_parameter(body, 2, 2),
        layout="channels",
        scale_bound=UNBOUNDED,
    )
    check(ours, (block.forward, block.inverse), (4, 3, 5))


def test_additive_block_of_normflows():
    normflows = peer("normflows")
    body = network(MOVING, MOVING)
    block = normflows.flows.AffineCouplingBlock(body, scale=False)
    ours = AdditiveCoupling(D, mask=half_mask(D, first=True), network=lambda *_: body)

    def full(run):  # its log-determinant of an additive map
        return lambda z: (run(z)[0], z.new_zeros(len(z)) + run(z)[1])

    check(ours, (full(block.forward), full(block.inverse)))


# zuko and nflows: forward is from data to noise there; a coupling is one map either way


@pytest.mark.parametrize("layer", [0, 1])
def test_coupling_of_zuko(layer):
    zuko = peer("zuko")
    flow = zuko.flows.NICE(D, transforms=2, hidden_features=(8,), activation=nn.Tanh).double()
    theirs = flow.transform.transforms[layer]
    randomize(theirs, 1.0)
    hyper = nn.Sequential(*theirs.hyper)
    ours = AffineCoupling(
        D, mask=theirs.mask, network=lambda *_: by_parameter(hyper, 2), scale_bound=math.log(1000)
    )
    transform = theirs()
    check(ours, (transform.call_and_ladj, transform.inv.call_and_ladj))


class NflowsAffine(Transform):
    """Their scale, sigmoid(a + 2) + 0.001."""

    size = 2

    def forward(self, u, raw):
        scale = (raw[1] + 2).sigmoid() + 1e-3
        return u * scale + raw[0], scale.log()

    def inverse(self, x, raw):
        scale = (raw[1] + 2).sigmoid() + 1e-3
        return (x - raw[0]) / scale, -scale.log()


@pytest.mark.parametrize("mask", [half_mask(D, first=False), alternating_mask(D, even=True)])
def test_affine_coupling_of_nflows(mask):
    transforms = peer("nflows.transforms")
    body = network(MOVING, 2 * MOVING)
    theirs = transforms.AffineCouplingTransform((~mask).int(), lambda *_: Hears(body))
    ours = Coupling(D, mask=mask, network=lambda *_: body, transform=NflowsAffine())
    check(ours, (theirs.forward, theirs.inverse))


class InTheirTerms(nn.Module):
    """A network for our splines, giving the raw parameters with which nflows has the same knots and slopes."""

    def __init__(self, body, spline):
        super().__init__()
        self.body, self.spline = body, spline
        self.hidden_features = 1  # nflows divides raw widths and heights by the root of this

    def forward(self, x, context=None):
        raw = self.body(x).view(len(x), -1, MOVING).movedim(1, 0).flatten(1)
        u, v, slopes = knots(self.spline, raw)
        theirs = torch.cat([u.diff().log(), v.diff().log(), slopes[:, 1:-1].expm1().log()], 1)
        return theirs.view(len(x), -1)


@pytest.mark.parametrize("num_bins", [2, 5])
def test_spline_coupling_of_nflows(num_bins):
    transforms = peer("nflows.transforms")
    mask = alternating_mask(D, even=True)
    body = network(MOVING, (3 * num_bins - 1) * MOVING)
    ours = SplineCoupling(D, mask=mask, network=lambda *_: body, num_bins=num_bins, bound=2.5)
    theirs = transforms.PiecewiseRationalQuadraticCouplingTransform(
        (~mask).int(),
        lambda *_: InTheirTerms(body, ours.transform),
        num_bins=num_bins,
        tails="linear",
        tail_bound=2.5,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    check(ours, (theirs.forward, theirs.inverse))
