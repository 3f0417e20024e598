"""What goes into a bijection: checked, brought to two batch axes, and masked where it is padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core.checks import all_finite
from latentflows.core.errors import DataError, NonFiniteError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, batch_shape, broadcast_shape, check_context, size


def checked(
    owner: str, value: Tensor, value_shape: Shape, context: Tensor | None, context_shape: Shape | None
) -> tuple[Tensor, Tensor | None, Shape]:
    """Return values (K, B, *event) and contexts (B, *context) as a bijection's hooks take them, and the batch shape.

    Half precision is promoted; a context of it is left to autocast where that is on.

    Raises:
        ShapeError: if a shape is not the declared one, or a context is missing or not wanted.
        DataError: for what is no tensor of floating-point values; a NonFiniteError for NaN or infinity, where
            `core.checks.all_finite` looks.
    """
    check_context(context, context_shape, owner)
    if not isinstance(value, Tensor):
        raise DataError(f"`{owner}` expects a tensor; got a {type(value).__name__}. Use `torch.as_tensor`.")
    if not value.is_floating_point():
        raise DataError(f"`{owner}` expects floating-point values; got {value.dtype}. Use `.float()`.")
    value = at_least_float32(value)
    if context is not None and not (
        context.dtype.itemsize == 2 and torch.is_autocast_enabled(context.device.type)
    ):
        context = context.to(value.dtype)
    value, context, batch = align(value, value_shape, context, context_shape)
    if not all_finite(value):
        raise _not_finite(owner, "values", value.flatten(0, 1))
    if context is not None and not all_finite(context):
        raise _not_finite(owner, "contexts", context)
    return value, context, batch


def both_contexts(
    owner: str, context: Tensor, unconditional: Tensor, shape: Shape | None
) -> tuple[Tensor, Tensor]:
    """Return the context and the one that stands for none with the batch axes of both.

    Raises:
        ShapeError: if one is missing or not of the declared shape, or batch axes do not broadcast.
        DataError: for what is no tensor.
    """
    check_context(context, shape, owner)
    assert shape is not None
    if not isinstance(unconditional, Tensor):
        raise DataError(
            f"`unconditional` must be a tensor ending in {shape}; got a {type(unconditional).__name__}. Give what "
            "stood for no context in training, such as the mean of all label embeddings."
        )
    batches = batch_shape(context, shape, "context"), batch_shape(unconditional, shape, "unconditional")
    batch = broadcast_shape(*batches, "context and unconditional")
    return context.expand(*batch, *shape), unconditional.expand(*batch, *shape)


def align(
    value: Tensor, value_shape: Shape, context: Tensor | None, context_shape: Shape | None
) -> tuple[Tensor, Tensor | None, Shape]:
    """Bring values to (K, B, *event) and their context to (B, *context); return the batch shape too.

    The context is never copied for the K samples, so that a network projects it once. Batch axes broadcast
    right-aligned; a context whose batch axes are not the last ones of the value's is expanded.
    """
    batch = batch_shape(value, value_shape, "value")
    if context is None or context_shape is None:
        return value.reshape(1, size(batch), *value_shape), None, batch
    rows = batch_shape(context, context_shape, "context")
    full = broadcast_shape(batch, rows, "value and context")
    suffix = full[len(full) - len(rows) :] if rows else ()
    if suffix != rows:
        context = context.expand(*full, *context_shape)
        rows = full
    if batch != full:
        value = value.expand(*full, *value_shape)
    samples = size(full[: len(full) - len(rows)])
    value = value.reshape(samples, size(rows), *value_shape)
    return value, context.reshape(size(rows), *context_shape), full


def _not_finite(owner: str, what: str, rows: Tensor) -> NonFiniteError:
    count = int((~rows.isfinite()).reshape(len(rows), -1).any(1).sum())
    return NonFiniteError(
        f"`{owner}` expects finite {what}; got NaN or infinity in {count} of {len(rows)} rows. Remove or repair those "
        "rows, or find the step that made them."
    )


def other_type(module: nn.Module, value: Tensor) -> DataError | None:
    """Return what is wrong where the parameters of a module are of another type than a value; None if they are not."""
    own = {p.dtype for p in module.parameters() if p.is_floating_point()} - {value.dtype}
    if not own:
        return None
    return DataError(
        f"`{type(module).__name__}` has parameters in {', '.join(map(str, own))}; got values in {value.dtype}. Bring "
        "the values or the bijection to the type of the other, by `.float()` or `.double()`; half precision is for "
        "`torch.autocast`."
    )


def valid_frames(lengths: Tensor, frames: int, batch: Shape, samples: int, rows: int) -> Tensor:
    """Return the mask (K, B, T) of the frames that are no padding.

    Raises:
        ShapeError: if the lengths are no integers of the batch shape, or lie outside 0 ... T.
    """
    wanted = f"`lengths` must be integers of the batch shape {tuple(batch)}, or of its last axes; got "
    if not isinstance(lengths, Tensor):
        raise ShapeError(f"{wanted}a {type(lengths).__name__}. Make it a tensor with `torch.tensor`.")
    counts = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if not counts or lengths.shape != torch.Size(batch)[max(len(batch) - lengths.ndim, 0) :]:
        raise ShapeError(
            f"{wanted}{lengths.dtype} of shape {tuple(lengths.shape)}. Count the frames: `mask.sum(-1)` of a mask."
        )
    # `all_finite` knows where values may be looked at
    if not all_finite(torch.where((lengths >= 0) & (lengths <= frames), 0.0, torch.nan)):
        raise ShapeError(
            f"`lengths` must lie in 0 ... {frames}, the frames of the event; got {lengths.min()} to "
            f"{lengths.max()}. Crop the sequences, or pad all of them to more frames."
        )
    valid = torch.arange(frames, device=lengths.device) < lengths[..., None]
    return valid.expand(*batch, frames).reshape(samples, rows, frames)


def fit_frames(valid: Tensor, frames: int) -> Tensor:
    """Bring a mask (K, B, T) to `frames` frames; a coarser one that holds any padding is padding."""
    if valid.shape[-1] == frames:
        return valid
    if valid.shape[-1] < frames:
        return valid.repeat_interleave(frames // valid.shape[-1], -1)
    return valid.unflatten(-1, (frames, valid.shape[-1] // frames)).all(-1)


def hide_padding(value: Tensor, valid: Tensor | None) -> Tensor:
    """Return (K, B, C, T) with zeros on padding: no arithmetic and no gradient shall meet what lies there."""
    return value if valid is None else value.masked_fill(~valid.unsqueeze(2), 0.0)
