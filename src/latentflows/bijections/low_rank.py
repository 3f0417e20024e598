"""Low-rank flows: cheap, with parameters that may come from the encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.bijections.base import Bijection, ParameterSource
from latentflows.core.precision import full_precision, soft_bound
from latentflows.core.shapes import Shape
from latentflows.networks.base import check_sizes

_FLOOR = 1 - 1e-3  # w.v_hat stays above -_FLOOR
_RATE = 1 - math.exp(-_FLOOR)  # sigmoid(c) where softplus(c) = _FLOOR
_RADIUS_BOUND = math.log(
    1000
)  # alpha lies within a factor of 1000 of sqrt(D), the length of a standard normal


def _bounded(inner: Tensor) -> Tensor:
    """Return m(a) = softplus(a + c) - softplus(c), precise near a = 0; constant above a = 80, where exp overflows."""
    return torch.log1p(_RATE * torch.expm1(inner.clamp(max=80.0)))


def _affine(u: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return w.u + b (K, B, 1) for one layer's global (D,) or amortized (B, D) weights."""
    if w.ndim == 1:
        with full_precision(u):
            return functional.linear(u, w.unsqueeze(0), b)
    return (w * u).sum(-1, keepdim=True) + b


class Planar(Bijection):
    r"""Expand or contract along one direction per layer, with parameters of its own or from the context.

    .. math:: x = u + \hat v \tanh(w^T u + b), \qquad
              \log|\det| = \log|1 + (1 - \tanh^2(w^T u + b))\, w^T \hat v|

    The constraint :math:`w^T \hat v > -1` that makes it invertible is
    :math:`\hat v = v + (m(w^T v) - w^T v) w / |w|^2` with :math:`m(a) = softplus(a + c) - softplus(c)` and
    softplus(c) = 1 - 0.001: v = 0 is the identity and :math:`\hat v` stays bounded where w is small. (The
    published m(a) = softplus(a) - 1 is not 0 at 0, and :math:`\hat v` then grows as 1 / |w|.)

    Cost: no network, O(D) per layer. No inverse: use it for posteriors. One layer bends a single direction, so
    prefer `InverseAutoregressive` when latents are many. The constraint and the log-determinants of all layers are
    computed together, which takes less than half the time of a `Chain` of single layers.

    Args:
        dim: Number of variables D.
        num_layers: How many planar maps follow each other.
        context_shape: None for global parameters, (C,) for parameters from the context.

    Shape:
        u: (*batch, D); context: (*batch, C); log_det: (*batch).

    References:
        Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, eq. 10-12 and
        appendix A.1 for the constraint.
    """

    def __init__(self, dim: int, *, num_layers: int = 1, context_shape: int | Shape | None = None) -> None:
        super().__init__(dim, passes=(0, None), context_shape=context_shape)
        check_sizes(dim=dim, num_layers=num_layers)
        start = {
            "v": torch.zeros(num_layers, dim),
            "w": torch.randn(num_layers, dim) / math.sqrt(dim),
            "b": torch.zeros(num_layers, 1),
        }
        self.source = ParameterSource(start, self.context_shape)

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        v, w, b = self.source(context)  # (L, D) each, b (L, 1); with a context (B, L, ...)
        inner = (w * v).sum(-1, keepdim=True)
        bounded = _bounded(inner)
        floor = math.sqrt(torch.finfo(w.dtype).tiny)  # below it |w|^2 underflows and v_hat would blow up
        norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp_min(floor)
        v_hat = torch.addcmul(v, (bounded - inner) / norm, w / norm)
        x, bends = u, []
        for direction, weight, offset in zip(v_hat.unbind(-2), w.unbind(-2), b.unbind(-2), strict=True):
            bends.append(_affine(x, weight, offset).tanh())
            x = torch.addcmul(x, direction, bends[-1])
        bend = torch.stack(bends, -2)  # (K, B, L, 1)
        log_det = torch.addcmul(bounded, bend * bend, bounded, value=-1).log1p()
        return x, log_det.sum((-2, -1))

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise self._missing("inverse, so a density cannot be evaluated at a given point", "posterior")


class Radial(Bijection):
    r"""Expand or contract around one point per layer, with parameters of its own or from the context.

    .. math:: x = u + \beta\, h(r)\, (u - z_0), \quad h(r) = \frac{1}{\alpha + r}, \quad r = |u - z_0|

    .. math:: \log|\det| = (D - 1) \log(1 + \beta h) + \log(1 + \beta h + \beta h'(r)\, r)

    The constraint :math:`\beta \ge -\alpha` that makes it invertible is :math:`\beta = \alpha\, m(b)` with
    :math:`m(b) = softplus(b + c) - softplus(c)` and softplus(c) = 1 - 0.001, so that b = 0 is the identity. With
    :math:`t = 1 / (1 + r / \alpha)` the factors are :math:`1 + m t` and :math:`1 + m t^2`: no difference of large
    numbers, at r = 0 as far out.

    Cost: no network, O(D) per layer both ways; the inverse solves a quadratic for the radius. One layer knows a
    single center, so prefer `InverseAutoregressive` when latents are many.

    Args:
        dim: Number of variables D.
        num_layers: How many radial maps follow each other.
        context_shape: None for global parameters, (C,) for parameters from the context.

    Shape:
        u, x: (*batch, D); context: (*batch, C); log_det: (*batch).

    References:
        Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, eq. 14 and
        appendix A.2 for the constraint.
    """

    def __init__(self, dim: int, *, num_layers: int = 1, context_shape: int | Shape | None = None) -> None:
        super().__init__(dim, passes=(0, 0), context_shape=context_shape)
        check_sizes(dim=dim, num_layers=num_layers)
        start = {
            "center": torch.randn(num_layers, dim),
            "radius": torch.zeros(num_layers, 1),
            "strength": torch.zeros(num_layers, 1),
        }
        self.source = ParameterSource(start, self.context_shape)

    def _settings(self, context: Tensor | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return centers z_0 and 1 / alpha layer by layer, and m of all layers (..., L, 1)."""
        center, radius, strength = self.source(context)
        rate = (-soft_bound(radius, _RADIUS_BOUND)).exp() / math.sqrt(self.event_shape[0])
        return list(center.unbind(-2)), list(rate.unbind(-2)), _bounded(strength)

    def _log_det(self, nearness: list[Tensor], strength: Tensor) -> Tensor:
        """Sum both factors over the layers, from t of every layer, each (K, B, 1)."""
        near = torch.stack(nearness, -2)
        across, along = (strength * near).log1p(), (strength * near * near).log1p()
        return torch.add(along, across, alpha=self.event_shape[0] - 1).sum((-2, -1))

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        centers, rates, strength = self._settings(context)
        x, nearness = u, []
        for center, rate, m in zip(centers, rates, strength.unbind(-2), strict=True):
            offset = x - center
            distance = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
            nearness.append((1 + distance * rate).reciprocal())
            x = torch.addcmul(x, offset, m * nearness[-1])
        return x, self._log_det(nearness, strength)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        centers, rates, strength = self._settings(context)
        u, nearness = x, []
        layers = list(zip(centers, rates, strength.unbind(-2), strict=True))
        for center, rate, m in reversed(layers):
            offset = u - center
            reached = torch.linalg.vector_norm(offset, dim=-1, keepdim=True) * rate
            nearness.insert(0, (1 + _distance(reached, m)).reciprocal())
            u = center + offset / (1 + m * nearness[0])
        return u, -self._log_det(nearness, strength)


def _distance(reached: Tensor, m: Tensor) -> Tensor:
    """Return the s >= 0 with s (1 + m / (1 + s)) = p, all radii in units of alpha.

    It is the larger root of s^2 + (1 + m - p) s - p = 0, by whichever of its two forms does not cancel.
    """
    positive = reached.clamp_min(torch.finfo(reached.dtype).tiny)
    half = positive - 1 - m
    outer = half >= 0
    larger = 0.5 * (torch.where(outer, half, -half) + torch.hypot(half, 2 * positive.sqrt()))
    return torch.where(outer, larger, positive / larger)
