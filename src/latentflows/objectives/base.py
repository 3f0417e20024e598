"""What every objective is: frozen settings and a pure function of a `Trace`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions.kl import kl_divergence
from latentflows.models.density import Model
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.requirements import Need, require


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

    Attributes:
        num_samples: K, draws per data point.
        warmup_epochs: Epochs over which its schedule, if it has one, rises.
        metrics: Names of what a `Value` holds, in order.
        prior_only: It says nothing about posterior and likelihood.
        without_prior: It says nothing about the prior.
        model_type: The class of models that it trains.
        needs: What the model must be able to do; `check` refuses one that cannot.
    """

    num_samples: int = 1
    warmup_epochs: float = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl")
    prior_only: ClassVar[bool] = False
    without_prior: ClassVar[bool] = False
    model_type: ClassVar[type[nn.Module]] = VAE
    needs: ClassVar[tuple[Need, ...]] = ()

    @property
    def schedule_epochs(self) -> float:
        """Epochs after which every schedule has ended; patience counts from there."""
        return self.warmup_epochs

    def settings(self, epoch: float) -> dict[str, float]:
        """Return what schedules have reached at this time, by name, for the log."""
        return {}

    def score(self, figures: dict[str, float]) -> float:
        """Return the figure that chooses the best weights; higher is better."""
        return figures["elbo"]

    def check(self, model: Model) -> None:
        """Refuse a model that this objective cannot train.

        Raises:
            CombinationError: saying what to use instead.
        """
        if not isinstance(model, self.model_type):
            raise CombinationError(
                f"`{type(self).__name__}` trains a `{self.model_type.__name__}`; got a `{type(model).__name__}`. For "
                "a `VAE` use `ELBO` and its relatives, for a `DensityModel` `MaximumLikelihood`, `ForwardKL` or "
                "`ReverseKL`, for a `VQVAE` `VectorQuantization`, then `CodeLikelihood`."
            )
        if isinstance(model, VAE):
            require(type(self).__name__, model, self.needs)

    def at(self, step: int) -> Objective:
        """Return the objective of optimizer step `step` (from 0), for updates that take turns.

        A parameter that it gives no gradient does not move in that step.
        """
        return self

    def auxiliary(self, model: Model) -> nn.Module | None:
        """Return a new module that this objective trains besides the model's parts, such as a discriminator.

        Whoever builds the model sets it as `model.auxiliary`; a trace hands it on.
        """
        return None

    @property
    def takes_turns(self) -> bool:
        """Whether `at` gives different objectives."""
        return type(self).at is not Objective.at

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` keeps the gradient: not where the loss holds a derivative."""
        return True

    @property
    def has_auxiliary(self) -> bool:
        """Whether `auxiliary` gives a module."""
        return type(self).auxiliary is not Objective.auxiliary

    def trace(self, model: Model, x: Tensor, context: Tensor | None = None) -> Trace:
        """Run the model as far as this objective needs."""
        return cast(VAE, model).trace(x, self.num_samples, context=context)

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


def joint_warm_up(epoch: float | Tensor, length: float) -> float | Tensor:
    """Rise linearly from 0.01 to 1, reached at 0.99 of `length`: the weight of log p(x, z).

    References:
        Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, eq. 20.
    """
    risen = warm_up(epoch, length)
    if isinstance(risen, Tensor):
        return (0.01 + risen).clamp(max=1.0)
    return min(0.01 + risen, 1.0)


def cyclical(
    epoch: float | Tensor, rise: float, cycle: float, num_cycles: int, *, joint: bool = False
) -> float | Tensor:
    """Rise over `rise` epochs at the start of every `cycle`, `num_cycles` times; then stay at 1.

    Args:
        epoch: Training time.
        rise: Epochs of one rise.
        cycle: Epochs of one cycle.
        num_cycles: How often.
        joint: Whether a rise is a `joint_warm_up`, from 0.01; else a `warm_up`, from 0.

    References:
        Fu et al., Cyclical Annealing Schedule, 2019, arXiv 1903.10145, section 3.
    """
    end, shape = cycle * (num_cycles - 1) + rise, joint_warm_up if joint else warm_up
    if isinstance(epoch, Tensor):
        return torch.where(epoch >= end, 1.0, shape(epoch % cycle, rise))
    return 1.0 if epoch >= end else shape(epoch % cycle, rise)


def mean_over_samples(value: Tensor) -> Tensor:
    """Average (K, B) over the K samples."""
    return value.squeeze(0) if len(value) == 1 else value.mean(0)


def elbo_parts(trace: Trace) -> dict[str, Tensor]:
    """Split the ELBO at beta 1 in its parts, each (B,), nats: elbo = reconstruction - kl, by Monte Carlo."""
    reconstruction = mean_over_samples(trace.log_likelihood)
    kl = mean_over_samples(trace.log_posterior - trace.log_prior)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def kl_of(trace: Trace, kind: Literal["monte_carlo", "closed_form"]) -> Tensor:
    """Return KL(q(z|x) || p(z)) of each point, (B,), nats, summed over levels: estimated, or in closed form."""
    if kind == "closed_form":
        first, *others = (kl_divergence(q, p) for q, p in trace.levels)
        return sum(others, start=first)
    return mean_over_samples(trace.log_posterior - trace.log_prior)


def without_score(trace: Trace) -> Trace:
    r"""Return the trace with a log q(z|x) that depends on the posterior's parameters through z alone.

    The values stay what they were. Left out is the score, whose expectation under q is zero:

    .. math:: \nabla_\phi \log q_\phi(z(\phi)) = \nabla_z \log q \, \nabla_\phi z + \nabla_\phi \log q_\phi(z)|_z

    Cost: one density pass of the posterior's flow, for which it is inverted; nothing where no gradient is recorded.

    References:
        Roeder et al., Sticking the Landing, 2017, arXiv 1703.09194, algorithm 2.
    """
    if not torch.is_grad_enabled() or not trace.z.requires_grad:
        return trace
    (q, _), *_ = trace.levels
    path = q.detached().log_prob(trace.z)
    return replace(trace, log_posterior=trace.log_posterior.detach() + path - path.detach())


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is none of its choices.

    Raises:
        ConfigurationError: naming them.
    """
    if value not in choices:
        raise ConfigurationError(f"`{name}` must be one of {choices}; got {value!r}.")


def check_at_least(lowest: float, **settings: float) -> None:
    """Refuse settings below `lowest`, NaN or infinite.

    Raises:
        ConfigurationError: naming the setting.
    """
    for name, value in settings.items():
        if not (value >= lowest and math.isfinite(value)):
            raise ConfigurationError(f"`{name}` must be at least {lowest:g} and finite; got {value!r}.")


def check_samples(num_samples: int) -> None:
    """Refuse a number of samples that is not a positive integer.

    Raises:
        ConfigurationError: naming the value.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigurationError(f"`num_samples` must be a positive integer; got {num_samples!r}.")
