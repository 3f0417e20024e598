"""What a VQ-VAE is fitted by: first encoder, codebook and decoder, then the prior over the codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from latentflows.models.vae import Trace
from latentflows.models.vqvae import VQVAE
from latentflows.objectives.base import Objective, Value, check_at_least, mean_over_samples, value_of


@dataclass(frozen=True)
class VectorQuantization(Objective):
    r"""Reconstruction from codes, with latents that stay near them: the first stage of a VQ-VAE.

    .. math:: L = -\log p(x | e_c) + \sum_t |sg(z_t) - e_{c_t}|^2 + \beta \sum_t |z_t - sg(e_{c_t})|^2

    The first term is a log-likelihood in nats, summed over the data point; the squares are summed over all tokens of
    all levels, where the paper takes their mean. The second is left out where the codebook is a moving average. The
    loss is no bound on log p(x): the prior over the codes is not in it.

    The metrics `perplexity` and `code_usage` (share of the codes that occur) are those of a batch, at the level where
    each is lowest; averaged over batches they are below those of the whole data, which `evaluate_codes` gives.

    Args:
        commitment: beta.

    References:
        van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, eq. 3.
    """

    commitment: float = 0.25
    metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "reconstruction",
        "codebook",
        "commitment",
        "perplexity",
        "code_usage",
    )
    without_prior: ClassVar[bool] = True
    model_type: ClassVar[type[nn.Module]] = VQVAE

    def __post_init__(self) -> None:
        check_at_least(0, commitment=self.commitment)

    def score(self, figures: dict[str, float]) -> float:
        return figures["reconstruction"]

    def trace(self, model: VQVAE, x: Tensor, context: Tensor | None = None) -> Trace:
        return model.trace(x, context=context, with_prior=False)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        reconstruction = mean_over_samples(trace.log_likelihood)
        codebook, commitment = trace.penalties["codebook"], trace.penalties["commitment"]
        loss = codebook + self.commitment * commitment - reconstruction
        return value_of(loss, {"reconstruction": reconstruction, **trace.penalties})


@dataclass(frozen=True)
class CodeLikelihood(Objective):
    r"""Negative log-mass of the codes of the frozen encoder under the prior: the second stage of a VQ-VAE.

    .. math:: L = -E_x[\log p(c(x))]

    The mass is exact. The bound on log p(x) rises by as much as the loss falls. Nothing is decoded.

    References:
        van den Oord et al. 2017, arXiv 1711.00937, section 3.3; Razavi et al., Generating Diverse High-Fidelity Images
        with VQ-VAE-2, 2019, arXiv 1906.00446, section 3.2.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "code_nll")
    prior_only: ClassVar[bool] = True
    model_type: ClassVar[type[nn.Module]] = VQVAE

    def score(self, figures: dict[str, float]) -> float:
        return -figures["code_nll"]

    def trace(self, model: VQVAE, x: Tensor, context: Tensor | None = None) -> Trace:
        return model.trace(x, context=context, with_likelihood=False)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        nll = -mean_over_samples(trace.log_prior)
        return value_of(nll, {"code_nll": nll})
