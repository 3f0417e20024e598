"""Models: what is made of a posterior, a prior and a likelihood."""

from latentflows.models.density import DensityModel
from latentflows.models.second_stage import LatentMarginal, LatentVariablePrior, second_stage_vae
from latentflows.models.vae import VAE, Trace

__all__ = [
    "VAE",
    "DensityModel",
    "LatentMarginal",
    "LatentVariablePrior",
    "Trace",
    "second_stage_vae",
]
