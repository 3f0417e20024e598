"""How far a density is from one that is known: the KL divergence in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, NonFiniteError
from latentflows.core.noise import Purpose, stream
from latentflows.evaluation.base import (
    Figures,
    Use,
    checked_count,
    draw_once,
    figure,
    finite,
    log_mean_weight,
)
from latentflows.evaluation.exact import evaluate_likelihood
from latentflows.models.density import DensityModel
from latentflows.models.inference import evaluation_mode, to_model


@dataclass(frozen=True)
class TargetDivergence:
    """Differences of the two log-densities, nats, float64 on the CPU.

    Attributes:
        forward: log p*(x) - log p(x) at draws of the target p*, (n,).
        reverse: log p(x) - log p*(x) at draws of the model p, (n,).
        density: What the model's log p(x) is: "exact", "estimate" or "approximate", as its class says.
    """

    forward: Tensor
    reverse: Tensor
    density: str

    def figures(self) -> Figures:
        """Return KL(p* || p), KL(p || p*) and how many draws of p are worth as draws of p*, by importance weights."""
        _, _, effective = log_mean_weight(-self.reverse.unsqueeze(1))
        share = finite(float(effective) / len(self.reverse))
        return {
            "forward_kl": figure(self.forward, "nats"),
            "reverse_kl": figure(self.reverse, "nats"),
            "effective_share": {"mean": share, "standard_error": None, "unit": "share of draws"},
        }


def evaluate_target(
    model: DensityModel,
    source: DataSource,
    energy: Callable[[Tensor], Tensor],
    log_normalizer: float,
    *,
    num_points: int | None = None,
    seed: int = 0,
) -> TargetDivergence:
    r"""Estimate the KL divergence between a model p and a target, in both directions, without bias.

    .. math:: p^*(x) = e^{-U(x)} / Z, \quad KL(p^* \| p) = E_{p^*}[\log p^* - \log p], \quad
        KL(p \| p^*) = E_p[\log p - \log p^*]

    A mode that the model lacks shows in the first, which is then large; the second does not see it. Estimates of a KL
    near 0 may be below 0.

    Cost: n densities and n draws of the model, and 2 n energies. Memory: that of one pass over n points.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was. Without a context.
        source: Draws of the target.
        energy: U, from (n, *event) to (n,).
        log_normalizer: log Z.
        num_points: n, the first so many of the source, and as many draws; None for all.
        seed: Of the draws.

    Raises:
        ConfigurationError: if `num_points` is out of range.
        CombinationError: for a density without a known constant or an inverse, or one whose logarithm is an estimate.
        ShapeError: for data of another shape than the model's, or a model with a context.
        NonFiniteError: if a log-density is NaN or infinite.

    References:
        Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference, 2021, arXiv 1912.02762,
        section 2.3.
    """
    if not model.density.weighable:
        raise CombinationError(
            "The share of draws that count is a mean of exp(log p), which is biased upward where log p is an estimate. "
            "Make the divergence exact (`cnf(exact=True)`)."
        )
    points = draw_once(source, checked_count(num_points, len(source), name="num_points"), seed=seed)
    scored = evaluate_likelihood(model, points, seed=seed)
    with evaluation_mode(model), torch.no_grad(), stream(seed, Purpose.EVALUATION, Use.TARGET, 0, 0):
        drawn = model.draw(1, len(points))
        reverse = drawn.log_posterior[0].double() + energy(drawn.z[0]).double() + log_normalizer
        forward = scored.nll - energy(to_model(model, points.x)).double().cpu() - log_normalizer
    if not (reverse.isfinite().all() and forward.isfinite().all()):
        raise NonFiniteError(
            "Log-densities and energies must be finite; got others. The model has diverged. Take an earlier checkpoint."
        )
    return TargetDivergence(forward, reverse.cpu(), scored.density)
