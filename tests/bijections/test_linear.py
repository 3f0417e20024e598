"""Permutations, and normalization that is set from data once."""

import copy
import re

import pytest
import torch

from latentflows.bijections import ActNorm, Chain, Inverse, Permutation
from latentflows.core.errors import ConfigurationError, DataError, NonFiniteError
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


@pytest.mark.parametrize(
    ("order", "got"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), "torch.float32"),
        (torch.ones(3, dtype=torch.bool), "torch.bool"),
        ([0, 1, 2], "list"),
    ],
)
def test_an_order_is_a_tensor_of_integers(order, got):
    message = f"`order` must be a tensor of integers, a permutation of 0 ... 2; got {got}. Give"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Permutation(3, order)


def test_any_integers_will_do_as_an_order():
    x, _ = Permutation(3, torch.tensor([2, 0, 1], dtype=torch.int32))(torch.tensor([10.0, 11.0, 12.0]))
    assert x.tolist() == [12.0, 10.0, 11.0]


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


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_noise_that_passes_forward_comes_out_normalized(shape):
    layer = ActNorm(shape).double()
    x = layer.initialize(5 + 3 * torch.randn(50, *shape).double(), direction="forward")
    channels = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3).double())
    assert layer.initialized


def test_inside_an_inverse_the_other_side_is_normalized():
    flow = Inverse(Chain([ActNorm(3), Permutation.reversal(3)]).double())
    u = flow.initialize(torch.randn(50, 3).double() * torch.tensor([0.1, 1.0, 10.0]) - 4)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(3).double())
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_padding_does_not_count(direction):
    layer, short = ActNorm((2, 5)).double(), ActNorm((2, 3)).double()
    value = torch.randn(4, 2, 5).double()
    lengths = torch.tensor([3, 3, 0, 3])
    out = layer.initialize(value, direction=direction, lengths=lengths)
    expected = short.initialize(value[lengths > 0, :, :3], direction=direction)
    torch.testing.assert_close(out[lengths > 0, :, :3], expected)
    torch.testing.assert_close(layer.state_dict(), short.state_dict())
    assert torch.equal(out[2], value[2])
    assert torch.equal(out[..., 3:], value[..., 3:])


@pytest.mark.parametrize("layer", [ActNorm((2, 5)), Permutation.reversal((2, 5), channels=True)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_padding_stays_and_has_no_log_det(layer, direction):
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 0.3)
    value = torch.randn(2, 2, 5)
    out, log_det = getattr(layer, direction)(value, lengths=torch.tensor([3, 0]))
    whole, whole_log_det = getattr(layer, direction)(value)
    assert torch.equal(out[0, :, :3], whole[0, :, :3])
    assert torch.equal(out[0, :, 3:], value[0, :, 3:])
    assert torch.equal(out[1], value[1])
    torch.testing.assert_close(log_det, whole_log_det * torch.tensor([3 / 5, 0.0]))


def test_channels_are_permuted_the_same_everywhere():
    u = torch.arange(12.0).view(3, 2, 2)
    x, _ = Permutation((3, 2, 2), torch.tensor([1, 2, 0]), channels=True)(u)
    assert torch.equal(x, torch.stack([u[1], u[2], u[0]]))
    assert torch.equal(Permutation.reversal((3, 2, 2), channels=True)(u)[0], u.flip(0))
    with pytest.raises(ConfigurationError, match=r"must be a permutation of 0 \.\.\. 2"):
        Permutation((3, 2, 2), torch.arange(12), channels=True)


def test_a_batch_that_is_not_finite_sets_nothing():
    layer = ActNorm(3)
    with pytest.raises(NonFiniteError):
        layer.initialize(torch.full((4, 3), torch.nan))
    assert not layer.initialized
    assert not layer.measuring
    assert not layer.shift.any()


def test_statistics_that_overflow_set_nothing():
    layer = ActNorm(3)
    with pytest.raises(NonFiniteError, match="needs a finite mean and standard deviation of every channel"):
        layer.initialize(torch.randn(4, 3) * 1e30)
    assert not layer.initialized
    assert not layer.measuring
    assert not layer.shift.any()
    assert not layer.log_scale.any()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_junk_on_padding_does_not_spoil_the_statistics(direction):
    clean, layer, value = ActNorm((2, 4)), ActNorm((2, 4)), torch.randn(8, 2, 4)
    dirty, lengths = value.clone(), torch.full((8,), 3)
    dirty[..., 3] = torch.finfo(torch.float32).min
    clean.initialize(value, direction=direction, lengths=lengths)
    layer.initialize(dirty, direction=direction, lengths=lengths)
    torch.testing.assert_close(layer.state_dict(), clean.state_dict())


def test_a_single_row_is_refused():
    with pytest.raises(DataError, match=r"two or more values of each channel .* shape \(1, 3\) with 1"):
        ActNorm(3).initialize(torch.ones(1, 3))
    ActNorm((3, 2)).initialize(torch.randn(1, 3, 2))


def test_a_pass_between_initializations_sets_nothing():
    layer = ActNorm(3)
    layer(torch.randn(5, 3))
    layer.inverse(torch.randn(5, 3))
    assert not layer.initialized
    assert not layer.shift.any()


def test_a_chain_initializes_each_member_with_what_reaches_it():
    chain = Chain([ActNorm(5).double(), build("affine_first", False), ActNorm(5).double()])
    u = chain.initialize(torch.randn(200, 5).double() * 3 + 1)
    torch.testing.assert_close(u.mean(0), torch.zeros(5).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(5).double())
    assert chain.members[0].initialized
    assert chain.members[2].initialized
