"""What everything that uses a trained model needs: its eval mode, data where the model is, and mean latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.models.vae import VAE

_DRAWS = 64  # their mean has an eighth of the posterior's scale as its error


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


@torch.no_grad()
def posterior_mean(model: VAE, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Return E[z|x], (B, *latent): in closed form where the posterior has it, else the mean of 64 draws."""
    return posterior_mean_and_draws(model, x, context)[0]


@torch.no_grad()
def posterior_mean_and_draws(
    model: VAE, x: Tensor, context: Tensor | None = None
) -> tuple[Tensor, int | None]:
    """Return E[z|x], (B, *latent), and of how many draws it is the mean; None for the closed form."""
    q = model.encode(x, context)
    try:
        return q.mean, None
    except CombinationError:
        return q.sample((_DRAWS,)).mean(0), _DRAWS
