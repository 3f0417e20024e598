"""Picture files of a model: data, samples, reconstructions and interpolations, each with its caption."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.core.errors import CombinationError, DataError, ShapeError
from latentflows.core.files import write_atomically
from latentflows.distributions.flow import Flow
from latentflows.generation.drawing import (
    Line,
    Space,
    check_positive,
    draws_discrete,
    interpolate,
    reconstruct,
    sample,
    sample_classes,
)
from latentflows.generation.latents import class_means, traverse
from latentflows.generation.plane import Place, data_plane, latent_plane
from latentflows.models.density import DensityModel, Model
from latentflows.models.inference import evaluation_mode, posterior_mean, to_model
from latentflows.models.vae import VAE
from latentflows.models.vqvae import VQVAE

_LINES: tuple[tuple[str, Line, Space], ...] = (
    ("straight", "straight", "latent"),
    ("spherical", "spherical", "latent"),
    ("spherical in the base noise of the prior's flow", "spherical", "base"),
)
_PADDING = 2  # pixels around every image of a grid
_GRAY = 128  # of the padding: neither ink nor paper, so that images at their edges stay apart
_CELL = 56  # pixels; smaller images are enlarged to at least this
_CLASSES = 20  # that are shown, at most
_LABELED = 2000  # points that the mean latents of classes are measured on, at most
_MOVED = 5  # points that are moved from class to class


def save_grid(images: Tensor, path: Path, *, columns: int) -> None:
    """Write images (N, C, H, W) with values in [0, 1] as one PNG, row by row.

    Images are enlarged by a whole factor to at least 56 pixels, nearest neighbor, with 2 gray pixels around each.
    The file appears at once or not at all.

    Args:
        images: C is 1 (gray) or 3 (RGB).
        path: File to write.
        columns: Images in a row.

    Raises:
        ShapeError: if these are not images.
        DataError: for values outside [0, 1], or NaN; clip them first if that is meant.
        ConfigurationError: if `columns` is not a positive integer.
    """
    from PIL import Image

    check_positive("columns", columns)
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ShapeError(
            f"`images` must have shape (N, C, H, W), N at least 1 and C 1 or 3; got {tuple(images.shape)}."
        )
    if not ((images >= 0) & (images <= 1)).all():
        raise DataError(
            f"Pictures need values in [0, 1]; got [{images.min():.4g}, {images.max():.4g}]. "
            "Rescale, or clip if values outside are only noise."
        )
    factor = math.ceil(_CELL / max(images.shape[2:]))
    pixels = (images.detach().cpu().float() * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    count, channels, height, width = pixels.shape
    rows, columns = math.ceil(count / columns), min(columns, count)
    height, width = height + _PADDING, width + _PADDING
    grid = torch.full(
        (channels, rows * height + _PADDING, columns * width + _PADDING), _GRAY, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        top, left = i // columns * height + _PADDING, i % columns * width + _PADDING
        grid[:, top : top + height - _PADDING, left : left + width - _PADDING] = image
    array = grid[0].numpy() if channels == 1 else grid.permute(1, 2, 0).contiguous().numpy()
    png = io.BytesIO()
    Image.fromarray(array).save(png, format="PNG")
    write_atomically(path, png.getvalue())


@dataclass(frozen=True)
class PictureEntry:
    """One line of `index.json`: a file, what it shows, and how it was made (or why it was not)."""

    file: str
    title: str
    caption: str


@dataclass(frozen=True)
class _Task:
    """What every picture is made from."""

    model: Model
    source: DataSource
    batch: Batch
    seed: int
    temperature: float
    what: str


def write_pictures(
    model: Model,
    source: DataSource,
    folder: Path,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    what: str = "data points",
) -> list[PictureEntry]:
    """Write data, samples, reconstructions and interpolations as PNG, and `index.json` with their captions.

    A picture that cannot be made (data that are no images, a likelihood without a mean) is left out, an old file
    of that name is removed, and its caption says why. Values of a Gaussian or flow likelihood outside [0, 1] are
    clipped, and the caption says so; data are never clipped.

    Args:
        model: In any mode; given back as it was.
        source: Where data and, for a conditional prior, contexts are taken from; 64 points, chosen by the seed.
        folder: The folder `samples` of a run; made if it is missing.
        seed: Seed of everything drawn.
        temperature: For the samples: scale of the prior's base noise; of a prior over codes, what divides its logits.
        what: What the captions call the points of the source, such as "test data points".

    Returns:
        The entries of `index.json`.

    Raises:
        ConfigurationError: if `temperature` is not positive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with noise.stream(seed, noise.Purpose.DATA):
        batch = source.batch(noise.permutation(len(source))[:64])
    task = _Task(model, source, batch, seed, temperature, what)
    pictures = {
        "data.png": ("Data", _data),
        "samples.png": ("Samples", _samples),
        "sample_means.png": ("Means of the samples", _sample_means),
        "reconstructions.png": ("Reconstructions", _reconstructions),
        "interpolations.png": ("Interpolations", _interpolations),
        "traversals.png": ("Single latents", _traversals),
    }
    if _labels(task) is not None:
        pictures["classes.png"] = ("Samples of each class", _classes)
    if task.model.context_shape is not None and len(task.model.context_shape) == 3:
        pictures["several.png"] = ("Several samples for one picture", _several)
    if _known_classes(task) is not None:
        pictures["class_means.png"] = ("Mean latents of the classes", _class_means)
    if isinstance(model, VAE) and tuple(model.posterior.event_shape) == (2,):
        pictures["latents.png"] = ("q(z) and p(z)", _plane)
    if tuple(model.event_shape) == (2,):
        pictures["plane.png"] = ("Data and draws", _data_plane)
    entries = []
    for file, (title, draw) in pictures.items():
        try:
            if draw not in (_plane, _data_plane):
                _check_images(batch.x)
            images, columns, caption = draw(task)
            save_grid(images, folder / file, columns=columns)
        except (CombinationError, DataError, ShapeError) as reason:
            (folder / file).unlink(missing_ok=True)
            caption = f"Not drawn: {reason}"
        entries.append(PictureEntry(file, title, caption))
    text = json.dumps([asdict(entry) for entry in entries], indent=2) + "\n"
    write_atomically(folder / "index.json", text.encode())
    return entries


def _data(task: _Task) -> tuple[Tensor, int, str]:
    return task.batch.x, 8, f"{len(task.batch.x)} {task.what}, chosen with seed {task.seed}."


def _samples(task: _Task) -> tuple[Tensor, int, str]:
    images, note = _drawn(task, mean=False)
    of = (
        "the density of the data, its base"
        if isinstance(task.model, DensityModel)
        else f"{_likelihood(task)}, with z from the prior"
    )
    caption = f"{len(images)} draws from {of} at temperature {task.temperature:g}"
    given = _given(task, "the data point in its place of data.png")
    return images, 8, f"{caption}, seed {task.seed}.{given}{note}"


def _likelihood(task: _Task) -> str:
    """Write p(x|z), with what else it is given."""
    shape = task.model.context_shape
    return "p(x|z)" if shape is None else "p(x|z, y)" if len(shape) == 1 else "p(x|z, picture)"


def _given(task: _Task, whose: str) -> str:
    """Say what each image is given; nothing for a model that is given nothing."""
    shape = task.model.context_shape
    if shape is None:
        return ""
    return f" Each is given {'the label y' if len(shape) == 1 else 'the picture'} of {whose}."


def _classes(task: _Task) -> tuple[Tensor, int, str]:
    labels, columns = _labels(task) or [], 10
    drawn = sample_classes(task.model, labels, columns, temperature=task.temperature, seed=task.seed)
    images, note = _in_range(task, drawn)
    caption = f"Draws from p(x|z, y), a row for each class y = {', '.join(map(str, labels))}, with z from the prior at "
    return images, columns, f"{caption}temperature {task.temperature:g}, seed {task.seed}.{note}"


def _known_classes(task: _Task) -> Tensor | None:
    """Return the labels of the points that a VAE's latents are looked at for; None where they are given, or many."""
    labels = getattr(task.source, "labels", None)
    if not isinstance(task.model, VAE) or task.model.context_shape is not None or labels is None:
        return None
    labels = labels[:_LABELED].cpu()
    return labels if 2 <= len(labels.unique()) <= _CLASSES else None


def _class_means(task: _Task) -> tuple[Tensor, int, str]:
    labels, model = _known_classes(task), task.model
    assert labels is not None
    assert isinstance(model, VAE)
    with noise.stream(task.seed, noise.Purpose.DATA):
        x = task.source.batch(torch.arange(len(labels))).x
    kinds, z, means = class_means(model, x, labels, seed=task.seed)
    rows = [means]
    for place in range(min(_MOVED, len(x))):
        with noise.stream(task.seed, noise.Purpose.LATENTS, 11), evaluation_mode(model), torch.no_grad():
            own = posterior_mean(model, to_model(model, x[place : place + 1]))
            rows.append(model.decode_mean(own + z - z[(kinds == labels[place]).to(z.device)]))
    images, note = _in_range(task, torch.cat(rows))
    caption = f"First row: means of p(x|z) at the mean latent of each class, {', '.join(map(str, kinds.tolist()))}, of "
    caption += f"{len(x)} {task.what}. Below: the first {len(rows) - 1} of them, each moved by the difference of the "
    return images, len(kinds), f"{caption}mean latents from its own class to each; seed {task.seed}.{note}"


def _several(task: _Task) -> tuple[Tensor, int, str]:
    given, each = task.batch.context, 9
    assert given is not None
    given = given[:8]
    rows = given.repeat_interleave(each, 0)
    drawn = sample(task.model, len(rows), temperature=task.temperature, seed=task.seed, context=rows)
    images, note = _in_range(task, drawn)
    caption = (
        f"Left: what some {task.what} are given; beside each {each} draws from {_likelihood(task)}, with z "
    )
    caption += (
        f"from the prior at temperature {task.temperature:g}, seed {task.seed}. What is given is clipped to"
    )
    return beside(given, images), 1 + each, f"{caption} [0, 1].{note}"


def beside(given: Tensor, drawn: Tensor) -> Tensor:
    """Put what a model was given (N, C, H, W) before what was drawn for each, (N n, C', H, W), C' being C or 1."""
    first = given.clamp(0, 1).to(drawn).unsqueeze(1)
    rest = drawn.unflatten(0, (len(given), -1)).expand(-1, -1, given.shape[1], -1, -1)
    return torch.cat([first, rest], 1).flatten(0, 1)


def _sample_means(task: _Task) -> tuple[Tensor, int, str]:
    images, note = _drawn(task, mean=True)
    caption = f"Means of {_likelihood(task)} at the latents of samples.png, temperature {task.temperature:g}"
    given = _given(task, "the data point in its place of data.png")
    return images, 8, f"{caption}, seed {task.seed}: no sample of the model looks as smooth.{given}{note}"


def _drawn(task: _Task, *, mean: bool) -> tuple[Tensor, str]:
    images = sample(
        task.model,
        len(task.batch.x),
        temperature=task.temperature,
        seed=task.seed,
        mean=mean,
        context=_context(task),
    )
    return _in_range(task, images)


def _reconstructions(task: _Task) -> tuple[Tensor, int, str]:
    columns = 10
    x = task.batch.x[:40]
    x = x[: len(x) // columns * columns] if len(x) > columns else x
    context = _context(task)
    given = None if context is None else context[: len(x)]
    decoded, note = _in_range(task, reconstruct(task.model, x, seed=task.seed, context=given))
    latents = "at its codes" if isinstance(task.model, VQVAE) else "for one z ~ q(z|x)"
    pairs = zip(x.split(columns), decoded.to(x).split(columns), strict=True)
    images = torch.cat([row for pair in pairs for row in pair])
    caption = f"First, third, ... row: {task.what}; below each the mean of {_likelihood(task)} {latents}"
    own = _given(task, "the data point itself")
    return images, min(columns, len(x)), f"{caption}, seed {task.seed}.{own}{note}"


def _interpolations(task: _Task) -> tuple[Tensor, int, str]:
    steps, prior = 10, getattr(task.model, "prior", None)
    flow = isinstance(prior, Flow) and prior.context_shape is None
    ways = _LINES if flow else _LINES[:-1]
    pairs = min(8 // len(ways), len(task.batch.x))
    x, context = task.batch.x, _context(task)
    given = None if context is None else context[:pairs]
    ends = x[:pairs], x.flip(0)[:pairs]
    walks = [
        interpolate(task.model, *ends, steps, line=line, space=space, seed=task.seed, context=given)
        for _, line, space in ways
    ]
    images, note = _in_range(task, torch.stack(walks, 1).flatten(0, 2))
    names = ", ".join(name for name, _, _ in ways)
    caption = f"Means of {_likelihood(task)} on lines between the latents of two {task.what}, {len(ways)} rows a pair: "
    caption += f"{names}; seed {task.seed}."
    return images, steps, f"{caption}{_given(task, 'the left one')}{note}"


def _traversals(task: _Task) -> tuple[Tensor, int, str]:
    steps, rows, model, x = 10, 8, task.model, task.batch.x
    if isinstance(model, VQVAE):
        raise CombinationError(
            "the latents of a `VQVAE` are codes; between two of them there is nothing to walk through."
        )
    if isinstance(model, DensityModel):
        raise CombinationError("a density of the data has no latents to walk through.")
    context = _context(task)
    with noise.stream(task.seed, noise.Purpose.LATENTS, 9), evaluation_mode(model), torch.no_grad():
        given = None if context is None else to_model(model, context)
        means = posterior_mean(model, to_model(model, x), given).flatten(1)
    dims = means.var(0, correction=0).argsort(descending=True)[:rows].tolist()
    walk = traverse(
        model, x[0], dims=dims, steps=steps, seed=task.seed, context=None if context is None else context[0]
    )
    images, note = _in_range(task, walk.images.flatten(0, 1))
    caption = f"Means of {_likelihood(task)} from the posterior mean of one of the {task.what}, one latent a row moved "
    places = ", ".join(str(dim) for dim in dims)
    caption += (
        f"through the 5 to 95 % quantiles of the prior; latents {places}, in the order of how far their "
    )
    caption += "posterior means vary"
    return images, steps, f"{caption}, seed {task.seed}.{_given(task, 'that one')}{note}"


def _plane(task: _Task) -> tuple[Tensor, int, str]:
    assert isinstance(task.model, VAE)
    images, place, draws = latent_plane(task.model, task.source, seed=task.seed, temperature=task.temperature)
    square = _square("latent", place)
    shown = f"Left q(z), the mean of the posteriors of {task.what}; right the prior p(z) at temperature "
    shown += f"{task.temperature:g}: histograms of {draws:,} draws, ink the root of the density on one scale."
    return images, 2, f"{square} {shown} Seed {task.seed}."


def _data_plane(task: _Task) -> tuple[Tensor, int, str]:
    images, place, draws = data_plane(task.model, task.source, seed=task.seed, temperature=task.temperature)
    shown = f"Left {task.what}, right draws of the model at temperature {task.temperature:g}: histograms of {draws:,} "
    shown += "points, ink the root of the density on one scale."
    given = _given(task, "the data point in its place")
    return images, 2, f"{_square('number', place)} {shown} Seed {task.seed}.{given}"


def _square(what: str, place: Place) -> str:
    across, up, half = place
    sides = f"The first {what} from {across - half:.2f} to {across + half:.2f}, upwards the second from "
    return f"{sides}{up - half:.2f} to {up + half:.2f}."


def _in_range(task: _Task, images: Tensor) -> tuple[Tensor, str]:
    """Clip what a likelihood on all real numbers gave, and say so; NaN stays and is refused later."""
    if draws_discrete(task.model):
        return images, ""
    return images.clamp(0, 1), " Values outside [0, 1] are clipped."


def _context(task: _Task) -> Tensor | None:
    return None if task.model.context_shape is None else task.batch.context


def _labels(task: _Task) -> list[int] | None:
    """Return the classes, up to 20 of them, of a model that is given a label."""
    context = _context(task)
    if context is None or context.ndim != 2 or not ((context == 0) | (context == 1)).all():
        return None
    return list(range(min(context.shape[1], _CLASSES))) if (context.sum(1) == 1).all() else None


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ShapeError(f"the data are no images (C, H, W) with 1 or 3 channels, but {tuple(x.shape[1:])}.")
