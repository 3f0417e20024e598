"""Chains of annealed importance sampling: Hamiltonian moves along the path from a start to p(x, z)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentflows.core.errors import CombinationError, ConfigurationError, NonFiniteError
from latentflows.core.noise import Purpose, standard_normal, stream, uniform
from latentflows.core.shapes import size
from latentflows.evaluation.base import Block, Protocol, Use, check_positive_integers, check_weighable
from latentflows.models.inference import to_model
from latentflows.models.vae import VAE

Densities = Callable[[Tensor], tuple[Tensor, Tensor]]

_BLOCK_LATENTS = 1024  # chains moved together, over all images of a block
_SCALE_DRAWS = 64  # draws of the start from which the chains' units are measured
_WARM_MOVES = 20  # moves at the first temperature that find a first step size
_GAIN = 0.2  # change of a log step size per unit of acceptance off its target
_TARGET = 0.65  # acceptance of Hamiltonian moves that costs least (Neal 2011, section 5.4.4)


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

    Attributes:
        num_temperatures: T, distributions after the start; 1 is plain importance sampling from the start.
        num_chains: C, independent chains per image.
        num_leapfrog_steps: L, gradients per move.
        num_pilot_chains: Chains per image that find the step sizes and are then thrown away.
        num_pilot_moves: Their moves over all temperatures, at least, so that step sizes can follow where T is small.
        start: Where chains start: "prior", which owes nothing to the encoder; or "posterior", q(z|x), which needs
            fewer temperatures, and a posterior that scores points it did not draw.
        max_latents: Latents differentiated together; bounds memory and changes rounding alone.

    Raises:
        ConfigurationError: for settings out of range.
    """

    num_temperatures: int = 500
    num_chains: int = 16
    num_leapfrog_steps: int = 10
    num_pilot_chains: int = 4
    num_pilot_moves: int = 200
    start: Literal["prior", "posterior"] = "prior"
    max_latents: int = 1024

    def __post_init__(self) -> None:
        check_positive_integers(
            num_temperatures=self.num_temperatures,
            num_chains=self.num_chains,
            num_leapfrog_steps=self.num_leapfrog_steps,
            num_pilot_chains=self.num_pilot_chains,
            num_pilot_moves=self.num_pilot_moves,
            max_latents=self.max_latents,
        )
        if self.start not in ("prior", "posterior"):
            raise ConfigurationError(f'`start` must be "prior" or "posterior"; got {self.start!r}.')

    @property
    def block_size(self) -> int:
        """Images whose chains move together."""
        return max(1, _BLOCK_LATENTS // self.num_chains)

    def protocol(self, **more: str | int | None) -> Protocol:
        """Return how figures with these settings were measured."""
        return {
            "estimator": "annealed importance sampling, Hamiltonian moves, geometric path, sigmoid schedule",
            "start": self.start,
            "num_temperatures": self.num_temperatures,
            "num_chains": self.num_chains,
            "num_leapfrog_steps": self.num_leapfrog_steps,
            "step_sizes": f"per image and temperature, from {self.num_pilot_chains} other chains",
            **more,
        }


class Chains:
    """The chains of the first `count` images of a block.

    Noise is drawn for all images of the block, so that it does not depend on `count`.
    """

    def __init__(self, model: VAE, block: Block, count: int, settings: Annealing, seed: int) -> None:
        self.model, self.block, self.count, self.settings = model, block, count, settings
        self.key = (seed, Purpose.EVALUATION, Use.ANNEALING, block.start)
        ramp = torch.linspace(-4, 4, settings.num_temperatures + 1, dtype=torch.float64).sigmoid()
        self.betas = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
        draws = self._start(_SCALE_DRAWS, 0)
        self.scale = draws.std(0).clamp(min=torch.finfo(draws.dtype).tiny)
        images = max(1, settings.max_latents // settings.num_chains)
        self.pieces = [self._piece(slice(i, min(i + images, count))) for i in range(0, count, images)]
        self.steps = self._tuned_steps()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Run from the start to p(x, z): log weights (C, B) and acceptance (B,)."""
        return self._anneal(self._start(self.settings.num_chains, 1), self.betas, self.steps, 2)

    def backward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Run from exact posterior draws (block, *latent) back to the start."""
        z = latents[: self.count].expand(self.settings.num_chains, *latents[: self.count].shape)
        return self._anneal(z, self.betas[::-1], self.steps.flip(0), 3)

    def _start(self, num: int, what: int) -> Tensor:
        """Draw (num, B, *latent) of the start."""
        with stream(*self.key, 10 * what):
            if self.settings.start == "posterior":
                z = self.model.encode(self.block.x, self.block.context).sample((num,))
            else:
                p = self.model.prior_at(self.block.context)
                z = p.sample((num,) if p.batch_shape else (num, len(self.block.x)))
        return z[:, : self.count]

    def _piece(self, part: slice) -> tuple[slice, Densities]:
        """Return the images `part` and the log-densities (start, p(x, z) over start) of their latents."""
        x, context = self.block.x[part], None if self.block.context is None else self.block.context[part]
        p = self.model.prior_at(context)
        q = self.model.encode(x, context) if self.settings.start == "posterior" else None

        def densities(z: Tensor) -> tuple[Tensor, Tensor]:
            log_likelihood = self.model.decode(z, context).log_prob(x).double()
            log_prior = p.log_prob(z).double()
            if q is None:
                return log_prior, log_likelihood
            log_start = q.log_prob(z).double()
            return log_start, log_prior + log_likelihood - log_start

        return part, densities

    def _tempered(self, z: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return log f_beta (C, B), log f_1 - log f_0 (C, B), and the gradient of the first (C, B, *latent)."""
        parts = []
        for part, densities in self.pieces:
            with torch.enable_grad():
                piece = z[:, part].detach().requires_grad_()
                log_start, difference = densities(piece)
                log_f = log_start + beta * difference
                (gradient,) = torch.autograd.grad(log_f.sum(), piece)
            parts.append((log_f.detach(), difference.detach(), gradient))
        log_f, difference, gradient = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        return log_f, difference, gradient

    def _move(
        self, z: Tensor, beta: float, step: Tensor, before: tuple[Tensor, Tensor], *key: int
    ) -> tuple[Tensor, Tensor]:
        """Move every chain once; `before` is log f_beta and its gradient at z. Return chains and acceptance (C, B)."""
        shape = (len(z), len(self.block.x), *z.shape[2:])
        with stream(*self.key, *key):
            momentum = standard_normal(shape, like=z)[:, : self.count]
            threshold = uniform(shape[:2], like=z)[:, : self.count]
        size_of_step = step.to(z).view(-1, *[1] * (z.ndim - 2)) * self.scale
        log_f, gradient = before
        energy = log_f - 0.5 * momentum.double().square().flatten(2).sum(-1)
        end, num_steps = z, self.settings.num_leapfrog_steps
        momentum = momentum + 0.5 * size_of_step * gradient
        for i in range(num_steps):
            end = end + size_of_step * momentum
            log_f, _, gradient = self._tempered(end, beta)
            momentum = momentum + (1 if i + 1 < num_steps else 0.5) * size_of_step * gradient
        change = log_f - 0.5 * momentum.double().square().flatten(2).sum(-1) - energy
        acceptance = torch.where(change.isnan(), 0, change.exp().clamp(max=1))
        taken = (threshold < acceptance).view(*acceptance.shape, *[1] * (z.ndim - 2))
        return torch.where(taken, end, z), acceptance

    def _tuned_steps(self) -> Tensor:
        """Return step sizes (T - 1, B) that a pilot found: of the temperatures between the two ends."""
        z = self._start(self.settings.num_pilot_chains, 4)
        step = torch.full((self.count,), size(self.model.latent_shape) ** -0.25, dtype=torch.float64)
        step = step.to(z.device)
        inner = self.betas[1:-1]
        found = []
        for t, beta in enumerate(inner):
            for i in range(-(-self.settings.num_pilot_moves // len(inner)) + (0 if t else _WARM_MOVES)):
                log_f, _, gradient = self._tempered(z, beta)
                z, acceptance = self._move(z, beta, step, (log_f, gradient), 5, t, i)
                step = step * (_GAIN * (acceptance.mean(0) - _TARGET)).exp()
            found.append(step)
        return torch.stack(found) if found else step.new_empty(0, self.count)

    def _anneal(self, z: Tensor, betas: list[float], steps: Tensor, what: int) -> tuple[Tensor, Tensor]:
        log_weight = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
        accepted = torch.zeros(self.count, dtype=torch.float64, device=z.device)
        for t in range(1, len(betas)):
            log_f, difference, gradient = self._tempered(z, betas[t])
            log_weight = log_weight + (betas[t] - betas[t - 1]) * difference
            if t + 1 < len(betas):
                z, acceptance = self._move(z, betas[t], steps[t - 1], (log_f, gradient), what, t)
                accepted = accepted + acceptance.mean(0)
        _check_weights(log_weight, self.block.start)
        moves = len(betas) - 2
        return log_weight, accepted / moves if moves else accepted * torch.nan


def checked_density(model: VAE, context: Tensor | None, settings: Annealing) -> str:
    """Refuse what cannot be annealed; return what the prior's density is."""
    if model.prior_type.discrete:
        raise CombinationError(
            "Annealing moves latents along gradients, but those of this model are discrete. Use `evaluate_bounds`."
        )
    first = None if context is None or model.context_shape is None else to_model(model, context[:1])
    p = model.prior_at(first)
    if p.density in ("estimate", "unnormalized"):
        fix = (
            "Use `evaluate_bounds`"
            if p.density == "estimate"
            else "Normalize it, or compare ELBOs of one prior"
        )
        raise CombinationError(
            f"Annealing needs the density of the prior, and that of this one is {p.density}. {fix}."
        )
    check_weighable(model, p, posterior=settings.start == "posterior")
    exact = model.posterior.has_density and model.posterior.distribution_type.density == "exact"
    if settings.start == "posterior" and not exact:
        raise CombinationError(
            "Chains that start at the posterior need its density at points that it did not draw, but "
            'this one does not have it. Use start="prior".'
        )
    return p.density


def _check_weights(log_weight: Tensor, start: int) -> None:
    broken = (log_weight.isnan() | (log_weight == torch.inf)).any(0).nonzero()[:, 0].tolist()
    if broken:
        raise NonFiniteError(
            f"Log weights must be below +inf and not NaN; got others for {len(broken)} of the first "
            f"{start + log_weight.shape[1]} images (the first is image {start + broken[0]}). The model has diverged, "
            "or one of its parts overflows. Take an earlier checkpoint."
        )
