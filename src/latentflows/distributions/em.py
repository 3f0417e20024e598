"""Expectation and maximization for mixtures of Gaussians, on points held in memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import DataError

_BLOCK = 1 << 20  # numbers of one temporary: 8 MiB
_LEAST_WEIGHT = 1e-8  # of a component that no point belongs to


class Fitted(NamedTuple):
    """A mixture of C M components, class after class, float64.

    Attributes:
        log_weights: (C, M), of each class for itself.
        means: (C M, D).
        scales: Standard deviations (C M, D), or Cholesky factors (C M, D, D).
        log_likelihoods: Mean log-density of the points before each maximization, nats. The mixture that is returned
            comes from the last one, and its value is higher than the last here, by less than `tolerance` as a rule.
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor
    log_likelihoods: list[float]


def fit_mixture(
    points: Tensor,
    num_components: int,
    *,
    full: bool = False,
    labels: Tensor | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
    floor: float = 1e-3,
) -> Fitted:
    r"""Fit a mixture by EM from k-means++ centers, until the mean log-likelihood rises by less than `tolerance`.

    Every point is first brought to mean 0 and variance 1 in each variable. There a covariance is the maximizer of the
    expected log-likelihood among those whose variances, or eigenvalues, are at least `floor`: it is the weighted
    covariance with smaller ones raised to it, so that each step still raises the likelihood, and no component collapses
    onto a point. Responsibilities are computed in log space, all in float64.

    Cost: O(N M D) per iteration, O(N M D^2) with full covariances, and O(N M D) for the centers. Memory: 16 N D bytes
    for the points, 8 MiB of temporaries, and the components.

    Args:
        points: (N, D).
        num_components: M, of each class.
        full: Whether covariances are full.
        labels: (N, C), class probabilities of each point: a component of class c then answers for a point with at most
            the weight that its label gives to c. None for one class.
        tolerance: In nats per point.
        max_iterations: At most so many.
        floor: Least variance of a component, as a fraction of the data's.

    Raises:
        DataError: if there are no points, or not all of them are finite.

    References:
        Dempster et al. 1977; Arthur & Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007.
    """
    if points.ndim != 2 or not len(points) or not torch.isfinite(points).all():
        raise DataError(f"EM needs finite points (N, D), N at least 1; got shape {tuple(points.shape)}.")
    points = points.double()
    labels = points.new_ones(len(points), 1) if labels is None else labels.double()
    labels = torch.where((labels == 0).all(-1, keepdim=True), 1.0, labels)  # unknown: any class may answer
    labels = labels / labels.sum(-1, keepdim=True)
    center, scale = points.mean(0), points.std(0, correction=0)
    scale = scale.clamp_min(1e-6 * scale.max().clamp_min(1e-6))  # a constant variable keeps a density
    run = _Run((points - center) / scale, labels, num_components, full, floor)
    log_likelihoods = [run.step()]
    for _ in range(max_iterations):
        log_likelihoods.append(run.step())
        if log_likelihoods[-1] - log_likelihoods[-2] < tolerance:
            break
    scales = scale.unsqueeze(-1) * run.scales if full else run.scales * scale
    shift = scale.log().sum().item()
    return Fitted(
        run.log_weights, center + scale * run.means, scales, [value - shift for value in log_likelihoods]
    )


class _Run:
    """The state of one run of EM, on standardized points."""

    def __init__(self, points: Tensor, labels: Tensor, count: int, full: bool, floor: float) -> None:
        self.points, self.log_labels, self.full, self.floor = points, labels.log(), full, floor
        classes = labels.shape[1]
        self.means = torch.cat([_centers(points, labels[:, c], count) for c in range(classes)])
        self.log_weights = points.new_full((classes, count), -math.log(count))
        spread = _nearest_squares(points, self.means).mean() / points.shape[1]
        spread = spread.clamp_min(floor).sqrt().item()
        dim = points.shape[1]
        self.rows, self.columns = torch.tril_indices(dim, dim, device=points.device)
        self.scales = (
            spread * torch.eye(dim).to(points).expand(len(self.means), dim, dim)
            if full
            else torch.full_like(self.means, spread)
        )

    def step(self) -> float:
        """Take one step of EM; return the mean log-likelihood before it."""
        total, mass = 0.0, self.means.new_zeros(len(self.means))
        first, second = torch.zeros_like(self.means), self._products(0 * self.means)
        linear, quadratic, constant = self._natural()
        rows = max(1, _BLOCK // max(second.shape))
        for part, labels in zip(self.points.split(rows), self.log_labels.split(rows), strict=True):
            products = self._products(part)
            log_p = part @ linear.mT - products @ quadratic.mT - constant
            joint = log_p + (labels.unsqueeze(-1) + self.log_weights).flatten(-2)
            whole = joint.logsumexp(-1, keepdim=True)
            share = (joint - whole).exp()
            total += whole.sum().item()
            mass += share.sum(0)
            first += share.mT @ part
            second += share.mT @ products
        self._maximize(mass, first, second)
        return total / len(self.points)

    def _products(self, x: Tensor) -> Tensor:
        """Return the squares x_i^2, (n, D), or all products x_i x_j with i >= j, (n, D (D + 1) / 2)."""
        return x[:, self.rows] * x[:, self.columns] if self.full else x.square()

    def _natural(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b, c of log N(x; m) = a . x - b . products(x) - c, for each component."""
        dim = self.means.shape[1]
        if self.full:
            log_det = self.scales.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            precision = torch.cholesky_inverse(self.scales)
            linear = (precision @ self.means.unsqueeze(-1)).squeeze(-1)
            twice = torch.where(self.rows == self.columns, 0.5, 1.0)  # the lower triangle stands for both
            quadratic = precision[:, self.rows, self.columns] * twice
        else:
            log_det = self.scales.log().sum(-1)
            precision = self.scales.square().reciprocal()
            linear, quadratic = self.means * precision, 0.5 * precision
        constant = 0.5 * (linear * self.means).sum(-1) + log_det + 0.5 * dim * math.log(2 * math.pi)
        return linear, quadratic, constant

    def _maximize(self, mass: Tensor, first: Tensor, second: Tensor) -> None:
        alive = mass > _LEAST_WEIGHT
        divisor = mass.clamp_min(_LEAST_WEIGHT).unsqueeze(-1)
        means = first / divisor
        spread = second / divisor - self._products(means)
        if self.full:
            covariance = torch.zeros_like(self.scales)
            covariance[:, self.rows, self.columns] = spread
            covariance[:, self.columns, self.rows] = spread
            values, vectors = torch.linalg.eigh(covariance)
            raised = (vectors * values.clamp_min(self.floor).unsqueeze(-2)) @ vectors.mT
            scales = torch.linalg.cholesky(raised)
            self.scales = torch.where(alive.view(-1, 1, 1), scales, self.scales)
        else:
            self.scales = torch.where(alive.unsqueeze(-1), spread.clamp_min(self.floor).sqrt(), self.scales)
        self.means = torch.where(alive.unsqueeze(-1), means, self.means)
        by_class = mass.view_as(self.log_weights) + _LEAST_WEIGHT
        self.log_weights = (by_class / by_class.sum(-1, keepdim=True)).log()


def _centers(points: Tensor, weights: Tensor, count: int) -> Tensor:
    """Choose k-means++ centers: each a point, drawn in proportion to its squared distance from those before."""
    draws = noise.uniform((count,), like=points)
    squares = weights.clone()
    chosen: list[Tensor] = []
    for draw in draws:
        mass = (squares if squares.sum() > 0 else torch.ones_like(squares)).cumsum(0)
        index = torch.searchsorted(mass, (draw * mass[-1]).view(1), right=True).clamp(max=len(points) - 1)
        chosen.append(points[index[0]])
        distance = weights * (points - chosen[-1]).square().sum(-1)
        squares = distance if len(chosen) == 1 else torch.minimum(squares, distance)
    return torch.stack(chosen)


def _nearest_squares(points: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distance of each point to its nearest center, (N,)."""
    rows = max(1, _BLOCK // len(centers))
    return torch.cat([torch.cdist(part, centers).amin(1).square() for part in points.split(rows)])
