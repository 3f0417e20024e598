"""Autoencoders without a KL, for posteriors that are points or have fixed noise: baselines of the VAE.

None of them looks at the prior. A `Stage` leaves it out of `train`, and a second stage fits it to the latents
(`PriorLikelihood`); that is the ex-post density of Ghosh et al. Where the noise of the posterior is learned, nothing
keeps it from vanishing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import (
    Objective,
    Value,
    check_at_least,
    check_choice,
    check_samples,
    mean_over_samples,
    value_of,
)
from latentflows.objectives.requirements import require


@dataclass(frozen=True)
class Autoencoder(Objective):
    r"""Reconstruction alone.

    .. math:: L = -E_q[\log p(x|z)]

    With a posterior of fixed noise this is an autoencoder with noise injected in its latents. Cost: one pass of encoder
    and decoder.

    Args:
        num_samples: K.

    References:
        Hinton & Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006.
    """

    num_samples: int = 1
    metrics: ClassVar[tuple[str, ...]] = ("loss", "reconstruction")
    without_prior: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        return model.trace(x, self.num_samples, context=context, with_densities=False)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        reconstruction = mean_over_samples(trace.log_likelihood)
        return value_of(-reconstruction, {"reconstruction": reconstruction})


@dataclass(frozen=True)
class RegularizedAutoencoder(Objective):
    r"""Reconstruction with latents kept near the origin and a decoder kept smooth: RAE.

    .. math:: L = -E_q[\log p(x|z)] + \beta \, \tfrac12 E_q|z|^2 + \lambda R

    R is the squared norm of the likelihood's parameters, or the squared Frobenius norm of the Jacobian of E[x|z] with
    respect to z, averaged over the batch. The norm is estimated without bias from one random direction per latent,
    which costs one pass back through the decoder, and one more for its gradient; `torch.compile` cannot differentiate
    twice, and `fit` refuses both together.

    Args:
        num_samples: K.
        latent_weight: beta.
        decoder: R: "weight_decay" or "gradient_penalty".
        decoder_weight: lambda.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, arXiv 1903.12436, eq. 3-5 and section 3.
        Random directions: Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989.
    """

    num_samples: int = 1
    latent_weight: float = 1e-2
    decoder: Literal["weight_decay", "gradient_penalty"] = "gradient_penalty"
    decoder_weight: float = 1e-3
    metrics: ClassVar[tuple[str, ...]] = ("loss", "reconstruction", "latent_penalty", "decoder_penalty")
    without_prior: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, latent_weight=self.latent_weight, decoder_weight=self.decoder_weight)
        check_choice("decoder", self.decoder, ("weight_decay", "gradient_penalty"))

    def check(self, model: VAE) -> None:
        super().check(model)
        if self.decoder == "gradient_penalty":
            require(type(self).__name__, model, ("likelihood_mean",))

    @property
    def compiles(self) -> bool:
        return self.decoder != "gradient_penalty"

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        trace = model.trace(x, self.num_samples, context=context, with_densities=False)
        if self.decoder == "gradient_penalty":
            penalty = _squared_jacobian(model, trace.z, context)
        else:
            squares = [p.square().sum() for p in model.likelihood.parameters()]
            penalty = torch.stack(squares).sum().expand(len(x))
        return replace(trace, penalties={**trace.penalties, "decoder": penalty})

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        reconstruction = mean_over_samples(trace.log_likelihood)
        latent = 0.5 * trace.z.flatten(2).square().sum(-1).mean(0)
        decoder = trace.penalties["decoder"]
        loss = self.latent_weight * latent + self.decoder_weight * decoder - reconstruction
        metrics = {"reconstruction": reconstruction, "latent_penalty": latent, "decoder_penalty": decoder}
        return value_of(loss, metrics)


def _squared_jacobian(model: VAE, z: Tensor, context: Tensor | None) -> Tensor:
    """Estimate |d E[x|z] / dz|^2 at each point, (B,), from one direction per latent."""
    learning = torch.is_grad_enabled()
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        mean = model.decode(at, context).mean
        direction = noise.standard_normal(tuple(mean.shape), like=mean)
        (slope,) = torch.autograd.grad((mean * direction).sum(), at, create_graph=learning)
    return slope.flatten(2).square().sum(-1).mean(0)


@dataclass(frozen=True)
class SparseAutoencoder(Objective):
    r"""Reconstruction with latents that are rarely on, as a Bernoulli KL measures it.

    .. math:: L = -E_q[\log p(x|z)] + \beta \sum_j \left[\rho \log\frac{\rho}{\hat\rho_j}
              + (1 - \rho) \log\frac{1 - \rho}{1 - \hat\rho_j}\right],
              \quad \hat\rho_j = \text{mean over the batch of } \sigma(z_j)

    The activation of a latent is the sigmoid of z_j; the decoder reads z itself. The penalty is one number for the
    batch, in nats, and the same for every point; with several processes or accumulated pieces, of each piece.

    Args:
        num_samples: K.
        weight: beta.
        rate: rho, the share of the data for which a latent is to be on.

    References:
        Ng, Sparse autoencoder, lecture notes CS294A, 2011, section 3.
    """

    num_samples: int = 1
    weight: float = 3.0
    rate: float = 0.05
    metrics: ClassVar[tuple[str, ...]] = ("loss", "reconstruction", "sparsity_penalty")
    without_prior: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, weight=self.weight)
        if not 0 < self.rate < 1:
            raise ConfigurationError(f"`rate` must be between 0 and 1; got {self.rate!r}.")

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        return model.trace(x, self.num_samples, context=context, with_densities=False)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        reconstruction = mean_over_samples(trace.log_likelihood)
        z = trace.z.flatten(2).flatten(0, 1)
        count = math.log(len(z))
        log_on = functional.logsigmoid(z).logsumexp(0) - count  # of means near 0 and 1, to full precision
        log_off = functional.logsigmoid(-z).logsumexp(0) - count
        on, off = self.rate, 1 - self.rate
        terms = on * (math.log(on) - log_on) + off * (math.log(off) - log_off)
        penalty = terms.sum().expand_as(reconstruction)
        loss = self.weight * penalty - reconstruction
        return value_of(loss, {"reconstruction": reconstruction, "sparsity_penalty": penalty})
