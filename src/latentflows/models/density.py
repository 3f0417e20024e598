"""A flow, or any other conditional, as a model of the data themselves: no latents, no bound."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, batch_shape
from latentflows.distributions.base import Conditional, Distribution, sample_rows
from latentflows.models.vae import VAE, Trace, count_parameters
from latentflows.models.vqvae import VQVAE


class DensityModel(nn.Module):
    """A density of data points, p(x) or p(x|c): one conditional, trained on its own.

    `fit` trains it with `MaximumLikelihood`, `ForwardKL` or `ReverseKL`; `evaluate_likelihood` measures it. Its log
    p(x) is exact where the density of its distribution is.

    Args:
        density: Over data points. Without an inverse it cannot score data, and `ReverseKL` alone trains it.

    Attributes:
        parts: Names of what a `Stage` may train.
        auxiliary: A module that an objective needs besides (`Objective.auxiliary`), or None.

    References:
        Dinh et al., Density Estimation Using Real NVP, 2017, arXiv 1605.08803, eq. 2-3.
    """

    parts: ClassVar[tuple[str, ...]] = ("density",)
    auxiliary: nn.Module | None

    def __init__(self, density: Conditional) -> None:
        super().__init__()
        self.density = density
        self.auxiliary = None

    @property
    def event_shape(self) -> Shape:
        """Shape of one data point."""
        return self.density.event_shape

    @property
    def context_shape(self) -> Shape | None:
        """Shape of what the density is conditioned on, or None."""
        return self.density.context_shape

    def density_at(self, context: Tensor | None = None) -> Distribution:
        """Return p(x), or p(x|c); a context that the density does not take is left out."""
        return self.density(context if self.context_shape is not None else None)

    def num_parameters(self) -> dict[str, int]:
        """Count the numbers of the density, without entries that a mask removes, and in total."""
        count = count_parameters(self.density)
        return {"density": count, "total": count}

    def trace(self, x: Tensor, *, context: Tensor | None = None) -> Trace:
        """Score a batch: its `log_weight`, (1, B), is log p(x); prior and posterior are those of no latent, zero.

        Cost: one density pass over B points.

        Raises:
            ShapeError: if a shape is not the declared one.
        """
        batch_shape(x, self.event_shape, "x")
        log_p = self.density_at(context).log_prob(at_least_float32(x)).unsqueeze(0)
        none = torch.zeros_like(log_p)
        return Trace(
            x,
            log_p.new_empty(*log_p.shape, 0),
            log_p,
            none,
            none,
            levels=(),
            context=context,
            auxiliary=self.auxiliary,
        )

    def draw(self, num_samples: int, num_points: int, *, context: Tensor | None = None) -> Trace:
        """Draw `num_samples` x `num_points` events as z, with their log-density as `log_posterior`, (K, B).

        Cost: one sampling pass over K B points, in which no flow is inverted. `log_likelihood` and `log_prior` are
        zero, for an objective to fill in.

        Raises:
            ConfigurationError: if a number is below 1.
        """
        if num_samples < 1 or num_points < 1:
            raise ConfigurationError(f"Numbers of draws must be at least 1; got {num_samples}, {num_points}.")
        p = self.density_at(context)
        shape = (num_samples,) if p.batch_shape else (num_samples, num_points)
        z, log_q = p.sample_and_log_prob(shape)
        none = torch.zeros_like(log_q)
        return Trace(z[0], z, none, none, log_q, levels=(), context=context, auxiliary=self.auxiliary)

    @torch.no_grad()
    def check_data(self, x: Tensor, context: Tensor | None = None) -> None:
        """Refuse data points (B, *event) that the density gives no probability to.

        Raises:
            ShapeError: if the shape is not the declared one.
            DataError: for NaN, infinity, and the like.
        """
        batch_shape(x, self.event_shape, "x")
        self.density_at(context).check_support(x)

    @torch.no_grad()
    def sample(self, num: int, *, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """Draw (num, *event), the base noise scaled by `temperature`.

        Raises:
            ShapeError: if there is not one row of context per draw.
        """
        return sample_rows(self.density_at(context), num, temperature)


Model = VAE | DensityModel | VQVAE
