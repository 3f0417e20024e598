"""Small models of every kind of a configuration, on data far outside [0, 1]; a new kind is covered by itself."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.data import ArraySplit, ImageData, from_tensors
from latentflows.models import VAE, DensityModel
from latentflows.objectives import MaximumLikelihood
from latentflows.studies.building.build import build_model, build_options, build_stages
from latentflows.studies.measuring.measure import finish_prior
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.overrides import configuration_from
from latentflows.testing import randomize
from latentflows.training import Stage, fit
from tests.studies.matrix import KINDS, POINTS, SHAPE, overrides

PRIORS = KINDS["prior"]
POSTERIORS = [kind for kind in KINDS["posterior"] if kind != "delta"]  # a point has no density
CHANGES = {  # what a kind needs to have an interior: the draws of a narrow NAF end at the border of its range
    "naf": ("prior.width=32",),
    "second_stage": ("prior.num_samples=64",),
    "noise_contrastive": ("prior.num_proposals=500",),  # draws follow the density as these grow
    "adversarial": ("prior.num_proposals=500",),
}
SCALES = {"mixture": 1.5, "vamp": 1.5, "exemplar": 1.0, "real_nvp": 0.6, "maf": 0.6}  # 0.3 for the others


def configuration(*more: str, epochs: int = 2, **kinds: str) -> RunConfiguration:
    """Two latents, continuous data, a Gaussian likelihood where none is named, and `more` settings."""
    lines = overrides(**{"likelihood": "gaussian"} | kinds)
    lines += ["latent_dim=2", f"training.epochs={epochs}"]
    lines += ["data.preparation=continuous"] if kinds.get("likelihood", "gaussian") == "gaussian" else []
    lines += [f"training.prior_epochs={epochs}"] if "training.plan=two_stage" in lines else []
    return configuration_from({}, [*lines, *more])


def data() -> ImageData:
    """Two clouds far from [0, 1] and from each other."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(POINTS, *SHAPE, generator=generator) - 10
    x[::2] += 25
    return from_tensors(x, x[:16], x[:16], values="continuous")


def fitted(c: RunConfiguration, source: ImageData) -> VAE:
    """Build and train a model, with its prior's constant, as a run does."""
    model = build_model(c, source.train.event_shape)
    stages = build_stages(c, model, len(source.train))
    history = fit(model, stages, source.train, validation=source.validation, options=build_options(c))
    assert history.status == "finished"
    assert history.skipped_steps == 0
    return model


@cache
def prior_model(kind: str) -> tuple[RunConfiguration, VAE]:
    """A model whose prior has seen data, and then got random numbers for parameters, so that it is far from N(0, I)."""
    with noise.stream(5), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        c = configuration(*CHANGES.get(kind, ()), prior=kind)
        model = fitted(c, data())
        if kind == "naf":
            two = 2 * torch.randint(2, (512, 1)) - 1 + 0.5 * torch.randn(512, 2)
            stage = Stage("density", MaximumLikelihood(), max_epochs=60, batch_size=128, learning_rate=2e-2)
            fit(DensityModel(model.prior), [stage], ArraySplit(two, values="continuous"))
        else:
            randomize(model.prior, SCALES.get(kind, 0.3))
            if kind in ("vamp", "exemplar"):
                randomize(model.posterior, SCALES[kind])
        finish_prior(model, 0)
    return c, model.eval()


def posterior_model(kind: str, *, scale: float = 0.7, dim: int = 2) -> VAE:
    """A model with a posterior of this kind, random parameters, in float64."""
    with noise.stream(6), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_model(configuration(f"latent_dim={dim}", posterior=kind), SHAPE).double()
        randomize(model, scale)
    return model.eval()


def points(count: int = 5) -> Tensor:
    """Data points for a posterior, (count, *SHAPE), in float64."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
