"""Maps of each variable by itself: a transform with parameters of its own, the sigmoid, the leaky kink."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.bijections.base import Bijection, ParameterSource
from latentflows.core.checks import all_finite
from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.precision import check_positive
from latentflows.core.shapes import Shape, size, sum_event
from latentflows.transforms import Transform
from latentflows.transforms.base import check_transform


class Elementwise(Bijection):
    r"""Move each variable by a transform of its own, with learned parameters or parameters from the context.

    .. math:: x_i = g(u_i; \theta_i), \quad \log|\det| = \sum_i \log g'(u_i; \theta_i)

    `Elementwise(shape, Affine())` is the elementwise affine layer, `Elementwise(shape, RationalQuadraticSpline())`
    learns marginals. It starts as the identity. It mixes no variables: use it first or last, beside layers that do.

    Cost: no network, O(D P) either way for the P raw parameters of the transform.

    Args:
        event_shape: Shape of one event.
        transform: The map of one variable: `Affine()`, `RationalQuadraticSpline()`, `Leaky()`, ...
        context_shape: None for global parameters, (F,) for parameters from the context.
        per_channel: Parameters are shared by all positions of a channel, the event's first axis.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, F); log_det: (*batch).

    Raises:
        ConfigurationError: if the transform is none, such as a class instead of an instance.
        CombinationError: if the context is not a vector.

    References:
        Dinh et al., NICE: Non-linear Independent Components Estimation, 2015, arXiv 1410.8516, section 3.3 (scaling).
    """

    def __init__(
        self,
        event_shape: int | Shape,
        transform: Transform,
        *,
        context_shape: int | Shape | None = None,
        per_channel: bool = False,
    ) -> None:
        super().__init__(event_shape, passes=(0, 0), context_shape=context_shape)
        self.variable_lengths = len(self.event_shape) == 2
        self.transform = check_transform(transform)
        shape = tuple(1 if axis and per_channel else n for axis, n in enumerate(self.event_shape))
        self.source = ParameterSource({"raw": torch.zeros(transform.size, *shape)}, self.context_shape)

    def extra_repr(self) -> str:
        return f"{self.event_shape}, {self.transform}"

    def _raw(self, context: Tensor | None) -> Tensor:
        """Return the raw parameters, (P, *event) or (P, 1, B, *event)."""
        (raw,) = self.source(context)
        return raw if context is None else raw.movedim(1, 0).unsqueeze(1)

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x, log_derivative = self.transform.forward(_without_padding(u, valid), self._raw(context))
        return _summed(u, x, log_derivative, valid)

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        u, log_derivative = self.transform.inverse(_without_padding(x, valid), self._raw(context))
        return _summed(x, u, log_derivative, valid)


class Sigmoid(Bijection):
    r"""Squash the real line into an interval (l, r); `Inverse(Sigmoid(...))` is the logit.

    .. math:: x = l + (r - l) \sigma(u), \quad \log|\det| = \sum_i \log((r - l)\, \sigma(u_i)\, \sigma(-u_i))

    Forward never fails. The inverse takes the closed interval: a point on the border counts as the last
    floating-point number before it, which keeps u finite (float32: u = 16.6 at 1, -87 at 0). Such points are rare
    in continuous data and common in unprepared ones: spread discrete data out and shrink them off the border first.

    Cost: no network, O(D).

    Args:
        event_shape: Shape of one event.
        lower: l.
        upper: r.

    Shape:
        u: (*batch, *event_shape), any real; x: (*batch, *event_shape) in [l, r]; log_det: (*batch).

    Raises:
        ConfigurationError: if the interval is empty or infinite.
        DataError: from the inverse, if a value lies outside the interval. Where `core.checks.all_finite` does not look,
            as in a step of `fit`, it counts as one on the border, with gradient 0.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, section 4.1 (the logit of data).
    """

    def __init__(self, event_shape: int | Shape, *, lower: float = 0.0, upper: float = 1.0) -> None:
        super().__init__(event_shape, passes=(0, 0))
        self.variable_lengths = len(self.event_shape) == 2
        if not (lower < upper and math.isfinite(upper - lower)):
            raise ConfigurationError(
                f"`lower` and `upper` must be finite with lower < upper; got {lower!r} and {upper!r}."
            )
        self.lower, self.upper = lower, upper

    def extra_repr(self) -> str:
        return f"{self.event_shape}, lower={self.lower:g}, upper={self.upper:g}"

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self.lower + (self.upper - self.lower) * u.sigmoid()
        return _summed(u, x.clamp(self.lower, self.upper), self._log_slope(u), valid)

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inner = _without_padding(x, valid, 0.5 * (self.lower + self.upper))
        inside = (inner >= self.lower) & (inner <= self.upper)
        if not all_finite(torch.where(inside, 0.0, torch.nan)):  # it knows where values may be looked at
            raise self._outside(inner)
        inner, number = inner.clamp(self.lower, self.upper), torch.finfo(x.dtype)
        above = (inner - self.lower).clamp_min(max(number.tiny, number.eps * abs(self.lower)))
        below = (self.upper - inner).clamp_min(max(number.tiny, number.eps / 2 * abs(self.upper)))
        u = above.log() - below.log()
        return _summed(x, u, -self._log_slope(u), valid)

    def _log_slope(self, u: Tensor) -> Tensor:
        return math.log(self.upper - self.lower) + functional.logsigmoid(u) + functional.logsigmoid(-u)

    def _outside(self, x: Tensor) -> DataError:
        return DataError(
            f"The inverse of `Sigmoid` expects values between {self.lower:g} and {self.upper:g}; got values from "
            f"{x.min().item():g} to {x.max().item():g}. Set `lower` and `upper` to the range of the data."
        )


class LeakyReLU(Bijection):
    r"""Scale what is negative by a fixed slope: :math:`x = \max(u, 0) + s \min(u, 0)`.

    .. math:: \log|\det| = \log(s) \cdot |\{i: u_i < 0\}|

    For a learned slope, or one from the context, use `Elementwise(event_shape, Leaky())`.

    Cost: no network, O(D).

    Args:
        event_shape: Shape of one event.
        slope: s, positive.

    Shape:
        u, x: (*batch, *event_shape); log_det: (*batch).

    Raises:
        ConfigurationError: if the slope is not positive and finite.

    References:
        He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852, eq. 1 (there the slope is learned).
    """

    def __init__(self, event_shape: int | Shape, *, slope: float = 0.1) -> None:
        super().__init__(event_shape, passes=(0, 0))
        self.variable_lengths = len(self.event_shape) == 2
        check_positive("slope", slope)
        self.slope = slope

    def extra_repr(self) -> str:
        return f"{self.event_shape}, slope={self.slope:g}"

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        log_derivative = (u < 0).to(u.dtype) * math.log(self.slope)
        return _summed(u, torch.where(u < 0, u * self.slope, u), log_derivative, valid)

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        log_derivative = (x < 0).to(x.dtype) * -math.log(self.slope)
        return _summed(x, torch.where(x < 0, x / self.slope, x), log_derivative, valid)


def _without_padding(value: Tensor, valid: Tensor | None, instead: float = 0.0) -> Tensor:
    """Keep what padding holds, which may be anything, out of the map and of its gradient."""
    return value if valid is None else value.masked_fill(~valid.unsqueeze(2), instead)


def _summed(
    value: Tensor, out: Tensor, log_derivative: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Leave padding as it was; sum the log-derivatives over the event.

    Derivatives that broadcast over the event, as shared parameters make them, are summed before they are copied.
    """
    rank = value.ndim - 2
    if valid is not None:
        valid = valid.unsqueeze(2)
        log_derivative = torch.where(valid, log_derivative, 0.0).expand(value.shape)
        return torch.where(valid, out, value), sum_event(log_derivative, rank)
    axes = log_derivative.view(*[1] * (value.ndim - log_derivative.ndim), *log_derivative.shape)
    repeats = size(tuple(value.shape[2:])) // size(tuple(axes.shape[2:]))
    return out, sum_event(axes, rank) * repeats
