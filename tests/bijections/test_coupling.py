"""Couplings: which part stays, which moves, and how far."""

import math
import re
from functools import partial

import pytest
import torch

from latentflows.bijections import (
    AdditiveCoupling,
    AffineCoupling,
    Chain,
    Coupling,
    SplineCoupling,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
    half_mask,
)
from latentflows.bijections.coupling import Cut
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.networks import MLP, CouplingConvolution, ResidualConvolution
from latentflows.transforms import Additive, Affine, RationalQuadraticSpline
from tests.bijections.cases import convolution, gated, mlp, randomize, residual, wavenet

MASKS = [
    [True, True, False],
    [False, False, True],
    [True, False, True],
    [False, True, True],
    [True, False, False],
]


@pytest.mark.parametrize("mask", MASKS)
def test_partition_cuts_by_the_mask_and_merges_back(mask):
    mask, value = torch.tensor(mask), torch.randn(4, 3, 2)
    partition = Cut(mask, (2,))
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


def test_masks_of_channels_and_checkerboards():
    assert channel_mask((3, 2), first=True).tolist() == [[True, True], [True, True], [False, False]]
    assert torch.equal(channel_mask((3, 2, 2), first=False), ~channel_mask((3, 2, 2), first=True))
    assert checkerboard_mask((2, 3), even=True).tolist() == [[True, False, True]] * 2
    board = checkerboard_mask((2, 2, 3), even=False)
    assert board.tolist() == [[[False, True, False], [True, False, True]]] * 2
    with pytest.raises(
        ConfigurationError, match=r"an image .* or a sequence .*; got \(4,\)\. Use `alternating"
    ):
        checkerboard_mask(4, even=True)


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


class Given(torch.nn.Module):
    """Returns what it was given, whatever comes in, and keeps what came in."""

    def __init__(self, out):
        super().__init__()
        self.out, self.seen = torch.nn.Parameter(out), None

    def forward(self, x, *rest):
        self.seen = (x, *rest)
        return self.out.expand(len(x), *self.out.shape)


def test_the_output_of_a_network_is_parameter_major():
    shift, scale = torch.tensor([1.0, 2.0]), torch.tensor([0.1, -0.2])
    mask = torch.tensor([False, True, False])
    made = AffineCoupling(3, mask=mask, network=lambda *_: Given(torch.cat([shift, scale])))
    x, log_det = made(torch.tensor([[3.0, 4.0, 5.0]]))
    log_scale = scale / (1 + scale.abs() / 3)
    moved = torch.tensor([3.0, 5.0]) * log_scale.exp() + shift
    torch.testing.assert_close(x[0], torch.stack([moved[0], torch.tensor(4.0), moved[1]]))
    torch.testing.assert_close(log_det[0], log_scale.sum())


def test_channels_are_parameter_major_too_and_the_network_keeps_the_space():
    raw = torch.randn(2 * 2, 5)  # two channels move
    made = AffineCoupling(
        (3, 5), mask=channel_mask((3, 5), first=False), network=lambda *_: Given(raw), layout="channels"
    )
    u = torch.randn(2, 3, 5)
    x, log_det = made(u)
    log_scale = raw[2:] / (1 + raw[2:].abs() / 3)
    torch.testing.assert_close(made.network.seen[0], u[:, 2:])
    torch.testing.assert_close(x, torch.cat([u[:, :2] * log_scale.exp() + raw[:2], u[:, 2:]], 1))
    torch.testing.assert_close(log_det, log_scale.sum().expand(2))


def test_masked_networks_see_zeros_where_entries_move():
    mask = checkerboard_mask((1, 2, 2), even=True)
    made = AffineCoupling(
        (1, 2, 2), mask=mask, network=lambda *_: Given(torch.ones(2, 2, 2)), layout="masked"
    )
    made(torch.full((3, 1, 2, 2), 7.0))
    assert torch.equal(made.network.seen[0], 7.0 * mask.expand(3, 1, 2, 2))


def test_split_and_masked_layouts_agree_where_a_dense_network_reads_and_gives_the_same():
    mask = half_mask(4, first=True)
    split = AffineCoupling(4, mask=mask, network=mlp)
    masked = AffineCoupling(4, mask=mask, network=mlp, layout="masked")
    randomize(split, 1.0)
    randomize(masked, 1.0)
    with torch.no_grad():
        small, large = split.network, masked.network
        large.hidden.load_state_dict(small.hidden.state_dict())
        large.first.weight[:, :2], large.first.bias[:] = small.first.weight, small.first.bias
        rows = torch.tensor([2, 3, 6, 7])  # the moving entries' shifts, then their log-scales
        large.last.linear.weight[rows] = small.last.linear.weight
        large.last.linear.bias[rows] = small.last.linear.bias
    u = torch.randn(6, 4)
    torch.testing.assert_close(masked(u), split(u))
    torch.testing.assert_close(masked.inverse(u), split.inverse(u))


def test_half_precision_of_a_network_ends_where_the_transform_begins():
    raw = torch.randn(4).bfloat16()
    low, high = (
        AffineCoupling(4, mask=half_mask(4, first=True), network=lambda *_, out=out: Given(out))
        for out in (raw, raw.float())
    )
    u = torch.randn(5, 4)
    torch.testing.assert_close(low(u), high(u), rtol=0, atol=0)
    assert low(u)[1].dtype == torch.float32


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("transform", [Affine(), RationalQuadraticSpline(3)], ids=["affine", "spline"])
def test_what_overflows_at_a_staying_entry_reaches_neither_value_nor_gradient(bad, transform):
    raw = torch.zeros(transform.size, 2)
    raw[:, 0] = bad  # the entry that stays
    made = Coupling(
        2,
        mask=torch.tensor([True, False]),
        network=lambda *_: Given(raw.flatten()),
        transform=transform,
        layout="masked",
    )
    u = torch.tensor([[0.5, -0.5]], requires_grad=True)
    for out, log_det in (made(u), made.inverse(u)):
        assert out[0, 0] == 0.5
        torch.testing.assert_close(out, u)
        weights = made.network.out
        gradients = torch.autograd.grad(out.sum() + log_det.sum(), (u, weights))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert gradients[1].any()


def test_networks_without_a_context_are_called_with_one_argument():
    made = AffineCoupling(4, mask=half_mask(4, first=True), network=lambda *_: torch.nn.Linear(2, 4))
    assert made(torch.zeros(3, 4))[0].shape == (3, 4)


def test_a_network_of_another_output_shape_is_refused():
    made = AffineCoupling(4, mask=half_mask(4, first=True), network=lambda *_: torch.nn.Linear(2, 3))
    with pytest.raises(
        ShapeError, match=r"network of `AffineCoupling` must give \(N, \*\(4,\)\).*got \(3, 3\)"
    ):
        made(torch.zeros(3, 4))


def test_channels_need_a_mask_that_is_the_same_everywhere():
    board = checkerboard_mask((2, 2, 2), even=True)
    with pytest.raises(ConfigurationError, match=r"varies over \(2, 2\)\. Use layout 'masked'"):
        AffineCoupling((2, 2, 2), mask=board, network=convolution, layout="channels")


def test_an_unknown_layout_is_refused():
    with pytest.raises(ConfigurationError, match=r"`layout` must be 'split', .*; got 'halves'"):
        AffineCoupling(2, mask=half_mask(2, first=True), network=mlp, layout="halves")


def test_convolutions_without_space_are_refused_with_the_layout_to_use():
    mask = channel_mask((2, 2, 2), first=True)
    with pytest.raises(ConfigurationError, match=r"got \(4,\)\..*layout 'channels' or 'masked'"):
        AffineCoupling((2, 2, 2), mask=mask, network=convolution)


def test_settings_of_the_transform_reach_it():
    made = SplineCoupling(2, mask=half_mask(2, first=True), network=mlp, num_bins=5, bound=2.5)
    assert made.transform == RationalQuadraticSpline(5, 2.5)


# Contexts


@pytest.mark.parametrize("layout", ["channels", "masked"])
@pytest.mark.parametrize(
    ("event", "context", "network"),
    [((2, 4), (3, 4), wavenet), ((2, 4), (3, 4), convolution), ((2, 3, 4), (1, 3, 4), convolution)],
)
def test_maps_of_context_stay_maps_and_are_heard_position_by_position(event, context, network, layout):
    mask = channel_mask(event, first=True)
    made = AffineCoupling(event, mask=mask, network=network, layout=layout, context_shape=context).double()
    randomize(made, 0.5)
    u, h = torch.randn(5, 3, *event).double(), torch.randn(3, *context).double()
    x, log_det = made(u, h)
    repeated, again = made(u.flatten(0, 1), h.repeat(5, *[1] * len(context)))
    torch.testing.assert_close(x.flatten(0, 1), repeated)
    torch.testing.assert_close(log_det.flatten(), again)
    torch.testing.assert_close(made.inverse(x, h)[0], u)
    changed = h.clone()
    changed[..., -1] += 1.0
    moved = (made(u, changed)[0] != x).flatten(0, -2).any(0)
    assert moved[-1]


@pytest.mark.parametrize("network", [mlp, gated, residual], ids=["mlp", "gated", "residual"])
def test_dense_networks_flatten_a_map_of_context(network):
    mask = half_mask((2, 4), first=True)
    made = AffineCoupling((2, 4), mask=mask, network=network, context_shape=(3, 4))
    flat = AffineCoupling((2, 4), mask=mask, network=network, context_shape=12)
    randomize(made, 1.0)
    flat.load_state_dict(made.state_dict())
    u, h = torch.randn(3, 2, 4), torch.randn(3, 3, 4)
    torch.testing.assert_close(made(u, h), flat(u, h.flatten(1)))


@pytest.mark.parametrize("network", [wavenet, convolution])
def test_a_context_over_another_space_is_refused(network):
    with pytest.raises(ConfigurationError, match=r"a map over the same space \(4,\); got shape \(3, 8\)"):
        AffineCoupling(
            (2, 4),
            mask=channel_mask((2, 4), first=True),
            network=network,
            layout="channels",
            context_shape=(3, 8),
        )


# Padded sequences


def residual_convolution(in_shape, out_shape, context):
    return ResidualConvolution(in_shape, out_shape, width=4, num_blocks=2, context=context)


def sequence(kind, network, layout, frames, context=None, **settings):
    shape = (4, frames)
    mask = channel_mask(shape, first=False) if layout == "channels" else checkerboard_mask(shape, even=True)
    made = kind(shape, mask=mask, network=network, layout=layout, context_shape=context, **settings).double()
    assert made.variable_lengths
    return made


SEQUENCES = pytest.mark.parametrize(
    ("kind", "network", "layout"),
    [
        (AffineCoupling, wavenet, "channels"),
        (AffineCoupling, wavenet, "masked"),
        (AdditiveCoupling, wavenet, "channels"),
        (SplineCoupling, wavenet, "channels"),
        (AffineCoupling, convolution, "channels"),
        (SplineCoupling, residual_convolution, "masked"),
    ],
)


@SEQUENCES
@pytest.mark.parametrize("per_frame", [None, False, True], ids=["alone", "vector", "map"])
def test_extra_padding_changes_nothing(kind, network, layout, per_frame):
    def context(frames):
        return None if per_frame is None else (3, frames) if per_frame else (3,)

    short, long = (sequence(kind, network, layout, frames, context(frames)) for frames in (5, 9))
    randomize(short, 0.5)
    long.network.load_state_dict(short.network.state_dict())
    u, v = torch.randn(2, 3, 4, 5).double(), 100 * torch.randn(2, 3, 4, 9).double()
    v[..., :5] = u
    h, g = (None if per_frame is None else torch.randn(3, *context(n)).double() for n in (5, 9))
    if per_frame:
        g[..., :5] = h
    elif per_frame is False:
        g = h
    lengths = torch.tensor([5, 3, 1])
    for direction in ("forward", "inverse"):
        x, log_det = getattr(short, direction)(u, h, lengths=lengths)
        y, again = getattr(long, direction)(v, g, lengths=lengths)
        for row, count in enumerate(lengths):
            torch.testing.assert_close(y[:, row, :, :count], x[:, row, :, :count])
            assert torch.equal(x[:, row, :, count:], u[:, row, :, count:])
            assert torch.equal(y[:, row, :, count:], v[:, row, :, count:])
        torch.testing.assert_close(again, log_det)


@SEQUENCES
def test_a_padded_sequence_is_the_shorter_one_with_its_own_log_det(kind, network, layout):
    padded, plain = sequence(kind, network, layout, 6), sequence(kind, network, layout, 4)
    randomize(padded, 0.5)
    plain.network.load_state_dict(padded.network.state_dict())
    u = torch.randn(4, 6).double()
    x, log_det = padded(u, lengths=torch.tensor(4))
    y, expected = plain(u[:, :4])
    torch.testing.assert_close(x[:, :4], y)
    torch.testing.assert_close(log_det, expected)
    whole = padded(u, lengths=torch.tensor(6))
    torch.testing.assert_close(whole, padded(u))
    back, opposite = padded.inverse(x, lengths=torch.tensor(4))
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(opposite, -log_det)


def test_gradients_of_padding_are_those_of_the_identity():
    made = sequence(AffineCoupling, wavenet, "channels", 5)
    randomize(made, 1.0)
    u = torch.randn(4, 5).double().requires_grad_()
    x, log_det = made(u, lengths=torch.tensor(2))
    (x[:, :2].sum() + log_det).backward()
    assert not u.grad[:, 2:].any()
    assert u.grad[:, :2].all()


@SEQUENCES
def test_padding_that_is_not_finite_stays_where_it_is(kind, network, layout):
    made = sequence(kind, network, layout, 5)
    randomize(made, 1.0)
    u, valid = torch.randn(1, 2, 4, 5).double(), (torch.arange(5) < 3).expand(1, 2, 5)
    x, log_det = made._forward(u, None, valid)  # the hook, as a chain calls it: nobody looks at values there
    u[:, 0, :, 3:], u[:, 1, :, 3:] = math.inf, math.nan
    y, again = made._forward(u, None, valid)
    torch.testing.assert_close(y[..., :3], x[..., :3])
    torch.testing.assert_close(again, log_det)
    torch.testing.assert_close(y[..., 3:], u[..., 3:], equal_nan=True)


def test_lengths_pass_through_a_chain_of_couplings():
    layers = [
        AffineCoupling(
            (4, 6), mask=channel_mask((4, 6), first=i == 0), network=wavenet, layout="channels"
        ).double()
        for i in range(2)
    ]
    chain, u, lengths = Chain(layers), torch.randn(3, 4, 6).double(), torch.tensor([6, 2, 4])
    randomize(chain, 0.5)
    x, log_det = chain(u, lengths=lengths)
    middle, one = layers[0](u, lengths=lengths)
    last, two = layers[1](middle, lengths=lengths)
    torch.testing.assert_close(x, last)
    torch.testing.assert_close(log_det, one + two)


@pytest.mark.parametrize("layout", ["split", "channels", "masked"])
def test_a_network_that_cannot_mask_takes_no_lengths(layout):
    def network(in_shape, out_shape, context):
        return MLP(in_shape, out_shape, width=4, depth=1)

    made = AffineCoupling((2, 4), mask=channel_mask((2, 4), first=True), network=network, layout=layout)
    assert not made.variable_lengths
    with pytest.raises(ShapeError, match=r"`AffineCoupling` takes no `lengths`.*network such as `WaveNet`"):
        made(torch.zeros(3, 2, 4), lengths=torch.tensor([1, 2, 3]))


def test_an_image_takes_no_lengths():
    def network(in_shape, out_shape, context):
        return CouplingConvolution(in_shape, out_shape, width=4)

    mask = channel_mask((2, 2, 4), first=True)
    assert not AffineCoupling((2, 2, 4), mask=mask, network=network, layout="channels").variable_lengths


def test_a_class_is_no_transform_and_a_list_no_mask():
    with pytest.raises(ConfigurationError, match=r"got the class. Write `Additive\(\)`"):
        Coupling(2, mask=half_mask(2, first=True), network=MLP, transform=Additive)
    with pytest.raises(
        ConfigurationError, match=r"`mask` must be a boolean tensor .*\(2,\); got list. Write"
    ):
        Coupling(2, mask=[True, False], network=MLP, transform=Additive())


def test_the_refusal_of_a_large_mask_is_short():
    with pytest.raises(
        ConfigurationError, match=r"got shape \(3, 32, 32\) with 3072 of 3072 that stay"
    ) as caught:
        AffineCoupling((3, 32, 32), mask=torch.ones(3, 32, 32, dtype=torch.bool), network=MLP)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("wrong", [MLP, partial(MLP, width=8), MLP(3, 3, width=8, depth=1)], ids=str)
def test_a_network_in_place_of_its_maker_is_refused(wrong):
    """`MLP` takes what it makes by name; called as a maker it would say that it takes three arguments."""
    with pytest.raises(
        ConfigurationError, match=r"must be a function that makes a network .* Write one, such as"
    ):
        AffineCoupling(5, mask=half_mask(5, first=True), network=wrong)


def test_a_loaded_mask_takes_effect_whichever_the_layer_was_built_with():
    masks = [half_mask(6, first=True), half_mask(6, first=False), alternating_mask(6, even=True)]
    couplings = [AffineCoupling(6, mask=mask, network=mlp) for mask in masks]
    x = torch.randn(5, 6)
    for saved in couplings:
        randomize(saved, 1.0)
    for saved in couplings:
        for mask in masks:
            made = AffineCoupling(6, mask=mask, network=mlp)
            made.load_state_dict(saved.state_dict())
            torch.testing.assert_close(made(x), saved(x), rtol=0, atol=0)
