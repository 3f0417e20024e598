"""What is measured of a trained model, and what is drawn from it, into its run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from latentflows.core.batches import DataSource
from latentflows.core.errors import CheckpointError, ConfigurationError
from latentflows.core.files import write_atomically
from latentflows.data import ImageData
from latentflows.evaluation import evaluate_bounds
from latentflows.generation import sample, save_grid
from latentflows.models import VAE
from latentflows.studies.configuration import EvaluationSettings


def evaluated_split(data: ImageData, settings: EvaluationSettings) -> DataSource:
    """Return the split that `settings` names.

    Raises:
        ConfigurationError: if more data points are asked for than it has.
    """
    source = data.test if settings.split == "test" else data.validation
    if settings.num_images is not None and settings.num_images > len(source):
        raise ConfigurationError(
            f"`evaluation.num_images` must be at most the {len(source)} images of the {settings.split} split; got "
            f"{settings.num_images}. Leave it out for all of them."
        )
    return source


def evaluate(
    model: VAE, data: ImageData, settings: EvaluationSettings, out: Path | None, *, memory_mib: int = 256
) -> dict[str, Any]:
    """Measure the bounds and the likelihood of a model by the protocol of `settings`; write `evaluation.json`.

    Args:
        model: Trained model.
        data: Its data.
        settings: Split, K, number of data points, seed.
        out: Run folder; None to write nothing.
        memory_mib: What one block of importance samples may take.

    Returns:
        The contents of `evaluation.json`.

    Raises:
        ConfigurationError: if more data points are asked for than there are.
        LatentFlowsError: if a weight is not finite.
    """
    started = time.monotonic()
    source = evaluated_split(data, settings)
    num_images = settings.num_images or len(source)
    bounds = evaluate_bounds(
        model,
        source,
        num_importance_samples=settings.num_importance_samples,
        num_images=num_images,
        seed=settings.seed,
        memory_mib=memory_mib,
    )
    protocol = {
        "split": settings.split,
        "num_images": num_images,
        **bounds.protocol(),
        "seed": settings.seed,
        "data": data.description,
    }
    seconds = round(time.monotonic() - started, 3)
    content = {"format": 1, "protocol": protocol, "figures": bounds.figures(), "seconds": seconds}
    if out is not None:
        write_atomically(out / "evaluation.json", (json.dumps(content, indent=2) + "\n").encode())
    return content


def write_samples(
    model: VAE, run_folder: Path, *, num: int, temperature: float, mean: bool, seed: int, out: Path | None
) -> Path:
    """Draw from a model into a picture (.png) or an array (.npy); return its path.

    Args:
        model: Trained model.
        run_folder: Its run folder.
        num: How many.
        temperature: Scale of the prior's base noise.
        mean: Whether to show E[x|z] instead of a draw of x.
        seed: Of all noise.
        out: File; None for `samples/drawn.png` of the run, which its report then shows too.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: if the model cannot be drawn from in this way.
        ShapeError: if data points are no images and `out` is a picture.
    """
    x = sample(model, num, temperature=temperature, seed=seed, mean=mean).cpu()
    path = out or run_folder / "samples" / "drawn.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, x.numpy())
        return path
    clipped = "" if model.likelihood.distribution_type.discrete else " Values outside [0, 1] are clipped."
    save_grid(x.clamp(0, 1), path, columns=max(1, round(num**0.5)))
    if out is None:
        what = "means of p(x|z)" if mean else "draws from p(x|z)"
        caption = f"{num} {what}, with z from the prior at temperature {temperature:g}, seed {seed}.{clipped}"
        _add_picture(
            path.parent / "index.json", {"file": path.name, "title": "Drawn later", "caption": caption}
        )
    return path


def _add_picture(index: Path, entry: dict[str, str]) -> None:
    try:
        entries = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
        kept = [other for other in entries if other["file"] != entry["file"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error!r}). Remove the file.") from None
    write_atomically(index, (json.dumps([*kept, entry], indent=2) + "\n").encode())
