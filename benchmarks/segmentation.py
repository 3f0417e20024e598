"""Masks of ambiguous pictures: does the prior of the latent have to have several modes, or a flow?

    python -m benchmarks.segmentation

One encoder, one decoder, one protocol, and the prior p(z | picture) as the only difference: a Gaussian, as in the
Probabilistic U-Net, a mixture of Gaussians, and both through a flow. The pictures are drawn by a rule that says which
masks each has and how likely each is, so that every figure has a best value that is known.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import measure
from latentflows import ELBO, Stage, fit
from latentflows.core import noise
from latentflows.data import ImageData, MaskSplit, ambiguous_shapes
from latentflows.evaluation import Segmentation, compare_masks, evaluate_bounds, evaluate_segmentation
from latentflows.models import presets, segmentation_vae

LATENT = 4


@dataclass(frozen=True)
class Protocol:
    """How every model is trained and measured.

    Args:
        pictures: To train on; one mask of each in every epoch, drawn anew.
        test_pictures: To measure on.
        epochs: Of training; the best on validation data are kept.
        warmup_epochs: In which the weight of the KL rises to 1.
        batch_size: Pictures in a step.
        learning_rate: Peak; down to 0 along a cosine.
        importance_samples: K of the NLL.
        masks: Drawn for each test picture.
    """

    pictures: int = 1000
    test_pictures: int = 200
    epochs: int = 20
    warmup_epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 5e-3
    importance_samples: int = 100
    masks: int = 50


@dataclass(frozen=True)
class Arm:
    """A prior: its name, the components of its mixture, and the flow after it."""

    name: str
    num_components: int
    flow: Callable | None = None


FLOW = partial(presets.real_nvp, LATENT, num_layers=4, width=32, depth=1)
ARMS = [
    Arm("Gaussian", 1),
    Arm("Gaussian and flow", 1, FLOW),
    Arm("mixture of 4", 4),
    Arm("mixture of 4 and flow", 4, FLOW),
]


def data_of(protocol: Protocol) -> ImageData:
    return ambiguous_shapes(protocol.pictures, 200, protocol.test_pictures)


def _task(task: tuple[int, int, int, Protocol]) -> dict:
    threads, place, seed, protocol = task
    torch.set_num_threads(threads)
    return measured(ARMS[place], data_of(protocol), seed, protocol)


def measured(arm: Arm, data: ImageData, seed: int, protocol: Protocol) -> dict:
    """Train one model, and return its row."""
    started = time.process_time()
    with noise.stream(seed):
        model = segmentation_vae(
            (1, 16, 16), latent_dim=LATENT, num_components=arm.num_components, flow=arm.flow
        )
    stage = Stage(
        "joint",
        ELBO(kl="monte_carlo", warmup_epochs=protocol.warmup_epochs),
        max_epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        learning_rate=protocol.learning_rate,
        schedule="cosine",
        gradient_clip_val=50.0,
    )
    fit(model, [stage], data.train, validation=data.validation, seed=seed)
    seconds = time.process_time() - started
    bounds = evaluate_bounds(model, data.test, num_importance_samples=protocol.importance_samples, seed=seed)
    assert isinstance(data.test, MaskSplit)
    row = {"arm": arm.name, "seed": seed, "seconds": round(seconds, 1)}
    row["nll"] = float(bounds.nll.mean())
    row["kl"] = bounds.figures()["kl"]["mean"]
    return row | shown(evaluate_segmentation(model, data.test, num_samples=protocol.masks, seed=seed))


def shown(found: Segmentation) -> dict:
    """The figures of a row, and their errors over pictures."""
    names = ("energy_distance", "matched_iou", "nearest_iou", "frequency_error")
    row = {name: getattr(found, name).value for name in names}
    return row | {f"{name}_error": getattr(found, name).standard_error for name in names}


def truth(split: MaskSplit, protocol: Protocol) -> dict:
    """What draws from the known distribution itself get."""
    with noise.stream(0):
        index = torch.arange(len(split)).repeat_interleave(protocol.masks)
        drawn = split.batch(index).x.unflatten(0, (len(split), protocol.masks)).to(torch.uint8)
    found = compare_masks(drawn, split.masks, split.probabilities)
    row = {"arm": "the truth", "seed": 0, "nll": float(split.entropy().mean())}
    return row | shown(found)


NOTES = """\
Means over {seeds} seeds ± standard error; a seed sets the first weights, the order of the data and all noise. Pictures
of `ambiguous_shapes`: 16 x 16, four masks each with known probabilities; {pictures} to train on, one mask of each in
every epoch drawn anew, {test_pictures} to test on. `segmentation_vae` with {latent} latents; Adam, {epochs} epochs of
batches of {batch_size}, learning rate {learning_rate:g} down to 0 along a cosine, gradients clipped to norm 50, the
weight of the KL rising to 1 over {warmup_epochs} epochs, the best epoch on validation data. The flow is Real NVP, four
couplings of width 32, which hear the picture.

- NLL: of one mask given its picture, importance-weighted with K = {importance_samples}, nats. Its least value is the
  entropy of the masks.
- D²: squared generalized energy distance under 1 - IoU, unbiased; {masks} masks drawn for each picture.
- matched: mean IoU of the drawn masks and the known ones, matched one to one.
- nearest: mean IoU of a drawn mask and the known mask most like it.
- frequencies: sum of (frequency - probability)² over the four masks, without bias.
- seconds: processor time of one training run.
- the truth: masks drawn from the known distribution, measured alike; its errors are over pictures.
"""


def spread(rows: list[dict], key: str, digits: int) -> str:
    """Mean and standard error over seeds; a dash where there is no such figure."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "-"
    seeds = len(values)
    error = statistics.stdev(values) / seeds**0.5 if seeds > 1 else rows[0].get(f"{key}_error", math.nan)
    return f"{statistics.mean(values):.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


COLUMNS = {
    "nll": 2, "kl": 2, "energy_distance": 4, "matched_iou": 3, "nearest_iou": 3, "frequency_error": 4, "seconds": 0,
}  # fmt: skip
HEADER = ("prior", "NLL", "KL", "D²", "matched", "nearest", "frequencies", "seconds")


def run(arguments: argparse.Namespace) -> Path:
    """Train everything, and write the table."""
    load_average = measure.load_average()
    quick = {"pictures": 64, "test_pictures": 8, "epochs": 2, "masks": 4}
    protocol = Protocol(**(quick if arguments.quick else {}))
    split = data_of(protocol).test
    assert isinstance(split, MaskSplit)
    rows, cells = [truth(split, protocol)], []
    seeds = range(arguments.repeats)
    tasks = [(arguments.threads, place, seed, protocol) for place in range(len(ARMS)) for seed in seeds]
    with get_context("spawn").Pool(arguments.workers) as pool:
        for row in pool.imap(_task, tasks):
            rows.append(row)
            print(row, flush=True)
    for name in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == name]
        cells.append((name, *(spread(mine, key, digits) for key, digits in COLUMNS.items())))
    facts = {"load_average": load_average, "protocol": asdict(protocol), "runs": rows}
    notes = NOTES.format(seeds=arguments.repeats, latent=LATENT, **asdict(protocol))
    name = "segmentation-quick" if arguments.quick else "segmentation"
    return measure.write(name, facts, [notes, *measure.table(HEADER, cells)], arguments.out)


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description="Priors of a stochastic segmentation model compared.")
    parser.add_argument("--repeats", type=int, default=3, help="seeds")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--quick", action="store_true", help="few epochs: does it run at all")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    print(run(parser.parse_args()))


if __name__ == "__main__":
    main()
