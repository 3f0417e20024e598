"""What single latents and directions between them stand for: traversals, attributes, class means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.core.noise import Purpose
from latentflows.core.shapes import batch_shape, size
from latentflows.generation.drawing import PIECE, check_positive
from latentflows.models.inference import evaluation_mode, posterior_mean, to_model
from latentflows.models.vae import VAE

_PRIOR_DRAWS = 4096  # a 5 % quantile then has an error of 0.03 scales


class Decoded(NamedTuple):
    """Latents (*batch, *latent) and what they decode to, (*batch, *event)."""

    latents: Tensor
    images: Tensor


class ClassMeans(NamedTuple):
    """Labels (C,) in rising order, their mean latents (C, *latent) and what those decode to, (C, *event)."""

    labels: Tensor
    latents: Tensor
    images: Tensor


@torch.no_grad()
def traverse(
    model: VAE,
    start: Tensor,
    *,
    x: Tensor | None = None,
    dims: Sequence[int] | None = None,
    steps: int = 10,
    span: tuple[float, float] = (0.05, 0.95),
    mean: bool = True,
    seed: int = 0,
    context: Tensor | None = None,
) -> Decoded:
    """Move one latent at a time, the others staying at the posterior mean of `start`: (dims, steps, ...).

    The values are quantiles, at equal steps of `span`: of the aggregate posterior where data are given, one draw
    z ~ q(z|x) each, else of 4,096 draws of the prior. With a latent that the posterior leaves as the prior has it,
    nothing moves.

    Args:
        model: In any mode; used in eval mode and given back as it was.
        start: One data point, (*event).
        x: Data (N, *event), for the quantiles of the aggregate posterior; None for those of the prior.
        dims: Latents by their place in the flattened latent; None for all.
        steps: Values of each, at least 2.
        span: Lowest and highest quantile, above 0 and below 1.
        mean: Whether to decode to E[x|z] instead of a draw of p(x|z).
        seed: Seed of all draws.
        context: (*context) for a conditional model: that of `start`, held all along; the data `x` count as having it.

    Raises:
        ConfigurationError: if `steps`, `span` or `dims` is out of range.
        ShapeError: if a shape is not the model's.
        CombinationError: if the likelihood has no mean.
    """
    count = size(model.latent_shape)
    chosen = list(range(count)) if dims is None else list(dims)
    if not isinstance(steps, int) or steps < 2 or not 0 < span[0] < span[1] < 1:
        raise ConfigurationError(
            f"`steps` must be at least 2 and `span` rise within (0, 1); got {steps!r} and {span}."
        )
    if not chosen or not all(0 <= dim < count for dim in chosen):
        raise ConfigurationError(f"`dims` must hold places from 0 to {count - 1}; got {chosen}.")
    if tuple(start.shape) != model.event_shape:
        raise ShapeError(f"`start` must be one data point {model.event_shape}; got {tuple(start.shape)}.")
    with evaluation_mode(model), noise.stream(seed, Purpose.LATENTS, 5):
        given = None if context is None else to_model(model, context)
        center = posterior_mean(model, to_model(model, start[None]), _repeated(given, 1))
        if x is None:
            draws = model.sample_latents(_PRIOR_DRAWS, context=_repeated(given, _PRIOR_DRAWS))
        else:
            batch_shape(x, model.event_shape, "x")
            pieces = (to_model(model, part) for part in x.split(PIECE))
            draws = torch.cat([model.encode(part, _repeated(given, len(part))).sample() for part in pieces])
        levels = torch.linspace(*span, steps).to(draws)
        values = draws.flatten(1)[:, chosen].quantile(levels, dim=0)  # (steps, dims)
        rows = torch.arange(len(chosen))
        z = center.flatten(1).expand(len(chosen), steps, -1).clone()
        z[rows, :, torch.tensor(chosen)] = values.T
        z = z.view(len(chosen), steps, *model.latent_shape)
        return _decoded(model, z, mean, _repeated(given, len(chosen) * steps))


@torch.no_grad()
def attribute_vector(
    model: VAE, x: Tensor, present: Tensor, *, seed: int = 0, context: Tensor | None = None
) -> Tensor:
    """Return the mean latent of the data with an attribute less that of the data without it: (*latent).

    Args:
        model: In any mode; used in eval mode and given back as it was.
        x: Data (B, *event).
        present: Whether each has the attribute, bool (B,); some must and some must not.
        seed: Seed of posteriors without a mean in closed form.
        context: (B, *context) for a conditional model.

    Raises:
        ShapeError: if `present` is not bool (B,), or a shape not the model's.
        DataError: if all have the attribute, or none.

    References:
        White, Sampling Generative Networks, 2016, arXiv 1609.04468, section 3.2.
    """
    if present.shape != (len(x),) or present.dtype != torch.bool:
        raise ShapeError(f"`present` must be bool ({len(x)},); got {present.dtype} {tuple(present.shape)}.")
    if present.all() or not present.any():
        raise DataError("An attribute needs data with it and data without it; got one of the two alone.")
    means = class_latents(model, x, present.long(), seed=seed, context=context)[1]
    return means[1] - means[0]


@torch.no_grad()
def apply_attribute(
    model: VAE,
    x: Tensor,
    vector: Tensor,
    strengths: Sequence[float],
    *,
    mean: bool = True,
    seed: int = 0,
    context: Tensor | None = None,
) -> Decoded:
    """Add an attribute vector to the posterior means of data, at each strength: (B, strengths, ...).

    Args:
        model: In any mode; used in eval mode and given back as it was.
        x: Data (B, *event).
        vector: From `attribute_vector`, (*latent).
        strengths: What it is multiplied by; 0 leaves a data point as it is, negative ones take the attribute away.
        mean: Whether to decode to E[x|z] instead of a draw of p(x|z).
        seed: Seed of all draws.
        context: (B, *context) for a conditional model.

    Raises:
        ConfigurationError: if there are no strengths.
        ShapeError: if a shape is not the model's.
        CombinationError: if the likelihood has no mean.
    """
    check_positive("number of strengths", len(strengths))
    if tuple(vector.shape) != model.latent_shape:
        raise ShapeError(
            f"`vector` must have the latent shape {model.latent_shape}; got {tuple(vector.shape)}."
        )
    with evaluation_mode(model), noise.stream(seed, Purpose.LATENTS, 6):
        z = _posterior_means(model, x, context)
        scale = torch.tensor(list(strengths)).to(z).view(-1, *[1] * len(model.latent_shape))
        given = None if context is None else to_model(model, context).repeat_interleave(len(scale), 0)
        return _decoded(model, z.unsqueeze(1) + scale * vector.to(z), mean, given)


@torch.no_grad()
def class_means(
    model: VAE,
    x: Tensor,
    labels: Tensor,
    *,
    mean: bool = True,
    seed: int = 0,
    context: Tensor | None = None,
) -> ClassMeans:
    """Decode the mean latent of each class.

    A mean of latents may lie where the aggregate posterior has no mass: what it decodes to is then no typical image,
    and says so about the latents.

    Args:
        model: In any mode; used in eval mode and given back as it was.
        x: Data (B, *event).
        labels: Integers (B,).
        mean: Whether to decode to E[x|z] instead of a draw of p(x|z).
        seed: Seed of all draws.
        context: (B, *context) for a conditional model; a class is decoded with its contexts' mean, which for labels as
            one-hot vectors is the label.

    Raises:
        ShapeError: if a shape is not the model's, or `labels` not integers (B,).
        CombinationError: if the likelihood has no mean.
    """
    kinds, latents = class_latents(model, x, labels, seed=seed, context=context)
    given = None
    if context is not None:
        given = torch.stack([to_model(model, context[labels == kind]).mean(0) for kind in kinds])
    with evaluation_mode(model), noise.stream(seed, Purpose.LATENTS, 7):
        return ClassMeans(kinds, *_decoded(model, latents, mean, given))


@torch.no_grad()
def class_latents(
    model: VAE, x: Tensor, labels: Tensor, *, seed: int = 0, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the labels in rising order, (C,), and the mean of the posterior means of each, (C, *latent).

    Raises:
        ShapeError: if a shape is not the model's, or `labels` not integers (B,).
    """
    if labels.shape != (len(x),) or labels.is_floating_point():
        raise ShapeError(f"`labels` must be integers ({len(x)},); got {labels.dtype} {tuple(labels.shape)}.")
    with evaluation_mode(model), noise.stream(seed, Purpose.LATENTS, 8):
        z = _posterior_means(model, x, context)
    kinds = labels.unique()
    return kinds, torch.stack([z[(labels == kind).to(z.device)].mean(0) for kind in kinds])


def _posterior_means(model: VAE, x: Tensor, context: Tensor | None) -> Tensor:
    batch_shape(x, model.event_shape, "x")
    means = []
    for start in range(0, len(x), PIECE):
        given = None if context is None else to_model(model, context[start : start + PIECE])
        means.append(posterior_mean(model, to_model(model, x[start : start + PIECE]), given))
    return torch.cat(means)


def _decoded(model: VAE, z: Tensor, mean: bool, context: Tensor | None) -> Decoded:
    """Decode (*batch, *latent), the context having one row for each of the flattened batch."""
    batch = batch_shape(z, model.latent_shape, "z")
    rows = z.reshape(-1, *model.latent_shape)
    images = []
    for start in range(0, len(rows), PIECE):
        part = slice(start, start + PIECE)
        p = model.decode(rows[part], None if context is None else context[part])
        images.append(p.mean if mean else p.sample())
    return Decoded(z, torch.cat(images).view(*batch, *model.event_shape))


def _repeated(context: Tensor | None, count: int) -> Tensor | None:
    return None if context is None else context.expand(count, *context.shape)
