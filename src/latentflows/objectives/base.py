"""What every objective is: frozen settings and a pure function of a `Trace`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.models.vae import VAE, Trace


class Value(NamedTuple):
    """A loss to minimize (scalar, nats per data point) and metrics of shape (B,) by name, detached.

    Among the metrics, "loss" is the loss of each data point: `loss` is its mean.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def value_of(points: Tensor, metrics: dict[str, Tensor]) -> Value:
    """Return the mean of the losses of each point (B,), and the metrics without their gradients."""
    return Value(points.mean(), {name: value.detach() for name, value in {"loss": points, **metrics}.items()})


class Objective(ABC):
    """A loss. To write one, implement `__call__`; override `trace` only to score less.

    `epoch` is the training time in epochs, a fraction inside one; schedules read it, and evaluation leaves it at
    infinity, where every schedule has ended.
    """

    num_samples: int = 1
    warmup_epochs: float = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl")
    prior_only: ClassVar[bool] = False  # says nothing about posterior and likelihood

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

    def at(self, step: int) -> Objective:
        """Return the objective of optimizer step `step` (from 0), for updates that take turns.

        A parameter that it gives no gradient does not move in that step.
        """
        return self

    def auxiliary(self, model: VAE) -> nn.Module | None:
        """Return a new module that this objective trains besides the model's parts, such as a discriminator.

        Whoever builds the model sets it as `model.auxiliary`; a trace hands it on.
        """
        return None

    @property
    def takes_turns(self) -> bool:
        """Whether `at` gives different objectives."""
        return type(self).at is not Objective.at

    @property
    def has_auxiliary(self) -> bool:
        """Whether `auxiliary` gives a module."""
        return type(self).auxiliary is not Objective.auxiliary

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


def mean_over_samples(value: Tensor) -> Tensor:
    """Average (K, B) over the K samples."""
    return value.squeeze(0) if len(value) == 1 else value.mean(0)


def elbo_parts(trace: Trace) -> dict[str, Tensor]:
    """Split the ELBO at beta 1 in its parts, each (B,), nats: elbo = reconstruction - kl, by Monte Carlo."""
    reconstruction = mean_over_samples(trace.log_likelihood)
    kl = mean_over_samples(trace.log_posterior - trace.log_prior)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def check_samples(num_samples: int) -> None:
    """Refuse a number of samples that is not a positive integer.

    Raises:
        ConfigurationError: naming the value.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigurationError(f"`num_samples` must be a positive integer; got {num_samples!r}.")
