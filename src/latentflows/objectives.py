"""What training minimizes: frozen settings and a pure function of a `Trace`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions.kl import check_closed_form_kl, kl_divergence
from latentflows.models.vae import VAE, Trace


class Value(NamedTuple):
    """A loss to minimize (scalar, nats per data point) and metrics of shape (B,) by name, detached.

    Among the metrics, "loss" is the loss of each data point: `loss` is its mean.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def _value(points: Tensor, metrics: dict[str, Tensor]) -> Value:
    return Value(points.mean(), {name: value.detach() for name, value in {"loss": points, **metrics}.items()})


class Objective(ABC):
    """A loss. To write one, implement `__call__`; override `trace` only to score less.

    `epoch` is the training time in epochs, a fraction inside one; schedules read it, and evaluation leaves it at
    infinity, where every schedule has ended.
    """

    num_samples: int = 1
    warmup_epochs: float = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl")

    def settings(self, epoch: float) -> dict[str, float]:
        """Return what schedules have reached at this time, by name, for the log."""
        return {}

    def score(self, figures: dict[str, float]) -> float:
        """Return the figure that chooses the best weights; higher is better."""
        return figures["elbo"]

    def check(self, model: VAE) -> None:  # noqa: B027 - most objectives fit every model
        """Refuse a model that this objective cannot train.

        Raises:
            CombinationError: saying what to use instead.
        """

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        """Run the model as far as this objective needs."""
        return model.trace(x, self.num_samples, context=context)

    @abstractmethod
    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        """Return the loss of a trace."""


def warm_up(epoch: float | Tensor, length: float) -> float | Tensor:
    """Rise linearly from 0 at epoch 0 to 1 at epoch `length`."""
    if length <= 0:
        return 1.0
    if isinstance(epoch, Tensor):
        return (epoch / length).clamp(max=1.0)
    return min(epoch / length, 1.0)


def _mean_over_samples(value: Tensor) -> Tensor:
    return value.squeeze(0) if len(value) == 1 else value.mean(0)


def elbo_parts(trace: Trace) -> dict[str, Tensor]:
    """Split the ELBO at beta 1 in its parts, each (B,), nats: elbo = reconstruction - kl, by Monte Carlo."""
    reconstruction = _mean_over_samples(trace.log_likelihood)
    kl = _mean_over_samples(trace.log_posterior - trace.log_prior)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


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
        _check_samples(self.num_samples)
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
            check_closed_form_kl(model.posterior.distribution_type, model.prior.distribution_type)

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        scored = self.kl == "monte_carlo"
        return model.trace(x, self.num_samples, context=context, with_densities=scored)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        if self.kl == "closed_form":
            first, *others = (kl_divergence(q, p) for q, p in trace.levels)
            kl = sum(others, start=first)
        else:
            kl = _mean_over_samples(trace.log_posterior - trace.log_prior)
        reconstruction = _mean_over_samples(trace.log_likelihood)
        beta = self.beta * warm_up(epoch, self.warmup_epochs)
        loss = kl - reconstruction if isinstance(beta, float) and beta == 1 else beta * kl - reconstruction
        reconstruction, kl = reconstruction.detach(), kl.detach()
        return _value(loss, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl})


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
        _check_samples(self.num_samples)

    def score(self, figures: dict[str, float]) -> float:
        return figures["iwae"]

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        bound = trace.log_weight.logsumexp(0) - math.log(len(trace.log_weight))
        return _value(-bound, {**elbo_parts(trace), "iwae": bound})


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

    def __post_init__(self) -> None:
        _check_samples(self.num_samples)

    def check(self, model: VAE) -> None:
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
        return _value(nll, {"prior_nll": nll, "kl": kl})

    def score(self, figures: dict[str, float]) -> float:
        return -figures["prior_nll"]


def _check_samples(num_samples: int) -> None:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigurationError(f"`num_samples` must be a positive integer; got {num_samples!r}.")
