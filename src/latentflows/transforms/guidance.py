"""Classifier-free guidance of affine maps: what two of them, with and without a context, are combined to."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from latentflows.core.errors import ConfigurationError

GuidanceRule = Literal["linear", "gaussian"]


def check_guidance(weight: float, rule: GuidanceRule) -> None:
    """Refuse a negative weight or an unknown rule.

    Raises:
        ConfigurationError: naming the setting.
    """
    if not (weight >= 0 and math.isfinite(weight)):
        raise ConfigurationError(f"`weight` of guidance must be 0 or more and finite; got {weight!r}.")
    if rule not in get_args(GuidanceRule):
        raise ConfigurationError(f"`rule` must be one of {get_args(GuidanceRule)}; got {rule!r}.")


def guided(
    shift: Tensor,
    shift_without: Tensor,
    log_scale: Tensor,
    log_scale_without: Tensor,
    weight: float,
    rule: GuidanceRule,
) -> tuple[Tensor, Tensor]:
    r"""Return shift and log-scale of the map that is pushed from the one without a context (u) past that with (c).

    "linear" (TarFlow) goes on along the line through both, for the shift m and the log-scale s = log sigma:

    .. math:: m = m_c + w (m_c - m_u), \quad s = s_c + w (s_c - s_u)

    "gaussian" (STARFlow) takes the mean and standard deviation of the normalized :math:`p_c^{1+w} / p_u^w`:

    .. math:: r = \min(\sigma_c / \sigma_u, 1)^2, \quad n = 1 + w - w r, \quad
        m = ((1 + w) m_c - w r m_u) / n, \quad \sigma = \sigma_c / \sqrt n

    where the minimum keeps n at 1 or more: without it the quotient has no norm once sigma_c is much the larger. At
    w = 0 both are (c). Log-scales of "linear" are not bounded by the layer's bound b, but by (1 + 2 w) b.

    Shape:
        all: the same, any; one entry each.

    References:
        Zhai et al., Normalizing Flows are Capable Generative Models (TarFlow), 2024, arXiv 2412.06329; Gu et al.,
        STARFlow, 2025, arXiv 2506.06276 (both in their sections on guidance); Ho & Salimans, Classifier-Free
        Diffusion Guidance, 2022, arXiv 2207.12598.
    """
    if rule == "linear":
        return shift + weight * (shift - shift_without), log_scale + weight * (log_scale - log_scale_without)
    ratio = (2 * (log_scale - log_scale_without).clamp_max(0)).exp()
    precision = 1 + weight - weight * ratio  # of the product, in units of 1 / sigma_c^2
    shift = ((1 + weight) * shift - weight * ratio * shift_without) / precision
    return shift, log_scale - precision.log() / 2
