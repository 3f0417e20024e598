"""What training minimizes: frozen settings and a pure function of a `Trace`."""

from latentflows.objectives.adversarial import LatentWasserstein
from latentflows.objectives.autoencoder import Autoencoder, RegularizedAutoencoder, SparseAutoencoder
from latentflows.objectives.base import Objective, Value, elbo_parts, warm_up
from latentflows.objectives.constraint import GECO, Capacity, Multiplier
from latentflows.objectives.contrastive import NoiseContrastive
from latentflows.objectives.density import ForwardKL, MaximumLikelihood, ReverseKL
from latentflows.objectives.divergence import InfoVAE, WassersteinAutoencoder, squared_mmd
from latentflows.objectives.elbo import ELBO
from latentflows.objectives.flow_matching import FlowMatching
from latentflows.objectives.iwae import IWAE
from latentflows.objectives.prior import PriorLikelihood
from latentflows.objectives.requirements import Need, density_of
from latentflows.objectives.total_correlation import BetaTC, FactorVAE
from latentflows.objectives.vector_quantization import CodeLikelihood, VectorQuantization

__all__ = [
    "ELBO",
    "GECO",
    "IWAE",
    "Autoencoder",
    "BetaTC",
    "Capacity",
    "CodeLikelihood",
    "FactorVAE",
    "FlowMatching",
    "ForwardKL",
    "InfoVAE",
    "LatentWasserstein",
    "MaximumLikelihood",
    "Multiplier",
    "Need",
    "NoiseContrastive",
    "Objective",
    "PriorLikelihood",
    "RegularizedAutoencoder",
    "ReverseKL",
    "SparseAutoencoder",
    "Value",
    "VectorQuantization",
    "WassersteinAutoencoder",
    "density_of",
    "elbo_parts",
    "squared_mmd",
    "warm_up",
]
