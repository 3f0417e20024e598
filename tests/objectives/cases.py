"""Every objective, small, and a trace of numbers; a new objective adds a line to `OBJECTIVES`."""

from __future__ import annotations

import torch
from torch import Tensor

from latentflows.distributions import AmortizedGaussian, StandardGaussian
from latentflows.distributions.delta import AmortizedDelta
from latentflows.models import VAE, DensityModel, Trace
from latentflows.objectives import (
    ELBO,
    GECO,
    IWAE,
    Autoencoder,
    BetaTC,
    Capacity,
    FactorVAE,
    ForwardKL,
    InfoVAE,
    MaximumLikelihood,
    Objective,
    PriorLikelihood,
    RegularizedAutoencoder,
    ReverseKL,
    SparseAutoencoder,
    WassersteinAutoencoder,
)
from tests.bijections.cases import randomize
from tests.distributions.cases import network
from tests.models.parts import DATA, LATENT, LIKELIHOODS, PRIORS, vae


def energy(x: Tensor) -> Tensor:
    """That of N(1, I), without its constant."""
    return 0.5 * (x - 1).flatten(1).square().sum(-1)


OBJECTIVES: dict[str, Objective] = {
    "elbo": ELBO(3),
    "beta": ELBO(3, beta=0.5),
    "closed_form": ELBO(3, kl="closed_form"),
    "sticking": ELBO(3, gradient="stick_the_landing"),
    "joint": ELBO(3, anneal="joint", warmup_epochs=10),
    "cyclical": ELBO(3, warmup_epochs=2, cycle_epochs=4, num_cycles=3),
    "free_bits": ELBO(3, free_bits=0.7, kl="closed_form"),
    "free_bits_whole": ELBO(3, free_bits=2.0, free_bits_per="latent"),
    "iwae": IWAE(3),
    "iwae_doubly": IWAE(3, gradient="doubly_reparameterized"),
    "iwae_sticking": IWAE(3, gradient="stick_the_landing"),
    "prior": PriorLikelihood(3),
    "info": InfoVAE(3, alpha=0.3, scale=5.0),
    "mmd_vae": InfoVAE(3, scale=10.0),
    "wasserstein": WassersteinAutoencoder(3),
    "beta_tc": BetaTC(50, 3),
    "beta_tc_weighted": BetaTC(50, 3, alpha=0.5, gamma=2.0, sampling="weighted"),
    "factor": FactorVAE(3, width=6, depth=2),
    "geco": GECO(0.3, 3),
    "capacity": Capacity(3.0, 3, gamma=2.0),
    "autoencoder": Autoencoder(3),
    "regularized": RegularizedAutoencoder(3, latent_weight=0.5, decoder_weight=0.2),
    "regularized_decay": RegularizedAutoencoder(2, decoder="weight_decay", decoder_weight=0.2),
    "sparse": SparseAutoencoder(3),
}
DENSITIES: dict[str, Objective] = {
    "likelihood": MaximumLikelihood(),
    "forward": ForwardKL(energy),
    "reverse": ReverseKL(energy, 3),
}
OF_THE_BATCH = {"info", "mmd_vae", "wasserstein", "beta_tc", "beta_tc_weighted", "factor"}
"""Those whose loss of a batch is not a mean over its points, by their formula."""


def made_up_trace(samples: int = 3, points: int = 4) -> Trace:
    """A trace of random numbers, each a leaf."""
    parts = [torch.randn(samples, points).double().requires_grad_() for _ in range(3)]
    return Trace(torch.zeros(points, 1), torch.zeros(samples, points, 1), *parts, levels=())


def model_and_data(*names: str, objective: Objective | None = None) -> tuple[VAE, Tensor]:
    model = vae(*names)
    if objective is not None:
        model.auxiliary = objective.auxiliary(model)
    randomize(model.double(), 0.7)
    return model, torch.rand(5, *DATA).round().double()


def point_model(likelihood: str = "fixed", prior: str = "standard") -> VAE:
    """An autoencoder: its posterior is a point."""
    posterior = AmortizedDelta(LATENT, DATA, network(DATA, LATENT))
    model = VAE(posterior, PRIORS[prior](), LIKELIHOODS[likelihood]())
    randomize(model.double(), 0.7)
    return model


def noisy_model() -> VAE:
    """An autoencoder with noise of a fixed scale in its latents."""
    posterior = AmortizedGaussian(LATENT, DATA, network(DATA, LATENT), scale=0.1)
    model = VAE(posterior, StandardGaussian(LATENT), LIKELIHOODS["fixed"]())
    randomize(model.double(), 0.7)
    return model


def density_model(prior: str = "maf") -> DensityModel:
    model = DensityModel(PRIORS[prior]())
    randomize(model.double(), 0.7)
    return model
