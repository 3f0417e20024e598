"""What the base does with `lengths` of padded sequences and with values that are not finite."""

import re

import pytest
import torch

from latentflows.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Elementwise,
    HeightAutoregressive,
    Inverse,
    LULinear,
    Permutation,
    Split,
    Squeeze,
    TriangularLinear,
)
from latentflows.bijections.inputs import fit_frames
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import DataError, NonFiniteError, ShapeError
from latentflows.testing import check_bijection, randomize
from latentflows.transforms import Affine


class FrameShift(Bijection):
    """Add one to every frame that is no padding; it notes the mask it got."""

    variable_lengths = True

    def __init__(self, channels: int, frames: int):
        super().__init__((channels, frames), passes=(0, 0))

    def _forward(self, u, context, valid=None):
        self.seen = valid
        moved = u + 1 if valid is None else torch.where(valid.unsqueeze(-2), u + 1, u)
        return moved, u.new_zeros(())

    def _inverse(self, x, context, valid=None):
        self.seen = valid
        moved = x - 1 if valid is None else torch.where(valid.unsqueeze(-2), x - 1, x)
        return moved, x.new_zeros(())


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: Chain([b]), lambda b: Inverse(Inverse(b))])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_padding_is_told_to_every_layer(wrap, batch):
    layer = FrameShift(2, 5)
    bijection, lengths = wrap(layer), torch.tensor([0, 2, 5]) if batch else torch.tensor(2)
    u = torch.zeros(*batch, 2, 5)
    x, log_det = bijection(u, lengths=lengths)
    expected = (torch.arange(5) < lengths[..., None]).unsqueeze(-2).expand(u.shape).float()
    assert torch.equal(x, expected)
    assert torch.equal(bijection.inverse(x, lengths=lengths)[0], u)
    assert log_det.shape == batch
    assert layer.seen.ndim == 3


def test_a_coarse_frame_with_any_padding_is_padding():
    valid = torch.arange(6) < torch.tensor([[[5]], [[6]]])
    assert fit_frames(valid, 3).tolist() == [[[True, True, False]], [[True, True, True]]]
    assert fit_frames(valid, 6) is valid


def test_a_fine_frame_is_what_its_coarse_one_is():
    valid = torch.tensor([[[True, False]]])
    assert fit_frames(valid, 6).tolist() == [[[True, True, True, False, False, False]]]


COARSE = {
    "chain that squeezes last": lambda: Chain([LULinear((2, 8)), Inverse(Squeeze((2, 8)))]),
    "inverse of a chain that ends fine": lambda: Inverse(Chain([Squeeze((2, 8)), LULinear((2, 8))])),
    "inverse of a chain that starts coarse": lambda: Inverse(Chain([LULinear((4, 4)), Squeeze((2, 8))])),
}


@pytest.mark.parametrize("name", COARSE)
def test_lengths_count_frames_of_the_event_where_that_is_the_coarse_side(name):
    check_bijection(COARSE[name], scales=(0.7,))
    bijection, lengths = COARSE[name]().double(), torch.tensor([0, 1, 4])
    randomize(bijection, 0.7)
    x = torch.randn(3, *bijection.event_shape).double()
    _, log_det = bijection.inverse(x, lengths=lengths)
    torch.testing.assert_close(log_det, bijection.inverse(x)[1] * lengths / 4)


def test_a_layer_that_cannot_leave_padding_refuses_lengths():
    chain = Chain([FrameShift(2, 5), Permutation.reversal((2, 5))])
    with pytest.raises(
        ShapeError, match="`Permutation` takes no `lengths`: it cannot leave padding untouched"
    ):
        chain(torch.zeros(3, 2, 5), lengths=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    "lengths",
    [
        torch.ones(3),
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, dtype=torch.long),
        torch.ones(2, 3, dtype=torch.long),
        [1, 2, 3],
        2,
    ],
)
def test_lengths_are_integers_of_the_batch_shape(lengths):
    message = re.escape("`lengths` must be integers of the batch shape (3,), or of its last axes; got")
    with pytest.raises(ShapeError, match=message):
        FrameShift(2, 5)(torch.zeros(3, 2, 5), lengths=lengths)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_values_that_are_not_finite_are_named(bad, direction):
    layer, value = ActNorm(4).eval(), torch.zeros(3, 4)
    value[1, 2] = bad
    with pytest.raises(
        NonFiniteError, match=r"`ActNorm` expects finite values; got NaN or infinity in 1 of 3"
    ):
        getattr(layer, direction)(value)


def test_a_training_step_is_left_to_the_loop():
    with values_unchecked():
        assert ActNorm(4)(torch.full((4,), torch.nan))[0].isnan().all()
    with pytest.raises(NonFiniteError):
        ActNorm(4)(torch.full((4,), torch.nan))


def test_values_under_vmap_are_not_looked_at():
    layer = ActNorm(4).eval()
    assert torch.func.vmap(lambda v: layer(v)[0])(torch.ones(3, 4)).shape == (3, 4)


@pytest.mark.parametrize(("lengths", "got"), [([0, 6, 5], "got 0 to 6"), ([-1, 2, 5], "got -1 to 5")])
def test_lengths_beyond_the_frames_are_refused_where_values_are_looked_at(lengths, got):
    layer, u, lengths = FrameShift(2, 5), torch.zeros(3, 2, 5), torch.tensor(lengths)
    with pytest.raises(
        ShapeError, match=re.escape(f"`lengths` must lie in 0 ... 5, the frames of the event; {got}")
    ):
        layer(u, lengths=lengths)
    with values_unchecked():
        layer(u, lengths=lengths)


MASKING = {
    "actnorm": lambda: ActNorm((2, 4)),
    "lu": lambda: LULinear((2, 4)),
    "triangular": lambda: TriangularLinear((2, 4)),
    "height": lambda: HeightAutoregressive((2, 4), height=2, width=4, depth=1),
}


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", MASKING)
def test_junk_on_padding_reaches_no_value_and_no_gradient(name, direction, junk):
    layer, lengths = MASKING[name](), torch.tensor([2, 4])
    randomize(layer, 2.0)
    value, results = torch.randn(2, 2, 4), []
    dirty = value.clone()
    dirty[0, :, 2:] = junk
    for padded in (value, dirty):
        layer.zero_grad()
        with values_unchecked():
            out, log_det = getattr(layer, direction)(padded, lengths=lengths)
        (out[0, :, :2].sum() + out[1].sum() + log_det.sum()).backward()
        results.append((out[0, :, :2], log_det, *[p.grad.clone() for p in layer.parameters()]))
        torch.testing.assert_close(out[0, :, 2:], padded[0, :, 2:], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_values_are_floating_point_numbers(dtype):
    message = f"`ActNorm` expects floating-point values; got {dtype}. Use `.float()`"
    with pytest.raises(DataError, match=re.escape(message)):
        ActNorm(4)(torch.ones(3, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.long, torch.float64])
def test_a_context_takes_the_type_of_the_values(dtype):
    layer, u = Elementwise(4, Affine(), context_shape=2), torch.randn(3, 4)
    randomize(layer, 1.0)
    context = torch.tensor([[1, 2], [0, 1], [3, 0]])
    torch.testing.assert_close(layer(u, context.to(dtype)), layer(u, context.float()))


class NotingSqueeze(Squeeze):
    """A squeeze that notes the mask it got."""

    def _inverse(self, x, context, valid=None):
        self.seen = valid
        return super()._inverse(x, context, valid)


def test_a_layer_inside_an_inverse_gets_the_frames_of_its_own_event():
    layer = NotingSqueeze((2, 8))
    Inverse(layer)(torch.zeros(1, 2, 8), lengths=torch.tensor([3]))
    assert layer.seen.tolist() == [[[True] * 6 + [False] * 2]]


def test_the_layer_that_takes_no_lengths_is_named_however_deep_it_is():
    split = Split((4, 4), Chain([ActNorm((2, 4))]), network=None)
    flow = Chain([Chain([split, ActNorm((4, 4))]), Squeeze((2, 8))])
    with pytest.raises(ShapeError, match="`Split` takes no `lengths`: it cannot leave padding untouched"):
        flow(torch.zeros(2, 16), lengths=torch.tensor([4, 2]))
