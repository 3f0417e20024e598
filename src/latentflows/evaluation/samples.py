"""How good a model's samples are: distances between features of real and generated images, with their protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.core.noise import Purpose
from latentflows.evaluation.base import on_model
from latentflows.evaluation.distances import (
    ManifoldFigures,
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    manifold_figures,
)
from latentflows.evaluation.features import FeatureExtractor
from latentflows.evaluation.intervals import Estimate
from latentflows.evaluation.protocol import SampleProtocol, Shown
from latentflows.models.density import DensityModel, Model
from latentflows.models.inference import evaluation_mode

_PIECE = (
    256  # images drawn together, as in `latentflows.generation`: the same seed draws the same images there
)


@dataclass(frozen=True)
class SampleQuality:
    """Figures of sample quality and the protocol that they were made by.

    Attributes:
        frechet_distance: Squared Frechet distance of the features; FID for Inception's.
        frechet_distance_infinity: The same extrapolated to infinitely many generated images; None where there are
            fewer than 4 D, or it was not asked for.
        kernel_distance: Unbiased squared MMD under the cubic kernel; KID for Inception's.
        manifold: Precision, recall, density and coverage.
        protocol: What all of them depend on.
    """

    frechet_distance: Estimate
    frechet_distance_infinity: Estimate | None
    kernel_distance: Estimate
    manifold: ManifoldFigures
    protocol: SampleProtocol

    def figures(self) -> dict[str, dict[str, object]]:
        """Return each figure with its standard error, its 95 % interval and its protocol, as JSON holds them."""
        values = {
            "frechet_distance": (self.frechet_distance, "squared feature units"),
            "frechet_distance_infinity": (self.frechet_distance_infinity, "squared feature units"),
            "kernel_distance": (self.kernel_distance, "kernel units"),
            "precision": (self.manifold.precision, "share of generated images"),
            "recall": (self.manifold.recall, "share of real images"),
            "density": (self.manifold.density, "balls / k"),
            "coverage": (self.manifold.coverage, "share of real images"),
        }
        protocol: dict[str, Any] = self.protocol.as_dict()
        return {
            name: estimate.figure(unit) | {"protocol": protocol}
            for name, (estimate, unit) in values.items()
            if estimate is not None
        }


def compare_features(
    real: Tensor,
    generated: Tensor,
    protocol: SampleProtocol,
    *,
    num_groups: int = 20,
    extrapolate: bool = True,
    memory_mib: int = 256,
) -> SampleQuality:
    """Return every figure of two sets of features: for images that come from elsewhere.

    Cost and memory: the sums of those of `frechet_distance`, `kernel_distance` and `manifold_figures`. The
    extrapolation has no error of its own here, for its cost; ask `frechet_distance_infinity` for it.

    Args:
        real: Features (n, D).
        generated: Features (m, D).
        protocol: What they are: its counts and dimension must be theirs, its neighbors, blocks and seed are used.
        num_groups: Groups of the jackknife behind the Frechet distance's error; 0 for none.
        extrapolate: Whether to extrapolate the Frechet distance, where there are 4 D generated images or more.
        memory_mib: Memory for distances and kernel values.

    Raises:
        ShapeError: if the features are not of the counts and the dimension of the protocol.
        NonFiniteError: if a feature is NaN or infinite.
        ConfigurationError: if there are too few images for the blocks, groups or neighbors.
    """
    stated = ((protocol.num_real, protocol.dimension), (protocol.num_generated, protocol.dimension))
    if (tuple(real.shape), tuple(generated.shape)) != stated:
        raise ShapeError(
            f"The protocol states features of shapes {stated[0]} and {stated[1]}; got {tuple(real.shape)} and "
            f"{tuple(generated.shape)}. State the protocol of these features."
        )
    seed = protocol.seed
    enough = len(generated) >= max(20, 4 * protocol.dimension)
    return SampleQuality(
        frechet_distance=frechet_distance(real, generated, num_groups=num_groups, seed=seed),
        frechet_distance_infinity=(
            frechet_distance_infinity(real, generated, seed=seed) if extrapolate and enough else None
        ),
        kernel_distance=kernel_distance(
            real, generated, num_blocks=protocol.num_blocks, memory_mib=memory_mib, seed=seed
        ),
        manifold=manifold_figures(
            real, generated, num_neighbors=protocol.num_neighbors, memory_mib=memory_mib
        ),
        protocol=protocol,
    )


@torch.no_grad()
def evaluate_samples(
    model: Model,
    source: DataSource,
    extractor: FeatureExtractor,
    *,
    data: str,
    split: str,
    num_images: int | None = None,
    temperature: float = 1.0,
    shown: Shown = "sample",
    num_neighbors: int = 5,
    num_blocks: int = 10,
    num_groups: int = 20,
    extrapolate: bool = True,
    seed: int = 0,
    memory_mib: int = 256,
) -> SampleQuality:
    """Draw as many images from the model as there are real ones, and compare the features of both.

    Images go through the extractor 256 at a time and are not kept. A seed draws the same images as
    `latentflows.generation.sample`. A model that is given a context gets those of the real images.

    Memory: 8 (n + m) D bytes of features, and what `compare_features` takes. Cost: n passes of prior and decoder, 2 n
    of the extractor, and that of `compare_features`.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was.
        source: The real images.
        extractor: What features are; one and the same for all models that are compared.
        data: Name of the data set and its preparation, for the protocol.
        split: Which split `source` is, for the protocol.
        num_images: n = m; a subset of `source` drawn with the seed. None for all of it.
        temperature: Scale of the prior's base noise; of a prior over codes, what divides its logits.
        shown: "sample" for draws of p(x|z), "mean" for its means, which are not samples of the model.
        num_neighbors: k of precision, recall, density and coverage.
        num_blocks: Blocks of the kernel distance.
        num_groups: Groups of the jackknife behind the Frechet distance's error; 0 for none.
        extrapolate: Whether to extrapolate the Frechet distance, where n is at least 4 D.
        seed: Seed of latents, draws, subset, blocks and groups.
        memory_mib: Memory for distances and kernel values.

    Raises:
        ConfigurationError: if a setting is out of range, or there are too few images for it.
        CombinationError: if the prior has no temperature, or the likelihood no mean.
        NonFiniteError: if a feature is NaN or infinite.
    """
    count = len(source) if num_images is None else num_images
    if not isinstance(count, int) or not 2 <= count <= len(source):
        raise ConfigurationError(f"`num_images` must be from 2 to {len(source)}; got {num_images!r}.")
    if shown not in ("sample", "mean"):
        raise ConfigurationError(f'`shown` must be "sample" or "mean"; got {shown!r}.')
    with noise.stream(seed, Purpose.SAMPLE_QUALITY, 4):
        rows = noise.permutation(len(source))[:count].sort().values
    real, generated = [], []
    with evaluation_mode(model):
        for start in range(0, count, _PIECE):
            with noise.stream(seed, Purpose.SAMPLE_QUALITY, 5, start):
                batch = on_model(model, source.batch(rows[start : start + _PIECE]))
            real.append(extractor(batch.x).double())
            with noise.stream(seed, Purpose.SAMPLE, start):
                drawn = _drawn(model, len(batch.x), batch.context, temperature, shown)
            generated.append(extractor(drawn).double())
    features = torch.cat(real), torch.cat(generated)
    protocol = SampleProtocol(
        data=data,
        split=split,
        features=extractor.name,
        weights=extractor.weights,
        dimension=features[0].shape[1],
        num_real=count,
        num_generated=count,
        resize=extractor.resize,
        pixel_range=extractor.pixel_range,
        temperature=temperature,
        shown=shown,
        num_neighbors=num_neighbors,
        num_blocks=num_blocks,
        seed=seed,
    )
    return compare_features(
        *features,
        protocol,
        num_groups=num_groups,
        extrapolate=extrapolate,
        memory_mib=memory_mib,
    )


def _drawn(model: Model, num: int, context: Tensor | None, temperature: float, shown: Shown) -> Tensor:
    if isinstance(model, DensityModel):
        if shown == "mean":
            raise CombinationError(
                "A density of the data has no means of p(x|z) to show; `shown` must be sample."
            )
        return model.sample(num, temperature=temperature, context=context)
    z = model.sample_latents(num, temperature=temperature, context=context)
    p = model.decode(z, context)
    return p.mean if shown == "mean" else p.sample()
