"""The bound on log p(x) that a VQ-VAE gives, and how many of its codes are in use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, NonFiniteError
from latentflows.core.noise import Purpose, stream
from latentflows.core.shapes import size
from latentflows.evaluation.base import (
    Figures,
    Protocol,
    bits_offset,
    check_event,
    check_values,
    checked_count,
    figure,
    on_model,
)
from latentflows.models.inference import evaluation_mode
from latentflows.models.quantizer import code_usage
from latentflows.models.vqvae import VQVAE

_BLOCK_NUMBERS = 1 << 18  # numbers of data scored together
_BLOCK_TOKENS = 1 << 14  # codes scored together: bounds the prior's logits


@dataclass(frozen=True)
class CodeBound:
    """A bound on log p(x) for every image, log p(x|e) + log p(c), and the codes that it rests on.

    Attributes:
        reconstruction: log p(x|e) at the codes of x, nats, float64 on the CPU, (n,).
        code_nll: -log p(c) of those codes, nats, (n,).
        codes: (n, T), all levels, top first.
        perplexity: Of each level's codes over all images, top first; at most the number of codes.
        code_usage: Share of each level's codes that occur.
        num_dimensions: Numbers in one data point, D.
        bits_offset: What is added to nll / (D ln 2) in bits per dimension; None where those are undefined.
    """

    reconstruction: Tensor
    code_nll: Tensor
    codes: Tensor
    perplexity: tuple[float, ...]
    code_usage: tuple[float, ...]
    num_dimensions: int
    bits_offset: float | None

    @property
    def elbo(self) -> Tensor:
        """The bound, nats, (n,)."""
        return self.reconstruction - self.code_nll

    def figures(self) -> Figures:
        """Return the means over images with their standard errors s / sqrt(n).

        The bound's negative is named `nll_bound`, not `nll`: it is not importance weighted, and must not stand in one
        column with figures that are.
        """
        bits = None
        if self.bits_offset is not None:
            scaled = -self.elbo / (self.num_dimensions * math.log(2)) + self.bits_offset
            bits = figure(scaled, "bits/dim")
        return {
            "elbo": figure(self.elbo, "nats"),
            "reconstruction": figure(self.reconstruction, "nats"),
            "code_nll": figure(self.code_nll, "nats"),
            "nll_bound": figure(-self.elbo, "nats"),
            "bits_per_dim_bound": bits,
        }

    def protocol(self) -> Protocol:
        """Return what the figures rest on: one code per image, no importance weights, an exact mass."""
        return {
            "posterior": "one code sequence per image, the encoder's",
            "num_importance_samples": None,
            "prior_density": "exact",
            "num_tokens": self.codes.shape[1],
        }


def evaluate_codes(
    model: VQVAE, source: DataSource, *, num_images: int | None = None, seed: int = 0
) -> CodeBound:
    r"""Bound log p(x) of every image by the codes that the encoder chooses for it.

    .. math:: \log p(x) = \log \sum_c p(c) \, p(x | e_c) \ge \log p(c(x)) + \log p(x | e_{c(x)})

    Both terms are exact; nothing is sampled, and more samples would not tighten it. Beside an importance-weighted NLL
    of a VAE it stands at a disadvantage that no evaluation can measure: the mass of all other codes that give x. So a
    better figure here than there is a better model, and a worse one proves nothing.

    Cost: one pass of encoder, decoder and prior per image. Memory: that of 2^18 numbers of data in encoder and
    decoder, and of 2^14 codes in the prior.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was.
        source: Data points; noise of binarization and dequantization is drawn once, from `seed`.
        num_images: Only the first n of the source; None for all.
        seed: Seed of the source's noise.

    Raises:
        ConfigurationError: if `num_images` is out of range.
        CombinationError: for another model, or a likelihood that is none of these data.
        ShapeError: for data of another shape than the model's.
        DataError: if the likelihood gives no probability to a data point.
        NonFiniteError: if a log-probability is NaN or infinite; it is never left out of a mean.

    References:
        van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, section 3.2.
    """
    if not isinstance(model, VQVAE):
        raise CombinationError(
            f"`evaluate_codes` measures a `VQVAE`; got a `{type(model).__name__}`. Use `evaluate_bounds` for a `VAE`."
        )
    count = checked_count(num_images, len(source))
    check_event(model, source)
    check_values(model, source)
    block = max(1, min(_BLOCK_NUMBERS // size(model.event_shape), _BLOCK_TOKENS // model.num_tokens))
    reconstructions, masses, codes = [], [], []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, count, block):
            indices = torch.arange(start, min(start + block, len(source)))
            with stream(seed, Purpose.EVALUATION, start, 0):
                batch = on_model(model, source.batch(indices))
            found = model.quantize(batch.x)
            likelihood = model.decode(found.z)
            likelihood.check_support(batch.x)
            reconstructions.append(likelihood.log_prob(batch.x).double())
            masses.append(-model.prior_at(batch.context).log_prob(found.indices).double())
            codes.append(found.indices)
    together = torch.cat(codes)[:count].cpu()
    reconstruction, code_nll = (torch.cat(each)[:count].cpu() for each in (reconstructions, masses))
    _check_finite(reconstruction - code_nll)
    levels = model.levels
    cut = together.split([level.num_tokens for level in levels], 1)
    usage = [code_usage(part, level.num_codes) for part, level in zip(cut, levels, strict=True)]
    return CodeBound(
        reconstruction,
        code_nll,
        together,
        perplexity=tuple(float(perplexity) for perplexity, _ in usage),
        code_usage=tuple(float(used) for _, used in usage),
        num_dimensions=size(model.event_shape),
        bits_offset=bits_offset(model, source),
    )


def _check_finite(bound: Tensor) -> None:
    broken = (~bound.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        raise NonFiniteError(
            f"Log-probabilities must be finite; got others for {len(broken)} of {len(bound)} images (the first is "
            f"image {broken[0]}). The model has diverged, or one of its parts overflows; nothing is left out of a mean "
            "to hide it. Take an earlier checkpoint."
        )
