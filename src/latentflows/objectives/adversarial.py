"""Adversarial fit of a flow prior: a critic with a gradient penalty and a sampler, in turns (EVaLP)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError
from latentflows.distributions.energy import AdversarialPrior
from latentflows.distributions.normalizer import logits_of
from latentflows.models.density import Model
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import Objective, Value, value_of
from latentflows.objectives.requirements import require_prior

Turn = Literal["both", "critic", "sampler"]


@dataclass(frozen=True)
class LatentWasserstein(Objective):
    r"""Fit an `AdversarialPrior` to posterior samples, critic and sampler taking turns.

    The critic E minimizes, `critic_steps` times in a row,

    .. math:: E_{q(z)}[E(z)] - E_{g}[E(z)] + \lambda \, (|\nabla E(\hat z)| - 1)^2

    with z hat on the lines between both; then the sampler g minimizes once

    .. math:: E_{g}[E(z)] + w \, E_g[\log g(z) - \log N(z; 0, I)]

    With w near 0 this is a WGAN-GP in the latent space, and nothing keeps the flow's density wide: it may lie on a thin
    sheet, good draws and an NLL without bound at once. So both are told.

    Metrics: `wasserstein`, E_g[E] - E_q[E]; `gradient_penalty`; `sampler_kl`, log g - log N(0, I) at draws of g;
    `energy_distance`, an unbiased estimate of 2 E|z - y| - E|z - z'| - E|y - y'| between samples z and draws y, zero
    for equal distributions, which chooses the best weights; `prior_nll`, -log g at posterior samples, exact.

    Cost per step: one draw and one density of the flow, three passes of the critic and a second derivative of it;
    O(B^2 D) for the energy distance.

    Args:
        gradient_penalty: lambda.
        divergence_weight: w.
        critic_steps: Steps of the critic before each one of the sampler.
        turn: Set by `at`; "both" is what evaluation sees, where the loss is the sampler's.

    References:
        Dutta et al., Learning Energy-based Variational Latent Prior for VAEs, 2025, arXiv 2510.00260; Gulrajani et al.,
        Improved Training of Wasserstein GANs, 2017, arXiv 1704.00028, eq. 3; Szekely & Rizzo, Energy statistics, 2013
        (energy distance).
    """

    gradient_penalty: float = 10.0
    divergence_weight: float = 1e-8
    critic_steps: int = 5
    turn: Turn = "both"
    metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "wasserstein",
        "gradient_penalty",
        "sampler_kl",
        "energy_distance",
        "prior_nll",
    )
    prior_only: ClassVar[bool] = True
    compiles: ClassVar[bool] = False  # it differentiates twice

    def __post_init__(self) -> None:
        if not self.gradient_penalty >= 0 or not self.divergence_weight >= 0:
            raise ConfigurationError(
                "`gradient_penalty` and `divergence_weight` must be at least 0; got "
                f"{self.gradient_penalty} and {self.divergence_weight}."
            )
        if not isinstance(self.critic_steps, int) or self.critic_steps < 1:
            raise ConfigurationError(f"`critic_steps` must be a positive integer; got {self.critic_steps!r}.")

    def check(self, model: Model) -> None:
        super().check(model)
        require_prior(type(self).__name__, model, AdversarialPrior)

    def at(self, step: int) -> LatentWasserstein:
        """Return the turn of this step: `critic_steps` of the critic, then one of the sampler."""
        last = step % (self.critic_steps + 1) == self.critic_steps
        return replace(self, turn="sampler" if last else "critic")

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        with model.standard_prior():  # which is not asked: the prior's own would estimate a normalizer
            trace = model.trace(x, 1, context=context, with_likelihood=False, with_densities=False)
        prior = model.prior
        assert isinstance(prior, AdversarialPrior)
        z = trace.z[0].detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.turn != "critic"):
            flow = prior.sampler()
            drawn, log_g = flow.sample_and_log_prob((len(z),))
            with torch.no_grad():
                nll = -flow.log_prob(z)
        critic = prior.critic if self.turn == "critic" else _Frozen(prior.critic)
        if self.turn == "critic":
            prior.critic_turn()
        at_z, at_drawn = (logits_of(critic, y, prior.event_shape, "AdversarialPrior") for y in (z, drawn))
        trace.penalties.update(
            wasserstein=at_drawn - at_z,
            gradient_penalty=self._penalty(critic, z, drawn),
            sampler_energy=at_drawn,
            sampler_kl=log_g - prior.standard().log_prob(drawn),
            energy_distance=_energy_distance(z, drawn.detach()),
            prior_nll=nll,
        )
        return trace

    def _penalty(self, critic: nn.Module, z: Tensor, drawn: Tensor) -> Tensor:
        """Return (|grad E| - 1)^2 at a point of the line between each z and its draw, (B,)."""
        share = noise.uniform((len(z), *[1] * (z.ndim - 1)), like=z)
        with torch.enable_grad():
            point = torch.lerp(z, drawn.detach().to(z.dtype), share).requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(point).sum(), point, create_graph=self.turn == "critic")
        return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square()

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        terms = trace.penalties
        if self.turn == "critic":
            points = self.gradient_penalty * terms["gradient_penalty"] - terms["wasserstein"]
        else:
            points = terms["sampler_energy"] + self.divergence_weight * terms["sampler_kl"]
        return value_of(points, {name: terms[name] for name in self.metrics if name != "loss"})

    def score(self, figures: dict[str, float]) -> float:
        return -figures["energy_distance"]


class _Frozen(nn.Module):
    """A network whose parameters get no gradient, while its input does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = [network]  # in a list, so that it is not registered
        self._fixed = {name: p.detach() for name, p in network.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self._network[0], self._fixed, (x,))


@torch.no_grad()
def _energy_distance(z: Tensor, drawn: Tensor) -> Tensor:
    """Return the share of each point in the unbiased energy distance, (B,); biased by the last two terms for B = 1."""
    a, b = z.flatten(1), drawn.flatten(1).to(z.dtype)
    others = max(len(a) - 1, 1)
    between = torch.cdist(a, b)
    within = torch.cdist(a, a).sum(1) / others + torch.cdist(b, b).sum(1) / others
    return between.mean(1) + between.mean(0) - within
