"""Groups of figures beside the bounds, each with its protocol; what cannot be measured is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, DataError
from latentflows.data import EnergySplit, MaskSplit, SomeUnlabeled
from latentflows.data.ambiguous_shapes import MASKS
from latentflows.distributions import Flow
from latentflows.evaluation import (
    Classifier,
    Pixels,
    draw_once,
    evaluate_annealed,
    evaluate_bounds,
    evaluate_disentanglement,
    evaluate_gaps,
    evaluate_holes,
    evaluate_information,
    evaluate_neighbors,
    evaluate_samples,
    evaluate_segmentation,
    evaluate_target,
    evaluate_units,
    load_classifier,
    save_classifier,
    train_classifier,
)
from latentflows.evaluation.base import figure
from latentflows.generation import sample
from latentflows.models import VAE, VQVAE
from latentflows.models.density import DensityModel, Model
from latentflows.studies.measuring.bounds import Subject, bounds_missing
from latentflows.studies.settings.evaluation import EvaluationSettings

_USUAL = 200  # images, where nothing is said
_FEW_PASSES = 32  # network passes that score a latent quickly; n² of them are scored
_LEVELS = (0.05, 0.5)  # quantiles of the test images' distances: near copies, and the middle
_CLASSIFIER_SEED = 0  # not that of the evaluation: another classifier is another measure
# What a protocol says of the model, not of how it was measured: figures of different models may differ in it.
OF_THE_MODEL = frozenset({"prior_density", "without_lower_bound", "family", "posterior_mean"})


@dataclass(frozen=True)
class Measured:
    """Figures as `evaluation.json` holds them, and how they were measured."""

    figures: Mapping[str, Any]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """One group of figures.

    Attributes:
        measure: Makes them, or raises with the reason why there are none.
        keys: Settings that decide them, besides split and seed; the first is 0 where they are not asked for.
        usual: Whether a model and data can have them; where they cannot, a default does not ask for them.
    """

    measure: Callable[[Subject], Measured]
    keys: tuple[str, ...]
    usual: Callable[[Model, DataSource], bool] = lambda model, source: True

    def asked(self, settings: EvaluationSettings, model: Model, source: DataSource) -> dict[str, Any] | None:
        """Return the settings that decide the figures; None where they are not asked for."""
        amount = getattr(settings, self.keys[0])
        default = EvaluationSettings.model_fields[self.keys[0]].default
        if amount == 0 or (amount == default and not self.usual(model, source)):
            return None
        return {key: getattr(settings, key) for key in ("split", "seed", *self.keys)}


def _vae(model: Model) -> VAE:
    """Return a model that is a VAE; refuse the others, whose latents have no densities."""
    if isinstance(model, VAE):
        return model
    what = "codes for latents" if isinstance(model, VQVAE) else "no latents"
    raise CombinationError(f"These figures are of continuous latents, and this model has {what}.")


def _information(subject: Subject) -> Measured:
    model, settings = _vae(subject.model), subject.settings
    passes = [part.bijection.passes[1] for part in model.posterior.modules() if isinstance(part, Flow)]
    slow = max((number for number in passes if number is not None), default=0)
    if settings.information is None and slow > _FEW_PASSES:
        raise CombinationError(
            f"n images need n² densities of q(z|x), which take up to {slow} network passes each here. To wait for "
            f"them: evaluation.information={_USUAL}"
        )
    count = _num_encoded(subject)
    found = evaluate_information(model, subject.source, num_images=count, seed=settings.seed)
    return Measured(found.figures(), found.protocol)


def _units(subject: Subject) -> Measured:
    settings = subject.settings
    found = evaluate_units(
        _vae(subject.model), subject.source, num_images=_num_encoded(subject), seed=settings.seed
    )
    return Measured(found.figures(), found.protocol)


def _num_encoded(subject: Subject) -> int:
    asked = subject.settings.information
    return min(_USUAL if asked is None else asked, len(subject.source))


def _holes(subject: Subject) -> Measured:
    found = evaluate_holes(
        _vae(subject.model), subject.source, num_images=subject.count("holes"), seed=subject.settings.seed
    )
    tests = {
        "num_permutations": found.rbf.protocol["num_permutations"],
        "bandwidths": found.rbf.protocol["bandwidths"],
        "network": found.classifier.protocol["network"],
        "num_held_out": found.classifier.protocol["num_held_out"],
    }
    return Measured(found.figures(), found.protocol | tests)


def _gaps(subject: Subject) -> Measured:
    found = evaluate_gaps(
        _vae(subject.model), subject.source, num_images=subject.count("gaps"), seed=subject.settings.seed
    )
    return Measured(found.figures(), found.protocol)


def _annealed(subject: Subject) -> Measured:
    """Annealing, and the importance-weighted figure of the very same images where there is one."""
    model, settings, count = _vae(subject.model), subject.settings, subject.count("annealed")
    found = evaluate_annealed(model, subject.source, num_images=count, seed=settings.seed)
    figures: dict[str, Any] = dict(found.figures())
    if bounds_missing(model) is None:
        bounds = evaluate_bounds(
            model,
            draw_once(subject.source, count, seed=settings.seed),
            num_importance_samples=settings.num_importance_samples,
            seed=settings.seed,
            memory_mib=subject.memory_mib,
        )
        variance = bounds.monte_carlo_variance + found.monte_carlo_variance
        figures["importance_nll"] = figure(bounds.nll, "nats", bounds.monte_carlo_variance)
        figures["nll_difference"] = figure(bounds.nll + found.log_evidence, "nats", variance)
    k = {"num_importance_samples": settings.num_importance_samples}
    return Measured(figures, found.protocol | k)


def _samples(subject: Subject) -> Measured:
    settings = subject.settings
    found = evaluate_samples(
        subject.model,
        subject.source,
        _pixels(subject) if settings.sample_features == "pixels" else _classifier(subject),
        data=subject.data.description,
        split=settings.split,
        num_images=subject.count("samples"),
        temperature=settings.sample_temperature,
        shown=settings.sample_shown,
        seed=settings.seed,
        memory_mib=subject.memory_mib,
    )
    figures = {
        name: {key: value for key, value in entry.items() if key != "protocol"}
        for name, entry in found.figures().items()
    }
    return Measured(figures, found.protocol.as_dict())


def _pixels(subject: Subject) -> Pixels:
    bounded = subject.source.values != "continuous" or subject.source.bits_offset is not None
    return Pixels((0.0, 1.0) if bounded else None)


def _classifier(subject: Subject) -> Classifier:
    """Load the classifier, or train it on the labels and keep it."""
    data, named = subject.data, subject.settings.sample_classifier
    inside = None if subject.folder is None else subject.folder / "checkpoint" / "classifier.safetensors"
    path = inside if named is None else Path(named)
    device = next(subject.model.parameters()).device
    if path is not None and path.is_file():
        return load_classifier(path, device=device)
    if getattr(data.train, "labels", None) is None:
        raise DataError(
            "The data have no labels to train a classifier on. Use evaluation.sample_features=pixels"
        )
    classifier = train_classifier(
        data.train,  # pyright: ignore[reportArgumentType]  # it has labels
        data.validation,  # pyright: ignore[reportArgumentType]
        data=data.name,
        num_classes=len(data.labels) or None,
        seed=_CLASSIFIER_SEED,
        device=device,
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(classifier, path)
    return classifier


def _neighbors(subject: Subject) -> Measured:
    model, settings, count = subject.model, subject.settings, subject.count("neighbors")
    train, context = subject.data.train, None
    if isinstance(train, SomeUnlabeled):  # all latents are to be compared as given their label
        train = train.source
    if model.context_shape is not None:
        context = draw_once(subject.source, count, seed=settings.seed).context
    samples = sample(model, count, seed=settings.seed, context=context).cpu()
    found = evaluate_neighbors(
        samples,
        train,
        subject.source,
        model=model if isinstance(model, VAE) else None,
        context=context,
        num_neighbors=1,
        levels=_LEVELS,
        seed=settings.seed,
    )
    return Measured(found.figures(), found.protocol)


def _disentanglement(subject: Subject) -> Measured:
    factors, names = getattr(subject.source, "factors", None), subject.data.factors
    if factors is None:
        raise DataError("The data have no known factors. Use data=shapes2d, which has.")
    count = subject.count("disentanglement")
    found = evaluate_disentanglement(
        _vae(subject.model),
        subject.source,
        torch.as_tensor(factors),
        categorical=[column for column, name in enumerate(names) if name == "shape"],
        num_images=count,
        seed=subject.settings.seed,
    )
    return Measured(found.figures(), {"factors": ", ".join(names)} | found.protocol())


def _segmentation(subject: Subject) -> Measured:
    source, settings = subject.source, subject.settings
    if not isinstance(source, MaskSplit):
        raise DataError("The data have no known masks. Use data=ambiguous_shapes, which has.")
    found = evaluate_segmentation(
        _vae(subject.model),
        source,
        num_samples=settings.num_masks,
        num_pictures=subject.count("segmentation"),
        temperature=settings.sample_temperature,
        seed=settings.seed,
    )
    figures: dict[str, Any] = dict(found.figures())
    for name, estimate in zip(MASKS, found.frequencies, strict=True):
        figures[f"{name}_frequency"] = estimate.figure("share")
    known = (f"{name} {share:.3f}" for name, share in zip(MASKS, found.probabilities, strict=True))
    protocol = {
        "num_pictures": found.num_pictures,
        "num_masks": found.num_samples,
        "distance": "1 - IoU",
        "known_shares": ", ".join(known),
        "temperature": settings.sample_temperature,
        "seed": settings.seed,
    }
    return Measured(figures, protocol)


def _target(subject: Subject) -> Measured:
    source, model = subject.source, subject.model
    if not isinstance(source, EnergySplit):
        raise DataError("The density of these data is not known. Use data=energy, whose density is.")
    if not isinstance(model, DensityModel):
        raise CombinationError(
            "These figures need log p(x), which models with latents only bound. Use model=flow."
        )
    energy, count = source.energy, subject.count("target")
    found = evaluate_target(
        model, source, energy, energy.log_normalizer, num_points=count, seed=subject.settings.seed
    )
    protocol = {"num_points": count, "seed": subject.settings.seed, "target": energy.name}
    return Measured(found.figures(), protocol | {"prior_density": found.density})


def _has_latents(model: Model, source: DataSource) -> bool:
    return isinstance(model, VAE)


def _has_masks(model: Model, source: DataSource) -> bool:
    return isinstance(source, MaskSplit)


def _has_target(model: Model, source: DataSource) -> bool:
    return isinstance(model, DensityModel) and isinstance(source, EnergySplit)


GROUPS = {
    "information": Group(_information, ("information",), _has_latents),
    "units": Group(_units, ("information",), _has_latents),
    "holes": Group(_holes, ("holes",), _has_latents),
    "gaps": Group(_gaps, ("gaps",)),
    "annealed": Group(_annealed, ("annealed", "num_importance_samples")),
    "samples": Group(
        _samples, ("samples", "sample_features", "sample_classifier", "sample_temperature", "sample_shown")
    ),
    "neighbors": Group(_neighbors, ("neighbors",)),
    "disentanglement": Group(_disentanglement, ("disentanglement",)),
    "segmentation": Group(_segmentation, ("segmentation", "num_masks", "sample_temperature"), _has_masks),
    "target": Group(_target, ("target",), _has_target),
}
