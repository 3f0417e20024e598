"""Permutations, and normalization that is set from data once."""

import copy
import re

import pytest
import torch

from latentflows.bijections import ActNorm, Chain, Permutation
from latentflows.core.errors import ConfigurationError
from tests.bijections.cases import build


def test_permutation_picks_by_order():
    x, log_det = Permutation(3, torch.tensor([2, 0, 1]))(torch.tensor([10.0, 11.0, 12.0]))
    assert x.tolist() == [12.0, 10.0, 11.0]
    assert log_det == 0


def test_reversal_reverses_the_flattened_event():
    x, _ = Permutation.reversal((2, 2))(torch.arange(4.0).view(2, 2))
    assert x.flatten().tolist() == [3.0, 2.0, 1.0, 0.0]


def test_random_permutations_follow_their_seed_and_nothing_else():
    one, two = Permutation.random(16, seed=3), Permutation.random(16, seed=3)
    assert torch.equal(one.order, two.order)
    assert not torch.equal(one.order, Permutation.random(16, seed=4).order)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1], [1, 2, 3]])
def test_what_is_no_permutation_is_refused(order):
    message = f"`order` must be a permutation of 0 ... 2; got shape ({len(order)},)"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Permutation(3, torch.tensor(order))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)])
def test_actnorm_normalizes_the_batch_per_channel(shape):
    layer = ActNorm(shape).double()
    factor = torch.tensor([0.1, 2.0, 30.0]).double().view(3, *[1] * (len(shape) - 1))
    x = 5 + factor * torch.randn(50, *shape).double()
    u = layer.initialize(x)
    channels = u.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3).double())
    torch.testing.assert_close(u, layer.inverse(x)[0])
    torch.testing.assert_close(layer.inverse(x)[1][0], -layer.repeats * layer.log_scale.sum())


def test_actnorm_is_initialized_once():
    layer = ActNorm(3)
    layer.initialize(torch.randn(20, 3) * 4 + 2)
    before = copy.deepcopy(layer.state_dict())
    layer.initialize(torch.randn(20, 3))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_a_loaded_actnorm_is_not_initialized_anew():
    layer, other = ActNorm(3), ActNorm(3)
    layer.initialize(torch.randn(20, 3) * 4 + 2)
    other.load_state_dict(layer.state_dict())
    other.initialize(torch.randn(20, 3))
    assert torch.equal(other.shift, layer.shift)
    assert torch.equal(other.log_scale, layer.log_scale)


def test_a_channel_that_never_varies_keeps_a_finite_scale():
    layer = ActNorm(2)
    u = layer.initialize(torch.ones(8, 2))
    assert torch.isfinite(u).all()
    torch.testing.assert_close(layer.log_scale.exp(), torch.full((2,), 1e-3))


def test_a_chain_initializes_each_member_with_what_reaches_it():
    chain = Chain([ActNorm(5).double(), build("affine_first", False), ActNorm(5).double()])
    u = chain.initialize(torch.randn(200, 5).double() * 3 + 1)
    torch.testing.assert_close(u.mean(0), torch.zeros(5).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(5).double())
    assert chain.members[0].initialized
    assert chain.members[2].initialized
