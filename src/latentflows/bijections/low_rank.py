"""Low-rank flows: cheap, with parameters that may come from the encoder, and no closed-form inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.bijections.base import Bijection, ParameterSource
from latentflows.core.precision import full_precision
from latentflows.core.shapes import Shape
from latentflows.networks.base import check_sizes

_FLOOR = 1 - 1e-3  # w.v_hat stays above -_FLOOR
_RATE = 1 - math.exp(-_FLOOR)  # sigmoid(c) where softplus(c) = _FLOOR


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
        check_sizes(num_layers=num_layers)
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
