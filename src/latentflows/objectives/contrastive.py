"""Noise-contrastive fit of an energy-based prior: a classifier between posterior samples and draws of its base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.distributions.energy import EnergyPrior
from latentflows.models.density import Model
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import Objective, Value, check_samples, mean_over_samples, value_of
from latentflows.objectives.requirements import require_prior


@dataclass(frozen=True)
class NoiseContrastive(Objective):
    r"""Fit an `EnergyPrior` by telling z ~ q(z) from z ~ base: the second stage, on a frozen encoder.

    .. math:: L = E_{q(z)}[\log(1 + e^{E(z)})] + E_{base}[\log(1 + e^{-E(z)})] - E_{q(z)}[\log p_{base}(z)]

    The first two terms are the loss of the classifier D = sigmoid(-E). Its best is D / (1 - D) = q / base, so that
    base exp(-E) tends to q and its normalizer to 1; check it with `EnergyPrior.estimate_normalizer`. The third term
    fits the base, if it has parameters, by likelihood; the two share no gradient. Where q and base hardly overlap, the
    classifier is perfect long before E is right: use a better base, such as a flow.

    Metrics: `classifier`, the first two terms (2 ln 2 = 1.386 where q is the base); `energy_posterior` and
    `energy_base`, means of E; `base_nll`, minus the third term.

    Cost: two passes of the energy per sample; nothing is decoded.

    Args:
        num_samples: Samples per data point, and as many draws of the base.

    References:
        Aneja et al., A Contrastive Learning Approach for Training Variational Autoencoder Priors, 2021, arXiv
        2010.02917, eq. 5; Gutmann & Hyvarinen, Noise-contrastive estimation, 2010.
    """

    num_samples: int = 1
    metrics: ClassVar[tuple[str, ...]] = ("loss", "classifier", "energy_posterior", "energy_base", "base_nll")
    prior_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def check(self, model: Model) -> None:
        super().check(model)
        require_prior(type(self).__name__, model, EnergyPrior)

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        with model.standard_prior():  # which is not asked: the prior's own would estimate a normalizer
            trace = model.trace(
                x, self.num_samples, context=context, with_likelihood=False, with_densities=False
            )
        prior = model.prior
        assert isinstance(prior, EnergyPrior)
        tilted = prior.contrasted()
        with torch.no_grad():
            noise = tilted.base.sample((self.num_samples, len(x)))
        terms = {
            "energy_posterior": tilted.energy(trace.z),
            "energy_base": tilted.energy(noise),
            "base_nll": -tilted.base.log_prob(trace.z),
        }
        trace.penalties.update({name: mean_over_samples(value) for name, value in terms.items()})
        of_posterior = functional.softplus(terms["energy_posterior"])
        of_base = functional.softplus(-terms["energy_base"])
        trace.penalties["classifier"] = mean_over_samples(of_posterior + of_base)
        return trace

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        terms = {name: trace.penalties[name] for name in self.metrics if name != "loss"}
        return value_of(terms["classifier"] + terms["base_nll"], terms)

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]
