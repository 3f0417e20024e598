"""What is measured first of every model: how likely the data are under it, or what there is instead."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentflows.core.batches import DataSource, data_hash
from latentflows.data import ImageData
from latentflows.distributions.base import Conditional
from latentflows.distributions.normalizer import EstimatedNormalizer
from latentflows.evaluation import evaluate_bounds, evaluate_codes, evaluate_likelihood
from latentflows.evaluation.base import Figures, ImpossibleDivergenceError, Protocol, likelihood_kind
from latentflows.evaluation.bounds import evaluate_reconstruction
from latentflows.evaluation.codes import CodeBound
from latentflows.models import VAE, VQVAE
from latentflows.models.density import DensityModel, Model
from latentflows.objectives.requirements import density_of
from latentflows.studies.settings.evaluation import EvaluationSettings

_LEVELS = ("top", "bottom")  # of a model with two maps of codes


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what.

    Attributes:
        model: Trained model.
        data: Its data.
        source: The split of them that `settings` names.
        settings: What to measure.
        folder: Run folder, where a classifier is kept; None for none.
        memory_mib: What one block of importance samples may take.
    """

    model: Model
    data: ImageData
    source: DataSource
    settings: EvaluationSettings
    folder: Path | None
    memory_mib: int

    @cached_property
    def data_hash(self) -> str:
        """What tells the data points from others, in every protocol."""
        return data_hash(self.source)

    def count(self, name: str) -> int:
        """Return how many data points a group is measured on: all of the split at most, and where nothing is said."""
        asked = getattr(self.settings, name)
        return len(self.source) if asked is None else min(asked, len(self.source))


def bounds_missing(model: Model) -> str | None:
    """Say why there is no bound on log p(x), if there is none."""
    if isinstance(model, VAE) and density_of(model.posterior) == "unnormalized":
        return "the posterior is a point without a density"
    if isinstance(model, VAE | VQVAE) and not model.likelihood.distribution_type.normalized:
        return "the cross-entropy on gray values is no likelihood"
    if isinstance(model, VAE) and _lacks_normalizer(model.prior):
        return (
            "the prior's normalizer is not known: a few draws carry all its weight, or it was never estimated"
        )
    return None


@torch.no_grad()
def _lacks_normalizer(prior: Conditional) -> bool:
    return isinstance(prior, EstimatedNormalizer) and prior().density == "unnormalized"


def has_importance_samples(model: Model) -> bool:
    """Whether figures of this model rest on importance samples: not those that are exact, or of codes, or no bound."""
    return isinstance(model, VAE) and bounds_missing(model) is None


def asked_of_bounds(subject: Subject) -> dict[str, Any]:
    """Return what decides the figures of the bounds, as a protocol holds it."""
    model, settings = subject.model, subject.settings
    shape = model.context_shape
    given = {} if shape is None else {"given": "label" if len(shape) == 1 else "picture"}
    weighted = settings.num_importance_samples if isinstance(model, VAE) else None
    return {
        **given,
        "split": settings.split,
        "num_images": settings.num_images or len(subject.source),
        "num_importance_samples": weighted if bounds_missing(model) is None else 1,
        "seed": settings.seed,
        "data": subject.data.description,
        "data_hash": subject.data_hash,
    }


def measure_bounds(subject: Subject) -> tuple[dict[str, Any], Tensor | None]:
    """Measure the bounds, or the reconstruction where there are none.

    Returns:
        Protocol, figures and seconds; and the NLL of every image, nats, (n,), where there is one.
    """
    started = time.monotonic()
    asked = asked_of_bounds(subject)
    figures, measured, nll = _measured(subject, asked["num_images"])
    seconds = round(time.monotonic() - started, 3)
    kind = {"likelihood": likelihood_kind(subject.model, subject.source)}
    return {"protocol": asked | kind | measured, "figures": figures, "seconds": seconds}, nll


def _measured(subject: Subject, num_images: int) -> tuple[Figures, Protocol, Tensor | None]:
    model, source, settings = subject.model, subject.source, subject.settings
    without = bounds_missing(model)
    if isinstance(model, DensityModel):
        exact = evaluate_likelihood(model, source, num_images=num_images, seed=settings.seed)
        return exact.figures(), {"prior_density": exact.density}, exact.nll
    if without is not None:
        reconstruction = evaluate_reconstruction(model, source, num_images, seed=settings.seed)
        return {"reconstruction": reconstruction}, {"without_bound": without}, None
    if isinstance(model, VQVAE):
        found = evaluate_codes(model, source, num_images=num_images, seed=settings.seed)
        return found.figures() | _usage(found), found.protocol(), None
    try:
        bounds = evaluate_bounds(
            model,
            source,
            num_importance_samples=settings.num_importance_samples,
            num_images=num_images,
            seed=settings.seed,
            memory_mib=subject.memory_mib,
        )
    except ImpossibleDivergenceError:
        why = "the KL of posterior and prior comes out below zero, so log p(z) is too high where the posterior lies"
        reconstruction = evaluate_reconstruction(model, source, num_images, seed=settings.seed)
        return {"reconstruction": reconstruction}, {"without_bound": why}, None
    return bounds.figures(), bounds.protocol(), bounds.nll


def _usage(found: CodeBound) -> Figures:
    """Return how many codes of each level are in use, over all images together."""
    names = ("",) if len(found.perplexity) == 1 else tuple(f"{level}_" for level in _LEVELS)
    figures: Figures = {}
    for name, perplexity, usage in zip(names, found.perplexity, found.code_usage, strict=True):
        figures[f"{name}perplexity"] = {"mean": perplexity, "standard_error": None, "unit": "codes"}
        figures[f"{name}code_usage"] = {"mean": usage, "standard_error": None, "unit": "share of codes"}
    return figures
