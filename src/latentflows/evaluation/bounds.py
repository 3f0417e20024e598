"""ELBO and importance-weighted log-likelihood with their errors, the same code for every model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentflows.core.batches import Batch, DataSource
from latentflows.core.errors import CombinationError, NonFiniteError
from latentflows.core.noise import Purpose, preserved, stream
from latentflows.core.shapes import size
from latentflows.distributions import Distribution
from latentflows.evaluation.base import (
    Figure,
    Figures,
    bits_offset,
    check_divergence,
    check_positive_integers,
    check_values,
    check_weighable,
    checked_count,
    figure,
    finite,
    log_mean_weight,
    on_model,
)
from latentflows.evaluation.integration import Integration, integration_of
from latentflows.models.inference import evaluation_mode
from latentflows.models.vae import VAE
from latentflows.models.vqvae import VQVAE

_BLOCK_LATENTS = 8192  # latents drawn together: enough for full speed of a small decoder's matrix products
_BLOCK_NUMBERS = 1 << 16  # numbers of data encoded together: bounds the encoder's memory
_LATENT_NUMBERS = 1 << 22  # numbers of latents drawn together: bounds the posterior's memory
_RECONSTRUCTED = 512  # images decoded together where no bound is computed
_CACHE_MIB = 4  # on a CPU, larger pieces fall out of the cache


@dataclass(frozen=True)
class Bounds:
    """Bounds on log p(x) for every image, in nats, float64 on the CPU, each of shape (n,).

    Attributes:
        reconstruction: Mean of log p(x|z) over the K samples.
        kl: Mean of log q(z|x) - log p(z) over the same samples.
        elbo: Mean log weight; reconstruction - kl, at beta 1.
        nll: -log of the mean weight; inf where every weight is zero.
        monte_carlo_variance: Variance of `nll` due to finite K; NaN for K = 1.
        effective_sample_size: (sum w)^2 / sum w^2, between 1 and K; 0 where every weight is zero.
        num_importance_samples: K.
        num_dimensions: Numbers in one data point, D.
        bits_offset: What is added to nll / (D ln 2) in bits per dimension; None where those are undefined.
        prior_density: What the prior's log p(z) is: "exact", "estimate" or "approximate" (see `Distribution`).
        normalizer_error: Error of log p(z) from an estimated normalizer, nats: the same for every z of an
            `EnergyPrior`, an average over draws of a `ResampledPrior`, where it depends on z. Infinite where it was
            never measured, None where there is none.
        integration: The solver behind the prior's density, where an equation gives it.
    """

    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor
    nll: Tensor
    monte_carlo_variance: Tensor
    effective_sample_size: Tensor
    num_importance_samples: int
    num_dimensions: int
    bits_offset: float | None
    prior_density: str = "exact"
    normalizer_error: float | None = None
    integration: Integration | None = None

    def figures(self) -> Figures:
        r"""Return the means over images with their errors, as `evaluation.json` holds them.

        `standard_error` is s / sqrt(n) over images. `monte_carlo_error` is from finite K alone:
        sqrt(sum of the variances) / n. What is not finite, such as the error of one image, is None.

        Raises:
            NonFiniteError: if an image got probability zero under all K samples, so that the mean NLL is infinite.
        """
        impossible = torch.isinf(self.nll).nonzero()[:, 0].tolist()
        if impossible:
            raise NonFiniteError(
                f"The NLL is infinite: {len(impossible)} of {len(self.nll)} images got probability zero under all "
                f"{self.num_importance_samples} samples (the first is image {impossible[0]}; `Bounds.nll` has all). "
                "Use a prior and a likelihood that are positive everywhere, or more importance samples."
            )
        bits = None
        if self.bits_offset is not None:
            scale = self.num_dimensions * math.log(2)
            variance = self.monte_carlo_variance / scale**2
            bits = figure(self.nll / scale + self.bits_offset, "bits/dim", variance)
        return {
            "elbo": figure(self.elbo, "nats"),
            "reconstruction": figure(self.reconstruction, "nats"),
            "kl": figure(self.kl, "nats"),
            "nll": figure(self.nll, "nats", self.monte_carlo_variance),
            "bits_per_dim": bits,
            "effective_sample_size": {
                "mean": float(self.effective_sample_size.mean()),
                "minimum": float(self.effective_sample_size.min()),
                "unit": "samples",
            },
        }

    def protocol(self) -> dict[str, int | float | str | None]:
        """Return what the figures rest on: K, and what the prior's density is, with its errors in nats."""
        error = self.normalizer_error
        solved = {} if self.integration is None else self.integration.protocol()
        return solved | {
            "num_importance_samples": self.num_importance_samples,
            "prior_density": self.prior_density,
            "normalizer_error": None if error is None else finite(error),
        }


def evaluate_bounds(
    model: VAE,
    source: DataSource,
    *,
    num_importance_samples: int = 1000,
    num_images: int | None = None,
    seed: int = 0,
    memory_mib: int = 256,
) -> Bounds:
    r"""Estimate log p(x) of every image with exactly K samples from its posterior, and the ELBO from the same K.

    .. math:: \log p(x) \approx \log \frac1K \sum_k w_k, \quad w_k = \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    Its expectation is a lower bound on log p(x), at least the ELBO, and tight as K grows. The error from finite K
    is by the delta method, Var = (K / ESS - 1) / (K - 1), with ESS the effective sample size. It knows the drawn
    samples alone: where ESS is a few samples only, the NLL is biased upward (pessimistic, by Jensen's
    inequality) and its stated error is too small.

    A weight of zero is legal and counts as zero. The NLL of an image does not depend on which images stand beside
    it: noise is a function of the seed, of K, of the model's shapes and of the image's index, so the first n
    images of a larger evaluation give the same numbers, and `memory_mib` changes rounding only. With a prior whose
    density is itself an estimate from draws (`prior_density` "estimate"), `memory_mib` changes those draws too.

    Memory: K_piece * B_piece * (decoder activations + 4 * data size) * 4 bytes at most `memory_mib`, on a CPU at
    most 10 MiB, where more is slower. The activations are counted on one latent; without gradients most are freed
    early, so this is an upper bound. One latent is scored even where that takes more. Beside it stand at most
    2^16 numbers of data in the encoder and 16 MiB of latents, with what the posterior's flow makes of them.

    Cost: one encoder pass per image, K prior and decoder passes. MLP decoder 40-300-300-784, K = 1000: about
    9 ms per image on one CPU core, two thirds of it the decoder's matrix products.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was.
        source: Data points; dynamic binarization and dequantization are drawn once.
        num_importance_samples: K.
        num_images: Only the first n of the source; None for all.
        seed: Seed of the samples, and of the source's noise.
        memory_mib: Memory for scoring latents.

    Raises:
        ConfigurationError: for settings out of range.
        CombinationError: for another model than a `VAE`; for a likelihood that is none, or not one of these values
            (see `Distribution.values`).
        DataError: if the likelihood gives no probability to a data point, as Bernoulli to gray values.
        CombinationError: for a prior without a normalizer, or, with more than one importance sample, one whose
            exp(log p(z)) is biased.
        NonFiniteError: if a log weight is NaN or +inf; it is never left out of a mean.
        ImpossibleDivergenceError: if the mean KL to an approximate prior is below zero by more than chance.

    References:
        Burda et al., Importance Weighted Autoencoders, 2016, arXiv 1509.00519, eq. 8; Rezende et al., Stochastic
        Backpropagation, 2014, arXiv 1401.4082, appendix E (importance-sampled likelihood); Owen, Monte Carlo
        theory, methods and examples, 2013, section 9.3 (effective sample size).
    """
    check_positive_integers(num_importance_samples=num_importance_samples, memory_mib=memory_mib)
    if not isinstance(model, VAE):
        raise CombinationError(
            f"`evaluate_bounds` weights draws of a posterior; got a `{type(model).__name__}`, which has none. For a "
            "`VQVAE` use `evaluate_codes`, for a `DensityModel` `evaluate_likelihood`."
        )
    count = checked_count(num_images, len(source))
    check_values(model, source)
    block = min(_BLOCK_LATENTS // num_importance_samples, _BLOCK_NUMBERS // size(model.event_shape))
    block = max(1, block)
    blocks = []
    with evaluation_mode(model), torch.no_grad():
        rows, prior, integration = None, None, None
        for start in range(0, count, block):
            indices = torch.arange(start, min(start + block, len(source)))
            with stream(seed, Purpose.EVALUATION, start, 0):
                batch = on_model(model, source.batch(indices))
            if rows is None:
                prior = _checked_prior(model, batch.context, num_importance_samples)
                rows = _rows_in_memory(model, batch.context, memory_mib)
                integration = integration_of(model, batch, seed=seed)
            parts = _log_weights(
                model, batch, num_importance_samples, rows, (seed, Purpose.EVALUATION, start)
            )
            _check_weights(parts, start)
            blocks.append(_summary(*parts))
    error = None if prior is None else prior.log_normalizer_error
    columns = {name: torch.cat([block[name] for block in blocks])[:count].cpu() for name in blocks[0]}
    if prior is not None:
        solver = 0.0 if integration is None else integration.error + (integration.probe_error or 0.0)
        check_divergence(columns["kl"], prior, solver_error=solver)
    return Bounds(
        **columns,
        num_importance_samples=num_importance_samples,
        num_dimensions=size(model.event_shape),
        bits_offset=bits_offset(model, source),
        prior_density=prior.density if prior is not None else "exact",
        normalizer_error=None if error is None else float(error),
        integration=integration,
    )


def _checked_prior(model: VAE, context: Tensor | None, num_samples: int) -> Distribution:
    """Return the prior, after refusing one whose figures would be none."""
    p = model.prior_at(None if context is None else context[:1])
    if p.density == "unnormalized":
        raise CombinationError(
            f"`{type(model.prior).__name__}` knows its density up to a constant only: a bound computed from it would "
            "be off by that constant. Call `model.prior.estimate_normalizer()` before, and look at its effective "
            "sample size: where a few draws carry all weight, the constant stays unknown. Sample quality needs no "
            "density."
        )
    if num_samples > 1:
        check_weighable(model, p, instead=", or use `num_importance_samples` 1 for the ELBO")
    return p


def evaluate_reconstruction(
    model: VAE | VQVAE, source: DataSource, num_images: int, *, seed: int = 0
) -> Figure:
    """Return the mean of log p(x|z), one z ~ q(z|x) for each of the first images: no bound, for autoencoders.

    Raises:
        ConfigurationError: if more images are asked for than there are.
    """
    count = checked_count(num_images, len(source))
    values = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, count, _RECONSTRUCTED):
            indices = torch.arange(start, min(start + _RECONSTRUCTED, len(source)))
            with stream(seed, Purpose.EVALUATION, start, 0):
                batch = on_model(model, source.batch(indices))
            with stream(seed, Purpose.EVALUATION, start, 1):
                z = model.encode(*batch).sample()
                values.append(model.decode(z, batch.context).log_prob(batch.x).double().cpu())
    return figure(torch.cat(values)[:count], "nats")


def _log_weights(
    model: VAE, batch: Batch, num_samples: int, rows: int, key: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Encode once and score K samples: log p(x|z) and log q(z|x) - log p(z), each (K, B) in float64."""
    q = model.encode(*batch)
    latents = min(_BLOCK_LATENTS, _LATENT_NUMBERS // size(model.latent_shape))
    step = max(1, latents // len(batch.x))
    likelihoods, ratios = [], []
    for chunk, start in enumerate(range(0, num_samples, step)):
        with stream(*key, 1 + chunk):
            z, log_q = q.sample_and_log_prob((min(step, num_samples - start),))
            log_likelihood, log_prior = _score(model, z, batch, rows, check=chunk == 0)
        likelihoods.append(log_likelihood)
        ratios.append(log_q.double() - log_prior)
    return torch.cat(likelihoods), torch.cat(ratios)


def _score(model: VAE, z: Tensor, batch: Batch, rows: int, *, check: bool) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) and log p(z), (K, B) in float64, in pieces of at most `rows` latents."""
    likelihoods, priors = [], []
    for first in range(0, len(batch.x), rows):
        part = slice(first, first + rows)
        x, context = batch.x[part], None if batch.context is None else batch.context[part]
        prior = model.prior_at(context)
        step = max(1, rows // len(x))
        pieces = z[:, part].split(step)
        decoded = []
        for i, piece in enumerate(pieces):
            likelihood = model.decode(piece, context)
            if check and i == 0:
                likelihood.check_support(x)
            decoded.append(likelihood.log_prob(x).double())
        likelihoods.append(torch.cat(decoded))
        priors.append(torch.cat([prior.log_prob(piece).double() for piece in pieces]))
    return torch.cat(likelihoods, 1), torch.cat(priors, 1)


def _summary(log_likelihood: Tensor, ratio: Tensor) -> dict[str, Tensor]:
    """Reduce (K, B) over the samples to the per-image tensors of `Bounds`, each (B,)."""
    log_weight = log_likelihood - ratio
    log_mean, variance, effective = log_mean_weight(log_weight)
    return {
        "reconstruction": log_likelihood.mean(0),
        "kl": ratio.mean(0),
        "elbo": log_weight.mean(0),
        "nll": -log_mean,
        "monte_carlo_variance": variance,
        "effective_sample_size": effective,
    }


def _check_weights(parts: tuple[Tensor, Tensor], start: int) -> None:
    log_weight = parts[0] - parts[1]
    broken = (torch.isnan(log_weight) | (log_weight == torch.inf)).any(0).nonzero()[:, 0].tolist()
    if broken:
        raise NonFiniteError(
            f"Log weights must be below +inf and not NaN; got others for {len(broken)} of the first "
            f"{start + log_weight.shape[1]} images (the first is image {start + broken[0]}). The model has diverged, "
            "or one of its parts overflows; nothing is left out of a mean to hide it. Take an earlier checkpoint."
        )


def _rows_in_memory(model: VAE, context: Tensor | None, memory_mib: int) -> int:
    """Return how many latents may be scored together, from the activations that one latent causes.

    A module that runs many times, as under a solver, counts once: without gradients its outputs do not pile up.
    """
    like = next(model.parameters(), torch.zeros(()))
    z = torch.zeros(1, *model.latent_shape, dtype=like.dtype, device=like.device)
    largest: dict[nn.Module, int] = {}

    def count(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest[module] = max(largest.get(module, 0), output.numel())

    parts = (model.prior, model.likelihood)
    leaves = [module for part in parts for module in part.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        first = None if context is None else context[:1]
        with preserved():  # a density that is an estimate draws
            model.prior_at(first).log_prob(z)
            model.decode(z, first)
    finally:
        for hook in hooks:
            hook.remove()
    total = 4 * size(model.event_shape) + sum(largest.values())
    budget = min(memory_mib, _CACHE_MIB) if like.device.type == "cpu" else memory_mib
    return max(1, budget * 2**20 // (4 * total))
