"""What a density that an equation gives rests on: the solver, its evaluations, and how far off it is."""

from __future__ import annotations

from typing import NamedTuple

import torch

from latentflows.core.batches import Batch
from latentflows.core.noise import Purpose, stream
from latentflows.distributions.flow_matching import ContinuousPushforward
from latentflows.evaluation.base import Protocol, Use, finite
from latentflows.models.vae import VAE

_POINTS = 64  # latents that the error is measured on


class Integration(NamedTuple):
    """The solution of the equation behind log p(z), measured at latents z ~ q(z|x).

    Attributes:
        solver: Method and number of steps, or tolerance; in words, with the probes of an estimated divergence.
        evaluations: Of the velocity for one log p(z), mean over the latents.
        error: How much log p(z) moves with half the step, or a tenth of the tolerance, nats, mean over the latents.
        probe_error: Standard error of log p(z) over the probes of an estimated divergence, nats, mean over the latents;
            None for an exact one, and for a single probe.
    """

    solver: str
    evaluations: float
    error: float
    probe_error: float | None

    def protocol(self) -> Protocol:
        """Return what is stored with a figure."""
        return {
            "prior_solver": self.solver,
            "solver_evaluations": self.evaluations,
            "solver_error": finite(self.error),
            "probe_error": self.probe_error,
        }


def integration_of(model: VAE, batch: Batch, *, seed: int) -> Integration | None:
    """Measure the solver behind the prior's density at up to 64 latents; None for a prior without an equation.

    Cost: that of four densities of these latents.
    """
    size = slice(0, _POINTS)
    context = None if batch.context is None else batch.context[size]
    p = model.prior_at(context)
    if not isinstance(p, ContinuousPushforward):
        return None
    with stream(seed, Purpose.EVALUATION, Use.LATENTS, 0, 1), torch.no_grad():
        z = model.encode(batch.x[size], context).sample()
        scored, error = p.scored(z), p.solver_error(z)
    solver = str(p.solver)
    probes = None
    if p.num_probes is not None:
        solver += f", divergence estimated from {p.num_probes} probes"
        probes = finite(float(scored.standard_error.mean()))
    evaluations = float(scored.num_evaluations.double().mean())
    return Integration(solver, evaluations, float(error.double().mean()), probes)
