"""Nearest neighbors of samples in the training data, beside those of test images: does the model copy?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.core.noise import Purpose, stream
from latentflows.evaluation.base import (
    DrawnOnce,
    Figures,
    Protocol,
    Use,
    blocks,
    check_event,
    check_positive_integers,
    draw_once,
    figure,
)
from latentflows.models.inference import MEAN_DRAWS, evaluation_mode, posterior_moments
from latentflows.models.vae import VAE

_BLOCK = 256  # images encoded together
_PAIRS = 1 << 24  # distances in memory at once


@dataclass(frozen=True)
class Neighborhood:
    """Nearest training images of samples in one space, with those of test images as the baseline.

    Attributes:
        indices: Training images nearest to each sample, nearest first, (m, k).
        distances: Their Euclidean distances, (m, k), float64.
        baseline: Distance of each test image to its nearest training image, (t,).
        levels: Probabilities of the quantiles of `baseline`.
        num_dimensions: Size of the space.
    """

    indices: Tensor
    distances: Tensor
    baseline: Tensor
    levels: tuple[float, ...]
    num_dimensions: int

    @property
    def shares(self) -> dict[float, tuple[float, float]]:
        """For each level a: the share of samples nearer to the training data than quantile a, and its error.

        The share is a for samples that are to the training data as test images are; above it, samples are too near. The
        error is sqrt(s (1 - s) / m + a (1 - a) / t): that of the share, and that of the quantile.
        """
        nearest, baseline = self.distances[:, 0], self.baseline
        found = {}
        for level in self.levels:
            share = float((nearest < baseline.quantile(level)).double().mean())
            variance = share * (1 - share) / len(nearest) + level * (1 - level) / len(baseline)
            found[level] = (share, math.sqrt(variance))
        return found


@dataclass(frozen=True)
class Neighbors:
    """Neighborhoods of the same samples in several spaces.

    Attributes:
        spaces: By name: "pixels", "pixels_pca", and with a model "latents_pca".
        protocol: How they were measured.
    """

    spaces: dict[str, Neighborhood]
    protocol: Protocol

    def figures(self) -> Figures:
        """Return distances, baselines and shares of every space, in the form of `Bounds.figures`."""
        figures: Figures = {}
        for name, space in self.spaces.items():
            figures[f"{name}_distance"] = figure(space.distances[:, 0], "distance")
            figures[f"{name}_baseline"] = figure(space.baseline, "distance")
            for level, (share, error) in space.shares.items():
                key = f"{name}_nearer_than_{100 * level:g}%_of_test"
                figures[key] = {"mean": share, "standard_error": error, "unit": "share"}
        return figures


def evaluate_neighbors(
    samples: Tensor,
    train: DataSource,
    test: DataSource,
    *,
    model: VAE | None = None,
    context: Tensor | None = None,
    num_neighbors: int = 5,
    num_components: int = 50,
    levels: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5),
    seed: int = 0,
) -> Neighbors:
    """Find the training images nearest to samples, and whether they are nearer than those of test images.

    A model that overfits draws near-copies: its samples lie nearer to the training images than fresh images of the same
    kind do. A distance alone says little, since any image is at some distance; so test images give the baseline.
    Compare like with like: binary samples with binary data, draws with data, never means of p(x|z), which are blurred
    and so nearer to everything. Distances in pixels are dominated by small shifts; in the space of the leading
    principal components of pixels less so, and of posterior means least. All three are reported: a copy shows in each.

    The principal components are those of the training images, neither rescaled nor whitened. A posterior mean has a
    closed form, or is that of 64 draws.

    Cost: (m + t) N D multiplications per space, N training images of D numbers, and N D^2 for the components of D
    numbers. Memory: N D numbers of every space, D^2 numbers in float64 for the components, 2^24 distances.

    Args:
        samples: (m, *event), drawn from the model.
        train: Training data; their noise is drawn once.
        test: Data of the same kind that were not trained on.
        model: Adds the space of its latents; None leaves it out.
        context: What the samples were conditioned on, (m, *context), if the posterior needs it.
        num_neighbors: k.
        num_components: Principal components kept, at most; never more than there are dimensions.
        levels: Quantiles of the baseline, between 0 and 1.
        seed: Seed of the sources' noise, and of draws of the posterior.

    Raises:
        ConfigurationError: for settings out of range.
        ShapeError: for samples or data of different shapes.
        DataError: if a sample is not finite.

    References:
        Theis et al., A note on the evaluation of generative models, 2016, arXiv 1511.01844, section 3.3 (why pixel
        distances alone do not show overfitting); Meehan et al., A Non-Parametric Test to Detect Data-Copying in
        Generative Models, 2020, arXiv 2004.05675 (test images as the baseline).
    """
    check_positive_integers(num_neighbors=num_neighbors, num_components=num_components)
    _check_samples(samples, train, test, num_neighbors, levels)
    sources = (
        DrawnOnce(samples, context, train.values, None),
        draw_once(train, seed=seed),
        draw_once(test, seed=seed),
    )
    sample_x, train_x, test_x = (source.x.flatten(1) for source in sources)
    to_components = principal_components(train_x, num_components)

    def neighborhood(sample: Tensor, reference: Tensor, fresh: Tensor) -> Neighborhood:
        indices, distances = nearest(sample, reference, num_neighbors)
        baseline = nearest(fresh, reference, 1)[1][:, 0]
        return Neighborhood(indices.cpu(), distances.cpu(), baseline.cpu(), tuple(levels), reference.shape[1])

    spaces = {
        "pixels": neighborhood(sample_x, train_x, test_x),
        "pixels_pca": neighborhood(*map(to_components, (sample_x, train_x, test_x))),
    }
    if model is not None:
        check_event(model, train)
        means = [posterior_means(model, source, seed) for source in sources]
        spaces["latents_pca"] = neighborhood(*map(principal_components(means[1], num_components), means))
    protocol: Protocol = {
        "distance": "Euclidean",
        "num_samples": len(samples),
        "num_train": len(train),
        "num_test": len(test),
        "components": f"at most {num_components}, of the training data, not whitened",
        "seed": seed,
    }
    return Neighbors(spaces, protocol)


def nearest(queries: Tensor, references: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Return the nearest references of every query and their distances, nearest first.

    Candidates come from a matrix product in the precision of the data; their distances are then computed again from
    differences in float64, so that the distance of a copy is 0. Memory: 2^24 distances, and as many numbers of queries.

    Args:
        queries: (m, D).
        references: (N, D).
        num_neighbors: k, at most N.

    Returns:
        Indices (m, k) and distances (m, k) in float64.
    """
    references = references.to(queries.device)
    norms = references.square().sum(1)
    indices, distances = [], []
    for part in queries.split(max(1, _PAIRS // max(references.shape))):
        # |q|^2 is the same for all references, so it decides nothing.
        _, candidates = (norms - 2 * part @ references.T).topk(num_neighbors, largest=False)
        exact = [
            (references[column].double() - part.double()).square().sum(1).sqrt() for column in candidates.T
        ]
        ordered, order = torch.stack(exact, 1).sort(dim=1, stable=True)
        indices.append(candidates.gather(1, order))
        distances.append(ordered)
    return torch.cat(indices), torch.cat(distances)


def principal_components(x: Tensor, num_components: int) -> Callable[[Tensor], Tensor]:
    """Return the projection onto the leading principal components of x (N, D), at most D of them.

    Cost: N D^2 + D^3. Memory: D^2 numbers in float64.
    """
    center = torch.stack([part.double().sum(0) for part in x.split(_BLOCK)]).sum(0) / len(x)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(_BLOCK):
        deviation = part.double() - center
        covariance += deviation.T @ deviation
    axes = torch.linalg.eigh(covariance)[1].flip(1)[:, :num_components].to(x.dtype)
    middle = center.to(x.dtype)
    return lambda value: (value.to(middle) - middle) @ axes


@torch.no_grad()
def posterior_means(model: VAE, source: DataSource, seed: int = 0) -> Tensor:
    """Return the posterior mean of every data point, (n, D) in float64, latents flattened."""
    found = []
    with evaluation_mode(model):
        for block in blocks(model, source, _BLOCK):
            with stream(seed, Purpose.EVALUATION, Use.MOMENTS, block.start, 0):
                found.append(posterior_moments(model.encode(block.x, block.context), MEAN_DRAWS).mean)
    return torch.cat(found).flatten(1)


def _check_samples(
    samples: Tensor, train: DataSource, test: DataSource, num_neighbors: int, levels: tuple[float, ...]
) -> None:
    shapes = {tuple(samples.shape[1:]), tuple(train.event_shape), tuple(test.event_shape)}
    if len(shapes) > 1 or not len(samples):
        raise ShapeError(
            "Samples, training and test data must be of one event shape, and not empty; got "
            f"{tuple(samples.shape)}, and events {tuple(train.event_shape)} and {tuple(test.event_shape)}."
        )
    if not bool(samples.isfinite().all()):
        raise DataError("Samples must be finite; got NaN or infinity.")
    if num_neighbors > len(train):
        raise ConfigurationError(
            f"`num_neighbors` must be at most the {len(train)} training data points; got {num_neighbors}."
        )
    if not levels or not all(0 < level < 1 for level in levels):
        raise ConfigurationError(f"`levels` must lie between 0 and 1, both excluded; got {levels}.")
