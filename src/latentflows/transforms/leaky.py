"""A kink at zero with a slope of its own on the negative side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.precision import check_positive, soft_bound
from latentflows.transforms.base import Transform


@dataclass(frozen=True)
class Leaky(Transform):
    r"""Leave what is positive, scale what is negative: :math:`x = \max(u, 0) + e^s \min(u, 0)`; raw parameter (a).

    The log-slope is bounded softly, s = a / (1 + |a| / b).

    Cost: O(1) for each variable, either way.

    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852, eq. 1 (parametric ReLU).

    Attributes:
        scale_bound: b, the largest absolute log-slope.

    Raises:
        ConfigurationError: if the bound is not positive and finite.
    """

    scale_bound: float = 3.0
    size = 1

    def __post_init__(self) -> None:
        check_positive("scale_bound", self.scale_bound)

    def forward(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return _kink(u, soft_bound(raw[0], self.scale_bound))

    def inverse(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return _kink(x, -soft_bound(raw[0], self.scale_bound))


def _kink(value: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    log_derivative = torch.where(value < 0, log_slope, 0.0)
    return value * log_derivative.exp(), log_derivative
