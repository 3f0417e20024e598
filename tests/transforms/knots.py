"""The splines as their documentation states them, knot by knot: what the fast ones must agree with."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.transforms import CircularSpline, RationalQuadraticSpline

Spline = RationalQuadraticSpline | CircularSpline


def bound_of(spline: Spline) -> float:
    return spline.bound if isinstance(spline, RationalQuadraticSpline) else math.pi


def shares(raw: Tensor, min_share: float) -> Tensor:
    """Return the shares (N, K) of bins with raw widths (or heights) (N, K)."""
    count = raw.shape[-1]
    gate = raw.sigmoid() + min_share * (count - 1) / (1 - min_share * count)
    return gate / gate.sum(-1, keepdim=True)


def knots(spline: Spline, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return knots in u, in x, and slopes there, (N, K + 1) each, of raw parameters (P, N)."""
    count, span = spline.num_bins, 2 * bound_of(spline)
    rows = raw.T
    u, x = (
        functional.pad(shares(part, spline.min_share).cumsum(-1), (1, 0)) * span - span / 2
        for part in (rows[:, :count], rows[:, count : 2 * count])
    )
    slopes = rows[:, 2 * count :]
    if isinstance(spline, RationalQuadraticSpline):
        slopes = functional.pad(slopes, (1, 1))
    else:
        slopes = torch.cat([slopes, slopes[:, :1]], -1)
    bound = -math.log(spline.min_slope)
    return u, x, (slopes / (1 + slopes.abs() / bound)).exp()


def evaluate(knots: tuple[Tensor, Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and dx/du of values (N,) inside the interval by Durkan et al., 2019, eq. 4 and 5."""
    index = torch.searchsorted(knots[0], u[:, None]).clamp(1, knots[0].shape[1] - 1)
    (u0, u1), (x0, x1), (d0, d1) = (
        (part.gather(1, index - 1)[:, 0], part.gather(1, index)[:, 0]) for part in knots
    )
    s, xi = (x1 - x0) / (u1 - u0), (u - u0) / (u1 - u0)
    bottom = s + (d1 + d0 - 2 * s) * xi * (1 - xi)
    x = x0 + (x1 - x0) * (s * xi**2 + d0 * xi * (1 - xi)) / bottom
    slope = s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / bottom**2
    return x, slope
