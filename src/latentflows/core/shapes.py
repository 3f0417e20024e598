"""Shape arithmetic: values are `(*sample, *batch, *event)`; batch axes broadcast right-aligned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentflows.core.errors import ShapeError

Shape = tuple[int, ...]


def as_shape(size: int | Shape, name: str = "shape") -> Shape:
    """Return `size` as a shape of positive integers; an integer D means (D,).

    Raises:
        ShapeError: if any entry is not a positive integer.
    """
    shape = (size,) if isinstance(size, int) else tuple(size)
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
    """
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


def size(shape: Shape) -> int:
    """Return the number of elements of `shape`."""
    return math.prod(shape)
