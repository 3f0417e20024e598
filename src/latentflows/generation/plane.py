"""Points in the plane as a picture: posteriors of data beside the prior, or data beside draws of the model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.generation.drawing import sample
from latentflows.models import VAE
from latentflows.models.density import Model
from latentflows.models.inference import evaluation_mode, to_model

_POINTS, _DRAWS, _BINS = 2000, 40, 128
_MOST = 20_000  # data points beside as many draws
Place = tuple[float, float, float]  # the middle of a square, and half its side
_BLUR = 1.8  # bins


@torch.no_grad()
def latent_plane(
    model: VAE, source: DataSource, *, seed: int = 0, temperature: float = 1.0
) -> tuple[Tensor, Place, int]:
    """Draw q(z), the mean of all q(z|x), and the prior p(z) as two pictures of ink on paper.

    Both are histograms of as many draws over one square that holds nearly all of both, blurred a little, with one
    scale of ink: the square root of the density over the largest of both.

    Cost: 2,000 encodings, 80,000 draws of posterior and prior.

    Args:
        model: Of two latents; in any mode, given back as it was.
        source: Data points, of which the first 2,000 are encoded; a conditional prior is given their contexts.
        seed: Of the draws.
        temperature: Scale of the prior's base noise.

    Returns:
        Images (2, 1, 128, 128) in [0, 1], first q(z), the second latent upwards; the middle of the square and half its
        side; and how many draws of each lie behind them.
    """
    count = min(_POINTS, len(source))
    with evaluation_mode(model), noise.stream(seed, noise.Purpose.LATENTS, 10):
        batch = source.batch(torch.arange(count))
        x, context = to_model(model, batch.x), batch.context
        context = None if context is None else to_model(model, context)
        posterior = model.encode(x, context).sample((_DRAWS,)).reshape(-1, 2)
        given = None if context is None else context.repeat(_DRAWS, *[1] * (context.ndim - 1))
        prior = model.sample_latents(len(posterior), temperature=temperature, context=given).reshape(-1, 2)
    return *_ink(posterior, prior), len(posterior)


def data_plane(
    model: Model, source: DataSource, *, seed: int = 0, temperature: float = 1.0
) -> tuple[Tensor, Place, int]:
    """Draw data points (2,) and as many draws of the model as two pictures, as `latent_plane` does.

    Cost: up to 20,000 draws.

    Args:
        model: Of data points (2,).
        source: Data points, of which the first 20,000 are taken; a conditional model is given their contexts.
        seed: Of the draws.
        temperature: Scale of the base noise, or of that of the prior.

    Returns:
        Images (2, 1, 128, 128) in [0, 1], first the data, the second number upwards; the middle of the square and half
        its side; and how many points of each lie behind them.
    """
    with noise.stream(seed, noise.Purpose.DATA):
        batch = source.batch(torch.arange(min(_MOST, len(source))))
    given = None if model.context_shape is None else batch.context
    drawn = sample(model, len(batch.x), temperature=temperature, seed=seed, context=given)
    return *_ink(batch.x, drawn), len(drawn)


def _ink(first: Tensor, second: Tensor) -> tuple[Tensor, Place]:
    """Picture two sets of points (N, 2) in one square that holds nearly all of both."""
    both = torch.cat([first.float().cpu(), second.float().cpu()])
    low, high = torch.quantile(both, 0.0025, 0), torch.quantile(both, 0.9975, 0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.55 or 1.0
    densities = torch.stack([_histogram((each.float().cpu() - middle) / half) for each in (first, second)])
    ink = (densities / densities.max().clamp(min=1e-12)).sqrt()
    return (1 - ink).unsqueeze(1), (float(middle[0]), float(middle[1]), half)


def _histogram(points: Tensor) -> Tensor:
    """Return the blurred number of points in each bin of [-1, 1] x [-1, 1], the second coordinate upwards."""
    places = ((points + 1) / 2 * _BINS).floor().long()
    inside = ((places >= 0) & (places < _BINS)).all(1)
    flat = (_BINS - 1 - places[inside, 1]) * _BINS + places[inside, 0]
    counts = torch.bincount(flat, minlength=_BINS**2).view(1, 1, _BINS, _BINS).float()
    steps = torch.arange(-6.0, 7.0)
    kernel = torch.exp(-0.5 * (steps / _BLUR).square())
    kernel = kernel / kernel.sum()
    counts = functional.conv2d(counts, kernel.view(1, 1, -1, 1), padding=(6, 0))
    return functional.conv2d(counts, kernel.view(1, 1, 1, -1), padding=(0, 6))[0, 0]
