"""What everything that uses a trained model needs: its eval mode, data where the model is, and mean latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.distributions.base import Distribution
from latentflows.models.vae import VAE

MEAN_DRAWS = 64  # their mean has an eighth of the posterior's scale as its error


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and those that were in train mode back at the end."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def to_model(model: nn.Module, value: Tensor) -> Tensor:
    """Bring data to the model's device, and floating-point data at least to its precision."""
    like = next(model.parameters(), value)
    dtype = torch.promote_types(value.dtype, like.dtype) if value.is_floating_point() else value.dtype
    return value.to(like.device, dtype)


class Moments(NamedTuple):
    """Moments of posteriors, in float64.

    Attributes:
        mean: E[z|x], (B, *latent).
        variance: That of every latent, (B, *latent).
        error: Variance of the error of the mean, (B, *latent): zero in closed form.
        num_draws: How many draws they were found from; None for the closed form.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor
    num_draws: int | None


def posterior_moments(q: Distribution, num_draws: int) -> Moments:
    """Return the moments of q(z|x): in closed form where it has them, else from draws, the variance with divisor S - 1.

    Args:
        q: (B, *latent).
        num_draws: S, at least 2, for posteriors without a closed form: memory S B D numbers of 8 bytes.
    """
    try:
        mean, variance = q.mean.double(), q.variance.double()
    except CombinationError:
        z = q.sample((num_draws,)).double()
        mean, variance = z.mean(0), variance_of_first(z)
        return Moments(mean, variance, variance / num_draws, num_draws)
    return Moments(mean, variance, torch.zeros_like(mean), None)


def variance_of_first(values: Tensor) -> Tensor:
    """Return the variance along the first axis, in a fraction of the time that `Tensor.var` takes there."""
    return (values - values.mean(0)).square().sum(0) / (len(values) - 1)


@torch.no_grad()
def posterior_mean(model: VAE, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Return E[z|x], (B, *latent), in the model's precision, float32 at least: in closed form, or of 64 draws."""
    mean = posterior_moments(model.encode(x, context), MEAN_DRAWS).mean
    precision = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    return mean.to(torch.promote_types(precision, torch.float32))
