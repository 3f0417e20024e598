"""Events cut into tokens and put together again; they only move numbers."""

from __future__ import annotations

from torch import Tensor

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.core.shapes import Shape, size
from latentflows.networks.base import check_sizes


def num_tokens(event_shape: Shape, patch: int) -> int:
    """Return how many tokens of side `patch` an event (D,), (C, T) or (C, H, W) has, two or more.

    Raises:
        ConfigurationError: if `patch` does not divide an axis.
        CombinationError: for more than three axes, or fewer than two tokens.
    """
    check_sizes(patch=patch)
    space = event_shape if len(event_shape) == 1 else event_shape[1:]
    if len(space) > 2:
        raise CombinationError(f"`event_shape` must be (D,), (C, T) or (C, H, W); got {event_shape}.")
    if any(length % patch for length in space):
        raise ConfigurationError(f"`patch` must divide every axis of {space}; got {patch}.")
    tokens = size(tuple(length // patch for length in space))
    if tokens < 2:
        raise CombinationError(
            f"An autoregressive flow over tokens needs two or more; {event_shape} with `patch` {patch} is one, which "
            "could depend on nothing. Take a smaller `patch`, or another bijection."
        )
    return tokens


def cut(value: Tensor, patch: int, shape: Shape) -> Tensor:
    """Cut a vector into runs of `patch` entries, a sequence of frames, an image into squares in raster order.

    Shape:
        value: (*batch, *shape), shape (D,), (C, T) or (C, H, W); output: (*batch, tokens, entries of a token).
    """
    lead = value.shape[: value.ndim - len(shape)]
    channels, *space = shape if len(shape) > 1 else (1, *shape)
    if len(space) == 1:
        return value.reshape(*lead, channels, space[0] // patch, patch).movedim(-2, -3).flatten(-2)
    height, width = (length // patch for length in space)
    value = value.reshape(*lead, channels, height, patch, width, patch)
    return value.movedim((-4, -2), (-5, -4)).flatten(-5, -4).flatten(-3)


def join(tokens: Tensor, patch: int, shape: Shape) -> Tensor:
    """Put the tokens that `cut` made together again: (*batch, tokens, entries) -> (*batch, *shape)."""
    lead = tokens.shape[:-2]
    channels, *space = shape if len(shape) > 1 else (1, *shape)
    if len(space) == 1:
        pieces = tokens.reshape(*lead, space[0] // patch, channels, patch).movedim(-3, -2)
    else:
        height, width = (length // patch for length in space)
        pieces = tokens.reshape(*lead, height, width, channels, patch, patch).movedim((-5, -4), (-4, -2))
    return pieces.reshape(*lead, *shape).contiguous()
