"""The evidence lower bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from latentflows.core.errors import ConfigurationError
from latentflows.distributions.kl import check_closed_form_kl, kl_divergence
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import Objective, Value, check_samples, mean_over_samples, value_of, warm_up


@dataclass(frozen=True)
class ELBO(Objective):
    r"""Negative evidence lower bound, averaged over the batch.

    .. math:: L = -E_q[\log p(x|z)] + \beta(t) \, KL(q(z|x) \| p(z)), \quad \beta(t) = \beta \min(1, t / T)

    Args:
        num_samples: K, samples per data point.
        beta: Weight of the KL after warm-up; 1 for the bound itself.
        warmup_epochs: T, over which the weight rises linearly from 0; 0 for none.
        kl: "monte_carlo", log q - log p on the same samples, valid for every pair; or "closed_form", with
            less variance, for Gaussians.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: from `check`, if there is no closed form.

    References:
        Kingma & Welling 2014, arXiv 1312.6114, eq. 3, 10; Higgins et al., beta-VAE, 2017; warm-up: Sonderby et al.,
        Ladder Variational Autoencoders, 2016, arXiv 1602.02282, section 2.
    """

    num_samples: int = 1
    beta: float = 1.0
    warmup_epochs: float = 0.0
    kl: Literal["monte_carlo", "closed_form"] = "monte_carlo"

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        if not self.beta >= 0 or not self.warmup_epochs >= 0:
            raise ConfigurationError(
                f"`beta` and `warmup_epochs` must be at least 0; got {self.beta} and {self.warmup_epochs}."
            )
        if self.kl not in ("monte_carlo", "closed_form"):
            raise ConfigurationError(f'`kl` must be "monte_carlo" or "closed_form"; got {self.kl!r}.')

    def settings(self, epoch: float) -> dict[str, float]:
        return {"beta": self.beta * float(warm_up(epoch, self.warmup_epochs))}

    def check(self, model: VAE) -> None:
        if self.kl == "closed_form":
            check_closed_form_kl(model.posterior.distribution_type, model.prior_type)

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        scored = self.kl == "monte_carlo"
        return model.trace(x, self.num_samples, context=context, with_densities=scored)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        if self.kl == "closed_form":
            first, *others = (kl_divergence(q, p) for q, p in trace.levels)
            kl = sum(others, start=first)
        else:
            kl = mean_over_samples(trace.log_posterior - trace.log_prior)
        reconstruction = mean_over_samples(trace.log_likelihood)
        beta = self.beta * warm_up(epoch, self.warmup_epochs)
        loss = kl - reconstruction if isinstance(beta, float) and beta == 1 else beta * kl - reconstruction
        reconstruction, kl = reconstruction.detach(), kl.detach()
        return value_of(loss, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl})
