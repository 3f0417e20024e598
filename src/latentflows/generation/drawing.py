"""Samples, reconstructions and interpolations of a trained model, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.core.shapes import batch_shape
from latentflows.distributions.flow import Flow, Pushforward
from latentflows.generation.steering import guided_draws
from latentflows.models.density import DensityModel, Model
from latentflows.models.inference import evaluation_mode, to_model
from latentflows.models.vqvae import VQVAE

Line = Literal["straight", "spherical"]
Space = Literal["latent", "base"]

PIECE = 256  # images decoded together, which bounds the memory


@torch.no_grad()
def sample(
    model: Model,
    num: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    mean: bool = False,
    context: Tensor | None = None,
    guidance: float = 0.0,
) -> Tensor:
    """Draw z from the prior and x from p(x|z), or x from a density of the data: (num, *event).

    The same seed draws the same latents with and without `mean`.

    Args:
        model: In any mode; used in eval mode and given back as it was.
        num: How many.
        temperature: Scale of the prior's base noise; of a prior over codes, what divides its logits.
        seed: Seed of all noise.
        mean: Whether to return E[x|z] instead of a draw.
        context: (num, *context) for a conditional prior.
        guidance: Weight that pushes draws of the prior away from those without a label, see `guided_draws`.

    Raises:
        ConfigurationError: if `num` or `temperature` is not positive, or `guidance` negative.
        CombinationError: if the prior has no temperature, the likelihood no mean, or the model no likelihood; or if the
            prior cannot be guided.
        ShapeError: if the context is missing, not wanted, or not of length `num`.
    """
    check_positive("num", num)
    if mean and isinstance(model, DensityModel):
        raise CombinationError(
            "A density of the data has no mean of p(x|z) to show: its draws are all there is. Those at a lower "
            "temperature are smoother."
        )
    if context is not None and len(context) != num:
        raise ShapeError(f"`context` must have {num} rows, one for each sample; got {len(context)}.")
    pieces = []
    with evaluation_mode(model):
        for start in range(0, num, PIECE):
            part = slice(start, min(start + PIECE, num))
            with noise.stream(seed, noise.Purpose.SAMPLE, start):
                given = None if context is None else to_model(model, context[part])
                count = part.stop - start
                if guidance:
                    z = guided_draws(model, count, given, weight=guidance, temperature=temperature)
                elif isinstance(model, DensityModel):
                    z = model.sample(count, temperature=temperature, context=given)
                else:
                    z = model.sample_latents(count, temperature=temperature, context=given)
                if isinstance(model, DensityModel):
                    pieces.append(z)
                    continue
                pieces.append(model.decode_mean(z, given) if mean else model.decode(z, given).sample())
    return torch.cat(pieces)


def sample_classes(
    model: Model,
    labels: Sequence[int],
    num_each: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    mean: bool = False,
    guidance: float = 0.0,
) -> Tensor:
    """Draw from a model that is given a label, class after class: (len(labels) * num_each, *event).

    Args:
        model: Given a label as a one-hot vector (C,); in any mode.
        labels: Classes, from 0 to C - 1.
        num_each: How many of each.
        temperature: Scale of the prior's base noise.
        seed: Seed of all noise.
        mean: Whether to return E[x|z] instead of a draw.
        guidance: As for `sample`.

    Raises:
        CombinationError: if the model is given no label, or its prior cannot be guided.
        ConfigurationError: for a class that there is not, or a number that is not positive.
    """
    check_positive("num_each", num_each)
    shape = model.context_shape
    if shape is None or len(shape) != 1:
        raise CombinationError(f"The model must be given a label, as a vector; its context is {shape}.")
    if not labels or not all(0 <= label < shape[0] for label in labels):
        raise ConfigurationError(f"`labels` must hold numbers from 0 to {shape[0] - 1}; got {list(labels)}.")
    rows = torch.tensor(labels).repeat_interleave(num_each)
    context = torch.nn.functional.one_hot(rows, shape[0]).float()
    return sample(
        model, len(rows), temperature=temperature, seed=seed, mean=mean, context=context, guidance=guidance
    )


@torch.no_grad()
def reconstruct(model: Model, x: Tensor, *, seed: int = 0, context: Tensor | None = None) -> Tensor:
    """Return E[x|z] for one z ~ q(z|x), through the posterior's flow: (B, *event).

    Args:
        model: In any mode; used in eval mode and given back as it was.
        x: Data, (B, *event).
        seed: Seed of z.
        context: (B, *context) for a conditional model.

    Raises:
        CombinationError: if the likelihood has no mean, or the model no latents.
        ShapeError: if the shape is not the model's.
    """
    if isinstance(model, DensityModel):
        raise CombinationError("A density of the data has no latents to reconstruct from. Use a `VAE`.")
    pieces = []
    with evaluation_mode(model):
        for start, part in enumerate(to_model(model, x).split(PIECE)):
            rows = slice(start * PIECE, start * PIECE + len(part))
            given = None if context is None else to_model(model, context[rows])
            with noise.stream(seed, noise.Purpose.RECONSTRUCT, start):
                pieces.append(model.reconstruct(part, given))
    return torch.cat(pieces)


@torch.no_grad()
def interpolate(
    model: Model,
    x_a: Tensor,
    x_b: Tensor,
    steps: int,
    *,
    line: Line = "straight",
    space: Space = "latent",
    seed: int = 0,
    context: Tensor | None = None,
) -> Tensor:
    r"""Walk from a latent of `x_a` to one of `x_b` and decode the mean at every step: (B, steps, *event).

    The ends are drawn from q(z|x). "straight" is (1 - t) a + t b; "spherical" turns from a to b at constant speed,

    .. math:: \frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b,
        \quad \cos \omega = \frac{a \cdot b}{|a| |b|}

    which stays where a Gaussian in many dimensions has its mass. In the space "base" both ends go back to the
    noise of the prior's flow, and the line is carried forward again: it stays where the flow prior has its mass.

    Args:
        model: In any mode; used in eval mode and given back as it was.
        x_a: Data at the start, (B, *event).
        x_b: Data at the end, (B, *event).
        steps: Number of images from end to end, at least 2.
        line: "straight" or "spherical".
        space: "latent", or "base" for a prior that is a flow.
        seed: Seed of the ends.
        context: (B, *context) for a conditional model, the same all along the line.

    Raises:
        CombinationError: for "base" without a flow prior, for a model without continuous latents, or if the likelihood
            has no mean.
        ConfigurationError: for an unknown line or space, or fewer than 2 steps.
        ShapeError: if a shape is not the model's.
    """
    if line not in ("straight", "spherical") or space not in ("latent", "base"):
        raise ConfigurationError(
            '`line` must be "straight" or "spherical", `space` "latent" or "base"; '
            f"got {line!r} and {space!r}."
        )
    if not isinstance(steps, int) or steps < 2:
        raise ConfigurationError(f"`steps` must be an integer of at least 2; got {steps!r}.")
    if isinstance(model, VQVAE):
        raise CombinationError(
            "The latents of a `VQVAE` are codes: a line between two of them leads through points that no code stands "
            "for. Interpolate in a model with continuous latents."
        )
    if isinstance(model, DensityModel):
        raise CombinationError("A density of the data has no latents to walk through. Use a `VAE`.")
    if space == "base" and not isinstance(model.prior, Flow):
        raise CombinationError(
            f'`space="base"` needs a flow as the prior; got `{type(model.prior).__name__}`. Use "latent".'
        )
    if x_a.shape != x_b.shape:
        raise ShapeError(f"Both ends must have one shape; got {tuple(x_a.shape)} and {tuple(x_b.shape)}.")
    batch_shape(x_a, model.event_shape, "x_a")
    given = None if context is None else to_model(model, context)
    with evaluation_mode(model):
        with noise.stream(seed, noise.Purpose.INTERPOLATE):
            ends = [model.encode(to_model(model, x), given).sample() for x in (x_a, x_b)]
        t = torch.linspace(0, 1, steps).to(ends[0])
        between = _straight if line == "straight" else _spherical
        if space == "base":
            p = model.prior_at(given)
            assert isinstance(p, Pushforward)
            u_a, u_b = (p.bijection.inverse(z, p.context)[0] for z in ends)
            z = p.bijection(between(u_a, u_b, t), p.context)[0]
        else:
            z = between(ends[0], ends[1], t)
        rows = z.transpose(0, 1).flatten(0, 1)
        along = None if given is None else given.repeat_interleave(steps, 0)
        contexts = [None] * len(rows) if along is None else along.split(PIECE)
        pairs = zip(rows.split(PIECE), contexts, strict=False)
        decoded = torch.cat([model.decode_mean(part, context) for part, context in pairs])
    return decoded.view(len(x_a), steps, *model.event_shape)


def _straight(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return points (T, B, *event) on the line between two points (B, *event)."""
    return torch.lerp(a, b, t.view(-1, *[1] * a.ndim))


def _spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return points (T, B, *event) on the arc; on the line where the angle is 0 or pi."""
    shape = (-1, *[1] * (a.ndim - 1))
    cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).clamp(-1, 1)
    angle = cosine.acos().view(shape)
    t = t.view(-1, *[1] * a.ndim)
    sine = angle.sin()
    arc = ((1 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where(sine < 1e-4, _straight(a, b, t.flatten()), arc)


def draws_discrete(model: Model) -> bool:
    """Whether draws are values of a finite set, which need no clipping to be shown."""
    part = model.density if isinstance(model, DensityModel) else model.likelihood
    return part.distribution_type.discrete


def check_positive(name: str, value: int) -> None:
    """Refuse a count that is no positive integer."""
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"`{name}` must be a positive integer; got {value!r}.")
