"""Data-dependent layers are set once, from the first batch of the first stage that trains them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from latentflows.bijections.base import DataDependent, waiting_layers
from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.core.errors import CombinationError
from latentflows.core.precision import at_least_float32
from latentflows.distributions import Distribution, Pushforward
from latentflows.models.vae import VAE
from latentflows.training.base import Stage
from latentflows.training.parallel import World

_POINTS = 128  # at least, where there are as many: the statistics of a small batch would be poor


def initialize_once(
    model: VAE,
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

    Raises:
        CombinationError: if a layer waits where no batch comes by.
    """
    parts = {name: getattr(model, name) for name in stage.train}
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


def initialize(model: VAE, parts: Sequence[str], batch: Batch) -> None:
    """Show a batch to the data-dependent layers of these parts, each part passing it as training will.

    The posterior's flow passes its own base noise forward. The prior's passes latents that the posterior draws, and
    the likelihood's the data, both towards the base.

    Raises:
        CombinationError: if a layer waits where no batch comes by.
    """
    if "posterior" in parts:
        _pass_through("posterior", model, model.encode(*batch))
    z = model.encode(*batch).sample()
    if "prior" in parts:
        _pass_through("prior", model, model.prior_at(batch.context), z)
    if "likelihood" in parts:
        _pass_through("likelihood", model, model.decode(z, batch.context), at_least_float32(batch.x))


def _pass_through(part: str, model: VAE, distribution: Distribution, x: Tensor | None = None) -> None:
    if isinstance(distribution, Pushforward):
        distribution.initialize(x)
    left = waiting_layers(getattr(model, part))
    if left:
        raise CombinationError(
            f"The {part} holds a `{type(left[0]).__name__}` that must see a batch before training, but none passes it: "
            f"`{type(distribution).__name__}` is no flow. Call its `initialize` with a batch before `fit`."
        )
