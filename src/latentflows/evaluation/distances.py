"""Distances between two sets of feature vectors: Frechet, kernel, and the manifold figures. All in float64."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import linear_regression
from typing import NamedTuple

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, NonFiniteError, ShapeError
from latentflows.core.noise import Purpose
from latentflows.evaluation.intervals import Estimate, leaving_out, mean_of_blocks

# Squared distances come from a matrix product. Below this part of the squared norms they are rounding: equal points.
_EQUAL = 1e-14


def frechet_distance(real: Tensor, generated: Tensor, *, num_groups: int = 0, seed: int = 0) -> Estimate:
    r"""Return the squared Frechet distance between Gaussians fitted to two sets of features.

    .. math:: d^2 = |\mu_r - \mu_g|^2 + \mathrm{tr}(\Sigma_r) + \mathrm{tr}(\Sigma_g)
        - 2\,\mathrm{tr}\big((\Sigma_r^{1/2} \Sigma_g \Sigma_r^{1/2})^{1/2}\big)

    With the features of the Inception network this is the FID. The covariances have the divisor n - 1. With factors
    Sigma = A^T A, the last trace is the sum of the singular values of A_r A_g^T: no matrix square root, nothing
    complex, and no more than rounding is lost where a covariance is singular (n <= D, dead features).

    Biased upward at finite n, by about c / n with a c that depends on the model (`frechet_distance_infinity`). Compare
    figures of equal n alone.

    Cost: O((n + m) D^2 + min(n, m, D)^3), times `num_groups` + 1. Memory: 8 (n + m) D bytes, and as much again.

    Args:
        real: Features (n, D).
        generated: Features (m, D).
        num_groups: Groups of the jackknife that gives the standard error; 0 for none, 20 is usual.
        seed: Seed of the groups.

    Raises:
        ShapeError: if these are not two matrices of equal width with at least 2 rows.
        NonFiniteError: if a feature is NaN or infinite.
        ConfigurationError: if `num_groups` leaves fewer than 2 points in, or is 1 or negative.

    References:
        Dowson & Landau, The Frechet distance between multivariate normal distributions, 1982; Heusel et al., GANs
        Trained by a Two Time-Scale Update Rule, 2017, arXiv 1706.08500, eq. 6.
    """
    real, generated = _features(real, generated)
    _check_groups(num_groups, min(len(real), len(generated)))
    return leaving_out((real, generated), _frechet, num_groups, seed, Purpose.SAMPLE_QUALITY, 0)


def _frechet(samples: Sequence[Tensor]) -> float:
    real, generated = samples
    return _between(_moments(real), _moments(generated))


def _between(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    (mean_a, factor_a), (mean_b, factor_b) = a, b
    shared = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    squares = factor_a.square().sum() + factor_b.square().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + squares - 2 * shared))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and a factor A (min(n, D), D) of the covariance A^T A."""
    mean = x.mean(0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    if len(x) > x.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return mean, factor


def frechet_distance_infinity(
    real: Tensor, generated: Tensor, *, num_points: int = 15, num_groups: int = 0, seed: int = 0
) -> Estimate:
    r"""Extrapolate the Frechet distance to infinitely many generated images.

    A line in 1/N is fitted to the distances of N generated images, N in `num_points` equal steps from max(m/10, 2 D)
    to m, and read at 1/N = 0. At each N the distance is averaged over floor(m / N) disjoint subsets. Below 2 D images
    the bias is no line in 1/N. The bias of the n real images stays; it is smaller the more there are.

    Cost: about 2.5 `num_points` Frechet distances, times `num_groups` + 1.

    Args:
        real: Features (n, D), all used at each point.
        generated: Features (m, D), m at least 4 D and 20.
        num_points: Points of the line, at least 2.
        num_groups: As for `frechet_distance`: groups of the jackknife over the whole extrapolation.
        seed: Seed of the subsets and groups.

    Raises:
        ConfigurationError: for too few generated images, fewer than 2 points, or too many groups.
        ShapeError: as for `frechet_distance`.
        NonFiniteError: if a feature is NaN or infinite.

    References:
        Chong & Forsyth, Effectively Unbiased FID and Inception Score, 2020, arXiv 1911.07023, section 3.
    """
    real, generated = _features(real, generated)
    _check_groups(num_groups, min(len(real), len(generated)))
    if len(generated) < max(20, 4 * real.shape[1]) or num_points < 2:
        raise ConfigurationError(
            f"An extrapolation with {real.shape[1]} features needs {max(20, 4 * real.shape[1])} generated images and 2 "
            f"points; got {len(generated)} and {num_points}. Generate more, or take an extractor with fewer features."
        )

    def extrapolated(samples: Sequence[Tensor]) -> float:
        real, generated = samples
        with noise.stream(seed, Purpose.SAMPLE_QUALITY, 1):
            generated = generated[noise.permutation(len(generated)).to(generated.device)]
        first = max(len(generated) // 10, 2 * real.shape[1])
        sizes = torch.linspace(first, len(generated), num_points).round().long().tolist()
        moments = _moments(real)
        values = []
        for size in sizes:
            distances = [_between(moments, _moments(part)) for part in _disjoint(generated, size)]
            values.append(sum(distances) / len(distances))
        return _value_at_zero([1 / size for size in sizes], values)

    return leaving_out((real, generated), extrapolated, num_groups, seed, Purpose.SAMPLE_QUALITY, 2)


def _disjoint(x: Tensor, size: int) -> tuple[Tensor, ...]:
    return x[: len(x) // size * size].split(size)


def _value_at_zero(x: list[float], y: list[float]) -> float:
    """Return the value at 0 of the least-squares line."""
    return linear_regression(x, y).intercept


def kernel_distance(
    real: Tensor, generated: Tensor, *, num_blocks: int = 10, memory_mib: int = 256, seed: int = 0
) -> Estimate:
    r"""Return the unbiased squared MMD under the cubic kernel: with Inception features, the KID.

    .. math:: \frac{\sum_{i \ne j} k(r_i, r_j)}{n (n - 1)} + \frac{\sum_{i \ne j} k(g_i, g_j)}{m (m - 1)}
        - \frac{2 \sum_{i,j} k(r_i, g_j)}{n m}, \quad k(a, b) = (a \cdot b / D + 1)^3

    Both sets are shuffled and cut into `num_blocks` blocks; the figure is the mean over the blocks and its error
    s / sqrt(blocks), since blocks are independent. Unbiased at every n and for every number of blocks, so it may be
    negative where the two agree. One block has the smallest error, and cannot tell it.

    Cost: 2 (n^2 + m^2 + n m) D / blocks operations. Memory: 16 bytes times a chunk of rows times m / blocks, at most
    `memory_mib` (a single row is computed even where that takes more).

    Args:
        real: Features (n, D).
        generated: Features (m, D).
        num_blocks: Blocks; each must hold 2 points of either set.
        memory_mib: Memory for kernel values.
        seed: Seed of the shuffle.

    Raises:
        ShapeError: as for `frechet_distance`.
        NonFiniteError: if a feature is NaN or infinite.
        ConfigurationError: if there are too few points for the blocks.

    References:
        Binkowski et al., Demystifying MMD GANs, 2018, arXiv 1801.01401, section 4 (KID); Gretton et al., A Kernel
        Two-Sample Test, 2012, eq. 3; Zaremba et al., B-tests, 2013, arXiv 1307.1954 (blocks).
    """
    real, generated = _features(real, generated)
    if not isinstance(num_blocks, int) or not 1 <= num_blocks <= min(len(real), len(generated)) // 2:
        raise ConfigurationError(
            f"`num_blocks` must be from 1 to {min(len(real), len(generated)) // 2}, so that each block holds 2 points "
            f"of either set; got {num_blocks!r}."
        )
    with noise.stream(seed, Purpose.SAMPLE_QUALITY, 3):
        blocks = [
            x[noise.permutation(len(x)).to(x.device)].tensor_split(num_blocks) for x in (real, generated)
        ]
    return mean_of_blocks([_squared_mmd(a, b, memory_mib) for a, b in zip(*blocks, strict=True)])


def _squared_mmd(a: Tensor, b: Tensor, memory_mib: int) -> float:
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a, memory_mib) - _cubic(a.square().sum(1), a).sum()) / (n * (n - 1))
    within_b = (_kernel_sum(b, b, memory_mib) - _cubic(b.square().sum(1), b).sum()) / (m * (m - 1))
    return float(within_a + within_b - 2 * _kernel_sum(a, b, memory_mib) / (n * m))


def _kernel_sum(a: Tensor, b: Tensor, memory_mib: int) -> Tensor:
    parts = [_cubic(part @ b.T, a).sum() for part in a.split(_rows(len(b), 16, memory_mib))]
    return torch.stack(parts).sum()


def _cubic(products: Tensor, features: Tensor) -> Tensor:
    return (products / features.shape[1] + 1) ** 3


class ManifoldFigures(NamedTuple):
    """Shares of images that fall into the neighborhoods of the other set; see `manifold_figures`."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold_figures(
    real: Tensor, generated: Tensor, *, num_neighbors: int = 5, memory_mib: int = 256
) -> ManifoldFigures:
    r"""Return precision, recall, density and coverage from k-nearest-neighbor balls.

    A ball is centered at a point of a set and reaches to its k-th nearest neighbor in the same set, itself not
    counted. A point on the border is inside, as far as rounding can tell; equal points are told apart from near ones
    down to 1e-7 of their norm about the mean.

    - precision: share of generated points in at least one real ball. Outliers of the data raise it.
    - recall: share of real points in at least one generated ball.
    - density: number of real balls around a generated point / k, on average; 1 where both sets have one law, and may
      exceed 1.
    - coverage: share of real balls with at least one generated point. Where both sets have one law, it is on average
      1 - prod_{i<k} (n - 1 - i) / (n + m - 1 - i): for n = m about 1 - 2^-k, not 1.

    The standard errors are s / sqrt(count) over the points counted, with the balls as they are.

    Cost: 2 (n^2 + m^2 + n m) D operations. Memory: 40 bytes times a chunk of rows times max(n, m), at most
    `memory_mib` (a single row is computed even where that takes more).

    Args:
        real: Features (n, D).
        generated: Features (m, D).
        num_neighbors: k, below n and m.
        memory_mib: Memory for distances.

    Raises:
        ShapeError: as for `frechet_distance`.
        NonFiniteError: if a feature is NaN or infinite.
        ConfigurationError: if k is not from 1 to min(n, m) - 1.

    References:
        Kynkaanniemi et al., Improved Precision and Recall Metric, 2019, arXiv 1904.06991, eq. 1-2; Naeem et al.,
        Reliable Fidelity and Diversity Metrics, 2020, arXiv 2002.09797, eq. 4-6.
    """
    real, generated = _features(real, generated)
    most = min(len(real), len(generated)) - 1
    if not isinstance(num_neighbors, int) or not 1 <= num_neighbors <= most:
        raise ConfigurationError(
            f"`num_neighbors` must be from 1 to {most}, fewer than there are points; got {num_neighbors!r}."
        )
    center = real.mean(0)  # less is lost to rounding
    real, generated = real - center, generated - center
    radius_real = _radii(real, num_neighbors, memory_mib)
    radius_generated = _radii(generated, num_neighbors, memory_mib)
    around, recalled, covered = real.new_zeros(len(generated)), [], []
    step = _rows(len(generated), 40, memory_mib)
    for part, radius in zip(real.split(step), radius_real.split(step), strict=True):
        squared = _squared_distances(part, generated)
        inside = squared <= radius[:, None]
        around += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((squared <= radius_generated).any(1))
    return ManifoldFigures(
        precision=_share(around > 0),
        recall=_share(torch.cat(recalled)),
        density=_share(around / num_neighbors),
        coverage=_share(torch.cat(covered)),
    )


def _radii(x: Tensor, num_neighbors: int, memory_mib: int) -> Tensor:
    """Return the squared distance of every point to its k-th nearest neighbor, (n,)."""
    radii = []
    step = _rows(len(x), 40, memory_mib)
    for start in range(0, len(x), step):
        squared = _squared_distances(x[start : start + step], x)
        rows = torch.arange(len(squared), device=x.device)
        squared[rows, rows + start] = torch.inf
        radii.append(squared.topk(num_neighbors, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = norms - 2 * a @ b.T
    return torch.where(squared < _EQUAL * norms, 0, squared)


def _share(values: Tensor) -> Estimate:
    values = values.double()
    return Estimate(float(values.mean()), float(values.std()) / len(values) ** 0.5)


def _rows(columns: int, num_bytes: int, memory_mib: int) -> int:
    if not isinstance(memory_mib, int) or memory_mib < 1:
        raise ConfigurationError(f"`memory_mib` must be a positive integer; got {memory_mib!r}.")
    return max(1, memory_mib * 2**20 // (num_bytes * columns))


def _features(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float64, refusing what is not two sets of vectors."""
    matrices = real.ndim == generated.ndim == 2 and real.shape[1:] == generated.shape[1:]
    if not matrices or min(len(real), len(generated)) < 2 or not real.shape[1]:
        raise ShapeError(
            "Features must be two matrices (n, D) and (m, D), n and m at least 2; "
            f"got {tuple(real.shape)} and {tuple(generated.shape)}."
        )
    for name, x in (("real", real), ("generated", generated)):
        if not torch.isfinite(x).all():
            raise NonFiniteError(
                f"Features of the {name} images must be finite; got NaN or infinity. Look at the images, and at the "
                "range that the extractor expects."
            )
    return real.detach().double(), generated.detach().to(real.device).double()


def _check_groups(num_groups: int, available: int) -> None:
    if not isinstance(num_groups, int) or num_groups < 0 or num_groups == 1 or num_groups > available // 2:
        raise ConfigurationError(
            f"`num_groups` must be 0 (no error) or from 2 to half of the points ({available // 2}); got {num_groups!r}."
        )
