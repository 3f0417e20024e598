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
from functools import reduce
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.bijections.inputs import checked, fit_frames, other_type, valid_frames
from latentflows.core.errors import CombinationError, ConfigurationError, MissingDirectionError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, as_shape, size

Passes = tuple[int | None, int | None]
Hook = Callable[..., tuple[Tensor, Tensor]]  # _forward or _inverse


class Bijection(nn.Module, ABC):
    """An invertible map with a tractable log-determinant, u <-> x, perhaps depending on a context.

    Attributes:
        base_shape: Shape of one u.
        event_shape: Shape of one x.
        context_shape: Shape of one context, or None where none is taken.
        passes: Network evaluations (forward, inverse); None where a direction does not exist, 0 without a network.
        variable_lengths: Takes `lengths` of padded sequences.
        solved: Values and log-determinants have the error of a numeric solver.
        weighable: exp(log_det) is no estimate that is biased because the log_det is one.
    """

    variable_lengths: bool = False
    solved: bool = False
    weighable: bool = True

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
            DataError: for integers, or values that parameters of another type cannot be multiplied with; a
                NonFiniteError for NaN or infinity in a value or a context, where `core.checks.all_finite` looks.
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
            DataError: for integers, or values that parameters of another type cannot be multiplied with; a
                NonFiniteError for NaN or infinity in a value or a context, where `core.checks.all_finite` looks.
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
        value, context, batch = checked(type(self).__name__, value, shape, context, self.context_shape)
        masks = () if lengths is None else (self._valid(lengths, value, batch),)
        try:
            out, log_det = hook(value, context, *masks)
        except RuntimeError as error:  # among them what torch has not implemented for bfloat16
            by_type = isinstance(error, NotImplementedError) or "type" in str(error)
            explained = other_type(self, value) if by_type else None
            if explained is None:
                raise
            raise explained from error
        log_det = log_det.expand(out.shape[:2])
        return out.reshape(*batch, *out_shape), log_det.reshape(batch)

    def _valid(self, lengths: Tensor, value: Tensor, batch: Shape) -> Tensor:
        """Return the mask (K, B, T) of frames that are no padding."""
        if not self.variable_lengths:
            raise ShapeError(
                f"`{type(self._refusing()).__name__}` takes no `lengths`: it cannot leave padding untouched. Call it "
                "without, or use layers with `variable_lengths` (in a coupling: layout 'channels', a network such as "
                "`WaveNet`)."
            )
        return valid_frames(lengths, self.event_shape[-1], batch, *value.shape[:2])

    def _refusing(self) -> Bijection:
        """Return the layer for whose sake no lengths are taken: the outermost that is not made of others alone."""
        layers = [m for m in self.modules() if isinstance(m, Bijection) and not m.variable_lengths]
        return next((layer for layer in layers if not isinstance(layer, Chain | Inverse)), self)

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

        Raises:
            ConfigurationError: for another direction.
        """
        if direction not in ("forward", "inverse"):
            raise ConfigurationError(f'`direction` must be "forward" or "inverse"; got {direction!r}.')
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


def missing_in(bijection: Bijection, direction: int) -> str:
    """Say that a bijection has no such direction, and for which layer inside.

    Args:
        bijection: A bijection without that direction.
        direction: Its place in `passes`: 0 for forward, 1 for inverse.
    """
    missing = f"`{type(bijection).__name__}` has no {('forward map', 'inverse')[direction]}"
    if isinstance(bijection, Inverse):
        return f"{missing}, since {missing_in(bijection.bijection, 1 - direction)}"
    if isinstance(bijection, Chain):
        members = [member for member in bijection.members if isinstance(member, Bijection)]
        member = next(member for member in members if member.passes[direction] is None)
        return f"{missing}, since {missing_in(member, direction)}"
    return missing


class Chain(Bijection):
    r"""Apply bijections one after the other: forward runs the list from the first to the last.

    .. math:: x = f_n(\cdots f_1(u)), \qquad \log|\det| = \sum_i \log|\det f_i|

    A direction exists where every member has it.

    Cost: the sum of the members', in passes and in time.

    Args:
        bijections: At least one; each one's base shape is the event shape of the one before.

    Raises:
        CombinationError: if shapes do not follow, members ask for different contexts, or are no bijections.
    """

    def __init__(self, bijections: Sequence[Bijection]) -> None:
        if isinstance(bijections, nn.Module) or not all(isinstance(b, Bijection) for b in bijections):
            raise CombinationError(f"`Chain` needs a list of bijections; got {bijections!r}.")
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
        value, log_dets = u, []
        for member in self.members:
            assert isinstance(member, Bijection)
            masks = () if valid is None else (fit_frames(valid, member.event_shape[-1]),)
            value, log_det = member._forward(value, context if member.context_shape else None, *masks)
            log_dets.append(log_det)
        return value, reduce(torch.add, log_dets)

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        value, log_dets = x, []
        for member in reversed(self.members):
            assert isinstance(member, Bijection)
            masks = () if valid is None else (fit_frames(valid, member.event_shape[-1]),)
            value, log_det = member._inverse(value, context if member.context_shape else None, *masks)
            log_dets.append(log_det)
        return value, reduce(torch.add, log_dets)


def _total(passes: list[int | None]) -> int | None:
    return None if None in passes else sum(p for p in passes if p is not None)


class Inverse(Bijection):
    r"""Swap the two directions: `Inverse(InverseAutoregressive(...))` is a masked autoregressive flow.

    .. math:: x = f^{-1}(u)

    Cost: that of the other direction of f.

    Raises:
        CombinationError: for what is no bijection.
    """

    def __init__(self, bijection: Bijection) -> None:
        if not isinstance(bijection, Bijection):
            raise CombinationError(f"`Inverse` swaps the directions of a bijection; got {bijection!r}.")
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
