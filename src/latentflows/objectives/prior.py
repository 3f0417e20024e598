"""What a prior is fitted by on a frozen posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from latentflows.core.errors import CombinationError
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import Objective, Value, check_samples, value_of
from latentflows.objectives.requirements import Need


@dataclass(frozen=True)
class PriorLikelihood(Objective):
    r"""Negative log-density of the prior at posterior samples: the second stage, on a frozen encoder.

    .. math:: L = -E_{x} E_{q(z|x)}[\log p(z)]

    Minimizing it minimizes KL(q(z) || p(z)) of the aggregate posterior; the ELBO rises by as much as it falls. z is
    drawn anew at every step. Nothing is decoded.

    Args:
        num_samples: Samples per data point.

    References:
        Dai & Wipf, Diagnosing and Enhancing VAE Models, 2019, arXiv 1903.05789, section 4 (two stages).
    """

    num_samples: int = 1
    metrics: ClassVar[tuple[str, ...]] = ("loss", "prior_nll", "kl")
    prior_only: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ("prior_density",)

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def check(self, model: VAE) -> None:
        super().check(model)
        if model.num_parameters()["prior"] == 0:
            raise CombinationError(
                "A stage that fits the prior needs a prior with parameters; this one has none. "
                "Choose a learned prior, or train in one stage."
            )

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        return model.trace(x, self.num_samples, context=context, with_likelihood=False)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        nll = -trace.log_prior.mean(0)
        kl = (trace.log_posterior - trace.log_prior).mean(0)
        return value_of(nll, {"prior_nll": nll, "kl": kl})

    def score(self, figures: dict[str, float]) -> float:
        return -figures["prior_nll"]
