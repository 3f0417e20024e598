"""Couplings: which part stays, which moves, and how far."""

import math
import re

import pytest
import torch

from latentflows.bijections import AdditiveCoupling, AffineCoupling, alternating_mask, half_mask
from latentflows.bijections.coupling import Partition
from latentflows.core.errors import ConfigurationError
from tests.bijections.cases import mlp, randomize

MASKS = [
    [True, True, False],
    [False, False, True],
    [True, False, True],
    [False, True, True],
    [True, False, False],
]


@pytest.mark.parametrize("mask", MASKS)
def test_partition_cuts_by_the_mask_and_merges_back(mask):
    mask, value = torch.tensor(mask), torch.randn(4, 3)
    partition = Partition(mask)
    stay, move = partition.split(value)
    assert torch.equal(stay, value[:, mask])
    assert torch.equal(move, value[:, ~mask])
    assert torch.equal(partition.merge(stay, move), value)


@pytest.mark.parametrize("kind", [AdditiveCoupling, AffineCoupling])
@pytest.mark.parametrize("mask", [half_mask(5, first=True), alternating_mask(5, even=False)])
def test_entries_under_the_mask_stay_and_decide(kind, mask):
    coupling = kind(5, mask=mask, network=mlp).double()
    randomize(coupling, 1.0)
    u = torch.randn(1, 5).double()
    jacobian = torch.func.jacrev(lambda v: coupling(v)[0])(u).view(5, 5)
    assert torch.equal(coupling(u)[0][:, mask], u[:, mask])
    assert jacobian[~mask][:, mask].all()
    moved = jacobian[~mask][:, ~mask]
    torch.testing.assert_close(moved, moved.diagonal().diag())


def test_additive_coupling_keeps_volume():
    coupling = AdditiveCoupling(5, mask=half_mask(5, first=True), network=mlp)
    randomize(coupling, 1.0)
    assert torch.equal(coupling(torch.randn(4, 5))[1], torch.zeros(4))


@pytest.mark.parametrize("raw", [1e6, -1e6])
def test_scales_stay_within_their_bound(raw):
    coupling = AffineCoupling(2, mask=half_mask(2, first=True), network=mlp, scale_bound=2.0)
    coupling.network.last.linear.bias.data[1] = raw
    with torch.no_grad():
        x, log_det = coupling(torch.ones(2))
    assert log_det.abs() < 2
    assert math.isclose(log_det.item(), math.copysign(2.0, raw), rel_tol=1e-4)
    assert math.isclose(x[1].item(), math.exp(log_det), rel_tol=1e-5)


def test_masks_of_halves_and_of_alternating_entries():
    assert half_mask(5, first=True).tolist() == [True, True, True, False, False]
    assert half_mask((2, 2), first=False).tolist() == [[False, False], [True, True]]
    assert alternating_mask((2, 3), even=True).tolist() == [[True, False, True], [False, True, False]]
    assert alternating_mask(3, even=False).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", [AdditiveCoupling, AffineCoupling])
@pytest.mark.parametrize("value", [True, False])
def test_a_mask_must_let_something_stay_and_something_move(kind, value):
    with pytest.raises(ConfigurationError, match=r"at least one entry stay .* and one move"):
        kind(3, mask=torch.full((3,), value), network=mlp)


def test_a_mask_must_have_the_events_shape():
    message = "`mask` must have the event's shape (3,); got (4,)."
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        AffineCoupling(3, mask=half_mask(4, first=True), network=mlp)


def test_scale_bound_must_be_positive():
    with pytest.raises(ConfigurationError, match="`scale_bound` must be positive and finite; got 0"):
        AffineCoupling(3, mask=half_mask(3, first=True), network=mlp, scale_bound=0)
