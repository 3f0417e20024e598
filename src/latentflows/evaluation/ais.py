"""Annealed importance sampling: log p(x) without trusting the encoder, and bounds from both sides on simulated data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import ShapeError
from latentflows.core.noise import Purpose, stream
from latentflows.evaluation.annealing import Annealing, Chains, checked_density
from latentflows.evaluation.base import (
    Block,
    Figures,
    Protocol,
    Use,
    check_event,
    check_positive_integers,
    check_values,
    checked_count,
    draw_once,
    figure,
    log_mean_weight,
    on_model,
)
from latentflows.models.inference import evaluation_mode, to_model
from latentflows.models.vae import VAE


@dataclass(frozen=True)
class AnnealedEvidence:
    """Annealed estimates of log p(x) for every image, in nats, float64 on the CPU, each of shape (n,).

    Attributes:
        log_evidence: log of the mean weight of the chains; a lower bound on log p(x) in expectation.
        monte_carlo_variance: Its variance due to finitely many chains, by the delta method; NaN for one chain.
        effective_sample_size: (sum w)^2 / sum w^2 over the chains, between 1 and C.
        acceptance: Share of accepted moves; NaN where there are none (T = 1).
        protocol: How it was measured.
    """

    log_evidence: Tensor
    monte_carlo_variance: Tensor
    effective_sample_size: Tensor
    acceptance: Tensor
    protocol: Protocol

    def figures(self) -> Figures:
        """Return the means over images with their errors, in the form of `Bounds.figures`."""
        return {
            "annealed_nll": figure(-self.log_evidence, "nats", self.monte_carlo_variance),
            "annealed_effective_sample_size": {
                "mean": float(self.effective_sample_size.mean()),
                "minimum": float(self.effective_sample_size.min()),
                "unit": "chains",
            },
            "acceptance": figure(self.acceptance, "share"),
        }


@dataclass(frozen=True)
class BidirectionalEvidence:
    """Bounds on log p(x) from both sides, of data drawn from the model, in nats, each of shape (n,).

    Attributes:
        lower: A lower bound on log p(x) in expectation, from chains that end at the posterior.
        upper: An upper bound in expectation, from chains that start at the latent that x was drawn from.
        lower_variance: Variance of `lower` due to finitely many chains; NaN for one chain.
        upper_variance: The same for `upper`; the chains share their start, so it is a lower bound.
        acceptance: Share of accepted moves, of both directions.
        protocol: How it was measured.
    """

    lower: Tensor
    upper: Tensor
    lower_variance: Tensor
    upper_variance: Tensor
    acceptance: Tensor
    protocol: Protocol

    def figures(self) -> Figures:
        """Return the means over images with their errors, in the form of `Bounds.figures`."""
        return {
            "simulated_log_evidence_lower": figure(self.lower, "nats", self.lower_variance),
            "simulated_log_evidence_upper": figure(self.upper, "nats", self.upper_variance),
            "simulated_gap": figure(
                self.upper - self.lower, "nats", self.lower_variance + self.upper_variance
            ),
            "acceptance": figure(self.acceptance, "share"),
        }


def evaluate_annealed(
    model: VAE,
    source: DataSource,
    settings: Annealing | None = None,
    *,
    num_images: int | None = None,
    seed: int = 0,
) -> AnnealedEvidence:
    r"""Estimate log p(x) of every image by annealed importance sampling, as a check on the importance-weighted bound.

    Chains move from a start f_0 (the prior or q(z|x)) to f_1 = p(x, z) through f_b = f_0^{1-b} f_1^b:

    .. math:: \log w = \sum_{t=1}^T (b_t - b_{t-1}) [\log f_1(z_{t-1}) - \log f_0(z_{t-1})],
              \quad b_t \propto \sigma(8 t / T - 4) - \sigma(-4)

    and z_t comes from z_{t-1} by one Hamiltonian move that leaves f_{b_t} invariant (L leapfrog steps, then accept or
    reject). E[w] = p(x) exactly, for any T, so the log of the mean weight is a lower bound on log p(x) in expectation,
    tighter with T and C. The stated error knows the drawn chains alone, as in `evaluate_bounds`.

    Step sizes that follow a chain's own acceptance would break E[w] = p(x). Here other chains find them: a pilot adapts
    one step size per image along the path, and the chains that count then use that schedule as it stands. Units are the
    standard deviations of the start, per variable. A move whose end is NaN or infinite is rejected.

    The numbers of an image do not depend on how many images follow. Cost: n (C + C_pilot) T (L + 1) gradients of
    decoder, prior and start; the pilot makes at least `num_pilot_moves`, also for small T. Memory: max_latents * 2 *
    (activations of decoder, prior and start per latent) * 4 bytes, and 16 numbers per chain and latent variable.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was.
        source: Data points; their noise is drawn once, as `draw_once` with the same seed draws it.
        settings: Sizes and start; None for the defaults.
        num_images: Only the first n of the source; None for all.
        seed: Seed of the chains, and of the source's noise.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: if the prior's density is an estimate or unnormalized, latents are discrete, the posterior
            cannot start the chains, or data and likelihood do not fit.
        ShapeError: for data of another shape than the model's.
        LatentFlowsError: if a log weight is NaN or +inf.

    References:
        Neal, Annealed Importance Sampling, 2001, Statistics and Computing 11; Wu et al., On the Quantitative Analysis
        of Decoder-Based Generative Models, 2017, arXiv 1611.04273; Neal, MCMC using Hamiltonian dynamics, 2011.
    """
    settings = settings or Annealing()
    count = checked_count(num_images, len(source))
    check_event(model, source)
    check_values(model, source)
    block_size = settings.block_size
    data = draw_once(source, min(-(-count // block_size) * block_size, len(source)), seed=seed)
    parts = []
    with evaluation_mode(model), torch.no_grad(), values_unchecked():
        density = checked_density(model, data.context, settings)
        for start in range(0, count, block_size):
            batch = data.batch(torch.arange(start, min(start + block_size, len(data))))
            block = Block(start, *on_model(model, batch))
            chains = Chains(model, block, min(count - start, len(block.x)), settings, seed)
            log_weight, acceptance = chains.forward()
            parts.append((*log_mean_weight(log_weight), acceptance))
    evidence, variance, effective, acceptance = _joined(parts)
    protocol = settings.protocol(seed=seed, num_images=count, prior_density=density)
    return AnnealedEvidence(evidence, variance, effective, acceptance, protocol)


def evaluate_bidirectional(
    model: VAE,
    settings: Annealing | None = None,
    *,
    num_images: int = 64,
    context: Tensor | None = None,
    seed: int = 0,
) -> BidirectionalEvidence:
    r"""Bound log p(x) from both sides on data drawn from the model: how far annealing is off at most.

    With z* ~ p(z) and x ~ p(x|z*), z* is an exact draw of the posterior of x. Chains that run from z* along the same
    path backwards have weights w' with E[w'] = 1 / p(x), so -log of their mean is an upper bound in expectation. A
    small gap says that the settings are good enough for this model; it says so for data like the model's own. Given
    contexts, x is drawn from p(x|c), and both are bounds on log p(x|c).

    Cost: twice that of `evaluate_annealed`.

    Args:
        model: In any mode.
        settings: Sizes and start; None for the defaults.
        num_images: n, data points drawn.
        context: (n, *context) for a model that is given one.
        seed: Seed of data and chains.

    Raises:
        ConfigurationError: for settings out of range.
        ShapeError: if the contexts are not one row per data point, or given to a model that takes none.
        CombinationError: as `evaluate_annealed`.
        LatentFlowsError: if a log weight is NaN or +inf.

    References:
        Grosse et al., Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015, arXiv 1511.02543;
        Wu et al., 2017, arXiv 1611.04273, section 4.2.
    """
    settings = settings or Annealing()
    check_positive_integers(num_images=num_images)
    _check_context(model, context, num_images)
    parts = []
    with evaluation_mode(model), torch.no_grad(), values_unchecked():
        given = None if context is None else to_model(model, context)
        density = checked_density(model, given, settings)
        for start in range(0, num_images, settings.block_size):
            full = (
                settings.block_size
            )  # drawn whole, so that no number depends on how many data points follow
            rows = (
                None if given is None else given[torch.arange(start, start + full).clamp(max=num_images - 1)]
            )
            with stream(seed, Purpose.EVALUATION, Use.SIMULATION, start, 0):
                latents = model.sample_latents(full, context=rows)
                x = model.decode(latents, rows).sample()
            count = min(num_images - start, full)
            chains = Chains(model, Block(start, x, rows), count, settings, seed)
            forward, accepted = chains.forward()
            backward, also_accepted = chains.backward(latents)
            lower, upper = log_mean_weight(forward), log_mean_weight(backward)
            acceptance = (accepted + also_accepted) / 2
            parts.append((lower[0], -upper[0], lower[1], upper[1], acceptance))
    low, high, low_variance, high_variance, acceptance = _joined(parts)
    protocol = settings.protocol(seed=seed, num_images=num_images, prior_density=density)
    return BidirectionalEvidence(low, high, low_variance, high_variance, acceptance, protocol)


def _check_context(model: VAE, context: Tensor | None, num_images: int) -> None:
    if model.context_shape is None and context is None:
        return
    expected = None if model.context_shape is None else (num_images, *model.context_shape)
    got = None if context is None else tuple(context.shape)
    if got != expected:
        what = (
            "`context` must be None: the model takes none"
            if expected is None
            else (f"`context` must hold one row per data point, {expected}")
        )
        raise ShapeError(f"{what}; got {'none' if got is None else got}.")


def _joined(parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
