"""Why the ELBO is below log p(x): the posterior's family, or the encoder that must serve every image at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, LatentFlowsError
from latentflows.core.noise import Purpose, stream
from latentflows.core.precision import check_positive
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.flow import Flow, Pushforward
from latentflows.distributions.gaussian import AmortizedGaussian, DiagonalNormal, FullNormal
from latentflows.distributions.low_rank import LowRankNormal
from latentflows.evaluation.ais import Annealing, evaluate_annealed
from latentflows.evaluation.base import (
    Block,
    Figures,
    Protocol,
    Use,
    blocks,
    check_event,
    check_positive_integers,
    check_values,
    check_weighable,
    checked_count,
    draw_once,
    figure,
    log_mean_weight,
)
from latentflows.models.inference import evaluation_mode
from latentflows.models.vae import VAE

_BLOCK_LATENTS = 1024  # latents differentiated together
_SCORED_LATENTS = 4096  # latents scored together, without gradients


@dataclass(frozen=True)
class Gaps:
    """The three levels between the ELBO and log p(x) of every image, in nats, float64 on the CPU, each of shape (n,).

    Attributes:
        log_evidence: Estimate of log p(x), a lower bound in expectation.
        best_elbo: ELBO of the best posterior of the family found for this image alone.
        amortized_elbo: ELBO of the encoder's posterior.
        unfinished: What the last quarter of the optimization still added to `best_elbo`.
        approximation_variance: Variance of `log_evidence` - `best_elbo` due to finitely many samples, by the delta
            method; importance sampling from q* scores both with the same samples.
        amortization_variance: Variance of `best_elbo` - `amortized_elbo`; both are scored with the same noise.
        protocol: How they were measured.
    """

    log_evidence: Tensor
    best_elbo: Tensor
    amortized_elbo: Tensor
    unfinished: Tensor
    approximation_variance: Tensor
    amortization_variance: Tensor
    protocol: Protocol

    @property
    def approximation_gap(self) -> Tensor:
        """What the family cannot reach, even for one image alone, (n,)."""
        return self.log_evidence - self.best_elbo

    @property
    def amortization_gap(self) -> Tensor:
        """What the encoder loses by serving all images, (n,)."""
        return self.best_elbo - self.amortized_elbo

    def figures(self) -> Figures:
        """Return the means over images with their errors, in the form of `Bounds.figures`."""
        return {
            "approximation_gap": figure(self.approximation_gap, "nats", self.approximation_variance),
            "amortization_gap": figure(self.amortization_gap, "nats", self.amortization_variance),
            "inference_gap": figure(self.log_evidence - self.amortized_elbo, "nats"),
            "best_elbo": figure(self.best_elbo, "nats"),
            "unfinished": figure(self.unfinished, "nats"),
        }


def evaluate_gaps(
    model: VAE,
    source: DataSource,
    *,
    num_images: int | None = None,
    evidence: Annealing | None = None,
    num_samples: int = 2000,
    num_steps: int = 1000,
    num_gradient_samples: int = 16,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Gaps:
    r"""Divide log p(x) - ELBO into the family's part and the encoder's part, by optimizing each image's posterior.

    .. math:: \log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_{approximation}
              + \underbrace{L[q^*] - L[q]}_{amortization}

    q* starts at the encoder's q(z|x), and Adam maximizes its ELBO for this image alone, with the decoder and the prior
    as they are. Free per image are:

    - Gaussian posterior: mean and log-scales, in units of the encoder's; of other covariances the factors. A
      scale that the encoder does not compute stays as it is;
    - flow: the parameters of a Gaussian base that reads the data, and the context features that reach the bijection
      (what `Flow.embed` gives), as a free vector. The bijection's weights stay.

    Biases. The optimization is finite, so `best_elbo` is too low: the approximation gap is too large and the
    amortization gap too small, by about what `unfinished` shows or more. log p(x) is by default the importance-weighted
    bound of q* itself, which is never below its ELBO; with few effective samples it is too low, and so is the
    approximation gap. Annealing does not depend on q*.

    The first n images have the same numbers in a larger evaluation where n is a multiple of 1024 / S_g. Cost:
    n S_g num_steps gradients of posterior, prior and decoder, and 3 n S passes of them. Memory: 1024 * 2 * (activations
    of all three per latent) * 4 bytes, and 3 S numbers in float64 per image of a block.

    Args:
        model: In any mode; given back as it was.
        source: Data points; their noise is drawn once, so that all levels see the same images.
        num_images: n, the first n of the source; None for all.
        evidence: Settings of annealing for log p(x); None for importance sampling from q*.
        num_samples: S, draws that score each posterior.
        num_steps: Steps of Adam, its learning rate falling to 0 along half a cosine.
        num_gradient_samples: S_g, draws per step.
        learning_rate: Of the first step.
        seed: Seed of everything drawn.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: if nothing of the posterior can be freed, the prior is unnormalized or its
            density cannot be a weight, or as `evaluate_annealed`.
        ShapeError: for data of another shape than the model's.
        LatentFlowsError: if an ELBO is NaN.

    References:
        Cremer, Li & Duvenaud, Inference Suboptimality in Variational Autoencoders, 2018, arXiv 1801.03558, section 3.
    """
    check_positive_integers(
        num_samples=num_samples, num_steps=num_steps, num_gradient_samples=num_gradient_samples
    )
    check_positive("learning_rate", learning_rate)
    count = checked_count(num_images, len(source))
    check_event(model, source)
    check_values(model, source)
    data = draw_once(source, count, seed=seed)
    block_size = max(1, _BLOCK_LATENTS // num_gradient_samples)
    optimizer = _Optimizer(model, num_steps, num_gradient_samples, learning_rate, seed)
    parts = []
    with evaluation_mode(model), torch.no_grad():
        for block in blocks(model, data, block_size):
            p = _checked_prior(model, block)
            q = model.encode(block.x, block.context)
            best, early = optimizer.best(q, p, block)
            amortized, final, earlier = (
                _log_weights(model, one, p, block, num_samples, seed) for one in (q, best, early)
            )
            parts.append(_levels(amortized, final, earlier, block))
    columns = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    estimator = f"importance sampling from the optimized posterior, {num_samples} samples"
    if evidence is not None:
        annealed = evaluate_annealed(model, data, evidence, seed=seed)
        columns["approximation_variance"] = annealed.monte_carlo_variance + columns.pop("best_variance")
        columns["log_evidence"] = annealed.log_evidence
        estimator = f"annealing from the {evidence.start}, {evidence.num_temperatures} temperatures"
    else:
        columns.pop("best_variance")
    protocol: Protocol = {
        "evidence": estimator,
        "family": _family(model.posterior),
        "num_images": count,
        "num_samples": num_samples,
        "num_steps": num_steps,
        "num_gradient_samples": num_gradient_samples,
        "learning_rate": learning_rate,
        "prior_density": p.density,
        "seed": seed,
    }
    return Gaps(**columns, protocol=protocol)


Free = tuple[list[Tensor], Callable[[], Distribution]]


def free_posterior(conditional: Conditional, q: Distribution) -> Free:
    """Return per-image parameters, all starting at zero, and what makes the posterior of them.

    Args:
        conditional: The posterior that made q.
        q: Its distributions of a batch.

    Raises:
        CombinationError: if q is of no family whose parameters are known.
    """
    if isinstance(conditional, Flow) and isinstance(q, Pushforward):
        return _free_flow(conditional, q)
    if isinstance(q, DiagonalNormal):
        return _free_diagonal(conditional, q)
    if isinstance(q, FullNormal):
        return _free_full(q)
    if isinstance(q, LowRankNormal):
        return _free_low_rank(q)
    raise CombinationError(
        f"Posteriors of this kind (`{type(q).__name__}`) cannot be optimized per image: it is known how for Gaussians, "
        "diagonal, low-rank or full, and for flows over them."
    )


def _free_diagonal(conditional: Conditional, q: DiagonalNormal) -> Free:
    shift = torch.zeros_like(q.mean)
    event_ndim = len(q.event_shape)
    if isinstance(conditional, AmortizedGaussian) and conditional.scale != "amortized":
        scale = q.log_scale.exp()
        return [shift], lambda: DiagonalNormal(q.mean + shift * scale, q.log_scale, event_ndim=event_ndim)
    stretch = torch.zeros_like(q.mean)

    def build() -> DiagonalNormal:
        mean = q.mean + shift * q.log_scale.exp()
        return DiagonalNormal(mean, q.log_scale + stretch, event_ndim=event_ndim)

    return [shift, stretch], build


def _free_full(q: FullNormal) -> Free:
    shift, lower = torch.zeros_like(q.mean), torch.zeros_like(q.scale_tril)

    def build() -> FullNormal:
        factor = lower.tril(-1) + torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1).exp())
        mean = q.mean + (q.scale_tril @ shift.unsqueeze(-1)).squeeze(-1)
        return FullNormal(mean, q.scale_tril @ factor)

    return [shift, lower], build


def _free_low_rank(q: LowRankNormal) -> Free:
    shift, stretch, change = (torch.zeros_like(value) for value in (q.mean, q.log_scale, q.factor))

    def build() -> LowRankNormal:
        scale = q.log_scale.exp()
        factor = q.factor + change * scale.unsqueeze(-1)
        return LowRankNormal(q.mean + shift * scale, q.log_scale + stretch, factor)

    return [shift, stretch, change], build


def _free_flow(conditional: Flow, q: Pushforward) -> Free:
    parameters: list[Tensor] = []
    base, context = q.base, q.context

    def make_base() -> Distribution:
        return base

    if conditional.base.context_shape is not None:
        parameters, make_base = free_posterior(conditional.base, base)
    if context is None:
        if not parameters:
            raise CombinationError(
                "Neither the base nor the bijection of this flow reads the data, so nothing can be optimized per "
                "image. Give the posterior a context."
            )
        return parameters, lambda: Pushforward(make_base(), q.bijection, None)
    change = torch.zeros_like(context)
    return [*parameters, change], lambda: Pushforward(make_base(), q.bijection, context + change)


class _Optimizer:
    """Adam on the free parameters of a block of images; one image never feels another."""

    def __init__(self, model: VAE, num_steps: int, num_samples: int, learning_rate: float, seed: int) -> None:
        self.model, self.num_steps, self.num_samples = model, num_steps, num_samples
        self.learning_rate, self.seed = learning_rate, seed

    def best(self, q: Distribution, p: Distribution, block: Block) -> tuple[Distribution, Distribution]:
        """Return the posterior at the end, and the one after three quarters of the steps."""
        parameters, build = free_posterior(self.model.posterior, q)
        for parameter in parameters:
            parameter.requires_grad_()
        adam = torch.optim.Adam(parameters, lr=self.learning_rate)
        early = [parameter.detach().clone() for parameter in parameters]
        for step in range(self.num_steps):
            if step == self.num_steps * 3 // 4:
                early = [parameter.detach().clone() for parameter in parameters]
            adam.param_groups[0]["lr"] = (
                self.learning_rate * (1 + math.cos(math.pi * step / self.num_steps)) / 2
            )
            key = (self.seed, Purpose.EVALUATION, Use.OPTIMIZATION, block.start, 1 + step)
            with stream(*key), torch.enable_grad():
                elbo = _scored(self.model, build(), p, block, self.num_samples).mean(0).sum()
                gradients = torch.autograd.grad(-elbo, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
        end = build()
        for parameter, value in zip(parameters, early, strict=True):
            parameter.copy_(value)
        return end, build()


def _scored(model: VAE, q: Distribution, p: Distribution, block: Block, num_samples: int) -> Tensor:
    """Draw from q and return log weights, (S, B)."""
    z, log_q = q.sample_and_log_prob((num_samples,))
    log_joint = model.decode(z, block.context).log_prob(block.x) + p.log_prob(z)
    return log_joint - log_q


def _log_weights(
    model: VAE, q: Distribution, p: Distribution, block: Block, num_samples: int, seed: int
) -> Tensor:
    """Return log weights of q, (S, B) in float64, from the same noise for every q of the family."""
    step = max(1, _SCORED_LATENTS // len(block.x))
    parts = []
    for start in range(0, num_samples, step):
        with stream(seed, Purpose.EVALUATION, Use.MOMENTS, block.start, start):
            parts.append(_scored(model, q, p, block, min(step, num_samples - start)).double())
    return torch.cat(parts)


def _levels(amortized: Tensor, best: Tensor, early: Tensor, block: Block) -> dict[str, Tensor]:
    """Reduce log weights (S, B) to the tensors of `Gaps` (B,)."""
    for one in (amortized, best):
        broken = one.mean(0).isnan().nonzero()[:, 0].tolist()
        if broken:
            raise LatentFlowsError(
                f"The ELBO of {len(broken)} images is NaN (the first is image {block.start + broken[0]}). Lower "
                "`learning_rate`, or take an earlier checkpoint."
            )
    num = len(best)
    evidence, _, _ = log_mean_weight(best)
    # To first order, what each sample adds to the gap: both levels share all of them.
    gap = (best - evidence).exp() - best
    return {
        "log_evidence": evidence,
        "best_elbo": best.mean(0),
        "amortized_elbo": amortized.mean(0),
        "unfinished": (best - early).mean(0),
        "best_variance": best.var(0) / num,
        "approximation_variance": gap.var(0) / num,
        "amortization_variance": (best - amortized).var(0) / num,
    }


def _checked_prior(model: VAE, block: Block) -> Distribution:
    p = model.prior_at(block.context)
    if p.density == "unnormalized":
        raise CombinationError(
            "The gap to log p(x) is unknown with an unnormalized prior: its ELBO is off by a constant. Use a prior "
            "with a density."
        )
    check_weighable(model, p)
    return p


def _family(posterior: Conditional) -> str:
    if isinstance(posterior, Flow):
        return "flow: base and context features free per image"
    names = {
        DiagonalNormal: "diagonal Gaussian",
        LowRankNormal: "low-rank Gaussian",
        FullNormal: "full Gaussian",
    }
    kind = posterior.distribution_type
    return f"{names.get(kind, kind.__name__)}: mean and scales free per image"
