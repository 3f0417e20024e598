"""Draws from a density known up to its constant: importance resampling and Langevin dynamics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, NonFiniteError
from latentflows.core.precision import check_positive
from latentflows.distributions.base import Distribution

_TOGETHER = 1 << 16  # proposals weighted together
_FEW_MOVES = 0.1  # mean acceptance below which a warning is given

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImportanceResampling:
    r"""Draw M proposals and keep one of them, with probability proportional to its weight; anew for every draw.

    The draws' density tends to p as M grows; for finite M it lies between that of the proposals and p.
    Cost: M passes of the energy per draw.

    Args:
        num_proposals: M.

    References:
        Rubin, Using the SIR algorithm to simulate posterior distributions, 1988; Aneja et al., A Contrastive Learning
        Approach for Training Variational Autoencoder Priors, 2021, arXiv 2010.02917, section 3 (as a sampler).
    """

    num_proposals: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.num_proposals, int) or self.num_proposals < 2:
            raise ConfigurationError(
                f"`num_proposals` must be an integer of at least 2; got {self.num_proposals!r}."
            )

    @torch.no_grad()
    def draw(self, proposal: Distribution, log_weight: LogDensity, count: int) -> Tensor:
        """Draw (count, *event).

        Args:
            proposal: Without batch axes.
            log_weight: log p - log proposal up to a constant, (N, *event) to (N,).
            count: How many.

        Raises:
            NonFiniteError: if a weight is NaN or infinite, or all weights of a draw are zero.
        """
        drawn = []
        step = max(1, _TOGETHER // self.num_proposals)
        for start in range(0, count, step):
            rows = min(step, count - start)
            z = proposal.sample((self.num_proposals, rows))
            log_w = log_weight(z).double()
            total = log_w.logsumexp(0)
            if bool(log_w.isnan().any()) or not bool(total.isfinite().all()):
                raise NonFiniteError(
                    "Importance weights must be finite and not all zero; got others. The energy has diverged: take an "
                    "earlier checkpoint."
                )
            cumulative = (log_w - total).exp().cumsum(0)
            chosen = (cumulative < noise.uniform((rows,), like=cumulative) * cumulative[-1]).sum(0)
            drawn.append(z[chosen, torch.arange(rows, device=z.device)])
        return torch.cat(drawn)


@dataclass(frozen=True)
class Langevin:
    r"""Metropolis-adjusted Langevin dynamics, started from draws of the base.

    .. math:: u' = u + \tfrac12 \epsilon^2 \nabla \log p(u) + \epsilon \xi, \quad \xi \sim N(0, I)

    accepted with the Metropolis-Hastings probability, so that p is invariant for any step size. After finitely many
    steps the draws are still on their way from the base to p, and modes that no path connects keep the base's shares.
    Cost: `num_steps` forward and backward passes per draw.

    Args:
        num_steps: Steps.
        step_size: epsilon; about 1.6 D^(-1/6) suits a Gaussian of unit scale in D dimensions.

    References:
        Roberts & Tweedie, Exponential convergence of Langevin distributions and their discrete approximations, 1996;
        Aneja et al. 2021, arXiv 2010.02917, section 3 (unadjusted, as a sampler).
    """

    num_steps: int = 100
    step_size: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ConfigurationError(f"`num_steps` must be a positive integer; got {self.num_steps!r}.")
        check_positive("step_size", self.step_size)

    def draw(self, log_density: LogDensity, start: Tensor) -> Tensor:
        """Move `start` (N, *event) by all steps, without gradient.

        A warning is given where fewer than one move in ten was accepted.

        Raises:
            NonFiniteError: if a density is NaN: it would pass for a rejection.
        """
        u, (log_p, slope) = start, _with_gradient(log_density, start)
        accepted = torch.zeros((), device=start.device)
        for _ in range(self.num_steps):
            xi = noise.standard_normal(tuple(u.shape), like=u)
            proposed = u + 0.5 * self.step_size**2 * slope + self.step_size * xi
            new_log_p, new_slope = _with_gradient(log_density, proposed)
            back = (u - proposed) / self.step_size - 0.5 * self.step_size * new_slope
            ratio = new_log_p - log_p + 0.5 * (xi.flatten(1).square() - back.flatten(1).square()).sum(1)
            ratio = torch.where(new_log_p == -math.inf, -math.inf, ratio)
            if bool(ratio.isnan().any()):
                raise NonFiniteError(
                    "The density or its gradient is NaN on the way. The energy has diverged: take an earlier "
                    "checkpoint, or a smaller `step_size`."
                )
            move = noise.uniform(tuple(ratio.shape), like=ratio).log() < ratio
            accepted += move.float().mean() / self.num_steps
            wide = move.view(-1, *[1] * (u.ndim - 1))
            u, slope = torch.where(wide, proposed, u), torch.where(wide, new_slope, slope)
            log_p = torch.where(move, new_log_p, log_p)
        if bool(accepted < _FEW_MOVES):
            warnings.warn(
                f"Langevin dynamics accepted {float(accepted):.1%} of its moves: the draws are still close to the "
                f"base. Take a smaller `step_size` than {self.step_size}.",
                RuntimeWarning,
                stacklevel=2,
            )
        return u


def _with_gradient(log_density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(u), (N,), and its gradient in u."""
    with torch.enable_grad():
        point = u.detach().requires_grad_(True)
        log_p = log_density(point)
        (gradient,) = torch.autograd.grad(log_p.sum(), point)
    return log_p.detach(), gradient
