"""A divergence between the aggregate posterior and the prior in the KL's place: InfoVAE and Wasserstein."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.precision import check_positive, full_precision
from latentflows.models.vae import VAE, Trace
from latentflows.objectives.base import (
    Objective,
    Value,
    check_at_least,
    check_choice,
    check_samples,
    elbo_parts,
    mean_over_samples,
    value_of,
)
from latentflows.objectives.requirements import Need

Kernel = Literal["rbf", "inverse_multiquadratic"]


def kernel_values(a: Tensor, b: Tensor, kernel: Kernel, scale: float) -> Tensor:
    r"""Return k(a_i, b_j), (..., n, m), for a (..., n, D) and b (..., m, D).

    .. math:: e^{-|a - b|^2 / C} \quad\text{or}\quad \frac{C}{C + |a - b|^2}, \qquad C = 2 D s^2

    C is the mean squared distance of two draws of N(0, s^2 I). The second has the heavier tails, so that latents far
    from the prior still feel it.
    """
    constant = 2 * a.shape[-1] * scale**2
    with full_precision(a):
        squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
        distances = (squares - 2 * a @ b.mT).clamp(min=0)
    return (-distances / constant).exp() if kernel == "rbf" else constant / (constant + distances)


def squared_mmd(
    z: Tensor, other: Tensor, kernel: Kernel = "inverse_multiquadratic", scale: float = 1.0
) -> Tensor:
    r"""Return each point's share of the squared maximum mean discrepancy, (..., n): its mean is unbiased.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} \left[k(z_i, z_j) + k(z'_i, z'_j)\right]
              - \frac{2}{n^2} \sum_{i,j} k(z_i, z'_j)

    It may be negative where both are drawn from one distribution. It is no mean over points, so a batch that is given
    twice has another value. Memory: O(n^2).

    Args:
        z: (..., n, D), n at least 2.
        other: As many draws of the other distribution.
        kernel: "rbf" or "inverse_multiquadratic".
        scale: s, the standard deviation for which the kernel's width is right.

    Raises:
        DataError: for a single point.

    References:
        Gretton et al., A Kernel Two-Sample Test, 2012, eq. 3.
    """
    n = z.shape[-2]
    if n < 2:
        raise DataError(
            "The discrepancy between posterior and prior needs at least 2 data points in a batch; got 1. Choose the "
            "batch size, or the number of validation points, so that no single one is left."
        )
    within = kernel_values(z, z, kernel, scale) + kernel_values(other, other, kernel, scale)
    across = kernel_values(z, other, kernel, scale)
    off_diagonal = within.sum(-1) - within.diagonal(dim1=-2, dim2=-1)
    return off_diagonal / (n - 1) - across.mean(-1) - across.mean(-2)


def with_discrepancy(trace: Trace, kernel: Kernel, scale: float) -> Trace:
    """Return the trace with the penalty "mmd", (B,): against as many draws of the trace's own prior."""
    ((_, p),) = trace.levels
    num_samples, num_points = trace.z.shape[:2]
    drawn = p.sample((num_samples,) if p.batch_shape else (num_samples, num_points))
    mmd = squared_mmd(trace.z.flatten(2), drawn.flatten(2), kernel, scale).mean(0)
    return replace(trace, penalties={**trace.penalties, "mmd": mmd})


def _check_kernel(kernel: str, scale: float) -> None:
    check_choice("kernel", kernel, ("rbf", "inverse_multiquadratic"))
    check_positive("kernel_scale", scale)


@dataclass(frozen=True)
class InfoVAE(Objective):
    r"""The ELBO with part of its KL replaced by a divergence of q(z) from p(z): less of it is paid for information.

    .. math:: L = -E_q[\log p(x|z)] + (1 - \alpha) \, KL(q(z|x) \| p(z)) + (\alpha + \lambda - 1) \, MMD^2(q(z), p(z))

    The MMD compares z of the batch with draws of the model's own prior, whatever that is, and is unbiased; its gradient
    reaches the prior through the draws. At alpha 1 it is the MMD-VAE, at alpha 0 and lambda 1 the ELBO. MMD^2 is at
    most 2 and has no unit: the weight is in nats.

    Cost: that of `VAE.trace` and K B draws of the prior; memory O(K B^2). The loss is no mean over points: it depends
    on the batch size through the spread of the MMD, and a batch given twice has another value.

    Args:
        num_samples: K.
        alpha: Share of the KL that is taken away, at most 1.
        scale: lambda, at least 1 - alpha.
        kernel: Of the MMD, as in `kernel_values`.
        kernel_scale: s of the kernel: about the standard deviation of the prior.

    References:
        Zhao et al., InfoVAE: Balancing Learning and Inference, 2019, arXiv 1706.02262, eq. 6 and section 5 (MMD-VAE).
    """

    num_samples: int = 1
    alpha: float = 1.0
    scale: float = 1000.0
    kernel: Kernel = "rbf"
    kernel_scale: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("loss", "elbo", "reconstruction", "kl", "mmd")
    needs: ClassVar[tuple[Need, ...]] = ("posterior_density", "prior_density", "prior_learns_from_draws")

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        _check_kernel(self.kernel, self.kernel_scale)
        if not self.alpha <= 1 or not self.alpha + self.scale >= 1 or math.isinf(self.scale):
            raise ConfigurationError(
                "`alpha` must be at most 1, and `scale` finite and at least 1 - alpha, or a divergence would have a "
                f"negative weight; got {self.alpha!r} and {self.scale!r}."
            )

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        return with_discrepancy(super().trace(model, x, context), self.kernel, self.kernel_scale)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        parts, mmd = elbo_parts(trace), trace.penalties["mmd"]
        weight = self.alpha + self.scale - 1
        loss = weight * mmd - parts["reconstruction"]
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * parts["kl"]
        return value_of(loss, {**parts, "mmd": mmd})


@dataclass(frozen=True)
class WassersteinAutoencoder(Objective):
    r"""Reconstruction, and a divergence of the aggregate posterior from the prior: no density of z is needed.

    .. math:: L = -E_q[\log p(x|z)] + \lambda \, MMD^2(q(z), p(z))

    The cost of transport is -log p(x|z): for a Gaussian of fixed scale s the squared error over 2 s^2 of Tolstikhin et
    al., up to a constant. The posterior may be a point. Cost, memory and dependence on the batch as for `InfoVAE`.

    Args:
        num_samples: K.
        weight: lambda, nats.
        kernel: Of the MMD, as in `kernel_values`.
        kernel_scale: s of the kernel: about the standard deviation of the prior.

    References:
        Tolstikhin et al., Wasserstein Auto-Encoders, 2018, arXiv 1711.01558, eq. 4 and algorithm 2 (WAE-MMD).
    """

    num_samples: int = 1
    weight: float = 10.0
    kernel: Kernel = "inverse_multiquadratic"
    kernel_scale: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("loss", "reconstruction", "mmd")
    needs: ClassVar[tuple[Need, ...]] = ("prior_learns_from_draws",)

    def __post_init__(self) -> None:
        check_samples(self.num_samples)
        check_at_least(0, weight=self.weight)
        _check_kernel(self.kernel, self.kernel_scale)

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def trace(self, model: VAE, x: Tensor, context: Tensor | None = None) -> Trace:
        trace = model.trace(x, self.num_samples, context=context, with_densities=False)
        return with_discrepancy(trace, self.kernel, self.kernel_scale)

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        reconstruction, mmd = mean_over_samples(trace.log_likelihood), trace.penalties["mmd"]
        loss = self.weight * mmd - reconstruction
        return value_of(loss, {"reconstruction": reconstruction, "mmd": mmd})
