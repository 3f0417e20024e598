"""The masks of the ambiguous shapes are the rule's, and come with the probabilities that are stated."""

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.data import MaskSplit, ambiguous_shapes
from latentflows.data.ambiguous_shapes import PROBABILITIES

DATA = ambiguous_shapes(300, 20, 10, size=16, seed=3)


def test_masks_are_the_level_sets_of_the_picture_without_its_noise():
    split = DATA.train
    sizes = split.masks.flatten(2).sum(-1).int()
    assert (sizes[:, 0] == 0).all()
    assert (sizes[:, 1:].diff(dim=1) > 0).all()
    levels = torch.tensor([1.5, 0.0, -1.5]).sigmoid()
    level_sets = split.pictures.unsqueeze(1) >= levels.view(1, 3, 1, 1, 1)
    assert (level_sets == split.masks[:, 1:].bool()).float().mean() > 0.99
    edges = torch.cat([split.masks[..., 0, :].flatten(), split.masks[..., 0].flatten()])
    assert not edges.any()


def test_both_shapes_come_with_their_probabilities():
    rows = {tuple(row) for row in DATA.train.probabilities.tolist()}
    assert rows == set(PROBABILITIES)
    share = (DATA.train.probabilities[:, 0] < 0.2).double().mean()
    assert abs(share - 0.5) < 5 * 0.5 / 300**0.5


def test_batches_draw_each_mask_as_often_as_its_probability_says():
    split = DATA.test
    index = torch.arange(4000) % len(split)
    with noise.stream(1):
        x, context = split.batch(index)
    assert torch.equal(context, split.pictures[index])
    same = (x.unsqueeze(1) == split.masks[index]).flatten(2).all(-1).double()
    assert (same.sum(1) == 1).all()
    for kind in PROBABILITIES:
        expected = torch.tensor(kind, dtype=torch.float64)
        rows = (split.probabilities[index] == expected).all(1)
        error = (same[rows].mean(0) - expected) / (expected * (1 - expected) / rows.sum()).sqrt()
        assert error.abs().max() < 5
    with noise.stream(1):
        assert torch.equal(split.batch(index).x, x)


def test_entropy_is_that_of_the_masks():
    expected = -sum(p * torch.tensor(p).log() for p in PROBABILITIES[0])
    torch.testing.assert_close(DATA.test.entropy(), expected.double().expand(10), rtol=1e-6, atol=0)
    certain = MaskSplit(torch.zeros(1, 1, 2, 2), torch.tensor([0, 1]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 2, 2),
                        torch.tensor([[0.0, 1.0]]))  # fmt: skip
    assert certain.entropy() == 0


def test_a_seed_draws_the_same_pictures_whatever_the_sizes_of_other_splits():
    again = ambiguous_shapes(5, 20, 10, size=16, seed=3)
    assert torch.equal(again.test.pictures, DATA.test.pictures)
    assert not torch.equal(ambiguous_shapes(5, 20, 10, seed=4).test.pictures, DATA.test.pictures)
    assert torch.equal(DATA.test.to("cpu").masks, DATA.test.masks)


@pytest.mark.parametrize("size", [12, 16, 31])
def test_masks_of_a_picture_differ_at_every_size(size):
    masks = ambiguous_shapes(500, 1, 1, size=size).train.masks.flatten(2).int()
    assert (masks.sum(-1).diff(dim=1) > 0).all()


def test_what_is_no_segmentation_is_refused():
    picture, masks, p = torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 1, 2, 2), torch.full((2, 2), 0.5)
    masks[:, 1] = 1
    MaskSplit(picture, masks, p)
    with pytest.raises(ShapeError, match="Expected pictures"):
        MaskSplit(picture, masks[:1], p)
    with pytest.raises(DataError, match="0 and 1 alone"):
        MaskSplit(picture, masks / 2, p)
    with pytest.raises(DataError, match="sum to 1"):
        MaskSplit(picture, masks, p / 2)
    with pytest.raises(DataError, match="Masks 0 and 1 of a picture are alike"):
        MaskSplit(picture, torch.zeros_like(masks), p)
    for numbers, size in (((0, 1, 1), 16), ((1, 1, 1), 8)):
        with pytest.raises(ConfigurationError, match="`size` at least 12"):
            ambiguous_shapes(*numbers, size=size)
