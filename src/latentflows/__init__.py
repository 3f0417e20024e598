"""latentflows: VAEs whose posterior, prior and likelihood may each be a normalizing flow.

Importing this package loads nothing; each name below is imported when it is first used, so that the command line
answers at once and a user pays only for what is used. The core needs torch and numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latentflows._version import __version__

_HOMES = {
    "latentflows.distributions": (
        "AmortizedBernoulli",
        "AmortizedGaussian",
        "Conditional",
        "Distribution",
        "Flow",
        "LearnedGaussian",
        "StandardGaussian",
    ),
    "latentflows.bijections": ("Bijection", "Chain", "Inverse"),
    "latentflows.models": ("VAE", "DensityModel", "Trace"),
    "latentflows.objectives": ("ELBO", "IWAE", "MaximumLikelihood", "Objective", "PriorLikelihood"),
    "latentflows.training": ("Options", "Stage", "fit"),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    "bijections",
    "core",
    "data",
    "distributions",
    "evaluation",
    "generation",
    "models",
    "networks",
    "objectives",
    "reporting",
    "studies",
    "testing",
    "training",
    "transforms",
)

if TYPE_CHECKING:
    from latentflows.bijections import Bijection, Chain, Inverse
    from latentflows.distributions import (
        AmortizedBernoulli,
        AmortizedGaussian,
        Conditional,
        Distribution,
        Flow,
        LearnedGaussian,
        StandardGaussian,
    )
    from latentflows.models import VAE, DensityModel, Trace
    from latentflows.objectives import ELBO, IWAE, MaximumLikelihood, Objective, PriorLikelihood
    from latentflows.training import Options, Stage, fit

__all__ = [
    "ELBO",
    "IWAE",
    "VAE",
    "AmortizedBernoulli",
    "AmortizedGaussian",
    "Bijection",
    "Chain",
    "Conditional",
    "DensityModel",
    "Distribution",
    "Flow",
    "Inverse",
    "LearnedGaussian",
    "MaximumLikelihood",
    "Objective",
    "Options",
    "PriorLikelihood",
    "Stage",
    "StandardGaussian",
    "Trace",
    "__version__",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"latentflows.{name}")
    raise AttributeError(f"module 'latentflows' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
