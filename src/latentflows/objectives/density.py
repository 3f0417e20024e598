"""What a flow on data is fitted by: samples of the target, or its energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from latentflows.bijections.base import waiting_layers
from latentflows.core.errors import CombinationError, ShapeError
from latentflows.models.density import DensityModel, Model
from latentflows.models.vae import Trace
from latentflows.objectives.base import (
    Objective,
    Value,
    check_at_least,
    check_samples,
    joint_warm_up,
    mean_over_samples,
    value_of,
)

Energy = Callable[[Tensor], Tensor]
"""From points (N, *event) to their energies U (N,): the target is e^(-U) / Z."""


def energies(energy: Energy, x: Tensor, event_ndim: int) -> Tensor:
    """Evaluate an energy over any batch axes: (*batch) for x (*batch, *event).

    Raises:
        ShapeError: if it does not give one number for each point.
    """
    batch = x.shape[: x.ndim - event_ndim]
    flat = x.reshape(-1, *x.shape[x.ndim - event_ndim :])
    values = energy(flat)
    if values.shape != flat.shape[:1]:
        raise ShapeError(
            f"`energy` must give one number for each of {len(flat)} points; got {tuple(values.shape)}."
        )
    return values.view(batch)


def _check_scores(owner: str, model: DensityModel) -> None:
    density = model.density
    if not density.has_density or density.distribution_type.density == "unnormalized":
        raise CombinationError(
            f"`{owner}` needs log p(x) of data that the model did not draw, but `{type(density).__name__}` has no "
            "inverse or no density. Use a coupling flow or Inverse(InverseAutoregressive(...)), or train by "
            "`ReverseKL`, which needs draws alone."
        )


@dataclass(frozen=True)
class MaximumLikelihood(Objective):
    r"""Negative log-density of the data: what a flow on data minimizes.

    .. math:: L = -E_x[\log p(x)]

    The model is a `DensityModel`. Cost: one density pass.

    References:
        Dinh et al., Density Estimation Using Real NVP, 2017, arXiv 1605.08803, eq. 2-3.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "nll")
    model_type: ClassVar[type[nn.Module]] = DensityModel

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, DensityModel)
        _check_scores(type(self).__name__, model)

    def score(self, figures: dict[str, float]) -> float:
        return -figures["nll"]

    def trace(self, model: DensityModel, x: Tensor, context: Tensor | None = None) -> Trace:
        return model.trace(x, context=context)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        nll = -mean_over_samples(trace.log_likelihood)
        return value_of(nll, {"nll": nll})


@dataclass(frozen=True)
class ForwardKL(Objective):
    r"""KL from a target known up to its constant to the model, at draws of the target: the data.

    .. math:: L = E_{x \sim e^{-U} / Z}[-U(x) - \log p(x)] = KL(e^{-U} / Z \| p) + \log Z

    The gradient is that of `MaximumLikelihood`. The value is an upper bound on log Z, or the KL itself where the energy
    is normalized; `ReverseKL` gives the lower bound. It covers all modes.

    Args:
        energy: U, from (N, *event) to (N,).

    References:
        Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference, 2021, arXiv 1912.02762,
        section 2.3.1.
    """

    energy: Energy
    metrics: ClassVar[tuple[str, ...]] = ("loss", "nll", "energy")
    model_type: ClassVar[type[nn.Module]] = DensityModel

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, DensityModel)
        _check_scores(type(self).__name__, model)

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def trace(self, model: DensityModel, x: Tensor, context: Tensor | None = None) -> Trace:
        trace = model.trace(x, context=context)
        energy = energies(self.energy, trace.x, len(model.event_shape))
        return replace(trace, penalties={"energy": energy.detach()})

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        nll, energy = -mean_over_samples(trace.log_likelihood), trace.penalties["energy"]
        return value_of(nll - energy, {"nll": nll, "energy": energy})


@dataclass(frozen=True)
class ReverseKL(Objective):
    r"""KL from the model to a target known up to its constant, at draws of the model: no data are looked at.

    .. math:: L = E_{x \sim p}[\log p(x) + \beta_t U(x)], \quad \beta_t = \min(1, 0.01 + t / T)

    At beta 1 it is KL(p || e^(-U) / Z) - log Z, so that minus the metric free_energy is a lower bound on log Z. It may
    leave modes out; the rising weight of the energy makes that less likely. The data source given to `fit` says only
    how many draws a step and an epoch take, K for each of its points. The flow needs no inverse.

    Args:
        energy: U, from (N, *event) to (N,), differentiable.
        num_samples: K.
        warmup_epochs: T; 0 for none.

    Raises:
        CombinationError: from `check`, for a conditional model, or one with layers that wait for data.

    References:
        Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, eq. 20 and section 6.1;
        Papamakarios et al. 2021, arXiv 1912.02762, section 2.3.3.
    """

    energy: Energy
    num_samples: int = 1
    warmup_epochs: float = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("loss", "free_energy", "log_density", "energy")
    model_type: ClassVar[type[nn.Module]] = DensityModel

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, warmup_epochs=self.warmup_epochs)

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, DensityModel)
        if model.context_shape is not None:
            raise CombinationError(
                "`ReverseKL` fits one target, so the density takes no context; got one of shape "
                f"{model.context_shape}. Build it without."
            )
        if not model.density.distribution_type.reparameterized:
            raise CombinationError(
                f"`ReverseKL` needs draws with gradients, which `{type(model.density).__name__}` does not give. Use a "
                "Gaussian or a flow."
            )
        waiting = waiting_layers(model)
        if waiting:
            raise CombinationError(
                f"`ReverseKL` looks at no data, which the model's `{type(waiting[0]).__name__}` waits for. Call "
                "`model.density().initialize()` before `fit`: it takes draws of the base."
            )

    def settings(self, epoch: float) -> dict[str, float]:
        return {"beta": float(joint_warm_up(epoch, self.warmup_epochs))}

    def score(self, figures: dict[str, float]) -> float:
        return -figures["free_energy"]

    def trace(self, model: DensityModel, x: Tensor, context: Tensor | None = None) -> Trace:
        trace = model.draw(self.num_samples, len(x))
        return replace(trace, log_likelihood=-energies(self.energy, trace.z, len(model.event_shape)))

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        log_density, energy = mean_over_samples(trace.log_posterior), -mean_over_samples(trace.log_likelihood)
        loss = log_density + joint_warm_up(epoch, self.warmup_epochs) * energy
        metrics = {"free_energy": log_density + energy, "log_density": log_density, "energy": energy}
        return value_of(loss, metrics)
