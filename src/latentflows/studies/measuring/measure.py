"""What is measured of a trained model, and what is drawn from it, into its run folder."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import (
    CheckpointError,
    ConfigurationError,
    LatentFlowsError,
    NonFiniteError,
    ShapeError,
)
from latentflows.core.files import write_atomically
from latentflows.data import ImageData
from latentflows.distributions import Pushforward
from latentflows.distributions.normalizer import EstimatedNormalizer
from latentflows.generation import (
    beside,
    draws_discrete,
    sample,
    sample_classes,
    save_grid,
    steps_of_draws,
)
from latentflows.generation.drawing import check_positive
from latentflows.models.density import DensityModel, Model
from latentflows.studies.building.build import build_data
from latentflows.studies.measuring.bounds import Subject, asked_of_bounds, measure_bounds
from latentflows.studies.measuring.groups import GROUPS, OF_THE_MODEL, Group
from latentflows.studies.measuring.labels import class_names, find_labels, shown_labels
from latentflows.studies.settings.evaluation import EvaluationSettings
from latentflows.studies.settings.overrides import read_configuration
from latentflows.transforms.guidance import check_guidance

_OTHER_DATA = ", other data in the same place"
_PICTURES = 8  # that a model of masks is drawn from for


def evaluated_split(data: ImageData, settings: EvaluationSettings) -> DataSource:
    """Return the split that `settings` names.

    Raises:
        ConfigurationError: if more data points are asked for than it has.
    """
    source = data.test if settings.split == "test" else data.validation
    faults = []
    for key in dict.fromkeys(["num_images", *(group.keys[0] for group in GROUPS.values())]):
        asked = getattr(settings, key)
        usual = asked == EvaluationSettings.model_fields[key].default  # of a smaller split it means all
        if asked is not None and not usual and asked > len(source):
            faults.append(
                f"`evaluation.{key}` must be at most the {len(source)} data points of the {settings.split} split; got "
                f"{asked}. Use evaluation.{key}={len(source)} for all of them."
            )
    if faults:
        raise ConfigurationError("\n".join(faults))
    return source


def evaluate(
    model: Model,
    data: ImageData,
    settings: EvaluationSettings,
    out: Path | None,
    *,
    memory_mib: int = 256,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure what `settings` asks for, and write each part into `evaluation.json` as soon as it is there.

    The NLL of every image goes into `nll.npy`.

    First the bounds and the likelihood; of a model with codes for latents, the bound that its codes give. Without a
    density of the posterior, or with a cross-entropy that is no likelihood, there is no bound: what is measured then is
    the reconstruction alone, and the protocol says why. Then the groups of `GROUPS`. One that cannot be measured for
    this model or these data is recorded with its reason.

    What the file holds already by the same settings is kept, so that an evaluation goes on where it was interrupted;
    groups that were asked for earlier are kept too. Remove the file to measure all anew.

    Args:
        model: Trained model.
        data: Its data.
        settings: What to measure.
        out: Run folder; None to write nothing.
        memory_mib: What one block of importance samples may take.
        announce: Receives the name of each part as it is measured.

    Returns:
        The contents of `evaluation.json`.

    Raises:
        ConfigurationError: if more data points are asked for than there are.
        NonFiniteError: if a weight of the bounds, or the NLL of a data point, is not finite.
    """
    source = evaluated_split(data, settings)
    subject = Subject(model, data, source, settings, out, memory_mib)
    content = {} if out is None else recorded(out)
    if not _has_bounds(content, subject):
        announce("evaluation")
        bounds, nll = measure_bounds(subject)
        _write_nll(nll, out)  # first: it is measured again as long as there are no figures
        content = {"format": 1, **bounds, "groups": content.get("groups", {})}
        _write(content, out)
    for name, group in GROUPS.items():
        asked, before = group.asked(settings, model, source), content["groups"].get(name, {})
        if asked is None or (_is_measured(before, asked, subject.data_hash) and "reason" not in before):
            continue
        announce(f"evaluation: {name}")
        found = _measured(group, subject)
        if "reason" not in found or "figures" not in before:  # a refusal never takes the place of figures
            content["groups"][name] = {"asked": asked, **found}
            _write(content, out)
    return content


def is_evaluated(out: Path, settings: EvaluationSettings, model: Model, data: ImageData) -> bool:
    """Whether `evaluation.json` of a run holds all that its settings ask for, if only as a reason why there is none."""
    content, source = recorded(out), evaluated_split(data, settings)
    subject = Subject(model, data, source, settings, out, 0)
    if not _has_bounds(content, subject):
        return False
    groups = content["groups"]
    asked = {name: group.asked(settings, model, source) for name, group in GROUPS.items()}
    return all(
        wanted is None or _is_measured(groups.get(name, {}), wanted, subject.data_hash)
        for name, wanted in asked.items()
    )


def lacks_nll(out: Path, figures: Mapping[str, Any]) -> bool:
    """Whether `nll.npy`, what the figure of the NLL is the mean of, is gone."""
    return "nll" in figures and not (out / "nll.npy").is_file()


def recorded(out: Path) -> dict[str, Any]:
    """Return what `evaluation.json` holds; empty where there is none that can be read. Older ones had no groups."""
    try:
        content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        if content["format"] == 1 and all(isinstance(content[key], dict) for key in ("figures", "protocol")):
            return {**content, "groups": dict(content.get("groups", {}))}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        pass
    return {}


def replaced(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say which figures of one `evaluation.json` are no more in a later one, each by what it was measured by."""
    found, old, new = [], before.get("protocol", {}), after["protocol"]
    known = {key: new[key] for key in ("data_hash",) if key in new}  # earlier versions wrote none
    if before and known | old != new:
        k = old.get("num_importance_samples")
        weights = "" if k is None else f", K = {k:,}"
        found.append(
            f"figures on the {old.get('split')} split, {old.get('num_images')} data points{weights}, "
            f"seed {old.get('seed')}{_OTHER_DATA if _on_other_data(before, after) else ''}"
        )
    for name, group in before.get("groups", {}).items():
        settings, later = group.get("asked", {}), after["groups"].get(name, {})
        other = _on_other_data(group, later)
        if "figures" in group and (other or settings != later.get("asked", {})):
            asked = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
            found.append(f"figures of {name} ({asked}{_OTHER_DATA if other else ''})")
    return found


def _on_other_data(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two measurements are of other data in the same place, as far as they know the hash of theirs."""
    one, two = before.get("protocol", {}), after.get("protocol", {})
    same_place = all(one.get(key) == two.get(key) for key in ("split", "data"))
    return same_place and "data_hash" in one and "data_hash" in two and one["data_hash"] != two["data_hash"]


def _write(content: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        write_atomically(out / "evaluation.json", (json.dumps(content, indent=2) + "\n").encode())


def _write_nll(nll: Tensor | None, out: Path | None) -> None:
    """Write the NLL of every image beside the figures; what has none keeps no earlier one."""
    if out is None:
        return
    path = out / "nll.npy"
    if nll is None:
        path.unlink(missing_ok=True)
        return
    _write_array(path, nll)


def _write_array(path: Path, values: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    write_atomically(path, buffer.getvalue())


def _has_bounds(content: dict[str, Any], subject: Subject) -> bool:
    """Whether the figures of the bounds are there, with the NLL of every image, by the protocol that is asked for."""
    if not content or (subject.folder is not None and lacks_nll(subject.folder, content["figures"])):
        return False
    asked = asked_of_bounds(subject)
    return {"data_hash": asked["data_hash"], **content["protocol"]}.items() >= asked.items()


def _is_measured(group: Mapping[str, Any], asked: Mapping[str, Any], found: str) -> bool:
    """Whether a group was measured as asked, or refused, on these data; earlier versions wrote no hash of them."""
    return group.get("asked") == asked and group.get("protocol", {}).get("data_hash", found) == found


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
    where = {
        "split": subject.settings.split,
        "data": subject.data.description,
        "data_hash": subject.data_hash,
    }
    return {
        "protocol": where | protocol,
        "model": model,
        "figures": dict(found.figures),
        "seconds": round(time.monotonic() - started, 3),
    }


def finish_prior(model: Model, seed: int) -> bool:
    """Estimate the normalizer of a prior that has one to estimate; tell whether it was."""
    prior = getattr(model, "prior", None)
    if not isinstance(prior, EstimatedNormalizer) or prior.distribution_type is Pushforward:
        return False
    prior.estimate_normalizer(seed=seed)
    return True


def write_samples(
    model: Model,
    run_folder: Path,
    *,
    num: int | None,
    temperature: float,
    mean: bool,
    seed: int,
    out: Path | None,
    labels: Sequence[str] = (),
    guidance: float = 0.0,
    steps: int | None = None,
) -> Path:
    """Draw from a model into a picture (.png) or an array (.npy); return its path.

    A model that is given a label draws one row of pictures for each class; one that is given a picture, one for each of
    the first pictures of the split that its run was measured on.

    Args:
        model: Trained model.
        run_folder: Its run folder.
        num: How many, of each class or for each picture where it is given one; None for 64, or 10 of each.
        temperature: Scale of the prior's base noise.
        mean: Whether to show E[x|z] instead of a draw of x.
        seed: Of all noise.
        out: File; None for `samples/drawn.png` of the run, which its report then shows too.
        labels: Classes by name or number; none for all of them.
        guidance: Weight that pushes draws of the prior away from those without a label; 0 for none.
        steps: Steps of a draw from a prior that takes some; None for those of the run.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: if the model cannot be drawn from in this way.
        ShapeError: if data points are no images and `out` is a picture.
        NonFiniteError: if a draw is NaN or infinite.
    """
    if num is not None:
        check_positive("num", num)
    shape = model.context_shape
    how = {"temperature": temperature, "seed": seed, "mean": mean, "guidance": guidance}
    if guidance:
        _check_guidance(run_folder, guidance)
    with nullcontext() if steps is None else steps_of_draws(model, steps) as cost:
        if labels or (shape is not None and len(shape) == 1):
            drawn = _of_classes(model, run_folder, labels, 10 if num is None else num, how)
        elif shape is not None:
            drawn = _of_pictures(model, run_folder, 10 if num is None else num, how)
        else:
            num = 64 if num is None else num
            of = "the density of the data" if isinstance(model, DensityModel) else "p(x|z)"
            drawn = _Drawn(sample(model, num, **how), max(1, round(num**0.5)), of)
    _check_finite(drawn.x, temperature)
    path = out or run_folder / "samples" / "drawn.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        _write_array(path, drawn.x.cpu())
        return path
    if drawn.x.ndim != 4:
        raise ShapeError(
            f"Draws of shape {tuple(drawn.x.shape[1:])} are no pictures. Write them as an array, with --out FILE.npy."
        )
    clipped = "" if draws_discrete(model) else " Values outside [0, 1] are clipped."
    clipped += "" if cost is None else f" {cost}."
    if guidance:
        clipped += f" Guided with weight {guidance:g}, at twice the cost: not draws of the model's density."
    x = drawn.x.cpu().clamp(0, 1)
    save_grid(x if drawn.given is None else beside(drawn.given, x), path, columns=drawn.columns)
    if out is None:
        what = f"means of {drawn.of}" if mean else f"draws from {drawn.of}"
        source = "" if isinstance(model, DensityModel) else ", with z from the prior"
        caption = f"{len(x)} {what}{source} at temperature {temperature:g}, seed {seed}.{drawn.note}{clipped}"
        _add_picture(
            path.parent / "index.json", {"file": path.name, "title": "Drawn later", "caption": caption}
        )
    return path


def _check_finite(x: Tensor, temperature: float) -> None:
    if not bool(x.isfinite().all()):
        raise NonFiniteError(
            f"The draws hold NaN or infinity at temperature {temperature:g}; nothing is written. Lower --temperature, "
            "or train the model longer or at a lower training.learning_rate."
        )


def _check_guidance(run_folder: Path, weight: float) -> None:
    """Refuse to guide draws of a run that never met a data point without its label."""
    check_guidance(weight, "linear")
    if not read_configuration(run_folder / "config.yaml").condition.unlabeled:
        raise ConfigurationError(
            "Guidance pushes draws away from those without a label, and this run was trained with all labels. Train "
            "one with condition.on=labels condition.unlabeled=0.1 and prior=tarflow or flow_matching, or leave "
            "--guidance out."
        )


class _Drawn(NamedTuple):
    """Draws, how they are laid out, what they are draws of, and what they were given, if that is a picture."""

    x: Tensor
    columns: int
    of: str
    note: str = ""
    given: Tensor | None = None


def _of_classes(
    model: Model, run_folder: Path, labels: Sequence[str], num: int, how: dict[str, Any]
) -> _Drawn:
    names = class_names(run_folder)
    classes = find_labels(model, labels, names)
    x = sample_classes(model, classes, num, **how)
    of = "p(x | y)" if isinstance(model, DensityModel) else "p(x|z, y)"
    return _Drawn(x, num, of, f" A row for each class, given y: {shown_labels(classes, names)}.")


def _of_pictures(model: Model, run_folder: Path, num: int, how: dict[str, Any]) -> _Drawn:
    """Draw for the first pictures of the split that the run was measured on."""
    configuration = read_configuration(run_folder / "config.yaml")
    source = evaluated_split(build_data(configuration), configuration.evaluation)
    check_positive("num", num)
    with noise.stream(how["seed"], noise.Purpose.DATA):  # of the masks, which are not looked at
        given = source.batch(torch.arange(min(_PICTURES, len(source)))).context
    assert given is not None
    x = sample(model, num * len(given), context=given.repeat_interleave(num, 0), **how)
    note = (
        f" A row for each of the first {configuration.evaluation.split} pictures, which stands on its left."
    )
    return _Drawn(x, 1 + num, "p(x|z, picture)", note, given)


def _add_picture(index: Path, entry: dict[str, str]) -> None:
    try:
        entries = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
        kept = [other for other in entries if other["file"] != entry["file"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error!r}). Remove the file.") from None
    write_atomically(index, (json.dumps([*kept, entry], indent=2) + "\n").encode())
