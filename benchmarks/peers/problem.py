"""What every contender is given: the sizes, the networks, the data, and how a run is timed."""

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layers:
    """A flow: how many layers, and the hidden widths of the network in each."""

    num: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """One size of the comparison; every contender builds exactly these networks.

    The flow sizes are the peers' own where they have one: `iaf` is the default of pythae's `VAE_IAF`, `maf`
    the prior of Pyro's tutorial; both are made narrower for the digits.
    """

    name: str
    data_dim: int
    width: int
    latent: int
    batch_size: int
    num_images: int
    learning_rate: float
    iaf: Layers
    maf: Layers
    num_planar: int
    coupling: Layers


# Whole batches only (468 of 128, 28 of 64), so that no contender's rule for a last short batch plays a part.
PROBLEMS = {
    "mnist": Problem(
        name="mnist",
        data_dim=784,
        width=300,
        latent=40,
        batch_size=128,
        num_images=59_904,
        learning_rate=1e-3,
        iaf=Layers(2, (128, 128, 128)),
        maf=Layers(3, (256, 256)),
        num_planar=10,
        coupling=Layers(4, (64,)),
    ),
    "digits": Problem(
        name="digits",
        data_dim=64,
        width=64,
        latent=8,
        batch_size=64,
        num_images=1_792,
        learning_rate=1e-3,
        iaf=Layers(2, (64, 64, 64)),
        maf=Layers(3, (64, 64)),
        num_planar=10,
        coupling=Layers(4, (64,)),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one training run came to.

    Args:
        seconds: Wall-clock seconds of training; imports and building the model are not in it.
        loss: Mean negative ELBO over the last epoch, nats per image, as training saw it.
        parameters: Trainable numbers of the whole model.
    """

    seconds: float
    loss: float
    parameters: int


Contender = Callable[[Problem, Tensor, int, int], Outcome]  # problem, data, epochs, seed


def encoder(problem: Problem) -> nn.Sequential:
    """The encoder network: two hidden layers, mean and log-variance side by side at the end."""
    return mlp(problem.data_dim, problem.width, 2 * problem.latent)


def decoder(problem: Problem) -> nn.Sequential:
    """The decoder network: two hidden layers, one logit per pixel."""
    return mlp(problem.latent, problem.width, problem.data_dim)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU, PyTorch's own initialization."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def timed(train: Callable[[], float], model: nn.Module) -> Outcome:
    """Run `train`, which returns the loss of its last epoch, by the clock on the wall."""
    start = time.perf_counter()
    loss = train()
    return Outcome(time.perf_counter() - start, loss, num_parameters(model))


def load(problem: Problem, data_root: Path | None, num_images: int | None = None) -> tuple[Tensor, str]:
    """Binary images in memory, float32, `(num_images, data_dim)`, and their description.

    MNIST is read from `data_root` (gray values above 127 are ink); without it a synthetic set of the same
    shape stands in, which costs the same time but gives other losses. The digits are those of scikit-learn.
    """
    num = num_images or problem.num_images
    if problem.name == "digits":
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits(return_X_y=True)[0])
        return (images[:num] > 7).float().contiguous(), "scikit-learn digits, ink above 7 of 16"
    if data_root is None:
        return synthetic(num, problem.data_dim), "synthetic binary images of the size of MNIST"
    raw = gzip.decompress((data_root / "train-images-idx3-ubyte.gz").read_bytes())
    images = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, problem.data_dim)
    return (images[:num] > 127).float(), "MNIST training images, ink above 127 of 255"


def synthetic(num: int, dim: int) -> Tensor:
    """Binary images with 16 hidden causes, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(num, 16, generator=generator)
    logits = causes @ torch.randn(16, dim, generator=generator) - 2.0
    return (torch.rand(num, dim, generator=generator) < torch.sigmoid(logits)).float()
