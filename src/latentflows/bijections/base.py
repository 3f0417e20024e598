"""What a bijection is, and the two ways of making one from others: `Chain` and `Inverse`.

Direction is stated once and for all: **forward is sampling** (base noise u -> event x), **inverse is density**
(x -> u). Both return the value and the log absolute determinant of the map just applied, in nats.

To write a bijection, subclass `Bijection`, call `super().__init__` with its shapes and its number of network
passes, and implement `_forward` and `_inverse` (or one of them). The hooks receive `(K, B, *event)` and a context
`(B, *context)`, always with these two leading axes, and return a log-determinant that broadcasts to `(K, B)`.

Sequences `(C, T)` of unequal length are padded to T and called with `lengths`. A layer that sets `variable_lengths`
gets `valid`, a boolean (K, B, T) that is False on padding, as a third argument of its hooks: there it must be the
identity and add nothing to the log-determinant, and what it does elsewhere must not depend on padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.core.checks import all_finite
from latentflows.core.errors import (
    CombinationError,
    DataError,
    MissingDirectionError,
    NonFiniteError,
    ShapeError,
)
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, as_shape, batch_shape, broadcast_shape, check_context, size

Passes = tuple[int | None, int | None]
Hook = Callable[..., tuple[Tensor, Tensor]]  # _forward or _inverse


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


class Bijection(nn.Module, ABC):
    """An invertible map with a tractable log-determinant, u <-> x, perhaps depending on a context.

    Attributes:
        base_shape: Shape of one u.
        event_shape: Shape of one x.
        context_shape: Shape of one context, or None where none is taken.
        passes: Network evaluations (forward, inverse); None where a direction does not exist, 0 without a network.
        variable_lengths: Takes `lengths` of padded sequences.
    """

    variable_lengths: bool = False

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        passes: Passes,
        context_shape: int | Shape | None = None,
        base_shape: int | Shape | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, "event_shape")
        self.base_shape = self.event_shape if base_shape is None else as_shape(base_shape, "base_shape")
        self.context_shape = None if context_shape is None else as_shape(context_shape, "context_shape")
        self.passes = passes

    def forward(
        self, u: Tensor, context: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map base noise to the event: return x and log|det dx/du|.

        Shape:
            u: (*batch, *base_shape); context: (*batch, *context_shape); log_det: (*batch);
            lengths: (*batch) integers, the frames of each sequence (C, T) that are no padding.

        Raises:
            ShapeError: if a shape is not the declared one, or `lengths` are given to a layer that takes none.
            DataError: for integers; a NonFiniteError for NaN or infinity, where `core.checks.all_finite` looks.
            MissingDirectionError: if there is no such direction.
        """
        if self.passes[0] is None:
            raise self._missing("forward map, so nothing can be sampled through it", "likelihood or a prior")
        return self._over_batch(self._forward, u, self.base_shape, self.event_shape, context, lengths)

    def inverse(
        self, x: Tensor, context: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map the event to base noise: return u and log|det du/dx|.

        Shape:
            x: (*batch, *event_shape); context: (*batch, *context_shape); log_det: (*batch);
            lengths: (*batch) integers, the frames of each sequence (C, T) that are no padding.

        Raises:
            ShapeError: if a shape is not the declared one, or `lengths` are given to a layer that takes none.
            DataError: for integers; a NonFiniteError for NaN or infinity, where `core.checks.all_finite` looks.
            MissingDirectionError: if there is no such direction.
        """
        if self.passes[1] is None:
            raise self._missing("inverse, so a density cannot be evaluated at a given point", "posterior")
        return self._over_batch(self._inverse, x, self.event_shape, self.base_shape, context, lengths)

    def _missing(self, what: str, place: str) -> MissingDirectionError:
        return MissingDirectionError(
            f"`{type(self).__name__}` has no {what}. Use it as a {place}, or choose a bijection with both directions."
        )

    def _over_batch(
        self,
        hook: Hook,
        value: Tensor,
        shape: Shape,
        out_shape: Shape,
        context: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        check_context(context, self.context_shape, type(self).__name__)
        if not value.is_floating_point():
            name = type(self).__name__
            raise DataError(f"`{name}` expects floating-point values; got {value.dtype}. Use `.float()`.")
        if context is not None and context.dtype not in (torch.float16, torch.bfloat16):
            context = context.to(at_least_float32(value).dtype)  # half precision is left to autocast
        value, context, batch = align(at_least_float32(value), shape, context, self.context_shape)
        if not all_finite(value):
            raise self._not_finite(value)
        if lengths is None:
            out, log_det = hook(value, context)
        else:
            out, log_det = hook(value, context, self._valid(lengths, value, batch))
        log_det = log_det.expand(out.shape[:2])
        return out.reshape(*batch, *out_shape), log_det.reshape(batch)

    def _not_finite(self, value: Tensor) -> NonFiniteError:
        count = int((~value.isfinite()).flatten(2).any(2).sum())
        return NonFiniteError(
            f"`{type(self).__name__}` expects finite values; got NaN or infinity in {count} of "
            f"{value.shape[0] * value.shape[1]} rows. Remove or repair those rows, or find the step that made them."
        )

    def _valid(self, lengths: Tensor, value: Tensor, batch: Shape) -> Tensor:
        """Return the mask (K, B, T) of frames that are no padding."""
        wanted = f"`lengths` must be integers of the batch shape {tuple(batch)}, or of its last axes; got "
        if not isinstance(lengths, Tensor):
            raise ShapeError(f"{wanted}a {type(lengths).__name__}. Make it a tensor with `torch.tensor`.")
        if not self.variable_lengths:
            refusing = [m for m in self.modules() if isinstance(m, Bijection) and not m.variable_lengths]
            raise ShapeError(  # the last one has no other inside
                f"`{type(refusing[-1]).__name__}` takes no `lengths`: it cannot leave padding untouched. Call it "
                "without, or use layers with `variable_lengths` (in a coupling: layout 'channels', a network such as "
                "`WaveNet`)."
            )
        frames = self.event_shape[-1]
        counts = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
        if not counts or lengths.shape != torch.Size(batch)[max(len(batch) - lengths.ndim, 0) :]:
            raise ShapeError(
                f"{wanted}{lengths.dtype} of shape {tuple(lengths.shape)}. Count the frames: `mask.sum(-1)` of a mask."
            )
        # `all_finite` knows where values may be looked at
        if not all_finite(torch.where((lengths >= 0) & (lengths <= frames), 0.0, torch.nan)):
            raise ShapeError(
                f"`lengths` must lie in 0 ... {frames}, the frames of {self.event_shape}; got {lengths.min()} to "
                f"{lengths.max()}. Crop the sequences, or pad all of them to more frames."
            )
        valid = torch.arange(frames, device=lengths.device) < lengths[..., None]
        return valid.expand(*batch, frames).reshape(*value.shape[:2], frames)

    @abstractmethod
    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def initialize(
        self,
        value: Tensor,
        context: Tensor | None = None,
        *,
        direction: Literal["forward", "inverse"] = "inverse",
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Set the data-dependent parameters in here from a batch that passes through; return what it maps to.

        Every `DataDependent` layer that no batch has set yet, however deep inside, sees what reaches it. Call it once,
        before training and compilation.

        Args:
            value: A batch of events; with direction "forward" of base noise, for a posterior, which is never inverted.
            context: Their contexts.
            direction: Which way the batch passes, and so which side of a layer is normalized: the one it comes out at.
            lengths: Of padded sequences; padding does not count.
        """
        waiting = waiting_layers(self)
        for layer in waiting:
            layer.measuring = True
        try:
            passing = self.forward if direction == "forward" else self.inverse
            return passing(value, context, lengths=lengths)[0]
        finally:
            for layer in waiting:
                layer.measuring = False


class DataDependent(Bijection):
    """A layer whose parameters start from the first batch it is shown by `initialize`.

    To write one, implement `_measure`, and call `_start` first thing in `_forward` and `_inverse`. That a batch was
    seen is remembered in a buffer, saved with the model; no pass ever branches on it, only on a plain flag that
    `initialize` raises for the moment.

    Attributes:
        initialized: Whether a batch has set the parameters.
        measuring: Whether the batch that passes now is the one that shall set them.
    """

    initialized: Tensor

    def __init__(self, event_shape: int | Shape, *, passes: Passes) -> None:
        super().__init__(event_shape, passes=passes)
        self.register_buffer("initialized", torch.tensor(False))
        self.measuring = False

    def _start(self, value: Tensor, valid: Tensor | None, *, forward: bool) -> None:
        if self.measuring:
            self._measure(value, valid, forward=forward)
            self.initialized.fill_(True)
            self.measuring = False

    @abstractmethod
    def _measure(self, value: Tensor, valid: Tensor | None, *, forward: bool) -> None:
        """Set the parameters from values (K, B, *event) that come in at the base's or the event's side."""


def waiting_layers(module: nn.Module) -> list[DataDependent]:
    """Return the data-dependent layers of a module that no batch has set yet."""
    layers = [layer for layer in module.modules() if isinstance(layer, DataDependent)]
    return [layer for layer in layers if not layer.initialized]


class Chain(Bijection):
    """Apply bijections one after the other: forward runs the list from the first to the last.

    Passes and log-determinants add. A direction exists where every member has it.

    Args:
        bijections: At least one; each one's base shape is the event shape of the one before.

    Raises:
        CombinationError: if shapes do not follow, or members ask for different contexts.
    """

    def __init__(self, bijections: Sequence[Bijection]) -> None:
        if not bijections:
            raise CombinationError("`Chain` needs at least one bijection; got an empty list.")
        for before, after in pairwise(bijections):
            if before.event_shape != after.base_shape:
                raise CombinationError(
                    f"`Chain`: {type(after).__name__} expects {after.base_shape}; "
                    f"{type(before).__name__} before it gives {before.event_shape}."
                )
        contexts = {b.context_shape for b in bijections} - {None}
        if len(contexts) > 1:
            raise CombinationError(f"Members of a `Chain` must share one context shape; got {contexts}.")
        forward = [b.passes[0] for b in bijections]
        inverse = [b.passes[1] for b in bijections]
        super().__init__(
            bijections[-1].event_shape,
            base_shape=bijections[0].base_shape,
            context_shape=contexts.pop() if contexts else None,
            passes=(_total(forward), _total(inverse)),
        )
        self.members = nn.ModuleList(bijections)
        self.variable_lengths = all(b.variable_lengths for b in bijections)

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        value, total = u, u.new_zeros(())
        for member in self.members:
            assert isinstance(member, Bijection)
            masks = () if valid is None else (fit_frames(valid, member.event_shape[-1]),)
            value, log_det = member._forward(value, context if member.context_shape else None, *masks)
            total = total + log_det
        return value, total

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        value, total = x, x.new_zeros(())
        for member in reversed(self.members):
            assert isinstance(member, Bijection)
            masks = () if valid is None else (fit_frames(valid, member.event_shape[-1]),)
            value, log_det = member._inverse(value, context if member.context_shape else None, *masks)
            total = total + log_det
        return value, total


def fit_frames(valid: Tensor, frames: int) -> Tensor:
    """Bring a mask (K, B, T) to `frames` frames; a coarser one that holds any padding is padding."""
    if valid.shape[-1] == frames:
        return valid
    if valid.shape[-1] < frames:
        return valid.repeat_interleave(frames // valid.shape[-1], -1)
    return valid.view(*valid.shape[:-1], frames, -1).all(-1)


def hide_padding(value: Tensor, valid: Tensor | None) -> Tensor:
    """Return (K, B, C, T) with zeros on padding: no arithmetic and no gradient shall meet what lies there."""
    return value if valid is None else value.masked_fill(~valid.unsqueeze(2), 0.0)


def _total(passes: list[int | None]) -> int | None:
    return None if None in passes else sum(p for p in passes if p is not None)


class Inverse(Bijection):
    """Swap the two directions: `Inverse(InverseAutoregressive(...))` is a masked autoregressive flow."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(
            bijection.base_shape,
            base_shape=bijection.event_shape,
            context_shape=bijection.context_shape,
            passes=(bijection.passes[1], bijection.passes[0]),
        )
        self.bijection = bijection
        self.variable_lengths = bijection.variable_lengths

    def _forward(self, u: Tensor, context: Tensor | None, *valid: Tensor) -> tuple[Tensor, Tensor]:
        return self.bijection._inverse(u, context, *self._fitted(valid))

    def _inverse(self, x: Tensor, context: Tensor | None, *valid: Tensor) -> tuple[Tensor, Tensor]:
        return self.bijection._forward(x, context, *self._fitted(valid))

    def _fitted(self, valid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(fit_frames(mask, self.bijection.event_shape[-1]) for mask in valid)


class ParameterSource(nn.Module):
    """Where a layer's own raw parameters come from: the layer itself, or a linear head on the context.

    With a context the head starts with zero weights and the global values as its bias, so that an amortized layer
    starts equal to the global one.

    Args:
        initial: Raw parameters by name, each of its shape for one point, at their starting values.
        context_shape: None for global parameters; (C,) for amortized ones.

    Raises:
        CombinationError: if the context is not a vector.
    """

    def __init__(self, initial: dict[str, Tensor], context_shape: Shape | None) -> None:
        super().__init__()
        self.shapes = {name: tuple(value.shape) for name, value in initial.items()}
        start = torch.cat([value.reshape(-1).to(torch.get_default_dtype()) for value in initial.values()])
        if context_shape is None:
            self.raw = nn.Parameter(start)
            self.head = None
            return
        if len(context_shape) != 1:
            raise CombinationError(
                f"Amortized parameters need a vector context; got shape {context_shape}. Flatten or embed it first."
            )
        self.head = nn.Linear(context_shape[0], start.numel())
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(start)

    def forward(self, context: Tensor | None) -> list[Tensor]:
        """Return the parameters in order, each (*shape) if global, (B, *shape) if amortized."""
        raw = self.raw if self.head is None else at_least_float32(self.head(context))
        pieces = raw.split([size(shape) for shape in self.shapes.values()], dim=-1)
        return [
            piece if len(shape) == 1 else piece.reshape(*piece.shape[:-1], *shape)
            for piece, shape in zip(pieces, self.shapes.values(), strict=True)
        ]
