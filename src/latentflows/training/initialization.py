"""Data-dependent layers and priors are set once, from data, before the first stage that trains them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latentflows.bijections.base import DataDependent, waiting_layers
from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.core.errors import CombinationError
from latentflows.core.precision import at_least_float32
from latentflows.distributions import (
    Ancestral,
    Conditional,
    DataDependentPrior,
    Distribution,
    Flow,
    Hierarchical,
    Pushforward,
)
from latentflows.distributions.base import over_batch
from latentflows.distributions.data_dependent import waiting_priors
from latentflows.models.density import DensityModel, Model
from latentflows.models.vae import VAE
from latentflows.models.vqvae import VQVAE
from latentflows.training.base import Stage
from latentflows.training.parallel import World

_POINTS = 128  # at least, where there are as many: the statistics of a small batch would be poor
_ROWS = 1024  # data points encoded together for a prior that starts from latents


def initialize_once(
    model: Model,
    stage: Stage,
    trainable: Collection[nn.Parameter],
    train: DataSource,
    world: World,
    key: tuple[int, ...],
) -> None:
    """Let a batch set the layers that no batch has set yet, in the parts that learn in this stage.

    The first process alone draws the batch, under the noise of `key`; the others receive its numbers when the learner
    wraps the model in DistributedDataParallel. A resumed run, or a loaded model, finds its layers set and does nothing.

    A layer with a frozen parameter keeps what it holds. To keep values that you set by hand in a layer that learns, say
    that it is set: `layer.initialized.fill_(True)`.

    Then a prior that waits for data, or for latents, is given them: see `start_prior`.

    Raises:
        CombinationError: if a layer or a prior waits where nothing comes by.
    """
    parts = {name: getattr(model, name) for name in stage.parts(model)}
    frozen = [
        layer
        for part in parts.values()
        for layer in waiting_layers(part)
        if not all(p in trainable for p in layer.parameters())
    ]
    waiting = [
        name
        for name, part in parts.items()
        if any(layer not in frozen for layer in waiting_layers(part))
        and any(p in trainable for p in part.parameters())
    ]
    if waiting and world.first:
        model.eval()
        noise.reseed(*key)
        points = max(stage.batch_size, _POINTS)
        batch = train.batch(noise.permutation(len(train))[:points])
        with _left_alone(frozen):
            initialize(model, waiting, batch.to(world.device))
    if world.first and isinstance(model, VAE) and "prior" in parts:
        start_prior(model, trainable, train, world.device, key)


@contextmanager
def _left_alone(layers: Sequence[DataDependent]) -> Iterator[None]:
    """Let layers pass for set while a batch goes by."""
    for layer in layers:
        layer.initialized.fill_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.initialized.fill_(False)


def initialize(model: Model, parts: Sequence[str], batch: Batch) -> None:
    """Show a batch to the data-dependent layers of these parts, each part passing it as training will.

    The posterior's flow passes its own base noise forward. The prior's passes latents that the posterior draws, and
    the likelihood's, or a density's, the data: these go towards the base.

    Raises:
        CombinationError: if a layer waits where no batch comes by.
    """
    if isinstance(model, DensityModel):
        _pass_through("density", model, model.density_at(batch.context), at_least_float32(batch.x))
        return
    if isinstance(model, VQVAE):
        for part in parts:
            _pass_through(part, model, model.decode(model.quantize(batch.x).z), at_least_float32(batch.x))
        return
    if "posterior" in parts:
        _pass_through("posterior", model, model.encode(*batch))
    z = model.encode(*batch).sample()
    if "prior" in parts:
        _pass_through("prior", model, model.prior_at(batch.context), z)
    if "likelihood" in parts:
        _pass_through("likelihood", model, model.decode(z, batch.context), at_least_float32(batch.x))


def _pass_through(part: str, model: Model, distribution: Distribution, x: Tensor | None = None) -> None:
    if isinstance(distribution, Pushforward | Ancestral):
        distribution.initialize(x)
    left = waiting_layers(getattr(model, part))
    if left:
        raise CombinationError(
            f"The {part} holds a `{type(left[0]).__name__}` that must see a batch before training, but none passes it: "
            f"`{type(distribution).__name__}` is no flow. Call its `initialize` with a batch before `fit`."
        )


@torch.no_grad()
def start_prior(
    model: VAE,
    trainable: Collection[nn.Parameter],
    train: DataSource,
    device: torch.device,
    key: tuple[int, ...],
) -> None:
    """Give the priors that wait what they start from: data points, or fresh latents z ~ q(z|x) of training points.

    Points are drawn without replacement; where more latents are asked for than there are points, every point is encoded
    several times, with other noise. A prior whose parameters are all frozen keeps them, if it starts from latents.

    Memory: `initialization_points` latents, or data points.

    Raises:
        CombinationError: if a prior waits where no latents come by.
    """
    waiting = waiting_priors(model.prior)
    if not waiting:
        return
    model.eval()
    noise.reseed(*key, 1)
    readers = [prior for prior in waiting if prior.reads == "data"]
    others = [
        prior
        for prior in waiting
        if prior.reads == "latents" and any(p in trainable for p in prior.parameters())
    ]
    for prior in readers:
        batch = train.batch(noise.permutation(len(train))[: prior.initialization_points]).to(device)
        prior.initialize(model.read_by_posterior(*batch))
    if others:
        z, context = _latents(model, train, max(prior.initialization_points for prior in others), device)
        for prior, values, own in _reached(model.prior, z, context if model.prior.context_shape else None):
            if prior in others:
                prior.initialize(values, own)
                others.remove(prior)
    if others:
        raise CombinationError(
            f"The prior holds a `{type(others[0]).__name__}` that starts from latents, but none reach it inside "
            f"`{type(model.prior).__name__}`. Call its `initialize` before `fit`."
        )


def _latents(model: VAE, train: DataSource, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Draw `count` latents from the posteriors of training points, and return the points' contexts."""
    rounds = -(-count // len(train))
    order = torch.cat([noise.permutation(len(train)) for _ in range(rounds)])[:count]
    latents, contexts = [], []
    for indices in order.split(_ROWS):
        batch = train.batch(indices).to(device)
        latents.append(model.encode(*batch).sample())
        if batch.context is not None:
            contexts.append(batch.context)
    return torch.cat(latents), torch.cat(contexts) if contexts else None


def _reached(
    prior: Conditional, z: Tensor, context: Tensor | None
) -> Iterator[tuple[DataDependentPrior, Tensor, Tensor | None]]:
    """Give each prior that can start from data with its part of the latents, mapped to where it stands."""
    if isinstance(prior, DataDependentPrior):
        yield prior, z, context
    elif isinstance(prior, Flow):
        if prior.embed is not None:
            assert context is not None
            assert prior.context_shape is not None
            context = over_batch(prior.embed, context, prior.context_shape)
        u, _ = prior.bijection.inverse(z, context if prior.bijection.context_shape else None)
        yield from _reached(prior.base, u, context if prior.base.context_shape else None)
    elif isinstance(prior, Hierarchical):
        for level, part, own in prior.contexts(z, context):
            yield from _reached(level, part, own)
