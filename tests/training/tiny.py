"""Small models, data and objectives, so that a whole run takes a fraction of a second; every one is seeded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentflows.bijections import ActNorm, Chain
from latentflows.core import noise
from latentflows.core.batches import Batch, Values
from latentflows.core.shapes import Shape
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    BatchOptimalGaussian,
    Conditional,
    Flow,
    GaussianMixture,
    ResampledPrior,
    StandardGaussian,
)
from latentflows.models import VAE, VQVAE, Trace, vq_vae, vq_vae_2
from latentflows.models.presets import iaf, real_nvp
from latentflows.networks import MLP
from latentflows.objectives import (
    ELBO,
    GECO,
    CodeLikelihood,
    Objective,
    PriorLikelihood,
    Value,
    VectorQuantization,
)
from latentflows.training import Callback, Stage
from latentflows.training.checkpoint import load_tensors

SHAPE = (1, 8, 8)
POINTS, BATCH = 32, 8
STEPS_PER_EPOCH = POINTS // BATCH


class Images:
    """Gray 8x8 images, binarized anew whenever they are read. `on_read` is called with the number of the read."""

    event_shape: Shape = SHAPE
    values: Values = "binary"
    bits_offset: float | None = 0.0

    def __init__(
        self, count: int = POINTS, *, seed: int = 0, on_read: Callable[[int], None] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        phase = torch.rand(count, 2, 1, 1, generator=generator) * 2 * math.pi
        rows = torch.arange(8.0)
        wave = (rows[:, None] + phase[:, :1]).sin() * (rows[None, :] * 0.7 + phase[:, 1:]).cos()
        self.gray = torch.sigmoid(6 * wave)
        self.on_read, self.reads = on_read, 0

    def __len__(self) -> int:
        return len(self.gray)

    def batch(self, indices: Tensor) -> Batch:
        self.reads += 1
        if self.on_read is not None:
            self.on_read(self.reads)
        gray = self.gray[indices]
        return Batch((noise.uniform(tuple(gray.shape), like=gray) < gray).float())


class Fixed(Images):
    """The same images, binarized once."""

    def __init__(self, count: int = POINTS, *, seed: int = 0) -> None:
        super().__init__(count, seed=seed)
        self.x = (self.gray > 0.5).float()

    def batch(self, indices: Tensor) -> Batch:
        self.reads += 1
        return Batch(self.x[indices])


def vae(
    posterior: Literal["gaussian", "iaf"] = "gaussian", prior: Literal["standard", "real_nvp"] = "standard"
) -> VAE:
    """A VAE of 2 latents on 8x8 images, always with the same first weights."""
    with noise.stream(7):
        encoder = MLP(SHAPE, (4,), width=8, depth=1)
        gaussian: Conditional = AmortizedGaussian(2, SHAPE, encoder)
        if posterior == "iaf":
            features = AmortizedGaussian(2, 6, MLP((6,), (4,), width=8, depth=1))
            embed = MLP(SHAPE, (6,), width=8, depth=1)
            bijection = iaf(2, num_layers=2, width=8, depth=1, context=6)
            gaussian = Flow(features, bijection, embed=embed, context_shape=SHAPE)
        base = StandardGaussian(2)
        flow = base if prior == "standard" else Flow(base, real_nvp(2, num_layers=2, width=8, depth=1))
        return VAE(gaussian, flow, AmortizedBernoulli(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1)))


def normalized_vae() -> VAE:
    """A VAE whose posterior ends in, and whose prior begins with, layers that wait for a batch."""
    with noise.stream(7):
        model = vae("iaf", "real_nvp")
        for part in (model.posterior, model.prior):
            assert isinstance(part, Flow)
            part.bijection = Chain([ActNorm(2), part.bijection, ActNorm(2)])
        return model


def mixture_vae() -> VAE:
    """A VAE whose prior is a flow over a mixture that waits for latents."""
    with noise.stream(7):
        model = vae("gaussian", "real_nvp")
        assert isinstance(model.prior, Flow)
        model.prior.base = GaussianMixture(2, 3, start="em", initialization_points=100)
        return model


def lars_vae() -> VAE:
    """A VAE whose prior estimates its normalizer at every step."""
    with noise.stream(7):
        model = vae()
        network = MLP(2, 1, width=4, depth=1)
        model.prior = ResampledPrior(StandardGaussian(2), network, max_attempts=5, num_normalizer_samples=32)
        return model


def optimal_vae() -> VAE:
    """A VAE whose likelihood follows the error of the training steps."""
    with noise.stream(7):
        posterior = vae().posterior
        likelihood = BatchOptimalGaussian(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1))
        return VAE(posterior, StandardGaussian(2), likelihood)


def geco_vae() -> VAE:
    """A VAE with the multiplier of a constraint."""
    model = vae()
    model.auxiliary = GECO(0.4).auxiliary(model)
    return model


def code_model(
    codebook: Literal["moving_average", "gradient"] = "moving_average", *, levels: int = 1, seed: int = 7
) -> VQVAE:
    """A VQ-VAE of 2 x 2 codes on 8x8 images, with 4 x 4 codes below them where there are two levels."""
    networks: dict[str, Any] = {"width": 4, "num_blocks": 1, "prior_width": 8, "prior_depth": 1, "heads": 2}
    codes: dict[str, Any] = {"dim": 3, "num_codes": 6, "codebook": codebook}
    with noise.stream(seed):
        if levels == 2:
            spaces = ((2, 2), (4, 4))
            return vq_vae_2(SHAPE, spaces, likelihood=AmortizedBernoulli, **codes, **networks)
        return vq_vae(SHAPE, (2, 2), likelihood=AmortizedBernoulli, **codes, **networks)


def code_stages(**settings: Any) -> list[Stage]:
    parts = ("encoder", "quantizer", "likelihood")
    first = Stage("codes", VectorQuantization(), parts, max_epochs=2, batch_size=BATCH, learning_rate=1e-2)
    second = Stage("prior", CodeLikelihood(), ("prior",), max_epochs=2, batch_size=BATCH, learning_rate=1e-2)
    return [replace(first, **settings), replace(second, **settings)]


def one_stage(objective: Objective | None = None, **settings: Any) -> list[Stage]:
    stage = Stage("joint", objective or ELBO(), max_epochs=3, batch_size=BATCH, learning_rate=1e-2)
    return [replace(stage, **settings)]


def two_stages(**settings: Any) -> list[Stage]:
    first = Stage(
        "autoencoder",
        ELBO(warmup_epochs=1.5),
        ("posterior", "likelihood"),
        max_epochs=3,
        batch_size=BATCH,
        learning_rate=1e-2,
        schedule="cosine",
        warmup_steps=2,
        ema_decay=0.8,
        gradient_clip_val=20.0,
    )
    second = Stage("prior", PriorLikelihood(), ("prior",), max_epochs=2, batch_size=BATCH, optimizer="adamax")
    return [replace(first, **settings), replace(second, **settings)]


def three_stages(**settings: Any) -> list[Stage]:
    last = Stage("together", ELBO(), max_epochs=2, batch_size=BATCH, optimizer="adamw", weight_decay=0.01)
    return [*two_stages(**settings), replace(last, **settings)]


@dataclass(frozen=True)
class Poison(Objective):
    """An objective that breaks at chosen steps of a stage; which ones follows from the time, so a resume repeats it.

    Args:
        steps: Steps, from 0.
        how: "nan" or "inf" in the loss, or "gradient" for a finite loss whose gradient is NaN.
        validation: Whether validation figures are NaN.
    """

    steps: frozenset[int] = frozenset()
    how: Literal["nan", "inf", "gradient"] = "nan"
    validation: bool = False

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        value = ELBO()(trace, epoch)
        if epoch == math.inf:
            broken = {name: metric * math.nan for name, metric in value.metrics.items()}
            return Value(value.loss, broken) if self.validation else value
        if round(float(epoch) * STEPS_PER_EPOCH) not in self.steps:
            return value
        if self.how == "gradient":
            loss = value.loss.clone()
            loss.register_hook(lambda gradient: gradient * math.nan)
            return Value(loss, value.metrics)
        return Value(value.loss * (math.nan if self.how == "nan" else math.inf), value.metrics)


class Watch(Callback):
    """Remembers events and lines, and the weights at the start and after every epoch."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lines: list[dict[str, Any]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.statuses: list[str] = []

    def on_start(self, model: VAE | VQVAE, stages: Any) -> None:
        self.model = model
        self.weights.append(state(model))

    def on_event(self, text: str) -> None:
        self.events.append(text)

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.weights.append(state(self.model))

    def on_end(self, history: Any) -> None:
        self.statuses.append(history.status)


class Crash(Exception):
    """A stand-in for a process that dies."""


def crash_at(read: int) -> Callable[[int], None]:
    """Make a source die at its n-th read."""

    def on_read(number: int) -> None:
        if number == read:
            raise Crash

    return on_read


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Name the parts in which any weight differs by a single bit."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


def lines(folder: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` without what the clock decides."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read]


def assert_same_run(one: Path, other: Path) -> None:
    """Fail unless two run folders hold the same lines and bit-identical weights."""
    assert lines(one) == lines(other)
    for name in ("model", "last"):
        first, state_of_first = load_tensors(one / "checkpoint" / f"{name}.safetensors")
        second, state_of_second = load_tensors(other / "checkpoint" / f"{name}.safetensors")
        assert same(first, second), name
        for content in (state_of_first, state_of_second):
            content.get("progress", {}).pop("seconds", None)
        assert state_of_first == state_of_second
