"""Distributions as values, conditionals as modules, and the closed-form KL between them."""

from latentflows.distributions.adapters import as_pyro, as_torch, as_zuko
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.flow import Flow, Pushforward
from latentflows.distributions.gaussian import (
    AmortizedGaussian,
    DiagonalNormal,
    FullNormal,
    LearnedGaussian,
    StandardGaussian,
    StandardNormal,
    gaussian_raw_shape,
)
from latentflows.distributions.kl import has_closed_form_kl, kl_divergence, register_kl
from latentflows.distributions.likelihoods import AmortizedBernoulli, BernoulliValues

__all__ = [
    "AmortizedBernoulli",
    "AmortizedGaussian",
    "BernoulliValues",
    "Conditional",
    "DiagonalNormal",
    "Distribution",
    "Flow",
    "FullNormal",
    "LearnedGaussian",
    "Pushforward",
    "StandardGaussian",
    "StandardNormal",
    "as_pyro",
    "as_torch",
    "as_zuko",
    "gaussian_raw_shape",
    "has_closed_form_kl",
    "kl_divergence",
    "register_kl",
]
