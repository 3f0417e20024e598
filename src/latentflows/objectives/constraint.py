"""The rate or the distortion held at a target: GECO and capacity control."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import check_positive, soft_bound
from latentflows.core.running import Running, gathered_over_processes
from latentflows.core.shapes import size
from latentflows.distributions.kl import check_closed_form_kl
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import (
    Objective,
    Value,
    check_at_least,
    check_choice,
    check_samples,
    kl_of,
    mean_over_samples,
    value_of,
    warm_up,
)
from latentflows.objectives.requirements import Need

_LARGEST_LOG = 12.0  # of the multiplier: e^12 = 160,000, beyond which float32 sees the constraint alone
_VIOLATED = 1e6  # nats in a score per nat and dimension: no KL makes up for a violated constraint


class Multiplier(Running):
    r"""A Lagrange multiplier :math:`e^l`, and the moving average of the constraint that moves it.

    The average takes in the constraint once per step, that of all pieces and processes together: see `Running`.

    Attributes:
        raw: A learned number; l follows from it, within (-12, 12).
        average: The average; a buffer, so that a run resumes with it.
        started: Whether anything was averaged.
    """

    average: Tensor
    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def log_value(self, speed: float) -> Tensor:
        """Return l, `speed` times as fast as the parameter moves."""
        return soft_bound(speed * self.raw, _LARGEST_LOG)

    @torch.no_grad()
    def moved(self, constraint: Tensor, decay: float) -> Tensor:
        """Return the average as this piece of a batch moves it; the mean over pieces is what a step stores."""
        now = constraint.detach().mean().to(self.average)
        moved = torch.where(self.started, torch.lerp(now, self.average, decay), now)
        self._moved.append(moved)
        self.gathered()
        return moved

    def _forget(self) -> None:
        self._moved: list[Tensor] = []

    @torch.no_grad()
    def _take_in(self) -> None:
        if self._moved:
            self.average.copy_(gathered_over_processes(torch.stack(self._moved)).mean())
            self.started.fill_(True)


@dataclass(frozen=True)
class GECO(Objective):
    r"""The least KL at which reconstruction reaches a target: a constraint in place of beta.

    .. math:: \min_{\theta, \phi} \max_\lambda \; KL(q(z|x) \| p(z)) + \lambda \, D \, C,
              \quad C = -\tfrac1D E_q[\log p(x|z)] - \kappa

    D is the number of dimensions of a data point. lambda 1 is the ELBO; 1 / lambda is the beta that meets the target.
    lambda = e^l moves by gradient ascent on the average of C, in a term whose value is zero:
    :math:`sg(l \bar C) - l \, sg(\bar C)`, sg being the value without its gradient. The average is that of training
    batches under the weights that learn, also where a moving average of them (`ema_decay`) is what is validated;
    validation leaves it alone, and uses the lambda that was reached. A multiplier that is much faster than the model,
    or follows a long average, swings about its target for ever.

    Set `model.auxiliary = objective.auxiliary(model)` before `fit`. Weights are selected by the KL among epochs that
    meet the target, and by the constraint where none does.

    Args:
        target: kappa, nats per dimension: the reconstruction error -log p(x|z) / D that is good enough.
        num_samples: K.
        decay: Of the moving average of the constraint.
        speed: How much faster than other parameters l moves: with Adam about speed x learning rate per step.
        kl: "monte_carlo" or "closed_form", as for `ELBO`.

    References:
        Rezende & Viola, Taming VAEs, 2018, arXiv 1810.00597, eq. 3 and algorithm 1.
    """

    target: float
    num_samples: int = 1
    decay: float = 0.9
    speed: float = 1.0
    kl: Literal["monte_carlo", "closed_form"] = "monte_carlo"
    metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "elbo",
        "reconstruction",
        "kl",
        "constraint",
        "multiplier",
    )
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_choice("kl", self.kl, ("monte_carlo", "closed_form"))
        check_positive("speed", self.speed)
        if not math.isfinite(self.target) or not 0 <= self.decay < 1:
            raise ConfigurationError(
                f"`target` must be finite and `decay` in [0, 1); got {self.target!r} and {self.decay!r}."
            )

    def check(self, model: VAE) -> None:
        super().check(model)
        _check_kl(self.kl, model)

    def auxiliary(self, model: VAE) -> nn.Module:
        return Multiplier()

    def score(self, figures: dict[str, float]) -> float:
        return -figures["kl"] - _VIOLATED * max(figures["constraint"], 0.0)

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        scored = self.kl == "monte_carlo"
        trace = model.trace(x, self.num_samples, context=context, with_densities=scored)
        multiplier = trace.auxiliary
        assert isinstance(multiplier, Multiplier)
        error = -mean_over_samples(trace.log_likelihood) / size(model.event_shape)
        constraint = error - self.target
        learns = multiplier.training and torch.is_grad_enabled()
        average = multiplier.moved(constraint, self.decay) if learns else multiplier.average
        log_value, average = (
            multiplier.log_value(self.speed).expand_as(constraint),
            average.expand_as(constraint),
        )
        added = {"constraint": constraint, "log_multiplier": log_value, "average": average}
        return replace(trace, penalties={**trace.penalties, **added})

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        kl, reconstruction = kl_of(trace, self.kl), mean_over_samples(trace.log_likelihood)
        constraint, log_value = trace.penalties["constraint"], trace.penalties["log_multiplier"]
        multiplier = log_value.detach().exp()
        ascent = log_value * trace.penalties["average"]
        dimensions = size(tuple(trace.x.shape[1:]))
        loss = kl + multiplier * dimensions * constraint + (ascent.detach() - ascent)
        return value_of(
            loss,
            {
                "elbo": reconstruction - kl,
                "reconstruction": reconstruction,
                "kl": kl,
                "constraint": constraint,
                "multiplier": multiplier,
            },
        )


@dataclass(frozen=True)
class Capacity(Objective):
    r"""Reconstruction at a KL that is held at C nats, which rise over training: factors are learned one by one.

    .. math:: L = -E_q[\log p(x|z)] + \gamma \, |KL - C(t)|, \quad C(t) = C \min(1, t / T)

    KL is the batch mean of KL(q(z|x) || p(z)), so that single points may differ; with several processes or accumulated
    pieces, that of each piece.

    Args:
        capacity: C, nats.
        num_samples: K.
        gamma: Weight of the deviation.
        warmup_epochs: T, over which the capacity rises from 0.
        kl: "monte_carlo" or "closed_form", as for `ELBO`.

    References:
        Burgess et al., Understanding disentangling in beta-VAE, 2018, arXiv 1804.03599, eq. 8.
    """

    capacity: float
    num_samples: int = 1
    gamma: float = 1000.0
    warmup_epochs: float = 0.0
    kl: Literal["monte_carlo", "closed_form"] = "monte_carlo"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl")
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, capacity=self.capacity, gamma=self.gamma, warmup_epochs=self.warmup_epochs)
        check_choice("kl", self.kl, ("monte_carlo", "closed_form"))

    def settings(self, epoch: float) -> dict[str, float]:
        return {"capacity": self.capacity * float(warm_up(epoch, self.warmup_epochs))}

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def check(self, model: VAE) -> None:
        super().check(model)
        _check_kl(self.kl, model)

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        scored = self.kl == "monte_carlo"
        return model.trace(x, self.num_samples, context=context, with_densities=scored)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        kl, reconstruction = kl_of(trace, self.kl), mean_over_samples(trace.log_likelihood)
        excess = kl - self.capacity * warm_up(epoch, self.warmup_epochs)
        deviation = excess.detach().mean().sign() * excess  # its mean is the absolute value of the mean
        loss = self.gamma * deviation - reconstruction
        parts = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return value_of(loss, parts)


def _check_kl(kl: str, model: VAE) -> None:
    if kl == "closed_form":
        check_closed_form_kl(model.posterior.distribution_type, model.prior_type)
