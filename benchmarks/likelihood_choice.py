"""Which likelihood for gray images: bits per dimension, KL and reconstruction error of small VAEs on digits.

    python -m benchmarks.likelihood_choice

One encoder, one decoder, one protocol, and the likelihood as the only difference, from several seeds. Densities learn
dequantized digits, masses the gray levels themselves. What was trained without a variance, or as no likelihood at all,
is also given one: the trained mean is kept and one Gaussian scale is fitted to its error on the training data. A third
group shows what becomes of a learned scale on gray levels without noise.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import measure
from latentflows import ELBO, VAE, AmortizedGaussian, Conditional, Stage, StandardGaussian, fit
from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError
from latentflows.data import ImageData, load
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedCategorical,
    AmortizedContinuousBernoulli,
    AmortizedLaplace,
    AmortizedLogisticMixture,
    AmortizedStudentT,
    BatchOptimalGaussian,
    categorical_raw_shape,
    gaussian_raw_shape,
    logistic_raw_shape,
)
from latentflows.evaluation import evaluate_bounds
from latentflows.models.flow_decoder import flow_likelihood
from latentflows.models.image_flows import real_nvp_image
from latentflows.networks import MLP

EVENT, LATENT, LEVELS = (1, 8, 8), 8, 17
PIXELS = math.prod(EVENT)


@dataclass(frozen=True)
class Protocol:
    """How every model is trained and measured.

    Args:
        epochs: Of training; the best on validation data are kept.
        warmup_epochs: In which the weight of the KL rises to 1, without which many models ignore z for good.
        batch_size: Images in a step.
        learning_rate: Peak; down to 0 along a cosine.
        width: Units of the two hidden layers of encoder and decoder.
        importance_samples: K of the NLL, on all test images.
    """

    epochs: int = 72
    warmup_epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 4e-3
    width: int = 128
    importance_samples: int = 50


@dataclass(frozen=True)
class Arm:
    """A likelihood: its name, how to make it for a width, and the preparation of the data it learns."""

    name: str
    make: Callable[[int], Conditional]
    preparation: str = "dequantized"


def decoder(width: int, out_shape: tuple[int, ...] = EVENT) -> MLP:
    return MLP(LATENT, out_shape, width=width, depth=2)


def located(kind: type, width: int, scale: float | str) -> Conditional:
    """A family of location and scale."""
    return kind(EVENT, LATENT, decoder(width, gaussian_raw_shape(EVENT, scale=scale)), scale=scale)


def cross_entropy(width: int) -> Conditional:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AmortizedBernoulli(EVENT, LATENT, decoder(width), gray=True)


def mixture(width: int, num_components: int, scale: str = "amortized") -> Conditional:
    settings = {"num_components": num_components, "scale": scale}
    network = decoder(width, logistic_raw_shape(EVENT, **settings))
    return AmortizedLogisticMixture(EVENT, LATENT, network, levels=LEVELS, **settings)


def categorical(width: int) -> Conditional:
    network = decoder(width, categorical_raw_shape(EVENT, LEVELS))
    return AmortizedCategorical(EVENT, LATENT, network, levels=LEVELS)


def flow(width: int) -> Conditional:
    bijection = partial(real_nvp_image, EVENT, num_levels=1, num_blocks=1, width=8)
    return flow_likelihood(EVENT, LATENT, decoder(width, gaussian_raw_shape(EVENT)), flow=bijection)


ARMS = [
    Arm("cross-entropy on gray values (BCE)", cross_entropy),
    Arm("continuous Bernoulli", lambda w: AmortizedContinuousBernoulli(EVENT, LATENT, decoder(w))),
    Arm("Gaussian, scale 1 (MSE)", lambda w: located(AmortizedGaussian, w, 1.0)),
    Arm("Gaussian, scale 0.1", lambda w: located(AmortizedGaussian, w, 0.1)),
    Arm("Gaussian, one learned scale", lambda w: located(AmortizedGaussian, w, "shared")),
    Arm("Gaussian, batch-optimal scale", lambda w: BatchOptimalGaussian(EVENT, LATENT, decoder(w))),
    Arm("Gaussian, scale per pixel", lambda w: located(AmortizedGaussian, w, "amortized")),
    Arm("Laplace, scale per pixel", lambda w: located(AmortizedLaplace, w, "amortized")),
    Arm("Student t, scale per pixel", lambda w: located(AmortizedStudentT, w, "amortized")),
    Arm("flow (Real NVP) over Gaussian, scale per pixel", flow),
    Arm("categorical, 17 levels", categorical, "unit"),
    Arm("discretized logistic, one learned scale", lambda w: mixture(w, 1, "shared"), "unit"),
    Arm("discretized logistic, scale per pixel", lambda w: mixture(w, 1), "unit"),
    Arm("mixture of 5 discretized logistics", lambda w: mixture(w, 5), "unit"),
]
DIVERGING = [
    Arm("Gaussian, one learned scale", lambda w: located(AmortizedGaussian, w, "shared"), "unit"),
    Arm("Gaussian, scale per pixel", lambda w: located(AmortizedGaussian, w, "amortized"), "unit"),
]


class Mean(nn.Module):
    """The mean of a likelihood as a network, for a likelihood of another scale."""

    def __init__(self, likelihood: Conditional) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> Tensor:
        return self.likelihood(z).mean


def train(arm: Arm, data: ImageData, seed: int, protocol: Protocol) -> VAE:
    with noise.stream(seed, 1):
        encoder = MLP(EVENT, 2 * LATENT, width=protocol.width, depth=2)
        posterior = AmortizedGaussian(LATENT, EVENT, encoder)
    with noise.stream(seed, 2):
        likelihood = arm.make(protocol.width)
    model = VAE(posterior, StandardGaussian(LATENT), likelihood)
    stage = Stage(
        "joint",
        ELBO(warmup_epochs=protocol.warmup_epochs),
        max_epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        learning_rate=protocol.learning_rate,
        schedule="cosine",
    )
    fit(model, [stage], data.train, validation=data.validation, seed=seed)
    return model


@torch.no_grad()
def root_mean_square(model: VAE, source: DataSource) -> float:
    """Error of the mean image of one z ~ q(z|x), in units of the data."""
    with noise.stream(0):
        x = source.batch(torch.arange(len(source))).x
        return float((x - model.reconstruct(x)).square().mean().sqrt())


def figures(model: VAE, source: DataSource, protocol: Protocol) -> tuple[float, float]:
    """Bits per dimension and the KL in nats."""
    bounds = evaluate_bounds(model, source, num_importance_samples=protocol.importance_samples)
    found = bounds.figures()
    bits = found["bits_per_dim"]
    assert bits is not None
    return bits["mean"], found["kl"]["mean"]


def measured(arm: Arm, data: ImageData, seed: int, protocol: Protocol) -> dict:
    """Train one model, and return its row."""
    started = time.process_time()
    model = train(arm, data, seed, protocol)
    row = {"arm": arm.name, "preparation": arm.preparation, "seed": seed, "bits": None, "refitted": None}
    row["train_seconds"] = round(time.process_time() - started, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model.likelihood.distribution_type.normalized:
            row["bits"], row["kl"] = figures(model, data.test, protocol)
    try:
        row["error"] = root_mean_square(model, data.test)
    except CombinationError:  # a flow has no mean in closed form
        return row | {"error": None}
    if arm.preparation == "dequantized":
        scale = root_mean_square(model, data.train)
        gaussian = AmortizedGaussian(EVENT, LATENT, Mean(model.likelihood), scale=scale)
        again = VAE(model.posterior, model.prior, gaussian)
        row["scale"] = scale
        row["refitted"], row["kl"] = figures(again, data.test, protocol)
    return row


def diverging(arm: Arm, data: ImageData, seed: int, protocol: Protocol) -> dict:
    """Train on gray levels for longer and longer, and return log p(x|z) on test images, nats per pixel."""
    row: dict = {"arm": arm.name, "seed": seed}
    x = data.test.batch(torch.arange(len(data.test))).x
    for factor in (1, 2, 4):
        epochs = protocol.epochs * factor // 4
        model = train(arm, data, seed, replace(protocol, epochs=epochs, warmup_epochs=epochs // 4))
        with noise.stream(0), torch.no_grad():
            row[str(epochs)] = float(model.trace(x).log_likelihood.mean()) / PIXELS
    return row


NOTES = """\
Means over {seeds} seeds ± standard error; a seed sets the first weights, the order of the data and all noise, and all
encoders of a seed start alike. Digits of scikit-learn, 8 x 8, 17 levels: 1,197 training, 200 validation, 400 test
images. Encoder 64-{width}-{width}-{latent}, decoder its mirror, ReLU, prior N(0, I), one sample per image; Adam,
{epochs} epochs of batches of {batch_size}, learning rate {learning_rate:g} down to 0 along a cosine, the
weight of the KL rising to 1 over {warmup_epochs} epochs, the best epoch on validation data.

- bits/dim: importance-weighted NLL with K = {importance_samples} over 64 ln 2, plus log2 17 for dequantized data and
  nothing for gray levels.
- refitted: the same for the Gaussian with the trained mean, the trained posterior, and one scale: the error of the
  mean on the training data. This is what makes a model without a variance, or without a likelihood, comparable.
- KL: of q(z|x) to the prior, nats per image.
- error: root mean square of x minus the mean image of one z ~ q(z|x). Data span [0, 1]; the noise of dequantization
  has 1 / (17 sqrt 12) = 0.017.
- seconds: processor time of one training run.

Figures of dequantized data and of gray levels are of two kinds. A density of dequantized data with b bits/dim implies a
mass of gray levels with at most b: the comparison is fair in that direction alone (Theis et al., A note on the
evaluation of generative models, 2016, arXiv 1511.01844, section 3.1).
"""


def spread(rows: list[dict], key: str, digits: int) -> str:
    """Mean and standard error over seeds; a dash where there is no such figure."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "-"
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def body(rows: list[dict], grown: list[dict], protocol: Protocol, seeds: int) -> list[str]:
    """The result file after its head."""
    lines = [NOTES.format(seeds=seeds, latent=LATENT, **asdict(protocol))]
    titles = {
        "dequantized": "## Densities, on dequantized digits",
        "unit": "## Masses, on gray levels",
    }
    for preparation, title in titles.items():
        columns = {"bits": 3, "refitted": 3, "kl": 1, "error": 3, "train_seconds": 1}
        header = ["likelihood", "bits/dim", "refitted bits/dim", "KL", "error", "seconds"]
        if preparation == "unit":
            del columns["refitted"], header[2]
        names = dict.fromkeys(row["arm"] for row in rows if row["preparation"] == preparation)
        cells = []
        for name in names:
            mine = [row for row in rows if row["arm"] == name]
            cells.append((name, *(spread(mine, key, digits) for key, digits in columns.items())))
        lines += [title, "", *measure.table(header, cells), ""]
    lengths = [key for key in grown[0] if key.isdigit()]
    cells = []
    for name in dict.fromkeys(row["arm"] for row in grown):
        mine = [row for row in grown if row["arm"] == name]
        cells.append((name, *(spread(mine, key, 2) for key in lengths)))
    header = ("density", *(f"after {n} epochs" for n in lengths))
    lines += ["## A learned scale on gray levels without noise", "", LIMITLESS, ""]
    return [*lines, *measure.table(header, cells), ""]


LIMITLESS = """\
Mean log p(x|z) of test images in nats per pixel, z ~ q(z|x). With a scale per pixel some pixels are 0 in all
images: there the density has no limit but the bound on the scale (e^-7), and the figure grows with training. It says
nothing: no bits per dimension exist. One scale for all pixels is limited only by how well all are reconstructed.\
"""


def run(arguments: argparse.Namespace) -> Path:
    """Train everything, and write the tables."""
    load_average = measure.load_average()
    torch.set_num_threads(arguments.threads)
    protocol = Protocol(
        **({"epochs": 4, "warmup_epochs": 1, "importance_samples": 5} if arguments.quick else {})
    )
    data = {kind: load("digits", preparation=kind) for kind in ("dequantized", "unit")}
    rows, grown = [], []
    for arm in ARMS:
        if arguments.only and not any(word in arm.name for word in arguments.only):
            continue
        mine = [measured(arm, data[arm.preparation], seed, protocol) for seed in range(arguments.repeats)]
        rows += mine
        print(arm.name, *(f"{key} {spread(mine, key, 3)}" for key in ("bits", "refitted", "kl")), flush=True)
    for arm in DIVERGING:
        grown += [diverging(arm, data["unit"], seed, protocol) for seed in range(arguments.repeats)]
    facts = {"load_average": load_average, "protocol": asdict(protocol), "runs": rows, "diverging": grown}
    name = "likelihood-choice-quick" if arguments.quick else "likelihood-choice"
    return measure.write(name, facts, body(rows, grown, protocol, arguments.repeats), arguments.out)


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description="Likelihoods of gray images compared on digits.")
    parser.add_argument("--only", nargs="+", help="words of which one must be in a likelihood's name")
    parser.add_argument("--repeats", type=int, default=3, help="seeds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few epochs: does it run at all")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    print(run(parser.parse_args()))


if __name__ == "__main__":
    main()
