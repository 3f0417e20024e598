"""Shape arithmetic: values are `(*sample, *batch, *event)`; batch axes broadcast right-aligned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentflows.core.errors import DataError, ShapeError

Shape = tuple[int, ...]


def as_shape(size: int | Shape, name: str = "shape") -> Shape:
    """Return `size` as a shape of positive integers; an integer D means (D,).

    Raises:
        ShapeError: if any entry is not a positive integer.
    """
    shape = tuple(size) if isinstance(size, Sequence) else (size,)
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise ShapeError(f"`{name}` must hold positive integers; got {shape}.")
    return shape


def batch_shape(value: Tensor, event_shape: Shape, name: str) -> Shape:
    """Return the axes of `value` in front of `event_shape`.

    Raises:
        ShapeError: if `value` does not end in `event_shape`.
    """
    axes = value.ndim - len(event_shape)
    if axes < 0 or value.shape[axes:] != event_shape:
        raise ShapeError(
            f"`{name}` must end in {event_shape}; got shape {tuple(value.shape)}. "
            "Values are laid out as (*sample, *batch, *event)."
        )
    return tuple(value.shape[:axes])


def check_context(context: Tensor | None, context_shape: Shape | None, owner: str) -> None:
    """Refuse a context that is missing, not wanted, or of the wrong shape.

    Raises:
        ShapeError: naming the expected and the given shape.
        DataError: for what is no tensor.
    """
    if context is not None and not isinstance(context, Tensor):
        kind = type(context).__name__
        raise DataError(f"The context of `{owner}` must be a tensor; got a {kind}. Use `torch.as_tensor`.")
    if context_shape is None:
        if context is not None:
            raise ShapeError(
                f"`{owner}` takes no context; got one of shape {tuple(context.shape)}. "
                "Build it with a context shape, or call it without a context."
            )
    elif context is None:
        raise ShapeError(f"`{owner}` needs a context ending in {context_shape}; got none.")
    else:
        batch_shape(context, context_shape, "context")


def sum_event(value: Tensor, event_ndim: int) -> Tensor:
    """Sum over the last `event_ndim` axes, at least in float32."""
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    return value.flatten(-event_ndim).sum(-1) if event_ndim > 1 else value.sum(-1) if event_ndim else value


def broadcast_shape(first: Shape, second: Shape, what: str) -> Shape:
    """Return the right-aligned broadcast of two batch shapes.

    Raises:
        ShapeError: if they do not broadcast.
    """
    try:
        return tuple(torch.broadcast_shapes(first, second))
    except RuntimeError:
        raise ShapeError(
            f"Batch shapes of {what} must broadcast from the right; got {first} and {second}. "
            "With K samples of B points use (K, B) for values and (B,) for the context."
        ) from None


def joined_shape(first: Shape, second: Shape) -> Shape:
    """Return the shape of `join` of two events of these shapes.

    Raises:
        ShapeError: if both are maps with different spaces.
    """
    space = first[1:] if len(first) >= len(second) else second[1:]
    if any(shape[1:] not in ((), space) for shape in (first, second)):
        raise ShapeError(
            f"Two maps join along their channels where they share a space; got {first} and {second}. "
            "Bring both to one size."
        )
    return (first[0] + second[0], *space)


def join(first: Tensor, second: Tensor, first_shape: Shape, second_shape: Shape) -> Tensor:
    """Concatenate two events along their first axis; beside a map, a vector becomes constant channels.

    Args:
        first: (*sample, *batch, *first_shape).
        second: (*batch, *second_shape); batch axes broadcast from the right.
        first_shape: Shape of one event of `first`.
        second_shape: Shape of one event of `second`.

    Returns:
        (*sample, *batch, *joined_shape(first_shape, second_shape)).
    """
    space = joined_shape(first_shape, second_shape)[1:]
    parts = [(first, first_shape), (second, second_shape)]
    batches = [tuple(value.shape[: value.ndim - len(shape)]) for value, shape in parts]
    batch = broadcast_shape(batches[0], batches[1], "the two values to join")
    spread = [
        value.reshape(*value.shape, *[1] * (1 + len(space) - len(shape))).expand(*batch, shape[0], *space)
        for value, shape in parts
    ]
    return torch.cat(spread, -1 - len(space))


def size(shape: Shape) -> int:
    """Return the number of elements of `shape`."""
    return math.prod(shape)
