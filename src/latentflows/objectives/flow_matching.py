"""Simulation-free fit of a continuous flow prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from latentflows.core import noise
from latentflows.core.shapes import size
from latentflows.distributions.flow_matching import FlowMatchingPrior
from latentflows.models.density import Model
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import Objective, Value, check_samples, mean_over_samples, value_of
from latentflows.objectives.requirements import require_prior


@dataclass(frozen=True)
class FlowMatching(Objective):
    r"""Regression of a `FlowMatchingPrior`'s velocity, on a frozen encoder: no equation is solved.

    .. math:: L = E \, |v(x_t, t) - (z - x_0)|^2, \quad x_t = (1 - t) x_0 + t z, \quad x_0 \sim N(0, I),
              \; t \sim U(0, 1), \; z \sim q(z)

    z standardized as the prior does. The loss is no likelihood: its minimum is the mean of Var(z - x_0 given x_t),
    above zero, and a lower loss need not mean a higher likelihood. `score` takes the loss, on the same t, x_0 and z at
    every validation; measure log p(z) afterwards, by the equation. A moving average of the weights helps
    (`Stage.ema_decay`).

    Cost: one forward and one backward pass of the network per sample.

    Args:
        num_samples: Samples per data point, each with its own t and x_0.

    References:
        Lipman et al., Flow Matching for Generative Modeling, 2023, arXiv 2210.02747, eq. 23 with sigma_min = 0; Tong et
        al., Improving and generalizing flow-based generative models with minibatch optimal transport, 2024, arXiv
        2302.00482, section 3.2.2.
    """

    num_samples: int = 1
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    prior_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def check(self, model: Model) -> None:
        super().check(model)
        require_prior(type(self).__name__, model, FlowMatchingPrior)

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        trace = model.trace(x, self.num_samples, context=context, with_likelihood=False, with_densities=False)
        prior = model.prior
        assert isinstance(prior, FlowMatchingPrior)
        count, shape = self.num_samples * len(x), prior.event_shape
        z = prior.standardized(trace.z).reshape(count, *shape)
        start = noise.standard_normal((count, *shape), like=z)
        time = noise.uniform((count,), like=z)
        wide = time.view(-1, *[1] * len(shape))
        rows = None
        if prior.context_shape is not None and context is not None:
            rows = context.repeat(self.num_samples, *[1] * (context.ndim - 1))
        residual = prior.velocity(start + wide * (z - start), time, rows) - (z - start)
        squares = residual.reshape(self.num_samples, len(x), size(shape)).square().sum(-1)
        trace.penalties["loss"] = mean_over_samples(squares)
        return trace

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        return value_of(trace.penalties["loss"], {})

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]
