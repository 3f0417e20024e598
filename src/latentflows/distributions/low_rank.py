"""Gaussians whose covariance is a diagonal plus a matrix of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError
from latentflows.core.precision import at_least_float32, check_positive, full_precision, soft_bound
from latentflows.core.shapes import Shape, batch_shape
from latentflows.distributions.base import Conditional, Distribution, network_output
from latentflows.distributions.data_dependent import check_count
from latentflows.distributions.gaussian import DiagonalNormal, FullNormal, StandardNormal, check_temperature
from latentflows.distributions.kl import register_kl


class LowRankNormal(Distribution):
    r"""A normal over vectors with covariance diag(sigma^2) + U U^T as a value.

    .. math:: x = \mu + \sigma \odot \epsilon + U a, \quad \epsilon \sim N(0, I_D), \; a \sim N(0, I_R)

    With V = diag(1 / sigma) U, y = (x - mu) / sigma and C = I + V^T V, the determinant is det C times the product of
    the sigma^2 (matrix determinant lemma), and the quadratic form is |y - V a|^2 + |a|^2 at a = C^-1 V^T y: the
    identity of Woodbury, in the form without a difference of large numbers.

    Cost: O(D R^2) per distribution and O(D R) per draw or density; memory O(D R).

    Args:
        mean: (*batch, D).
        log_scale: log sigma, broadcasting to the mean.
        factor: U, (*batch, D, R).

    References:
        Golub & Van Loan, Matrix Computations, 4th edition, 2013, section 2.1.4 (Sherman, Morrison, Woodbury).
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, factor: Tensor) -> None:
        self._mean, self.factor = at_least_float32(mean), at_least_float32(factor)
        self.log_scale = at_least_float32(log_scale).expand(self._mean.shape)
        self.batch_shape, self.event_shape = tuple(mean.shape[:-1]), tuple(mean.shape[-1:])
        self._solved: tuple[Tensor, Tensor] | None = None

    def _capacitance(self) -> tuple[Tensor, Tensor]:
        """Return V and the Cholesky factor of C, made at the first density and kept, in float64.

        Where columns of U are nearly parallel, C is the sum of numbers far larger than what it is inverted for.
        """
        if self._solved is None:
            scaled = self.factor.double() * (-self.log_scale.double()).exp().unsqueeze(-1)
            with full_precision(scaled):
                capacitance = scaled.mT @ scaled
                eye = torch.eye(capacitance.shape[-1], dtype=scaled.dtype, device=scaled.device)
                self._solved = scaled, torch.linalg.cholesky(capacitance + eye)
        return self._solved

    def half_log_det(self) -> Tensor:
        """Return half the log-determinant of the covariance, (*batch,)."""
        _, tril = self._capacitance()
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det.to(self.log_scale.dtype) + self.log_scale.sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        scaled, tril = self._capacitance()
        difference = x - self._mean
        y = (difference.double() * (-self.log_scale.double()).exp()).unsqueeze(-1)
        with full_precision(y):
            tril = tril.expand(*y.shape[:-2], *tril.shape[-2:])
            a = torch.cholesky_solve(scaled.mT @ y, tril)
            rest = y - scaled @ a
        squares = rest.square().sum((-2, -1)) + a.square().sum((-2, -1))
        return (
            -0.5 * squares.to(difference.dtype)
            - self.half_log_det()
            - 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        )

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        own = noise.standard_normal((*shape, *self.event_shape), like=self._mean)
        shared = noise.standard_normal((*shape, self.factor.shape[-1], 1), like=self._mean)
        with full_precision(own):
            moved = (self.factor @ shared).squeeze(-1)
        return torch.addcmul(self._mean + moved, self.log_scale.exp(), own)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp() + self.factor.square().sum(-1)

    def detached(self) -> LowRankNormal:
        return LowRankNormal(self._mean.detach(), self.log_scale.detach(), self.factor.detach())

    def tempered(self, temperature: float) -> LowRankNormal:
        check_temperature(temperature)
        return LowRankNormal(self._mean, self.log_scale + math.log(temperature), self.factor * temperature)


class AmortizedLowRankGaussian(Conditional):
    r"""A Gaussian of diagonal plus low-rank covariance whose parameters a network computes: a posterior.

    The network's D (R + 2) numbers are the mean, a with sigma = e^s, s = a / (1 + abs(a) / b), and the entries of U
    row by row. Between the diagonal Gaussian (R = 0) and `covariance="full"`, whose network gives D (D + 3) / 2.

    Args:
        event_shape: D, or (D,).
        context_shape: Shape of one context.
        network: From (N, *context_shape) to (N, *raw_shape).
        rank: R.
        scale_bound: b, the largest absolute log-scale of the diagonal part.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
        CombinationError: if the event is not a vector.
        ConfigurationError: if the rank is not a positive integer.

    References:
        Ong et al., Gaussian variational approximation with a factor covariance structure, 2018, arXiv 1701.03208;
        Rezende et al., Stochastic Backpropagation, 2014, arXiv 1401.4082 (a precision of diagonal plus rank one).
    """

    distribution_type = LowRankNormal

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        rank: int,
        scale_bound: float = 7.0,
    ) -> None:
        super().__init__(event_shape, context_shape)
        if len(self.event_shape) != 1:
            raise CombinationError(
                f"A low-rank covariance needs a vector event (D,); got {self.event_shape}."
            )
        check_positive("scale_bound", scale_bound)
        self.network, self.rank, self.scale_bound = network, rank, scale_bound
        self.raw_shape = low_rank_raw_shape(self.event_shape, rank)

    def _condition(self, context: Tensor | None) -> LowRankNormal:
        raw = network_output(self, self.network, context, self.raw_shape)
        dim = self.event_shape[0]
        mean, scale, factor = raw.split([dim, dim, dim * self.rank], -1)
        return LowRankNormal(
            mean, soft_bound(scale, self.scale_bound), factor.unflatten(-1, (dim, self.rank))
        )


def low_rank_raw_shape(event_shape: Shape, rank: int) -> Shape:
    """Return the output shape that the network of an `AmortizedLowRankGaussian` must have.

    Raises:
        ConfigurationError: if the rank is not a positive integer.
    """
    check_count("rank", rank)
    return (event_shape[0] * (rank + 2),)


def _variances(q: LowRankNormal) -> Tensor:
    """Return the diagonal of the covariance, (*batch, D)."""
    return (2 * q.log_scale).exp() + q.factor.square().sum(-1)


@register_kl(LowRankNormal, StandardNormal)
def _(q: LowRankNormal, p: StandardNormal) -> Tensor:
    dim = q.event_shape[0]
    squares = (_variances(q) + q.mean.square()).sum(-1) / p.scale**2
    return 0.5 * (squares - dim) + dim * math.log(p.scale) - q.half_log_det()


@register_kl(LowRankNormal, DiagonalNormal)
def _(q: LowRankNormal, p: DiagonalNormal) -> Tensor:
    squares = (_variances(q) + (q.mean - p.mean) ** 2) * (-2 * p.log_scale).exp()
    return 0.5 * (squares - 1 + 2 * p.log_scale).sum(-1) - q.half_log_det()


@register_kl(LowRankNormal, FullNormal)
def _(q: LowRankNormal, p: FullNormal) -> Tensor:
    difference = (p.mean - q.mean).unsqueeze(-1)
    batch = difference.shape[:-2]
    parts = [torch.diag_embed(q.log_scale.exp()), q.factor, difference]
    with full_precision(difference):
        joined = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], -1)
        tril = p.scale_tril.expand(*batch, *p.scale_tril.shape[-2:])
        solved = torch.linalg.solve_triangular(tril, joined, upper=False)
    log_det_p = p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (solved.square().sum((-2, -1)) - q.event_shape[0]) + log_det_p - q.half_log_det()
