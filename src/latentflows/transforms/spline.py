"""Monotone rational-quadratic splines, on an interval with linear tails and on the circle.

Between two knots (x_k, y_k) and (x_k + w, y_k + h) with slopes d_0 and d_1 the map is a ratio of two quadratics in
t = (u - x_k) / w. With s = h / w, a = d_0 / s, b = d_1 / s and r = 1 - t it reads

    v = t (t + a r) / (t (t + a r) + r (r + b t)),    x = y_k + h v,
    dx/du = s (r (t + a r) + t (r + b t)) / (t (t + a r) + r (r + b t))^2.

This is the published form divided by s: every term is positive, so nothing cancels. Its inverse solves a quadratic
whose discriminant is a sum of squares, q^2 + 4 v (1 - v) with q = a (1 - v) - b v, and so is never negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import check_positive, soft_bound
from latentflows.transforms.base import Transform


@dataclass(frozen=True)
class RationalQuadraticSpline(Transform):
    r"""Monotone rational-quadratic spline on [-B, B]; outside the identity, slope 1 at the borders too.

    .. math:: x = y_k + h v, \quad v = \frac{t (t + a r)}{t (t + a r) + r (r + b t)}, \quad t = \frac{u - x_k}{w},
              \quad r = 1 - t

    in the bin with corner (x_k, y_k), width w and height h, for a and b the slopes at its ends over h / w.

    Raw parameters: K widths, K heights and the K - 1 slopes at inner knots, P = 3 K - 1. All zeros is the identity up
    to rounding. A bin's share of the interval is proportional to e + sigmoid(a), with e set by the smallest share; the
    log-slope at a knot is a / (1 + |a| / c), c = -log(min_slope). The paper takes a softmax and a softplus, under
    which neighboring bins differ without limit, and at raw parameters of standard deviation 20 the map is so flat that
    float32 cannot tell where a value came from: there the round trip is off by 0.14 on average, here by 0.0006.
    Smaller floors fit sharper densities and cost such precision.

    Cost: O(K) for the knots, O(1) for the map, the same in either direction.

    Source: Durkan et al., Neural Spline Flows, 2019, arXiv 1906.04032, section 3.1 and appendix A.

    Attributes:
        num_bins: K, at least 2.
        bound: B. Standardize what enters: nothing moves outside.
        min_share: Smallest width and height of a bin, as a share of the interval.
        min_slope: Smallest slope at a knot; the largest is its inverse.

    Raises:
        ConfigurationError: if a setting is out of range.
    """

    num_bins: int = 8
    bound: float = 3.0
    min_share: float = 1e-3
    min_slope: float = 0.05

    def __post_init__(self) -> None:
        check_positive("bound", self.bound)
        _check_bins(self.num_bins, self.min_share, self.min_slope)

    @property
    def size(self) -> int:
        return 3 * self.num_bins - 1

    def forward(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._tails(u, *_forward(u, *self._segment(u, raw, side=0)))

    def inverse(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._tails(x, *_inverse(x, *self._segment(x, raw, side=1)))

    def _segment(self, value: Tensor, raw: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        shares, slopes = _over(raw, value).split([2 * self.num_bins, self.num_bins - 1])
        index, corner, extent = _bin(value, shares, side, self.bound, self.min_share)
        slopes = functional.pad(slopes, (0, 0) * value.ndim + (1, 1))  # raw 0 is slope 1
        return corner, extent, _ends(slopes, index, self.min_slope)

    def _tails(self, value: Tensor, out: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        inside = value.abs() <= self.bound
        return torch.where(inside, out, value), torch.where(inside, log_derivative, 0.0)


@dataclass(frozen=True)
class CircularSpline(Transform):
    r"""Monotone rational-quadratic spline of an angle, smooth across the cut at -pi = pi.

    .. math:: f(u + 2 \pi) = f(u) + 2 \pi, \quad f = \text{the map of `RationalQuadraticSpline` on } [-\pi, \pi)

    Raw parameters: K widths, K heights and K slopes, that at the cut being shared by both its sides; P = 3 K, with the
    same meaning as in `RationalQuadraticSpline`. All zeros is the identity up to rounding. Angles in [-pi, pi) stay
    there and the cut is a fixed point, both to rounding: to move it, put a rotation between two of these
    (`Elementwise(..., Additive())`).

    Outside, the map goes on by full turns, f(u + 2 pi) = f(u) + 2 pi. So it is a bijection of the circle, for angles
    read modulo 2 pi, and one of the real line too, and a rotation needs no wrapping. In a `Coupling` that holds of the
    whole torus: it is `periodic`, so the network reads the cosine and the sine of each angle that stays, not the angle.
    Layers whose network reads values as they are refuse it.

    Cost: O(K) for the knots, O(1) for the map, the same in either direction.

    Source: Rezende et al., Normalizing Flows on Tori and Spheres, 2020, arXiv 2002.02428, section 2.1.2; section 2 for
    tori.

    Attributes:
        num_bins: K, at least 2.
        min_share: Smallest width and height of a bin, as a share of the circle.
        min_slope: Smallest slope at a knot; the largest is its inverse.

    Raises:
        ConfigurationError: if a setting is out of range.
    """

    periodic = True

    num_bins: int = 8
    min_share: float = 1e-3
    min_slope: float = 0.05

    def __post_init__(self) -> None:
        _check_bins(self.num_bins, self.min_share, self.min_slope)

    @property
    def size(self) -> int:
        return 3 * self.num_bins

    def forward(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        turns = _turns(u)
        x, log_derivative = _forward(u - turns, *self._segment(u - turns, raw, side=0))
        return x + turns, log_derivative

    def inverse(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        turns = _turns(x)
        u, log_derivative = _inverse(x - turns, *self._segment(x - turns, raw, side=1))
        return u + turns, log_derivative

    def _segment(self, value: Tensor, raw: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        shares, slopes = _over(raw, value).split([2 * self.num_bins, self.num_bins])
        index, corner, extent = _bin(value, shares, side, math.pi, self.min_share)
        return corner, extent, _ends(torch.cat([slopes, slopes[:1]]), index, self.min_slope)


def _check_bins(num_bins: int, min_share: float, min_slope: float) -> None:
    if not isinstance(num_bins, int) or num_bins < 2:
        raise ConfigurationError(f"`num_bins` must be an integer of at least 2; got {num_bins!r}.")
    if not 0 < min_share * num_bins < 1:
        raise ConfigurationError(
            f"`min_share` must lie between 0 and 1 / num_bins = {1 / num_bins:g}; got {min_share!r}."
        )
    if not 0 < min_slope < 1:
        raise ConfigurationError(f"`min_slope` must lie between 0 and 1; got {min_slope!r}.")


def _over(raw: Tensor, value: Tensor) -> Tensor:
    """Give raw parameters (P, *last axes) as many axes behind the first as the value has."""
    missing = value.ndim + 1 - raw.ndim
    return raw.reshape(raw.shape[0], *[1] * missing, *raw.shape[1:]) if missing else raw


def _bin(
    value: Tensor, raw: Tensor, side: int, bound: float, min_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the bin that holds each value, its lower corner (x_k, y_k) and its extent (w, h).

    The bins are laid out from 0 to the sum of all e + sigmoid(a); only what is chosen is brought to [-bound, bound].

    Args:
        value: (*axes); beyond the bound the outermost bin is returned.
        raw: (2 K, *axes), widths first.
        side: 0 to search values among the knots in u, 1 in x.
        bound: The spline maps [-bound, bound] onto itself.
        min_share: Smallest share of a bin.

    Returns:
        index of the bin (*axes), corner (2, *axes), extent (2, *axes).
    """
    count = raw.shape[0] // 2
    least = min_share * (count - 1) / (1 - min_share * count)  # one bin at it, the others at 1 + it
    gate = raw.view(2, count, *raw.shape[1:]).sigmoid()
    scale = (2 * bound) / (gate.sum(1) + count * least)
    with torch.no_grad():  # which bin it is has no gradient
        offset = torch.arange(1, count, dtype=gate.dtype, device=gate.device) * least
        edges = gate[side, :-1].cumsum(0) + offset.view(-1, *[1] * value.ndim)
        below = ((value + bound) / scale[side] >= edges).to(gate.dtype)
        place = below.sum(0)
        index = place.long()
    before = (gate[:, :-1] * below).sum(1)
    own = gate.expand(2, count, *index.shape).gather(1, index.expand(2, 1, *index.shape)).squeeze(1)
    return index, torch.add(before, place, alpha=least) * scale - bound, (own + least) * scale


def _ends(raw: Tensor, index: Tensor, least: float) -> Tensor:
    """Return the slopes (2, *axes) at both ends of a bin, given K + 1 raw slopes."""
    chosen = raw.expand(raw.shape[0], *index.shape).gather(0, torch.stack([index, index + 1]))
    return soft_bound(chosen, -math.log(least)).exp()


def _forward(u: Tensor, corner: Tensor, extent: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    (x, y), (w, h) = corner.unbind(0), extent.unbind(0)
    chord = h / w
    left, right = (slopes / chord).unbind(0)
    t = ((u - x) / w).clamp(0, 1)  # outside, and by rounding; values and gradients stay finite
    part, whole, slope = _curve(t, 1 - t, left, right)
    return torch.addcmul(y, h, part / whole), (slope / whole * (chord / whole)).log()


def _inverse(x: Tensor, corner: Tensor, extent: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    (u, y), (w, h) = corner.unbind(0), extent.unbind(0)
    chord = h / w
    left, right = (slopes / chord).unbind(0)
    v = ((x - y) / h).clamp(0, 1)
    rest = 1 - v
    half = 0.5 * torch.addcmul(left * rest, right, v, value=-1)  # q / 2
    root = (
        torch.addcmul(v * rest, half, half).sqrt() + half.abs()
    )  # of the two roots that which never cancels
    falls = half.signbit()
    near, far = torch.where(falls, root, v), torch.where(falls, rest, root)
    both = near + far
    t = near / both
    _, whole, slope = _curve(t, far / both, left, right)
    return torch.addcmul(u, w, t), (whole / slope * (whole / chord)).log()


def _curve(t: Tensor, r: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numerator and the denominator of v, and of dv/dt times the denominator squared."""
    rise, fall = torch.addcmul(t, left, r), torch.addcmul(r, right, t)
    part = t * rise
    return part, torch.addcmul(part, r, fall), torch.addcmul(r * rise, t, fall)


def _turns(angle: Tensor) -> Tensor:
    """Return the full turns, in radians, by which an angle lies outside [-pi, pi)."""
    return torch.floor((angle.detach() + math.pi) / (2 * math.pi)) * (2 * math.pi)
