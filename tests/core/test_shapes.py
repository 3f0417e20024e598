"""Shape arithmetic and its messages."""

import re

import pytest
import torch

from latentflows.core.errors import DataError, ShapeError
from latentflows.core.shapes import (
    as_shape,
    batch_shape,
    broadcast_shape,
    check_context,
    join,
    joined_shape,
    size,
    sum_event,
)


@pytest.mark.parametrize(("given", "expected"), [(3, (3,)), ((2, 3), (2, 3)), ([4, 1], (4, 1)), ((), ())])
def test_as_shape(given, expected):
    assert as_shape(given) == expected


@pytest.mark.parametrize("bad", [0, -1, (2, 0), (1.5,), ("3",), 3.0, None])
def test_as_shape_refuses_what_is_not_positive_integers(bad):
    with pytest.raises(ShapeError, match=r"`latent` must hold positive integers; got \("):
        as_shape(bad, "latent")


@pytest.mark.parametrize(
    ("shape", "event", "expected"),
    [((2, 3, 4), (4,), (2, 3)), ((2, 3, 4), (3, 4), (2,)), ((4,), (4,), ()), ((2,), (), (2,))],
)
def test_batch_shape_is_what_stands_in_front(shape, event, expected):
    assert batch_shape(torch.zeros(shape), event, "x") == expected


@pytest.mark.parametrize(("shape", "event"), [((2, 3), (4,)), ((3,), (2, 3)), ((), (1,))])
def test_batch_shape_names_expected_and_got(shape, event):
    with pytest.raises(ShapeError, match=re.escape(f"`x` must end in {event}; got shape {shape}")):
        batch_shape(torch.zeros(shape), event, "x")


def test_contexts_are_wanted_or_not():
    check_context(None, None, "Part")
    check_context(torch.zeros(2, 3), (3,), "Part")
    with pytest.raises(ShapeError, match=re.escape("`Part` takes no context; got one of shape (2, 3)")):
        check_context(torch.zeros(2, 3), None, "Part")
    with pytest.raises(ShapeError, match=re.escape("`Part` needs a context ending in (3,); got none")):
        check_context(None, (3,), "Part")
    with pytest.raises(ShapeError, match=re.escape("`context` must end in (4,); got shape (2, 3)")):
        check_context(torch.zeros(2, 3), (4,), "Part")
    for shape in (None, (2,)):
        with pytest.raises(DataError, match="The context of `Part` must be a tensor; got a list"):
            check_context([1.0, 2.0], shape, "Part")  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_sum_event_sums_the_last_axes(axes):
    x = torch.randn(2, 3, 4)
    expected = x.sum(tuple(range(3 - axes, 3))) if axes else x
    torch.testing.assert_close(sum_event(x, axes), expected)


def test_sum_event_sums_half_precision_in_float32():
    x = torch.ones(1, 1000, dtype=torch.bfloat16)
    assert sum_event(x, 1).dtype == torch.float32
    assert sum_event(x, 1) == 1000  # bfloat16 would lose the last digits


def test_broadcast_shape():
    assert broadcast_shape((2, 1), (3,), "x") == (2, 3)
    with pytest.raises(
        ShapeError, match=re.escape("Batch shapes of x must broadcast from the right; got (2,) and (3,)")
    ):
        broadcast_shape((2,), (3,), "x")


def test_size_multiplies():
    assert size((2, 3, 4)) == 24
    assert size(()) == 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((3,), (2,), (5,)),
        ((1, 4, 5), (2,), (3, 4, 5)),
        ((2,), (1, 4, 5), (3, 4, 5)),
        ((1, 4, 5), (3, 4, 5), (4, 4, 5)),
        ((2, 7), (3,), (5, 7)),
    ],
)
def test_two_events_join_along_their_first_axis(first, second, expected):
    assert joined_shape(first, second) == expected
    a, b = torch.randn(4, 6, *first), torch.randn(6, *second)
    joined = join(a, b, first, second)
    assert joined.shape == (4, 6, *expected)
    spread = [
        value.reshape(*value.shape, *[1] * (len(expected) - len(shape))).expand(4, 6, shape[0], *expected[1:])
        for value, shape in ((a, first), (b, second))
    ]
    assert torch.equal(joined, torch.cat(spread, 2))


def test_maps_of_two_sizes_do_not_join():
    with pytest.raises(ShapeError, match="share a space"):
        joined_shape((1, 4, 4), (1, 8, 8))
    with pytest.raises(ShapeError, match="share a space"):
        joined_shape((1, 4, 4), (1, 4))
