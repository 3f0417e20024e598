"""The KL cut in information, total correlation and the rest, and the second weighed: latents that are independent."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import size
from latentflows.distributions.gaussian import DiagonalNormal
from latentflows.models.vae import VAE, Trace
from latentflows.networks import MLP
from latentflows.objectives.base import (
    Objective,
    Value,
    check_at_least,
    check_choice,
    check_samples,
    elbo_parts,
    value_of,
)
from latentflows.objectives.requirements import Need


@dataclass(frozen=True)
class BetaTC(Objective):
    r"""The KL in three parts, each with its weight; beta-TC-VAE for alpha = gamma = 1 and beta > 1.

    .. math:: L = -E_q[\log p(x|z)] + \alpha \, I(x; z) + \beta \, KL(q(z) \| \textstyle\prod_j q(z_j))
              + \gamma \, E_q[\textstyle\sum_j \log q(z_j) - \log p(z)]

    The three parts add up to the KL of the ELBO for every prior; for one with independent dimensions the last is the
    sum of KL(q(z_j) || p(z_j)). The aggregate posterior q(z), of N data points, is estimated from the batch of B:

    - "stratified": the point of z itself counts 1 / N, each other one (N - 1) / (N (B - 1)). Its mean over batches is
      q(z), and with B = N it is q(z) itself.
    - "weighted": every point counts 1 / (N B). Its mean is less than q(z), so that the mutual information is
      overestimated, by up to log N; the total correlation keeps its gradient.

    The logarithm of either is biased. Both depend on which points share a batch, so a batch given twice has another
    loss; several processes or accumulated pieces see their own piece alone.

    Cost: that of `VAE.trace`; memory and operations O(K B^2 D).

    Args:
        num_points: N, the number of training data points.
        num_samples: K.
        alpha: Weight of the mutual information.
        beta: Weight of the total correlation.
        gamma: Weight of the dimension-wise rest.
        sampling: "stratified" or "weighted".

    References:
        Chen et al., Isolating Sources of Disentanglement, 2018, arXiv 1802.04942, eq. 2-4 and appendix C. Its
        stratified weights differ within a batch; these have the same mean and less variance.
    """

    num_points: int
    num_samples: int = 1
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 1.0
    sampling: Literal["stratified", "weighted"] = "stratified"
    metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "elbo",
        "reconstruction",
        "kl",
        "mutual_information",
        "total_correlation",
        "dimension_wise_kl",
    )
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density", "diagonal_posterior")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, alpha=self.alpha, beta=self.beta, gamma=self.gamma)
        check_choice("sampling", self.sampling, ("stratified", "weighted"))
        if not isinstance(self.num_points, int) or self.num_points < 2:
            raise ConfigurationError(
                f"`num_points` must be the number of training data points, at least 2; got {self.num_points!r}."
            )

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        ((q, _),) = trace.levels
        assert isinstance(q, DiagonalNormal)
        each = _log_density_of_each(q, trace.z.flatten(2))
        weights = self._log_weights(each)
        log_q = (each.sum(-1) + weights).logsumexp(-1)
        log_marginals = (each + weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
        information = (trace.log_posterior - log_q).mean(0)
        correlation = (log_q - log_marginals).mean(0)
        rest = (log_marginals - trace.log_prior).mean(0)
        parts = elbo_parts(trace)
        weighed = self.alpha * information + self.beta * correlation + self.gamma * rest
        return value_of(
            weighed - parts["reconstruction"],
            {
                **parts,
                "mutual_information": information,
                "total_correlation": correlation,
                "dimension_wise_kl": rest,
            },
        )

    def _log_weights(self, each: Tensor) -> Tensor:
        """Return the log of the weight of point m in the density at a z of point i, (B, B)."""
        batch, points = each.shape[1], self.num_points
        if self.sampling == "weighted":
            return each.new_full((batch, batch), -math.log(points * batch))
        if batch < 2:
            raise DataError(
                "Stratified sampling needs at least 2 data points in a batch; got 1. Choose the batch size, or the "
                'number of validation points, so that no single one is left, or sampling="weighted".'
            )
        weights = each.new_full((batch, batch), math.log((points - 1) / (points * (batch - 1))))
        return weights.fill_diagonal_(-math.log(points))


def _log_density_of_each(q: DiagonalNormal, z: Tensor) -> Tensor:
    """Return log q(z_ij | x_m) for z (K, B, D) and every point m: (K, B, B, D)."""
    mean, log_scale = q.mean.flatten(1), q.log_scale.flatten(1)
    standardized = (z.unsqueeze(2) - mean) * (-log_scale).exp()
    return -0.5 * standardized.square() - log_scale - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class FactorVAE(Objective):
    r"""The ELBO, less a total correlation that a discriminator estimates; any posterior with a density.

    .. math:: L = -ELBO + \gamma \, E_q[d(z)] + \tfrac12 E_q[s(-d(z))] + \tfrac12 E_{\bar q}[s(d(z))],
              \quad s(l) = \log(1 + e^l)

    d is the logit of the discriminator that z was drawn from q(z) and not from the product of its marginals, of which
    permuting each dimension over the batch gives draws; at its optimum E_q[d] is the total correlation. One step trains
    both: in the second term d's parameters have no gradient, and in the last two, the discriminator's own loss, z has
    none. They share one optimizer and one learning rate.

    Set `model.auxiliary = objective.auxiliary(model)` before `fit`. Until the discriminator has learned, its estimate
    is 0, so weights are selected by the ELBO.

    Cost: that of `VAE.trace` and three passes of the discriminator over K B latents.

    Args:
        num_samples: K.
        gamma: Weight of the total correlation.
        width: Units of each hidden layer of the discriminator.
        depth: Number of its hidden layers.

    References:
        Kim & Mnih, Disentangling by Factorising, 2018, arXiv 1802.05983, eq. 2-3 and algorithms 1-2. Theirs permutes a
        second batch; this one the same, which needs half the data.
    """

    num_samples: int = 1
    gamma: float = 10.0
    width: int = 1000
    depth: int = 6
    metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "elbo",
        "reconstruction",
        "kl",
        "total_correlation",
        "discriminator_loss",
    )
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, gamma=self.gamma)
        check_at_least(1, width=self.width, depth=self.depth)

    def auxiliary(self, model: VAE) -> nn.Module:
        dim = size(model.latent_shape)
        return MLP(dim, 1, width=self.width, depth=self.depth, activation_name="elu")

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        trace = super().trace(model, x, context)
        discriminator = trace.auxiliary
        assert discriminator is not None
        z = trace.z.flatten(2)
        fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
        shape = z.shape[:2]
        logit = at_least_float32(functional_call(discriminator, fixed, (z.flatten(0, 1),))).view(shape)
        own = at_least_float32(discriminator(z.detach().flatten(0, 1))).view(shape)
        permuted = at_least_float32(discriminator(_permuted(z.detach()).flatten(0, 1))).view(shape)
        wrong = 0.5 * (functional.softplus(-own) + functional.softplus(permuted))
        added = {"total_correlation": logit.mean(0), "discriminator_loss": wrong.mean(0)}
        return replace(trace, penalties={**trace.penalties, **added})

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        parts = elbo_parts(trace)
        correlation = trace.penalties["total_correlation"]
        wrong = trace.penalties["discriminator_loss"]
        loss = self.gamma * correlation + wrong - parts["elbo"]
        return value_of(loss, {**parts, "total_correlation": correlation, "discriminator_loss": wrong})


def _permuted(z: Tensor) -> Tensor:
    """Permute every dimension of z (K, B, D) over the batch, each by itself: draws of the product of marginals."""
    order = noise.uniform(tuple(z.shape), like=z).argsort(1)
    return torch.gather(z, 1, order)
