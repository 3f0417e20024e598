"""The stack: how it starts, what it is made of, padding, and guidance of all layers or of the deep one."""

import copy

import pytest
import torch

from latentflows import Flow, StandardGaussian
from latentflows.bijections import ActNorm, Chain, Inverse, Permutation, TransformerAutoregressive
from latentflows.core.errors import CombinationError, ConfigurationError, DataError, ShapeError
from latentflows.models.tarflow import sample_guided, tarflow
from latentflows.transforms import Additive
from tests.bijections.cases import randomize

EVENTS = {
    "vector": (16, 1),
    "vector_groups": (8, 2),
    "sequence": ((3, 4), 1),
    "sequence_patches": ((2, 6), 2),
    "one_channel": ((1, 4), 1),
    "image": ((1, 4, 4), 2),
    "image_pixels": ((2, 2, 2), 1),
}
events = pytest.mark.parametrize(("shape", "patch"), EVENTS.values(), ids=EVENTS)


def stack(shape=(2, 4), *, scale=0.7, **settings):
    made = tarflow(shape, width=8, heads=2, **{"num_blocks": 3, "depth": 1} | settings).double()
    randomize(made, scale)
    return made


def layers(made):
    return [m for m in made.members if isinstance(m, TransformerAutoregressive)]


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@events
def test_a_new_stack_over_a_standard_gaussian_is_a_standard_gaussian(shape, patch):
    made = tarflow(shape, width=8, heads=2, patch=patch)
    base = StandardGaussian(made.base_shape)
    x = torch.randn(100, *made.event_shape)
    close(Flow(base, made)().log_prob(x), base().log_prob(x), 1e-4)


def test_a_new_stack_on_vectors_is_a_permutation():
    made, x = tarflow(16), torch.randn(5, 16)
    assert torch.equal(made.inverse(x)[0].sort(1).values, x.sort(1).values)


@events
@pytest.mark.parametrize("context", [None, 3])
def test_both_directions_agree(shape, patch, context):
    made = stack(shape, patch=patch, context=context)
    u = torch.randn(5, *made.event_shape).double()
    h = None if context is None else torch.randn(5, context).double()
    with torch.no_grad():
        x, log_det = made(u, h)
        back, opposite = made.inverse(x, h)
    close((back, -opposite), (u, log_det))
    assert (x - u).abs().min() > 1e-6


def test_orders_alternate_and_the_deep_layer_touches_the_noise_first():
    made = stack(num_blocks=4, depth=[1, 2, 1, 3])
    found = layers(made)
    assert [len(one.network.layers) for one in found] == [3, 1, 2, 1]  # from noise to data
    assert [one.reverse for one in found] == [True, False, True, False]
    assert made.members[0] is found[0]
    assert made.passes == (4 * 4, 4)


def test_the_entries_of_tokens_are_mixed_between_layers():
    made = stack((2, 4), num_blocks=2, transform=Additive())  # tokens stay apart but for the mixing
    for one in layers(made):
        one.network.head.linear.weight.data.zero_()
    jacobian = torch.autograd.functional.jacobian(lambda v: made(v)[0], torch.randn(2, 4).double())
    same_frame = torch.eye(4, dtype=torch.bool)[None, :, None].expand_as(jacobian)
    assert jacobian[same_frame].all()
    assert not jacobian[~same_frame].any()
    patches = stack((1, 2, 4), num_blocks=2, patch=2)
    for one in layers(patches):
        torch.nn.init.zeros_(one.network.head.linear.weight)
    jacobian = torch.autograd.functional.jacobian(lambda v: patches(v)[0], torch.randn(1, 2, 4).double())
    assert (jacobian[0, :, :2, 0, :, :2] != 0).all()  # within a square
    assert not jacobian[0, :, :2, 0, :, 2:].any()
    assert any(isinstance(m, Permutation) for m in stack(6).members)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("patch", [1, 2])
def test_padding_is_left_alone_and_changes_nothing(direction, patch):
    made = stack((2, 6), patch=patch, context=3)
    value, context = torch.randn(5, 2, 6).double(), torch.randn(5, 3).double()
    lengths = torch.tensor([6, 4, 3, 2, 0])
    padding = (torch.arange(6) >= (lengths // patch * patch)[:, None, None]).expand_as(value)
    noisy = torch.where(padding, value + 100, value)
    with torch.no_grad():
        out, log_det = getattr(made, direction)(value, context, lengths=lengths)
        other, other_log_det = getattr(made, direction)(noisy, context, lengths=lengths)
    assert torch.equal(out[padding], value[padding])
    close(other[~padding], out[~padding])
    close(other_log_det, log_det)
    assert log_det[-1] == 0


def test_only_the_deep_layer_hears_the_context_if_told_so():
    made = stack(context=3, context_blocks="deep")
    assert [one.context_shape for one in layers(made)] == [(3,), None, None]
    assert made.context_shape == (3,)


def test_guidance_goes_layer_by_layer():
    made, u = stack(context=3), torch.randn(2, 5, 2, 4).double()
    context, none = torch.randn(5, 3).double(), torch.zeros(3).double()
    expected = u
    for member in made.members:
        if isinstance(member, TransformerAutoregressive):
            expected = member.sample_guided(expected, context, none, weight=1.5, rule="gaussian")
        else:
            expected, _ = member(expected)
    close(sample_guided(made, u, context, none, weight=1.5, rule="gaussian"), expected)
    close(sample_guided(made, u, context, none, weight=0.0), made(u, context)[0])


def test_guidance_of_the_deep_layer_leaves_the_others_conditional():
    made, u = stack(context=3), torch.randn(5, 2, 4).double()
    context, none = torch.randn(5, 3).double(), torch.zeros(3).double()
    x = sample_guided(made, u, context, none, weight=2.0, blocks="deep")
    first, *rest = made.members
    between = first.sample_guided(u, context, none, weight=2.0)
    close(x, Chain(rest)(between, context)[0])
    assert (x - sample_guided(made, u, context, none, weight=2.0)).abs().max() > 1e-3
    deep = stack(context=3, context_blocks="deep")
    both = [sample_guided(deep, u, context, none, weight=2.0, blocks=blocks) for blocks in ("deep", "all")]
    close(both[0], both[1], 0)


def test_guided_draws_have_no_part_of_the_padding():
    made = stack(context=3)
    u, context = torch.randn(5, 2, 4).double(), torch.randn(5, 3).double()
    lengths = torch.tensor([4, 3, 2, 1, 0])
    x = sample_guided(made, u, context, 0 * context, weight=1.0, lengths=lengths)
    padding = (torch.arange(4) >= lengths[:, None, None]).expand_as(x)
    assert torch.equal(x[padding], u[padding])
    noisy = torch.where(padding, u + 10, u)
    close(
        sample_guided(made, noisy, context, 0 * context, weight=1.0, lengths=lengths)[~padding], x[~padding]
    )


def test_guidance_refuses_what_does_not_fit_and_names_it():
    made = stack(context=3)
    u, context, none = torch.zeros(4, 2, 4).double(), torch.zeros(4, 3).double(), torch.zeros(3).double()
    with pytest.raises(ShapeError, match=r"`Chain` needs a context ending in \(3,\); got none"):
        sample_guided(made, u, None, none, weight=1.0)
    with pytest.raises(DataError, match=r"`unconditional` must be a tensor ending in \(3,\); got a NoneType"):
        sample_guided(made, u, context, None, weight=1.0)
    with pytest.raises(
        ShapeError, match=r"context and unconditional must broadcast .*; got \(4,\) and \(2,\)"
    ):
        sample_guided(made, u, context, torch.zeros(2, 3).double(), weight=1.0)
    with pytest.raises(
        ShapeError, match=r"`lengths` must be integers of the batch shape \(4,\).* got a list"
    ):
        sample_guided(made, u, context, none, weight=1.0, lengths=[1, 2, 3, 4])
    with pytest.raises(ShapeError, match=r"`lengths` must lie in 0 ... 4, .*; got 1 to 5"):
        sample_guided(made, u, context, none, weight=1.0, lengths=torch.tensor([1, 2, 3, 5]))
    assert sample_guided(made, u[None, :0], context[:0], none, weight=1.0).shape == (1, 0, 2, 4)


def test_one_noise_is_guided_by_many_contexts_and_lengths():
    made = Chain([ActNorm((2, 4)).double(), stack(context=3)])  # the first layer hears no context
    u, context, none = torch.randn(2, 4).double(), torch.randn(4, 3).double(), torch.zeros(3).double()
    lengths = torch.tensor([4, 3, 2, 0])
    x = sample_guided(made, u, context, none, weight=1.0, lengths=lengths)
    close(x, sample_guided(made, u.expand(4, 2, 4), context, none, weight=1.0, lengths=lengths))


def test_two_stacks_of_one_seed_are_equal():
    torch.manual_seed(3)
    one = tarflow((2, 4), width=8, heads=2)
    torch.manual_seed(3)
    other = tarflow((2, 4), width=8, heads=2)
    states = one.state_dict(), other.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    copied, u = copy.deepcopy(one), torch.randn(3, 2, 4)
    close(copied(u), one(u), 0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigurationError, match=r"one number, or 4 for the 4 blocks; got \(1, 2\)"):
        tarflow(8, depth=[1, 2])
    with pytest.raises(ConfigurationError, match="`num_blocks` must be a positive integer"):
        tarflow(8, num_blocks=0)
    with pytest.raises(ConfigurationError, match="`context_blocks` must be one of"):
        tarflow(8, context=2, context_blocks="first")
    with pytest.raises(CombinationError, match=r"needs two or more; .* is one"):
        tarflow(4, patch=4)
    u, context = torch.zeros(2, 2, 4).double(), torch.zeros(2, 3).double()
    with pytest.raises(CombinationError, match="Guidance needs a `TransformerAutoregressive` with a context"):
        sample_guided(stack(), u, context, context, weight=1.0)
    with pytest.raises(ConfigurationError, match="`blocks` must be one of"):
        sample_guided(stack(context=3), u, context, context, weight=1.0, blocks="some")
    with pytest.raises(ConfigurationError, match="`weight` of guidance"):
        sample_guided(stack(context=3), u, context, context, weight=-1.0)


@pytest.mark.parametrize("blocks", ["all", "deep"])
def test_guidance_reaches_into_chains_of_chains(blocks):
    made, u = stack((2, 6), context=3, patch=2), torch.randn(5, 2, 6).double()
    context, none = torch.randn(5, 3).double(), torch.zeros(3).double()
    first, second, *rest = made.members
    nested = Chain([Chain([first, Chain([second])]), Chain(rest)])
    for lengths in (None, torch.tensor([6, 4, 3, 2, 0])):
        settings = {"weight": 2.0, "blocks": blocks, "lengths": lengths}
        x = sample_guided(made, u, context, none, **settings)
        close(sample_guided(nested, u, context, none, **settings), x, 0)
        plain = sample_guided(nested, u, context, none, **(settings | {"weight": 0.0}))
        close(plain, nested(u, context, lengths=lengths)[0])
        assert (x - plain).abs().max() > 1e-3


def test_a_layer_that_guidance_cannot_reach_is_refused():
    made, u = stack(context=3), torch.zeros(2, 2, 4).double()
    hidden = Chain([made, Inverse(layers(stack(context=3))[0])])
    with pytest.raises(CombinationError, match=r"got 1 of 4 inside something else, such as an `Inverse`"):
        sample_guided(hidden, u, torch.zeros(2, 3).double(), torch.zeros(3).double(), weight=1.0)
