"""What is measured of a trained model, and what is drawn from it, into its run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentflows.core.batches import DataSource
from latentflows.core.errors import CheckpointError, ConfigurationError, LatentFlowsError
from latentflows.core.files import write_atomically
from latentflows.data import ImageData
from latentflows.distributions import Pushforward
from latentflows.distributions.normalizer import EstimatedNormalizer
from latentflows.evaluation import evaluate_bounds
from latentflows.evaluation.bounds import evaluate_reconstruction
from latentflows.generation import sample, sample_classes, save_grid
from latentflows.models import VAE
from latentflows.studies.evaluation_settings import EvaluationSettings
from latentflows.studies.groups import GROUPS, OF_THE_MODEL, Group, Subject, bounds_missing
from latentflows.studies.labels import class_names, find_labels, shown_labels


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
    """Measure what `settings` asks for, and write each part into `evaluation.json` as soon as it is there.

    First the bounds and the likelihood; without a density of the posterior, or with a cross-entropy that is no
    likelihood, there is no bound: what is measured then is the reconstruction alone, and the protocol says why. Then
    the groups of `GROUPS`. One that cannot be measured for this model or these data is recorded with its reason.

    What the file holds already by the same settings is kept, so that an evaluation goes on where it was interrupted;
    groups that were asked for earlier are kept too. Remove the file to measure all anew.

    Args:
        model: Trained model.
        data: Its data.
        settings: What to measure.
        out: Run folder; None to write nothing.
        memory_mib: What one block of importance samples may take.

    Returns:
        The contents of `evaluation.json`.

    Raises:
        ConfigurationError: if more data points are asked for than there are.
        LatentFlowsError: if a weight of the bounds is not finite.
    """
    source = evaluated_split(data, settings)
    subject = Subject(model, data, source, settings, out, memory_mib)
    content = {} if out is None else _recorded(out)
    if not _has_bounds(content, subject):
        content = {"format": 1, **_bounds(subject), "groups": content.get("groups", {})}
        _write(content, out)
    for name, group in GROUPS.items():
        asked, before = group.asked(settings), content["groups"].get(name, {})
        if asked is None or (before.get("asked") == asked and "reason" not in before):
            continue
        found = _measured(group, subject)
        if "reason" not in found or "figures" not in before:  # a refusal never takes the place of figures
            content["groups"][name] = {"asked": asked, **found}
            _write(content, out)
    return content


def is_evaluated(out: Path, settings: EvaluationSettings) -> bool:
    """Whether `evaluation.json` of a run holds all that its settings ask for, if only as a reason why there is none."""
    groups = _recorded(out).get("groups")
    asked = {name: group.asked(settings) for name, group in GROUPS.items()}
    return groups is not None and all(
        wanted is None or groups.get(name, {}).get("asked") == wanted for name, wanted in asked.items()
    )


def _recorded(out: Path) -> dict[str, Any]:
    """Return what `evaluation.json` holds; empty where there is none that can be read. Older ones had no groups."""
    try:
        content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        if content["format"] == 1 and all(isinstance(content[key], dict) for key in ("figures", "protocol")):
            return {**content, "groups": dict(content.get("groups", {}))}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _write(content: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        write_atomically(out / "evaluation.json", (json.dumps(content, indent=2) + "\n").encode())


def _has_bounds(content: dict[str, Any], subject: Subject) -> bool:
    """Whether the figures of the bounds are there, by the protocol that is asked for."""
    return bool(content) and content["protocol"].items() >= _asked_of_bounds(subject).items()


def _asked_of_bounds(subject: Subject) -> dict[str, Any]:
    settings = subject.settings
    given = {} if subject.model.context_shape is None else {"given": "label"}
    return {
        **given,
        "split": settings.split,
        "num_images": settings.num_images or len(subject.source),
        "num_importance_samples": settings.num_importance_samples
        if bounds_missing(subject.model) is None
        else 1,
        "seed": settings.seed,
        "data": subject.data.description,
    }


def _bounds(subject: Subject) -> dict[str, Any]:
    """Measure the bounds, or the reconstruction where there are none."""
    started = time.monotonic()
    model, settings = subject.model, subject.settings
    num_images, without = settings.num_images or len(subject.source), bounds_missing(model)
    if without is None:
        bounds = evaluate_bounds(
            model,
            subject.source,
            num_importance_samples=settings.num_importance_samples,
            num_images=num_images,
            seed=settings.seed,
            memory_mib=subject.memory_mib,
        )
        figures, measured = bounds.figures(), bounds.protocol()
    else:
        figures = {
            "reconstruction": evaluate_reconstruction(model, subject.source, num_images, seed=settings.seed)
        }
        measured = {"without_bound": without}
    seconds = round(time.monotonic() - started, 3)
    return {"protocol": _asked_of_bounds(subject) | measured, "figures": figures, "seconds": seconds}


def _measured(group: Group, subject: Subject) -> dict[str, Any]:
    """Measure a group; whatever keeps it from being measured is its reason, and no reason to lose a trained run."""
    started = time.monotonic()
    try:
        found = group.measure(subject)
    except Exception as error:
        known = isinstance(error, LatentFlowsError)
        return {"reason": str(error) if known else f"{type(error).__name__}: {error}"}
    model = {key: value for key, value in found.protocol.items() if key in OF_THE_MODEL}
    protocol = {key: value for key, value in found.protocol.items() if key not in OF_THE_MODEL}
    where = {"split": subject.settings.split, "data": subject.data.description}
    return {
        "protocol": where | protocol,
        "model": model,
        "figures": dict(found.figures),
        "seconds": round(time.monotonic() - started, 3),
    }


def finish_prior(model: VAE, seed: int) -> bool:
    """Estimate the normalizer of a prior that has one to estimate; tell whether it was."""
    prior = model.prior
    if not isinstance(prior, EstimatedNormalizer) or prior.distribution_type is Pushforward:
        return False
    prior.estimate_normalizer(seed=seed)
    return True


def write_samples(
    model: VAE,
    run_folder: Path,
    *,
    num: int | None,
    temperature: float,
    mean: bool,
    seed: int,
    out: Path | None,
    labels: Sequence[str] = (),
) -> Path:
    """Draw from a model into a picture (.png) or an array (.npy); return its path.

    A model that is given labels draws the classes in turn, in a picture one a column.

    A model that is given a label draws one row of pictures for each class.

    Args:
        model: Trained model.
        run_folder: Its run folder.
        num: How many, of each class where there are classes; None for 64, or 10 of each class.
        temperature: Scale of the prior's base noise.
        mean: Whether to show E[x|z] instead of a draw of x.
        seed: Of all noise.
        out: File; None for `samples/drawn.png` of the run, which its report then shows too.
        labels: Classes by name or number; none for all of them.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: if the model cannot be drawn from in this way.
        ShapeError: if data points are no images and `out` is a picture.
    """
    of, given = "p(x|z)", ""
    if labels or model.context_shape is not None:
        names, num = class_names(run_folder), 10 if num is None else num
        classes = find_labels(model, labels, names)
        x = sample_classes(model, classes, num, temperature=temperature, seed=seed, mean=mean)
        of, columns = "p(x|z, y)", num
        given = f" A row for each class, given y: {shown_labels(classes, names)}."
    else:
        num = 64 if num is None else num
        x, columns = (
            sample(model, num, temperature=temperature, seed=seed, mean=mean),
            max(1, round(num**0.5)),
        )
    path = out or run_folder / "samples" / "drawn.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, x.cpu().numpy())
        return path
    clipped = "" if model.likelihood.distribution_type.discrete else " Values outside [0, 1] are clipped."
    save_grid(x.cpu().clamp(0, 1), path, columns=columns)
    if out is None:
        what = f"means of {of}" if mean else f"draws from {of}"
        caption = f"{len(x)} {what}, with z from the prior at temperature {temperature:g}, seed {seed}.{given}{clipped}"
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
