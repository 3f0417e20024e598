"""Events are cut into tokens in the stated order, and put together again."""

import re

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.networks.tokens import cut, join, num_tokens


@pytest.mark.parametrize(
    ("shape", "patch", "tokens"),
    [((6,), 3, 2), ((6,), 1, 6), ((2, 6), 2, 3), ((3, 4), 1, 4), ((3, 4, 6), 2, 6), ((1, 2, 2), 1, 4)],
)
def test_tokens_hold_every_entry_once_and_join_undoes_cut(shape, patch, tokens):
    value = torch.arange(2 * 5 * torch.Size(shape).numel()).view(2, 5, *shape)
    pieces = cut(value, patch, shape)
    assert pieces.shape == (2, 5, tokens, value[0, 0].numel() // tokens)
    assert num_tokens(shape, patch) == tokens
    assert torch.equal(pieces.flatten(2).sort().values, value.flatten(2))
    assert torch.equal(join(pieces, patch, shape), value)


def test_a_token_is_a_run_of_entries_a_run_of_frames_or_a_square():
    vector, sequence, image = (torch.randn(shape) for shape in ((6,), (2, 6), (3, 4, 6)))
    assert torch.equal(cut(vector, 3, (6,))[1], vector[3:])
    assert torch.equal(cut(sequence, 2, (2, 6))[1], sequence[:, 2:4].flatten())
    squares = cut(image, 2, (3, 4, 6))
    assert torch.equal(squares[1], image[:, :2, 2:4].flatten())  # raster order: to the right first
    assert torch.equal(squares[3], image[:, 2:, :2].flatten())


@pytest.mark.parametrize(("shape", "patch"), [((4,), 4), ((1,), 1), ((3, 2), 2), ((3, 2, 2), 2)])
def test_one_token_is_refused(shape, patch):
    with pytest.raises(
        CombinationError, match=re.escape(f"needs two or more; {shape} with `patch` {patch} is one")
    ):
        num_tokens(shape, patch)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match=r"`patch` must divide every axis of \(4, 6\); got 4"):
        num_tokens((3, 4, 6), 4)
    with pytest.raises(ConfigurationError, match="`patch` must be a positive integer; got 0"):
        num_tokens((4,), 0)
    with pytest.raises(CombinationError, match=r"must be \(D,\), \(C, T\) or \(C, H, W\)"):
        num_tokens((1, 2, 2, 2), 1)
