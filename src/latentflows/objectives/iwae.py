"""The importance-weighted bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from latentflows.models.vae import Trace
from latentflows.objectives.base import Objective, Value, check_samples, elbo_parts, value_of


@dataclass(frozen=True)
class IWAE(Objective):
    r"""Negative importance-weighted bound, tighter than the ELBO for K > 1 and equal to it for K = 1.

    .. math:: L = -E\left[\log \tfrac1K \sum_k \frac{p(x, z_k)}{q(z_k|x)}\right]

    Args:
        num_samples: K.

    References:
        Burda et al., Importance Weighted Autoencoders, 2016, arXiv 1509.00519, eq. 8, 14.
    """

    num_samples: int = 5
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl", "iwae")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def score(self, figures: dict[str, float]) -> float:
        return figures["iwae"]

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        bound = trace.log_weight.logsumexp(0) - math.log(len(trace.log_weight))
        return value_of(-bound, {**elbo_parts(trace), "iwae": bound})
