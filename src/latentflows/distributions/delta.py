"""The posterior of an autoencoder: one latent per data point, and no density."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape
from latentflows.distributions.base import Conditional, Distribution, network_output


class Delta(Distribution):
    """All mass at one point, as a value: draws repeat the point, and there is no density to speak of.

    Args:
        point: (*batch, *event).
        event_ndim: Number of event axes.
    """

    density = "unnormalized"
    normalized = False

    def __init__(self, point: Tensor, *, event_ndim: int = 1) -> None:
        self.point = at_least_float32(point)
        cut = point.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(point.shape[:cut]), tuple(point.shape[cut:])

    def log_prob(self, x: Tensor) -> Tensor:
        """Refuse: a point mass has no density, and so there is no ELBO and no estimate of p(x) with it.

        Raises:
            CombinationError: always.
        """
        _refuse()

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.point.expand(*sample_shape, *self.point.shape)

    @property
    def mean(self) -> Tensor:
        return self.point

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.point)

    def detached(self) -> Delta:
        return Delta(self.point.detach(), event_ndim=len(self.event_shape))


def _refuse() -> NoReturn:
    raise CombinationError(
        "The posterior is a single point, `Delta`, which has no density: there is no ELBO, and p(x) cannot be "
        "estimated. Train it by an autoencoder's objective; for a bound on p(x) use a posterior with a density, such "
        "as `AmortizedGaussian(scale=0.1)`, the same point with fixed noise."
    )


class AmortizedDelta(Conditional):
    """One latent per context, which a network computes: the encoder of an autoencoder without noise.

    A baseline. It trains by an autoencoder's objective alone, and a prior is fitted to its latents in a second stage.
    The baseline with fixed noise is `AmortizedGaussian(scale=number)`, which has a density and an ELBO.

    Args:
        event_shape: Shape of one latent.
        context_shape: Shape of one data point.
        network: From (N, *context_shape) to (N, *event_shape).

    Raises:
        ShapeError: at the first use, if the network gives another shape.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, arXiv 1903.12436, sections 3 and 4 (the
        prior fitted afterwards).
    """

    distribution_type = Delta

    def __init__(self, event_shape: int | Shape, context_shape: int | Shape, network: nn.Module) -> None:
        super().__init__(event_shape, context_shape, has_density=False)
        self.network = network

    def _condition(self, context: Tensor | None) -> Delta:
        point = network_output(self, self.network, context, self.event_shape)
        return Delta(point, event_ndim=len(self.event_shape))
