"""Multiscale flows over images and sequences: change the shape, trade space for channels, factor channels out.

With these three a Glow or a Real NVP is a `Chain` over flat noise. All read the first axis of an event as channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentflows.bijections.base import Bijection
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import NetworkMaker, check_sizes, made_network
from latentflows.transforms import Affine, Transform
from latentflows.transforms.base import check_line_transform


class Reshape(Bijection):
    """Lay the same numbers out in another shape, e.g. flat noise as a map. Log-determinant 0.

    Cost: no network, a view.

    Args:
        base_shape: Shape of one u.
        event_shape: Shape of one x, of as many numbers; both are read in row-major order.

    Shape:
        u: (*batch, *base_shape); x: (*batch, *event_shape); log_det: (*batch).

    Raises:
        ShapeError: if the shapes hold different numbers of entries.
    """

    def __init__(self, base_shape: int | Shape, event_shape: int | Shape) -> None:
        base, event = as_shape(base_shape, "base_shape"), as_shape(event_shape, "event_shape")
        if size(base) != size(event):
            raise ShapeError(
                f"`base_shape` must hold as many numbers as `event_shape` {event}, {size(event)}; "
                f"got {base}, {size(base)}."
            )
        super().__init__(event, base_shape=base, passes=(0, 0))

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return u.reshape(*u.shape[:2], *self.event_shape), u.new_zeros(())

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.reshape(*x.shape[:2], *self.base_shape), x.new_zeros(())


class Squeeze(Bijection):
    r"""Trade space for channels: each f x f block of pixels (f frames) of x is one pixel of u. Log-determinant 0.

    .. math:: u_{c f^2 + i f + j,\, h,\, w} = x_{c,\, h f + i,\, w f + j}, \qquad u_{c f + i,\, t} = x_{c,\, t f + i}

    The channels that come from one channel of x stay together; inside, they are in row-major order of their places
    in the block. `inverse` squeezes and `forward` unsqueezes, since the coarse map lies nearer to the noise;
    `Inverse(Squeeze(...))` swaps them. With lengths, a group of frames that holds any padding is padding.

    Cost: no network, one copy.

    Args:
        event_shape: (C, H, W), or (C, T) for a sequence.
        factor: f; H and W, or T, are multiples of it.

    Shape:
        u: (*batch, f f C, H / f, W / f) or (*batch, f C, T / f); x: (*batch, *event_shape); log_det: (*batch).

    Raises:
        ShapeError: if the event is no image and no sequence, or its sizes are not multiples of the factor.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, section 3.6.
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, figure 2.
        Prenger et al., WaveGlow, 2018, arXiv 1811.00002, section 2, for frames.
    """

    def __init__(self, event_shape: Shape, *, factor: int = 2) -> None:
        check_sizes(factor=factor)
        shape = as_shape(event_shape, "event_shape")
        if len(shape) not in (2, 3):
            raise ShapeError(f"`Squeeze` needs an image (C, H, W) or a sequence (C, T); got {shape}.")
        channels, *sides = shape
        if any(side % factor for side in sides):
            padded = (channels, *(-(-side // factor) * factor for side in sides))
            raise ShapeError(
                f"`Squeeze` by {factor} needs sizes that are multiples of {factor}; got {shape}. Pad the data to "
                f"{padded}, crop it, or use fewer levels."
            )
        coarse = (channels * factor ** len(sides), *(side // factor for side in sides))
        super().__init__(shape, base_shape=coarse, passes=(0, 0))
        self.factor = factor
        self.variable_lengths = len(sides) == 1

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        channels, f = self.event_shape[0], self.factor
        if len(self.event_shape) == 2:  # (K, B, C f, T') -> (K, B, C, T', f)
            blocks = u.unflatten(2, (channels, f)).movedim(3, -1)
        else:  # (K, B, C f f, H', W') -> (K, B, C, H', f, W', f)
            blocks = u.unflatten(2, (channels, f, f)).permute(0, 1, 2, 5, 3, 6, 4)
        return blocks.reshape(*u.shape[:2], *self.event_shape), u.new_zeros(())

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        f = self.factor
        if len(self.event_shape) == 2:
            blocks = x.unflatten(3, (-1, f)).movedim(-1, 3)
        else:
            blocks = x.unflatten(4, (-1, f)).unflatten(3, (-1, f)).permute(0, 1, 2, 4, 6, 3, 5)
        return blocks.reshape(*x.shape[:2], *self.base_shape), x.new_zeros(())


class Split(Bijection):
    r"""Factor channels out: some come from an inner flow, the rest from noise that a network moves given those.

    .. math:: x_a = g(u_a), \quad x_b = f(u_b;\, \theta(x_a, c)), \quad \log|\det| = \log|\det g| + \log|\det f|

    With the affine f of the default, :math:`x_b` given :math:`x_a` is a Gaussian whose mean and log-scale the network
    computes; without a network it is the noise itself. u is flat: first what the inner flow needs, then the rest.

    Cost: the inner flow's, and one network pass in either direction. A new layer leaves the second part as it is,
    if the network's last layer is zero.

    Args:
        event_shape: (C, *space); C exceeds the inner flow's channels.
        inner: g, whose events are (C_a, *space); its base may have any shape.
        network: Makes the network from (C_a, *space) and the context to (P (C - C_a), *space), for the P raw
            parameters of f; None for the identity (Real NVP).
        transform: f.
        context_shape: Of the network; the inner flow has it too, or none.

    Shape:
        u: (*batch, D), D the number of entries of an event; x: (*batch, *event_shape); log_det: (*batch).

    Raises:
        ShapeError: if the inner flow's events do not fit into the event.
        CombinationError: if `inner` is no bijection, a context is given that nothing uses, or the inner flow has
            another one.
        ConfigurationError: if the transform is none or one of angles.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, section 3.6, eq. 13-16.
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, figure 2; the learned Gaussian is in its code.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        inner: Bijection,
        *,
        network: NetworkMaker | None,
        transform: Transform = Affine(),  # noqa: B008 (settings alone, frozen)
        context_shape: int | Shape | None = None,
    ) -> None:
        event = as_shape(event_shape, "event_shape")
        if not isinstance(inner, Bijection):
            raise CombinationError(
                f"`inner` must be a bijection, whose events `Split` keeps; got {inner!r}. Build it first."
            )
        kept = inner.event_shape
        if len(kept) != len(event) or kept[1:] != event[1:] or kept[0] >= event[0]:
            raise ShapeError(
                f"`inner` must draw some of the {event[0]} channels of {event}: events (C, "
                f"{', '.join(map(str, event[1:]))}) with C < {event[0]}; got {kept}."
            )
        own = None if context_shape is None else as_shape(context_shape, "context_shape")
        if own is not None and network is None:
            raise CombinationError("`context_shape` is that of the network, but `network` is None.")
        if None not in (own, inner.context_shape) and own != inner.context_shape:
            raise CombinationError(
                f"`inner` and the network must share one context shape; got {inner.context_shape} and {own}."
            )
        calls = 0 if network is None else 1
        forward, inverse = (None if passes is None else passes + calls for passes in inner.passes)
        super().__init__(
            event,
            base_shape=size(event),
            context_shape=own or inner.context_shape,
            passes=(forward, inverse),
        )
        self.transform = check_line_transform(transform, type(self).__name__)
        self.inner, self.reads_context = inner, own is not None
        self.kept, self.out_shape = kept[0], (event[0] - kept[0], *event[1:])
        out = (transform.size * self.out_shape[0], *event[1:])
        features = 0 if own is None else own[0] if len(own) == 1 else own
        self.network = None if network is None else made_network(network, kept, out, features)

    def _raw(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """Return the raw parameters (P, K, B, C_b, *space) given the kept channels."""
        assert self.network is not None
        rows = kept.flatten(0, 1)
        raw = self.network(rows, context) if self.reads_context else self.network(rows)
        expected = (self.transform.size * self.out_shape[0], *self.out_shape[1:])
        if raw.shape[1:] != expected:
            raise ShapeError(
                f"The network of `Split` must give (N, *{expected}) for an input (N, *{tuple(kept.shape[2:])}); got "
                f"{tuple(raw.shape)}. Give it the shapes it is made from."
            )
        return at_least_float32(raw).view(*kept.shape[:2], self.transform.size, *self.out_shape).movedim(2, 0)

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        flat, rest = u.split([size(self.inner.base_shape), size(self.out_shape)], 2)
        flat = flat.reshape(*u.shape[:2], *self.inner.base_shape)
        kept, log_det = self.inner._forward(flat, context if self.inner.context_shape else None)
        rest = rest.reshape(*u.shape[:2], *self.out_shape)
        if self.network is not None:
            rest, log_derivative = self.transform.forward(rest, self._raw(kept, context))
            log_det = log_det + log_derivative.expand(rest.shape).flatten(2).sum(2)
        return torch.cat([kept, rest], 2), log_det

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, rest = x.split([self.kept, self.out_shape[0]], 2)
        flat, log_det = self.inner._inverse(kept, context if self.inner.context_shape else None)
        if self.network is not None:
            rest, log_derivative = self.transform.inverse(rest, self._raw(kept, context))
            log_det = log_det + log_derivative.expand(rest.shape).flatten(2).sum(2)
        return torch.cat([flat.flatten(2), rest.flatten(2)], 2), log_det


class Rescale(Bijection):
    r"""Scale and shift every entry by fixed numbers: :math:`x = a u + b`, :math:`\log|\det| = D \log|a|`.

    For the units of data, so that their part of the log-determinant is in the density: a model of y in [0, 255]
    given as a flow of u in [0, 1] ends in `Rescale(shape, scale=255.0)`.

    Cost: no network, O(D).

    Args:
        event_shape: Shape of one event.
        scale: a, not zero.
        shift: b.

    Shape:
        u, x: (*batch, *event_shape); log_det: (*batch).

    Raises:
        ConfigurationError: if the scale is zero or a number is not finite.
    """

    def __init__(self, event_shape: int | Shape, *, scale: float, shift: float = 0.0) -> None:
        super().__init__(event_shape, passes=(0, 0))
        if scale == 0 or not (math.isfinite(scale) and math.isfinite(shift)):
            raise ConfigurationError(
                f"`scale` must be finite and not zero, `shift` finite; got {scale} and {shift}."
            )
        self.scale, self.shift = scale, shift
        self.log_scale = size(self.event_shape) * math.log(abs(scale))

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return u * self.scale + self.shift, u.new_full((), self.log_scale)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return (x - self.shift) / self.scale, x.new_full((), -self.log_scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, shift={self.shift:g}"
