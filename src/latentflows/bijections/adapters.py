"""Layers of other libraries as bijections: transforms of zuko and torch, flows of normflows.

Nothing is imported from those libraries: their objects are called. `FromZuko` turns the direction around, since zuko's
forward is data -> noise; `FromNormflows` keeps it, since normflows' forward is noise -> data.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from latentflows.bijections.base import Bijection
from latentflows.bijections.trials import TRIAL_ROWS, count, count_exact, draw, explained
from latentflows.core import noise
from latentflows.core.checks import all_finite
from latentflows.core.errors import CombinationError, NonFiniteError, ShapeError
from latentflows.core.precision import at_least_float32, check_positive, full_precision
from latentflows.core.shapes import Shape, as_shape, sum_event
from latentflows.core.tracing import is_traced

_LAZY = "a transform, or a lazy transform of zuko (`MAF(...).transform`)"
_LAYER = (
    "a layer of normflows, which takes a batch (N, *event), and `context=` where it takes a context, and needs no "
    "gradients to be on"
)


class FromZuko(Bijection):
    r"""A transform of zuko, lazy or not, or of torch: with T: data -> noise, :math:`u = T(x; c)`.

    Cost: what T costs. zuko records no passes, so they are counted once, when the adapter is built: the calls of
    networks (modules that return a tensor) on a few draws of N(0, I). That is exact for autoregressive and
    coupling layers and for bisection, whose number of steps is fixed; an adaptive ODE solver takes as many steps as
    its tolerance asks for at the points at hand, so there it is an example. A transform that is no module, hence has
    no network that could be seen, counts 0. In the direction that T itself does not run, zuko evaluates the
    network once more for the log-determinant.

    Precision: autocast is off inside. Numeric inverses are as exact as zuko's tolerance: 1e-6 of x for a
    bisection, which fails in silence outside [-10, 10] (see `verify`); 1e-6 absolute and 1e-5 relative for an ODE.
    In eval mode zuko gives no gradient to the parameters of numerically inverted or integrated layers; train in train
    mode. Most of zuko does not compile with `fullgraph=True`.

    zuko's adaptive ODE solver shrinks its step for ever once a velocity is NaN or infinite: weights, context or a path
    that diverged. So velocities are looked at as they come, and the solver is stopped; in a training step, where
    `fit` skips what is not finite, all rows are then NaN.

    Args:
        transform: A `zuko.lazy.LazyTransform` (for a flow of zuko its `.transform`), or a
            `torch.distributions.Transform`, whose tensors are constants that do not follow `.to`.
        event_shape: Shape of one x.
        context_shape: Shape of one context that the lazy transform takes, or None.
        verify: Largest error of a numeric inverse, in units of u: `forward` then applies T to what it found, and warns
            if it does not come back. Costs one more evaluation of T.

    Shape:
        x: (*batch, *event_shape); u: (*batch, *T's codomain); context: (*batch, *context_shape); log_det: (*batch).

    Raises:
        CombinationError: if what is given makes no bijective transform, needs a context that is not given, or is a
            constant and gets one.
        ShapeError: if the transform works on larger events.
        NonFiniteError: here or in use, if an ODE's velocity is NaN or infinite.

    Example:
        >>> import torch
        >>> from torch.distributions import ExpTransform
        >>> x, log_det = FromZuko(ExpTransform().inv, 2)(torch.zeros(3, 2))
        >>> x.shape, log_det.tolist()
        (torch.Size([3, 2]), [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        transform: nn.Module | Transform,
        event_shape: int | Shape,
        *,
        context_shape: int | Shape | None = None,
        verify: float | None = None,
    ) -> None:
        if verify is not None:
            check_positive("verify", verify)
        event = as_shape(event_shape, "event_shape")
        features = None if context_shape is None else as_shape(context_shape, "context_shape")
        if not isinstance(transform, Transform | nn.Module):
            raise CombinationError(
                f"`FromZuko` needs a transform, or a lazy transform; got {transform!r}. Build it first."
            )
        for part in _transforms_in(transform):
            if not isinstance(part, nn.Module) and isinstance(part.inv, nn.Module):
                raise CombinationError(
                    f"The inverse of `{type(part.inv).__name__}` is no module, so its parameters would not be trained. "
                    "Adapt the transform itself and turn it around: `Inverse(FromZuko(transform, ...))`."
                )
        if features is not None and isinstance(transform, Transform):
            raise CombinationError(
                f"`{type(transform).__name__}` is a constant and takes no context. Give a lazy transform, or no "
                "`context_shape`."
            )
        module = copy.deepcopy(transform).eval() if isinstance(transform, nn.Module) else transform
        rows = next(n for n in itertools.count(TRIAL_ROWS) if n not in event)  # see `_axes_beyond`
        with torch.no_grad(), noise.stream(0), explained(module, event, features, _LAZY):
            context = None if features is None else draw(module, features, rows)[0]
            with _solver_that_ends(module):
                made = _transform_of(module, None if context is None else context[:1])
                self._check(made, event)
                base = _base_of(made, event)
                x = draw(module, event, rows)
                with _forgotten(module):
                    extra = _axes_beyond(module, context, x, base, len(event) - made.domain.event_dim)
                    inverse, u = count(module, lambda: _apply(_transform_of(module, context, extra), x)[0])
                noises = draw(module, base, rows) if u is None else u
                forward, _ = count(module, lambda: _apply(_transform_of(module, context, extra).inv, noises))
        super().__init__(event, base_shape=base, context_shape=features, passes=(forward, inverse))
        self.transform, self.verify, self._extra_axes = transform, verify, extra
        solved = _continuous(transform)
        self.solved, self.weighable = bool(solved), all(bool(part.exact) for part in solved)
        if verify is not None and inverse is not None and forward is not None:
            self.passes = (forward + inverse, inverse)

    @staticmethod
    def _check(made: Transform, event: Shape) -> None:
        if not made.bijective:
            raise CombinationError(f"`{type(made).__name__}` is not bijective, so a flow cannot use it.")
        if made.domain.event_dim > len(event):
            raise ShapeError(
                f"`{type(made).__name__}` works on events of {made.domain.event_dim} axes; got `event_shape` {event}."
            )

    def _run(self, value: Tensor, context: Tensor | None, *, inverted: bool) -> tuple[Tensor, Tensor]:
        if torch.is_inference_mode_enabled():  # numeric layers of zuko need a graph for their own derivative
            with torch.inference_mode(False), torch.no_grad():
                return self._run(
                    value.clone(), None if context is None else context.clone(), inverted=inverted
                )
        context = None if context is None else context.to(value.dtype)  # half precision, from a network
        try:
            return self._solved(value, context, inverted=inverted)
        except NonFiniteError:
            if not all_finite(value.new_tensor(torch.nan)):
                raise
            return self._nowhere(value, context, self.event_shape if inverted else self.base_shape)

    def _nowhere(self, value: Tensor, context: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor]:
        """Return NaN in every row, with a gradient, which is NaN too, to whatever has one."""
        total = value.flatten(2).sum(2) + (0 if context is None else context.flatten(1).sum(1))
        log_det = torch.nan * (total + sum(parameter.sum() for parameter in self.parameters()))
        return log_det.reshape(*log_det.shape, *[1] * len(shape)).expand(*log_det.shape, *shape), log_det

    def _solved(self, value: Tensor, context: Tensor | None, *, inverted: bool) -> tuple[Tensor, Tensor]:
        traced = is_traced(value)  # then `requires_grad` says nothing
        wanted = torch.is_grad_enabled() and (traced or self._reaches(value, context))
        if wanted and not traced and not value.requires_grad and self._is_partly_frozen():
            # A numeric layer frees its graph where neither its x nor its parameters want gradients, and the next
            # layer's gradient would run into it.
            value = value.detach().requires_grad_()
        with (
            full_precision(value),
            _solver_that_ends(self.transform),
            _forgotten(self.transform),
            torch.set_grad_enabled(wanted),
        ):
            made = _transform_of(self.transform, context, self._extra_axes)
            used = made.inv if inverted else made
            out, ladj = _apply(used, value)
            if inverted and self.verify is not None:
                back = _apply(made, out.detach())[0].detach()
                _warn_unless_close(back, value, self.verify)
                out = torch.where(back.isnan(), back, out)  # a bisection ends in a number, whatever it met
            # Axes that the log-derivative has; some transforms of torch leave more than they say. They are summed.
            axes = max(value.ndim - used.domain.event_dim, ladj.ndim)
            log_det = sum_event(ladj.expand(value.shape[:axes]), axes - 2)
        if wanted:
            return out, log_det
        return out.detach(), log_det.detach()  # zuko's numeric layers keep a graph even under no_grad

    def _reaches(self, value: Tensor, context: Tensor | None) -> bool:
        """Whether a gradient has anywhere to go; into the tensors of what is no module it may."""
        given = value.requires_grad or (context is not None and context.requires_grad)
        module = self.transform
        return given or not isinstance(module, nn.Module) or any(p.requires_grad for p in module.parameters())

    def _is_partly_frozen(self) -> bool:
        return not all(parameter.requires_grad for parameter in self.parameters())

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(u, context, inverted=True)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, inverted=False)


@contextmanager
def _solver_that_ends(source: nn.Module | Transform) -> Iterator[None]:
    """Stop zuko's solver where a velocity is NaN or infinite: it would shrink its step for ever."""
    handles = [
        network.register_forward_hook(_check_velocity)
        for part in _continuous(source)
        for network in part.children()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _forgotten(source: nn.Module | Transform) -> Iterator[None]:
    """Drop what transforms of torch and Pyro keep of their last call: it holds a graph, and is stale after a step."""
    try:
        yield
    finally:
        for part in _transforms_in(source):
            kept = [name for name in vars(part) if name.startswith("_cache") and name != "_cache_size"]
            for name in kept:
                setattr(part, name, (None, None) if name == "_cached_x_y" else None)


def _transforms_in(source: nn.Module | Transform) -> Iterator[Transform]:
    """Give out the transforms of torch that something is made of, itself among them."""
    if isinstance(source, nn.Module):
        yield from (part for part in source.modules() if isinstance(part, Transform))
        return
    yield source
    inside = getattr(source, "base_transform", None)
    for part in [*getattr(source, "parts", ()), *([] if inside is None else [inside])]:
        yield from _transforms_in(part)


def _continuous(source: nn.Module | Transform) -> list[Any]:
    """Return the parts that zuko solves as an ODE."""
    parts = source.modules() if isinstance(source, nn.Module) else ()
    return [part for part in parts if type(part).__name__ == "FFJTransform"]


def _check_velocity(network: nn.Module, arguments: object, velocity: Tensor) -> None:
    if not bool(velocity.isfinite().all()):
        raise NonFiniteError(
            "The velocity of a continuous flow is NaN or infinite, so its ODE has no solution: its weights, its "
            "context or the path have diverged. Take an earlier checkpoint, or a smaller learning rate."
        )


def _transform_of(source: nn.Module | Transform, context: Tensor | None, extra: int = 0) -> Transform:
    """Return a transform as it is, or the one a lazy transform makes of a context (B, *features).

    `extra` is the number of axes of an event beyond those that the transform works on. They are batch axes to it, and
    as it aligns a context with the last of those, the context gets as many.
    """
    if context is not None:
        context = context.reshape(len(context), *[1] * extra, *context.shape[1:])
    made = source if isinstance(source, Transform) else source(context)
    if not isinstance(made, Transform):
        raise CombinationError(
            f"`FromZuko` needs a transform, or a lazy transform; `{type(source).__name__}` makes a "
            f"`{type(made).__name__}`. For a flow of zuko give its `.transform`."
        )
    return made


def _base_of(made: Transform, event: Shape) -> Shape:
    """Return the shape of one u; without the row of the context, which some transforms of torch hold to be an axis."""
    shape = tuple(made.forward_shape(torch.Size(event)))
    axes = len(event) - made.domain.event_dim + made.codomain.event_dim
    return shape[max(len(shape) - axes, 0) :]


def _axes_beyond(
    source: nn.Module | Transform, context: Tensor | None, x: Tensor, base: Shape, most: int
) -> int:
    """Return the number of axes of the event x that are beyond those that a lazy transform works on, by trial.

    It is at most what the transform says; one that works on single values may hold parameters for all of them. The
    number of rows is none of the event's sizes, so that with too few axes it fits nowhere: that is an error, or an
    output of another shape.
    """
    if context is None or isinstance(source, Transform):
        return 0
    for extra in range(most):
        try:
            u, _ = _apply(_transform_of(source, context, extra), x)
        except (RuntimeError, ValueError, IndexError):
            continue
        if u.shape == (*x.shape[:2], *base):
            return extra
    return most


def _warn_unless_close(back: Tensor, value: Tensor, tolerance: float) -> None:
    """Warn if T(x) is not the u that x was found for."""
    error = (back.detach() - value.detach()).abs().flatten(2).amax(2)
    failed = int((~(error <= tolerance)).sum())  # NaN is a failure
    if failed:
        warnings.warn(
            f"The numeric inverse failed in {failed} of {error.numel()} rows (largest error {float(error.max()):.2g}): "
            "the point lies outside the range that zuko searches, usually [-10, 10], and the row is clipped to it. "
            "Train first, standardize the data, use fewer layers, or use the other direction.",
            stacklevel=2,
        )


def _apply(transform: Transform, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and the log-derivative of the map just applied."""
    both: Callable[[Tensor], tuple[Tensor, Tensor]] | None = getattr(transform, "call_and_ladj", None)
    if both is not None:  # zuko gives it to every transform of torch once it is imported
        return both(value)
    out: Tensor = transform(value)  # pyright: ignore[reportAssignmentType] (torch declares None)
    return out, transform.log_abs_det_jacobian(value, out)


class FromNormflows(Bijection):
    """A layer of normflows, which returns (value, log_det) for a batch (N, *event) and nothing else.

    Its log-determinants come as numbers, as tensors of no axis, in another type or on the CPU; here they have the
    type and the device of the value, and the batch's shape. For a whole model take its layers:
    `Chain([FromNormflows(layer, shape) for layer in model.flows])`.

    Cost: what the layer costs. Passes are counted once, when the adapter is built, on a copy of the layer: calls of
    networks (modules that return a tensor) on a few draws of N(0, I); a direction that raises `NotImplementedError`
    does not exist. Autocast is off inside.

    An `ActNorm` of normflows sets itself from the first batch it meets, whichever the direction: call `initialize`
    with a batch of data first.

    Args:
        flow: A `normflows.flows.Flow`, e.g. a coupling; not its `NormalizingFlow` and no `Split` or `Merge`.
        event_shape: Shape of one x.
        context_shape: Shape of one context, if the layer takes `context=`.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, *context_shape); log_det: (*batch).

    Raises:
        CombinationError: if the layer returns anything but a tensor and a log-determinant, cannot be applied to the
            events and contexts, or draws random numbers in eval mode, as `Residual`, which estimates its
            log-determinant, and `MetropolisHastings` do.
    """

    def __init__(
        self, flow: nn.Module, event_shape: int | Shape, *, context_shape: int | Shape | None = None
    ) -> None:
        event = as_shape(event_shape, "event_shape")
        features = None if context_shape is None else as_shape(context_shape, "context_shape")
        trial = copy.deepcopy(flow).eval()
        with torch.no_grad(), noise.stream(0), explained(flow, event, features, _LAYER):
            context = None if features is None else draw(trial, features)[0]
            x = draw(trial, event)
            inverse, made = count_exact(trial, lambda: _both_of(trial.inverse, x, context))
            base = event if made is None else tuple(made[0].shape[2:])
            u = draw(trial, base)
            forward, _ = count_exact(trial, lambda: _both_of(trial.forward, u, context))
        super().__init__(event, base_shape=base, context_shape=features, passes=(forward, inverse))
        self.flow = flow

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _both_of(self.flow.forward, u, context)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _both_of(self.flow.inverse, x, context)


def _both_of(method: Any, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Call a direction of a normflows layer on (K, B, *event), and mend its log-determinant."""
    samples, rows = value.shape[:2]
    with full_precision(value):
        if context is None:
            result = method(value.flatten(0, 1))
        else:
            full = context.to(value.dtype).expand(samples, *context.shape).flatten(0, 1)
            result = method(value.flatten(0, 1), context=full)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
        raise CombinationError(
            "`FromNormflows` needs a layer that returns a tensor and its log-determinant; got "
            f"{type(result).__name__}. For a `NormalizingFlow` adapt each of its `.flows` and chain them; for `Split` "
            "and `Merge` use `latentflows.bijections.Split`."
        )
    out, log_det = result
    log_det = at_least_float32(torch.as_tensor(log_det, dtype=out.dtype, device=out.device))
    return out.view(samples, rows, *out.shape[1:]), log_det.expand(samples * rows).view(samples, rows)
