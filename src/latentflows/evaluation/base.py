"""What every evaluation shares: data drawn once, keys of noise, posterior moments, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentflows.core.batches import Batch, DataSource, Values
from latentflows.core.errors import CombinationError, ConfigurationError, LatentFlowsError, ShapeError
from latentflows.core.noise import Purpose, stream
from latentflows.core.shapes import Shape
from latentflows.distributions.base import Distribution
from latentflows.models.density import DensityModel, Model
from latentflows.models.inference import to_model
from latentflows.models.vae import VAE, unweighable_parts
from latentflows.models.vqvae import VQVAE

Figure = dict[str, float | str | None]
Figures = dict[str, Figure | None]
Protocol = dict[str, str | int | float | None]
LikelihoodKind = Literal[
    "probability mass",
    "density on dequantized data",
    "density on real values",
    "density on gray levels without noise",
    "no likelihood",
]

_ERRORS = 4  # standard errors that a mean KL may lie below zero by chance
_LEAST_KL = 0.1  # nats that it may lie below zero besides, for errors that are not known
_DATA_BLOCK = 256  # data points whose noise is drawn together


class Use(IntEnum):
    """What an evaluation draws for: the third part of its key, five parts long; those of `Bounds` are four."""

    DATA = 1
    ANNEALING = 2
    LATENTS = 3
    PRIOR = 4
    PERMUTATION = 5
    CLASSIFIER = 6
    OPTIMIZATION = 7
    MOMENTS = 8
    SIMULATION = 9
    TARGET = 10


class DrawnOnce:
    """A data set whose noise was drawn once, so that several evaluations see the very same data points.

    Memory: 4 bytes per number of float32 data.

    Args:
        x: Data points (N, *event).
        context: What they are conditioned on, (N, *context), or None.
        values: Kind of their values, as in a `DataSource`.
        bits_offset: As in a `DataSource`.
    """

    def __init__(self, x: Tensor, context: Tensor | None, values: Values, bits_offset: float | None) -> None:
        self.x, self.context = x, context
        self.values: Values = values
        self.bits_offset = bits_offset
        self.event_shape: Shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        """Return the data points at `indices`, the same at every call."""
        return Batch(self.x[indices], None if self.context is None else self.context[indices])


def draw_once(source: DataSource, num_images: int | None = None, *, seed: int = 0) -> DrawnOnce:
    """Return the first data points of a source with their binarization or dequantization drawn once.

    The first n are the same whatever `num_images` is.

    Args:
        source: Data points.
        num_images: How many; None for all.
        seed: Seed of the source's noise.

    Raises:
        ConfigurationError: if `num_images` is not between 1 and the length of the source.
    """
    count = checked_count(num_images, len(source))
    batches = []
    for start in range(0, count, _DATA_BLOCK):
        with stream(seed, Purpose.EVALUATION, Use.DATA, start, 0):
            batch = source.batch(torch.arange(start, min(start + _DATA_BLOCK, len(source))))
        end = count - start
        batches.append(Batch(batch.x[:end], None if batch.context is None else batch.context[:end]))
    contexts = [batch.context for batch in batches if batch.context is not None]
    return DrawnOnce(
        torch.cat([batch.x for batch in batches]),
        torch.cat(contexts) if contexts else None,
        source.values,
        source.bits_offset,
    )


class Block(NamedTuple):
    """Some data points, where the model is, and the index of the first."""

    start: int
    x: Tensor
    context: Tensor | None


def blocks(model: VAE, source: DataSource, block_size: int) -> Iterator[Block]:
    """Give out all data points of a source without noise, in blocks."""
    for start in range(0, len(source), block_size):
        batch = source.batch(torch.arange(start, min(start + block_size, len(source))))
        yield Block(start, *on_model(model, batch))


def on_model(model: Model, batch: Batch) -> Batch:
    """Bring data to the model; drop a context that is not used."""
    context = batch.context if model.context_shape is not None else None
    return Batch(to_model(model, batch.x), None if context is None else to_model(model, context))


def check_values(model: VAE | VQVAE, source: DataSource) -> None:
    """Refuse data that the likelihood is no likelihood of.

    Raises:
        CombinationError: for a density on binary data, a mass on others than its own, a learned scale on gray levels,
            or a likelihood that is none.
    """
    likelihood, values = model.likelihood, source.values
    kind = likelihood.distribution_type
    if not kind.normalized:
        raise CombinationError(
            f"`{kind.__name__}` is no likelihood: no NLL and no bound on it exist. Use a continuous Bernoulli, a "
            "discretized logistic or a Gaussian, or judge the model by its samples alone."
        )
    if values in likelihood.values:
        return
    if kind.discrete:
        what = "discrete"
        fix = (
            "Binarize the data" if "binary" in likelihood.values else "Prepare the data as unit (gray levels)"
        )
    elif values == "unit":
        what = "a density that may grow without bound on gray levels"
        fix = "Dequantize the data, fix the scale, or use a categorical or discretized logistic likelihood"
    else:
        what, fix = "a density", "Use a Bernoulli likelihood"
    raise CombinationError(
        f"The likelihood is {what}, but the data have {values} values: its figures would not be the likelihood of "
        f"these data. {fix}, or state other `values`."
    )


def likelihood_kind(model: Model, source: DataSource) -> LikelihoodKind:
    """Say what log p(x) of such data is under a model; figures that rest on it compare within a kind alone."""
    part = model.density if isinstance(model, DensityModel) else model.likelihood
    if not part.distribution_type.normalized:
        return "no likelihood"
    if part.distribution_type.discrete:
        return "probability mass"
    if source.values == "unit":
        return "density on gray levels without noise"
    return "density on real values" if source.bits_offset is None else "density on dequantized data"


def bits_offset(model: VAE | VQVAE, source: DataSource) -> float | None:
    """Return what is added to nll / (D ln 2) in bits per dimension: nothing for a mass; None where undefined."""
    return 0.0 if model.likelihood.distribution_type.discrete else source.bits_offset


def check_event(model: VAE | VQVAE, source: DataSource) -> None:
    """Refuse data of another shape than the model's.

    Raises:
        ShapeError: naming both.
    """
    if tuple(source.event_shape) != model.event_shape:
        raise ShapeError(
            f"Data points must have the model's shape {model.event_shape}; got {tuple(source.event_shape)}. "
            "Evaluate on data prepared as in training."
        )


def check_positive_integers(**settings: int) -> None:
    """Refuse settings that are not positive integers.

    Raises:
        ConfigurationError: naming the setting.
    """
    for name, value in settings.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"`{name}` must be a positive integer; got {value!r}.")


def checked_count(count: int | None, available: int, *, name: str = "num_images") -> int:
    """Return how many data points are meant by an argument of this name, None being all.

    Raises:
        ConfigurationError: if it is not between 1 and what is available.
    """
    if count is None:
        return available
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= available:
        raise ConfigurationError(
            f"`{name}` must be from 1 to the {available} data points; got {count!r}. Leave it out for all of them."
        )
    return count


def check_weighable(model: VAE, prior: Distribution, *, posterior: bool = True, instead: str = "") -> None:
    """Refuse a mean of weights that hold exp(log p) where log p is an estimate, which makes it too large on average.

    Args:
        model: Whose likelihood, and posterior, are looked at.
        prior: The one in force.
        posterior: Whether log q(z|x) is in the weights.
        instead: What else can be done, for the message.

    Raises:
        CombinationError: naming the part, and what to do.
    """
    if unfit := unweighable_parts(model, prior, posterior=posterior):
        raise CombinationError(
            f"exp(log p) of the {unfit[0]} (`{type(getattr(model, unfit[0])).__name__}`) is biased upward, since its "
            "log p is an estimate: a mean of importance weights could exceed p(x). Make its divergence exact "
            f'(divergence="exact", `cnf(exact=True)`){instead}.'
        )


class ImpossibleDivergenceError(LatentFlowsError):
    """A mean KL below zero: log p(z) is too high where the posterior lies, and no likelihood follows from it."""


def check_divergence(kl: Tensor, prior: Distribution, *, solver_error: float = 0.0) -> None:
    """Refuse KLs (n,) to an approximate density whose mean is below zero by more than chance and its stated error.

    Args:
        kl: KL(q(z|x) || p(z)) of every image, nats.
        prior: p, a distribution.
        solver_error: Known error of log p(z) from a solver, nats.

    Raises:
        ImpossibleDivergenceError: with what to do.
    """
    if prior.density != "approximate" or len(kl) < 2:
        return
    normalizer = prior.log_normalizer_error
    stated = 0.0 if normalizer is None or not bool(normalizer.isfinite()) else float(normalizer)
    mean, error = float(kl.mean()), float(kl.std()) / math.sqrt(len(kl))
    if mean >= -_ERRORS * (error + stated + solver_error) - _LEAST_KL:
        return
    why, fix = "its solver is too coarse there", "Raise its number of steps, or lower its tolerance"
    if normalizer is not None:
        why, fix = "its normalizer misses mass there", "Train the prior on a frozen encoder"
    raise ImpossibleDivergenceError(
        f"KL(q(z|x) || p(z)) is {mean:.4g} nats on average over {len(kl)} images, and no density makes it negative: "
        f"log p(z) is too high where the posterior lies; {why}. No likelihood follows from it. {fix}, or use a prior "
        "with an exact density."
    )


def log_mean_weight(log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log of the mean of K weights, its variance by the delta method and the effective sample size.

    Args:
        log_weight: (K, B) in float64.

    Returns:
        Three of shape (B,): as `Bounds` states them; the variance is NaN for K = 1.
    """
    num = len(log_weight)
    log_sum = log_weight.logsumexp(0)
    effective = (2 * log_sum - (2 * log_weight).logsumexp(0)).exp()
    effective = torch.where(torch.isinf(log_sum), 0, effective)
    spread = (num / effective - 1).clamp(min=0)
    variance = spread / (num - 1) if num > 1 else spread * torch.nan
    return log_sum - math.log(num), variance, effective


def figure(values: Tensor, unit: str, variance: Tensor | None = None) -> Figure:
    """Return the mean over images with its errors; what is not finite is None.

    Args:
        values: One per image, (n,).
        unit: Their unit.
        variance: Variance of each due to finitely many samples, (n,); adds `monte_carlo_error`, that of the mean
            from finite samples alone: sqrt(sum of variances) / n. `standard_error`, s / sqrt(n), is over images.
    """
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    found: Figure = {"mean": finite(float(values.mean())), "standard_error": finite(error), "unit": unit}
    if variance is not None:
        found["monte_carlo_error"] = finite(float(variance.sum().sqrt()) / len(variance))
    return found


def finite(value: float) -> float | None:
    """Return the value, or None where it is not finite, as JSON wants it."""
    return value if math.isfinite(value) else None
