"""What the base does with `lengths` of padded sequences and with values that are not finite."""

import re

import pytest
import torch

from latentflows.bijections import ActNorm, Bijection, Chain, Inverse, Permutation
from latentflows.bijections.base import fit_frames
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import NonFiniteError, ShapeError


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


def test_a_layer_that_cannot_leave_padding_refuses_lengths():
    chain = Chain([FrameShift(2, 5), Permutation.reversal((2, 5))])
    with pytest.raises(ShapeError, match="`Chain` takes no `lengths`: it cannot leave padding untouched"):
        chain(torch.zeros(3, 2, 5), lengths=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("lengths", [torch.ones(3), torch.ones(2, dtype=torch.long)])
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
