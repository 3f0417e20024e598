"""Models: what is made of a posterior, a prior and a likelihood."""

from latentflows.models.density import DensityModel
from latentflows.models.hierarchical import dlgm, two_level
from latentflows.models.quantization import vq_vae, vq_vae_2
from latentflows.models.quantizer import Quantized, Quantizer, code_usage
from latentflows.models.second_stage import LatentMarginal, LatentVariablePrior, second_stage_vae
from latentflows.models.segmentation import segmentation_vae
from latentflows.models.vae import VAE, Trace
from latentflows.models.vqvae import VQVAE, Codes

__all__ = [
    "VAE",
    "VQVAE",
    "Codes",
    "DensityModel",
    "LatentMarginal",
    "LatentVariablePrior",
    "Quantized",
    "Quantizer",
    "Trace",
    "code_usage",
    "dlgm",
    "second_stage_vae",
    "segmentation_vae",
    "two_level",
    "vq_vae",
    "vq_vae_2",
]
