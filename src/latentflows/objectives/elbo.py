"""The evidence lower bound, with the ways in which its KL is weighed while it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from latentflows.core.errors import ConfigurationError
from latentflows.distributions.kl import check_closed_form_kl, check_factorized_kl, kl_per_dimension
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import (
    Objective,
    Value,
    check_at_least,
    check_choice,
    check_samples,
    cyclical,
    joint_warm_up,
    kl_of,
    mean_over_samples,
    value_of,
    warm_up,
    without_score,
)
from latentflows.objectives.requirements import Need, require


@dataclass(frozen=True)
class ELBO(Objective):
    r"""Negative evidence lower bound, averaged over the batch.

    .. math:: L = -E_q[\log p(x|z)] + \beta(t) \, KL(q(z|x) \| p(z)), \quad \beta(t) = \beta \min(1, t / T)

    With `anneal` "joint" the weight is on log p(x, z), and rises from 0.01, so that the posterior starts broad:

    .. math:: L = E_q[\log q(z|x)] - \beta_t E_q[\log p(x, z)], \quad \beta_t = \min(1, 0.01 + t / T)

    With free bits the KL of each group j of latents counts as :math:`\lambda` where it is less, on batch average:

    .. math:: L = -E_q[\log p(x|z)] + \beta(t) \sum_j \max(\lambda, E_{x \in batch} KL_j)

    The metrics elbo, reconstruction and kl are those of the bound itself, at beta 1 and without free bits, whatever
    is minimized. Cost: that of `VAE.trace`; with "stick_the_landing" one density pass of the posterior more.

    Args:
        num_samples: K, samples per data point.
        beta: Weight of the KL after warm-up; 1 for the bound itself.
        warmup_epochs: T, over which the weight rises linearly from 0; 0 for none.
        kl: "monte_carlo", log q - log p on the same samples, valid for every pair; or "closed_form", with
            less variance, for Gaussians.
        anneal: What the warm-up weighs: "kl", or "joint", log p(x, z); that needs beta 1 and a Monte Carlo KL.
        cycle_epochs: Length of a cycle, if the warm-up is repeated: the weight falls to 0 at the start of each.
        num_cycles: How often it rises; after the last rise it stays.
        free_bits: lambda, nats of each group that cost nothing; 0 for none. With several processes or accumulated
            pieces the batch average is that of each piece.
        free_bits_per: The groups: "dimension", each latent number; "channel", each index along the first latent axis;
            both need the closed-form KL of diagonal Gaussians. Or "latent", all as one: valid for every pair.
        gradient: "reparameterized"; or "stick_the_landing", without the score of the posterior: also unbiased, and
            without variance where q is the exact posterior. It needs a Gaussian, or a flow with an inverse.

    Raises:
        ConfigurationError: for settings out of range, or that exclude one another.
        CombinationError: from `check`, if the model lacks what the settings need.

    References:
        Kingma & Welling 2014, arXiv 1312.6114, eq. 3, 10; Higgins et al., beta-VAE, 2017; warm-up: Sonderby et al.,
        Ladder Variational Autoencoders, 2016, arXiv 1602.02282, section 2; on log p(x, z): Rezende & Mohamed,
        Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, eq. 20; cycles: Fu et al., Cyclical
        Annealing Schedule, 2019, arXiv 1903.10145, section 3; free bits: Kingma et al., Improved Variational Inference
        with Inverse Autoregressive Flow, 2016, arXiv 1606.04934, appendix C; gradient: Roeder et al., Sticking the
        Landing, 2017, arXiv 1703.09194.
    """

    num_samples: int = 1
    beta: float = 1.0
    warmup_epochs: float = 0.0
    kl: Literal["monte_carlo", "closed_form"] = "monte_carlo"
    anneal: Literal["kl", "joint"] = "kl"
    cycle_epochs: float | None = None
    num_cycles: int = 4
    free_bits: float = 0.0
    free_bits_per: Literal["dimension", "channel", "latent"] = "dimension"
    gradient: Literal["reparameterized", "stick_the_landing"] = "reparameterized"
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        if not self.beta >= 0 or not self.warmup_epochs >= 0:
            raise ConfigurationError(
                f"`beta` and `warmup_epochs` must be at least 0; got {self.beta} and {self.warmup_epochs}."
            )
        if self.kl not in ("monte_carlo", "closed_form"):
            raise ConfigurationError(f'`kl` must be "monte_carlo" or "closed_form"; got {self.kl!r}.')
        check_choice("anneal", self.anneal, ("kl", "joint"))
        check_choice("gradient", self.gradient, ("reparameterized", "stick_the_landing"))
        check_choice("free_bits_per", self.free_bits_per, ("dimension", "channel", "latent"))
        check_at_least(0, free_bits=self.free_bits)
        self._check_cycles()
        self._check_together()

    def _check_cycles(self) -> None:
        if self.num_cycles < 1:
            raise ConfigurationError(f"`num_cycles` must be at least 1; got {self.num_cycles!r}.")
        if self.cycle_epochs is not None and not self.cycle_epochs >= self.warmup_epochs > 0:
            raise ConfigurationError(
                f"A cycle of `cycle_epochs` {self.cycle_epochs} must hold a rise of `warmup_epochs`, above 0; got "
                f"{self.warmup_epochs}. Half of the cycle is usual."
            )

    def _check_together(self) -> None:
        """Refuse settings that contradict one another."""
        if self.anneal == "joint" and (self.kl != "monte_carlo" or self.beta != 1 or self.free_bits):
            raise ConfigurationError(
                '`anneal` "joint" weighs log p(x, z) as a whole: it needs kl="monte_carlo", beta=1 and free_bits=0; '
                f"got {self.kl!r}, {self.beta} and {self.free_bits}."
            )
        if self.gradient == "stick_the_landing" and self.kl != "monte_carlo":
            raise ConfigurationError(
                'The gradient "stick_the_landing" is one of log q(z|x) at samples: it needs kl="monte_carlo"; got '
                f"{self.kl!r}."
            )
        if self.free_bits and self.free_bits_per != "latent" and self.kl != "closed_form":
            raise ConfigurationError(
                f'Free bits per {self.free_bits_per} need the KL of each, which kl="closed_form" gives; got '
                f'{self.kl!r}. For a Monte Carlo KL take free_bits_per="latent", the whole as one group.'
            )

    @property
    def schedule_epochs(self) -> float:
        cycle = self.cycle_epochs
        return self.warmup_epochs + (0 if cycle is None else cycle * (self.num_cycles - 1))

    def settings(self, epoch: float) -> dict[str, float]:
        return {"beta": self.beta * float(self._risen(epoch))}

    def check(self, model: VAE) -> None:
        super().check(model)
        pair = model.posterior.distribution_type, model.prior_type
        if self.kl == "closed_form":
            check_closed_form_kl(*pair)
        if self.free_bits and self.free_bits_per != "latent":
            check_factorized_kl(*pair)
        if self.gradient == "stick_the_landing":
            require(type(self).__name__, model, ("fixed_posterior",))

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        scored = self.kl == "monte_carlo"
        return model.trace(x, self.num_samples, context=context, with_densities=scored)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        if self.gradient == "stick_the_landing":
            trace = without_score(trace)
        kl, reconstruction = kl_of(trace, self.kl), mean_over_samples(trace.log_likelihood)
        loss = self._loss(trace, kl, reconstruction, self._risen(epoch))
        reconstruction, kl = reconstruction.detach(), kl.detach()
        return value_of(loss, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl})

    def _risen(self, epoch: float | Tensor) -> float | Tensor:
        """Return how far the warm-up has come: 1 at its end."""
        if self.cycle_epochs is not None:
            return cyclical(
                epoch, self.warmup_epochs, self.cycle_epochs, self.num_cycles, joint=self.anneal == "joint"
            )
        return (joint_warm_up if self.anneal == "joint" else warm_up)(epoch, self.warmup_epochs)

    def _loss(self, trace: Trace, kl: Tensor, reconstruction: Tensor, risen: float | Tensor) -> Tensor:
        """Return what is minimized, of each point, (B,)."""
        if self.anneal == "joint":
            log_joint = mean_over_samples(trace.log_likelihood + trace.log_prior)
            return mean_over_samples(trace.log_posterior) - risen * log_joint
        if self.free_bits:
            kl = self._free(trace, kl)
        beta = self.beta * risen
        return kl - reconstruction if isinstance(beta, float) and beta == 1 else beta * kl - reconstruction

    def _free(self, trace: Trace, kl: Tensor) -> Tensor:
        """Return the KL of each point in which a group counts as `free_bits` where its batch average is less.

        Its batch mean, and the gradient of that, are those of the sum of maxima.
        """
        groups = kl.unsqueeze(-1)
        if self.free_bits_per != "latent":
            ((q, p),) = trace.levels
            groups = kl_per_dimension(q, p).flatten(1)
            if self.free_bits_per == "channel":
                groups = groups.view(len(groups), q.event_shape[0], -1).sum(-1)
        paid = groups.detach().mean(0) > self.free_bits
        return groups.where(paid, groups.new_tensor(self.free_bits)).sum(-1)
