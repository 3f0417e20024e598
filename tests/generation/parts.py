"""A small model and data for it."""

import torch
from torch import nn

from latentflows.bijections import Permutation
from latentflows.data import ArraySplit
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Flow,
    GaussianMixture,
    StandardGaussian,
)
from latentflows.models import VAE
from latentflows.models.presets import real_nvp
from latentflows.networks import MLP


def network(in_shape, out_shape):
    return MLP(in_shape, out_shape, width=8, depth=1)


def flow_prior(latent=3):
    flow = Flow(StandardGaussian(latent), real_nvp(latent, num_layers=4, width=8))
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.7)
    return flow


def small_vae(event=(1, 4, 4), *, latent=3, prior=None, likelihood="bernoulli"):
    first, *rest = event
    posterior = AmortizedGaussian(latent, event, network(event, 2 * latent))
    if likelihood == "bernoulli":
        decoder = AmortizedBernoulli(event, latent, network(latent, event))
    elif likelihood == "gaussian":
        decoder = AmortizedGaussian(event, latent, network(latent, event), scale=0.5)
    else:
        base = AmortizedGaussian(event, latent, network(latent, (2 * first, *rest)))
        decoder = Flow(base, Permutation.reversal(event))
    return VAE(posterior, prior or StandardGaussian(latent), decoder)


def conditional_vae(classes=4):
    """A model that is given a label, and whose prior has a Gaussian for each class."""
    posterior = AmortizedGaussian(3, (1, 4, 4), network((1, 4, 4), 6))
    likelihood = AmortizedBernoulli((1, 4, 4), 3 + classes, network(3 + classes, (1, 4, 4)))
    return VAE(posterior, GaussianMixture(3, 1, num_classes=classes), likelihood, context_shape=classes)


def images(count=70, event=(1, 4, 4), values="binary"):
    x = torch.rand(count, *event)
    return ArraySplit((x < 0.4).float() if values == "binary" else x, values=values)
