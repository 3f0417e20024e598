"""Shift, and scale and shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.precision import check_positive, soft_bound
from latentflows.transforms.base import Transform


@dataclass(frozen=True)
class Additive(Transform):
    r"""Shift: :math:`x = u + t`. Volume-preserving; raw parameters (t).

    Cost: O(1) for each variable, either way.

    Source: Dinh et al., NICE: Non-linear Independent Components Estimation, 2015, arXiv 1410.8516, section 3.2.
    """

    size = 1
    volume_preserving = True

    def forward(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return u + raw[0], u.new_zeros(())

    def inverse(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return x - raw[0], x.new_zeros(())


@dataclass(frozen=True)
class Affine(Transform):
    r"""Scale and shift: :math:`x = u e^s + t`, with s = a / (1 + |a| / b) bounded softly; raw parameters (t, a).

    The bound has slope 1 at 0 and a gradient that never vanishes; no scale exceeds e^b either way.

    Cost: O(1) for each variable, either way.

    Source: Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, eq. 4-8.

    Attributes:
        scale_bound: b, the largest absolute log-scale.

    Raises:
        ConfigurationError: if the bound is not positive and finite.
    """

    scale_bound: float = 3.0
    size = 2

    def __post_init__(self) -> None:
        check_positive("scale_bound", self.scale_bound)

    def forward(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = raw.unbind(0)
        log_scale = soft_bound(scale, self.scale_bound)
        return torch.addcmul(shift, u, log_scale.exp()), log_scale

    def inverse(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = raw.unbind(0)
        log_scale = soft_bound(scale, self.scale_bound)
        return (x - shift) * (-log_scale).exp(), -log_scale
