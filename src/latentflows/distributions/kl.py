"""Closed-form KL divergences, by the types of the two distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentflows.core.errors import CombinationError
from latentflows.core.precision import full_precision
from latentflows.core.shapes import size, sum_event
from latentflows.distributions.base import Distribution
from latentflows.distributions.gaussian import DiagonalNormal, FullNormal, StandardNormal

Formula = Callable[..., Tensor]
_FORMULAS: dict[tuple[type[Distribution], type[Distribution]], Formula] = {}


def register_kl(q: type[Distribution], p: type[Distribution]) -> Callable[[Formula], Formula]:
    """Register a formula for KL(q || p); use it as a decorator."""

    def add(formula: Formula) -> Formula:
        _FORMULAS[q, p] = formula
        return formula

    return add


def has_closed_form_kl(q: type[Distribution], p: type[Distribution]) -> bool:
    """Whether KL(q || p) is registered."""
    return (q, p) in _FORMULAS


def check_closed_form_kl(q: type[Distribution], p: type[Distribution]) -> None:
    """Refuse a pair without a registered formula.

    Raises:
        CombinationError: naming both and what to use.
    """
    if not has_closed_form_kl(q, p):
        raise CombinationError(
            f'No closed-form KL between `{q.__name__}` and `{p.__name__}`. Use kl="monte_carlo": the estimate '
            "from the same samples as the reconstruction."
        )


def kl_divergence(q: Distribution, p: Distribution) -> Tensor:
    """Return KL(q || p) in nats, summed over the event: the broadcast of both batch shapes.

    Raises:
        CombinationError: if no closed form is registered.
    """
    check_closed_form_kl(type(q), type(p))
    return _FORMULAS[type(q), type(p)](q, p)


@register_kl(DiagonalNormal, StandardNormal)
def _(q: DiagonalNormal, p: StandardNormal) -> Tensor:
    squares = torch.addcmul((2 * q.log_scale).exp(), q.mean, q.mean)
    if p.scale != 1:
        squares = squares / p.scale**2
    constant = size(q.event_shape) * (math.log(p.scale) - 0.5)
    return 0.5 * sum_event(squares.sub(q.log_scale, alpha=2), len(q.event_shape)) + constant


@register_kl(DiagonalNormal, DiagonalNormal)
def _(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    precision = (-2 * p.log_scale).exp()
    ratio = (2 * (q.log_scale - p.log_scale)).exp()
    terms = ratio + (q.mean - p.mean) ** 2 * precision - 1 + 2 * (p.log_scale - q.log_scale)
    return 0.5 * sum_event(terms, len(q.event_shape))


def _full_kl(mean_q: Tensor, tril_q: Tensor, mean_p: Tensor, tril_p: Tensor) -> Tensor:
    """0.5 (|L_p^-1 L_q|_F^2 + |L_p^-1 (m_p - m_q)|^2 - D) + log det L_p - log det L_q."""
    with full_precision(mean_q):
        difference = (mean_p - mean_q).unsqueeze(-1)
        tril_q_all = tril_q.expand(*difference.shape[:-2], *tril_q.shape[-2:])
        joined = torch.cat([tril_q_all, difference], -1)
        tril = tril_p.expand(*joined.shape[:-2], *tril_p.shape[-2:])
        solved = torch.linalg.solve_triangular(tril, joined, upper=False)
    log_det_p = tril_p.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det_q = tril_q.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (solved.square().sum((-2, -1)) - mean_q.shape[-1]) + log_det_p - log_det_q


@register_kl(FullNormal, FullNormal)
def _(q: FullNormal, p: FullNormal) -> Tensor:
    return _full_kl(q.mean, q.scale_tril, p.mean, p.scale_tril)


@register_kl(FullNormal, StandardNormal)
def _(q: FullNormal, p: StandardNormal) -> Tensor:
    return _full_kl(q.mean, q.scale_tril, p.mean, p.scale * torch.eye(q.event_shape[0]).to(q.mean))


@register_kl(FullNormal, DiagonalNormal)
def _(q: FullNormal, p: DiagonalNormal) -> Tensor:
    return _full_kl(q.mean, q.scale_tril, p.mean, torch.diag_embed(p.log_scale.exp()))


@register_kl(DiagonalNormal, FullNormal)
def _(q: DiagonalNormal, p: FullNormal) -> Tensor:
    return _full_kl(q.mean, torch.diag_embed(q.log_scale.exp()), p.mean, p.scale_tril)


def check_factorized_kl(q: type[Distribution], p: type[Distribution]) -> None:
    """Refuse a pair whose KL is no sum over single latents in closed form.

    Raises:
        CombinationError: naming both and what to use.
    """
    if q is not DiagonalNormal or p not in (DiagonalNormal, StandardNormal):
        raise CombinationError(
            f"The KL of every single latent is known for diagonal Gaussians alone; got `{q.__name__}` and "
            f"`{p.__name__}`. Take the whole KL as one group."
        )


def kl_per_dimension(q: Distribution, p: Distribution) -> Tensor:
    """Return KL(q_j || p_j) of every latent of two diagonal Gaussians, nats: (*batch, *event).

    Raises:
        CombinationError: for other distributions.
    """
    check_factorized_kl(type(q), type(p))
    assert isinstance(q, DiagonalNormal)
    assert isinstance(p, DiagonalNormal | StandardNormal)
    log_scale = p.log_scale if isinstance(p, DiagonalNormal) else math.log(p.scale)
    widened = q.log_scale - log_scale
    shift = (q.mean - p.mean) * (-p.log_scale).exp() if isinstance(p, DiagonalNormal) else q.mean / p.scale
    return 0.5 * ((2 * widened).exp() + shift.square() - 1) - widened
