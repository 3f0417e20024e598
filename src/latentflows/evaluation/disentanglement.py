"""Do single latents stand for single known factors? MIG, DCI and SAP, each on data of which the factors are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import DataSource
from latentflows.core.errors import ConfigurationError, DataError, NonFiniteError, ShapeError
from latentflows.core.noise import Purpose
from latentflows.core.optional import import_optional
from latentflows.evaluation.base import checked_count, on_model
from latentflows.evaluation.intervals import Estimate, mean_of_blocks
from latentflows.models.inference import MEAN_DRAWS, evaluation_mode, posterior_moments
from latentflows.models.vae import VAE

_PIECE = 256  # images encoded together
_TREES = 20


@dataclass(frozen=True)
class Disentanglement:
    """Scores in [0, 1], each a mean over disjoint blocks of the data with s / sqrt(blocks) as its error.

    Attributes:
        mutual_information_gap: MIG.
        disentanglement: DCI's D: a latent that matters stands for one factor.
        completeness: DCI's C: a factor is held by one latent.
        informativeness: DCI's I: accuracy of the factors predicted from all latents, on held-out data.
        separated_attribute_predictability: SAP.
        num_images: Data points, of all blocks.
        block_size: Data points of a block; all five depend on it.
        num_bins: Bins of a latent in the MIG.
        seed: Seed of the subset, the blocks and the trees.
        posterior_mean: How the latents were got from a posterior; None where they were given.
    """

    mutual_information_gap: Estimate
    disentanglement: Estimate
    completeness: Estimate
    informativeness: Estimate
    separated_attribute_predictability: Estimate
    num_images: int
    block_size: int
    num_bins: int
    seed: int
    posterior_mean: str | None = None

    def figures(self) -> dict[str, dict[str, object]]:
        """Return the scores with their errors, as JSON holds them."""
        names = (
            "mutual_information_gap",
            "disentanglement",
            "completeness",
            "informativeness",
            "separated_attribute_predictability",
        )
        return {name: getattr(self, name).figure("score") for name in names}

    def protocol(self) -> dict[str, int | str]:
        """Return what the scores depend on, as JSON holds it."""
        made = {} if self.posterior_mean is None else {"posterior_mean": self.posterior_mean}
        return {
            "num_images": self.num_images,
            "block_size": self.block_size,
            "num_bins": self.num_bins,
            "seed": self.seed,
            **made,
        }


def evaluate_disentanglement(
    model: VAE,
    source: DataSource,
    factors: Tensor,
    *,
    categorical: Sequence[int] = (),
    num_images: int | None = None,
    num_bins: int = 20,
    num_blocks: int = 5,
    seed: int = 0,
) -> Disentanglement:
    """Encode data with known factors to posterior means, and score how factors and latents pair up.

    The source must hold the factors independently of each other, as the splits of shapes2d do nearly: where they go
    together in the data, one latent for two of them is right, and is scored as wrong.

    Cost: n encoder passes, and that of `score_disentanglement`.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was.
        source: Data points.
        factors: Integers (N, F): what each data point was made from.
        categorical: Columns of `factors` without an order, such as the shape.
        num_images: Only n of the source, drawn with the seed; None for all of it.
        num_bins: Bins of a latent.
        num_blocks: Disjoint blocks that the errors come from.
        seed: Seed of the subset, the blocks, the posterior's draws and the trees.

    Raises:
        ShapeError: if there is not one row of factors for each data point.
        ConfigurationError: if a setting is out of range, or scikit-learn is not installed.
        DataError: if a factor is constant.
    """
    count = checked_count(num_images, len(source))
    if len(factors) != len(source):
        raise ShapeError(f"`factors` must have {len(source)} rows, one a data point; got {len(factors)}.")
    with noise.stream(seed, Purpose.LATENTS, 0):
        rows = noise.permutation(len(source))[:count]
    codes, draws = [], None
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, count, _PIECE):
            with noise.stream(seed, Purpose.LATENTS, 1, start):
                batch = on_model(model, source.batch(rows[start : start + _PIECE]))
                moments = posterior_moments(model.encode(batch.x, batch.context), MEAN_DRAWS)
            codes.append(moments.mean.flatten(1).cpu())
            draws = moments.num_draws
    found = score_disentanglement(
        torch.cat(codes),
        factors.cpu()[rows],
        categorical=categorical,
        num_bins=num_bins,
        num_blocks=num_blocks,
        seed=seed,
    )
    return replace(found, posterior_mean="closed form" if draws is None else f"mean of {draws} draws")


def score_disentanglement(
    codes: Tensor,
    factors: Tensor,
    *,
    categorical: Sequence[int] = (),
    num_bins: int = 20,
    num_blocks: int = 5,
    seed: int = 0,
) -> Disentanglement:
    """Score latents of data with known factors: `mutual_information_gap`, `dci` and `sap` on disjoint blocks.

    Cost: dominated by the trees of `dci`, O(F L n log n) times 20; 10,000 points of 10 latents and 5 factors take
    some seconds.

    Args:
        codes: Latents (N, L), L at least 2, such as posterior means.
        factors: Integers (N, F).
        categorical: Columns of `factors` without an order.
        num_bins: Bins of a latent.
        num_blocks: Blocks; each must hold 20 points at least.
        seed: Seed of the blocks and the trees.

    Raises:
        ShapeError: if these are not two matrices with one row for each data point.
        NonFiniteError: if a latent is NaN or infinite.
        ConfigurationError: if a setting is out of range, or scikit-learn is not installed.
        DataError: if a factor is constant in a block.
    """
    _check(codes, factors, categorical)
    if not isinstance(num_blocks, int) or not 1 <= num_blocks <= len(codes) // 20:
        raise ConfigurationError(
            f"`num_blocks` must be from 1 to {len(codes) // 20}, 20 points a block; got {num_blocks!r}."
        )
    with noise.stream(seed, Purpose.LATENTS, 2):
        blocks = noise.permutation(len(codes)).tensor_split(num_blocks)
    columns: list[tuple[float, ...]] = []
    for rows in blocks:
        z, v = codes[rows], factors[rows]
        gap = mutual_information_gap(z, v, num_bins=num_bins)
        columns.append((gap, *dci(z, v, seed=seed), sap(z, v, categorical=categorical, seed=seed)))
    scores = [mean_of_blocks(values) for values in zip(*columns, strict=True)]
    return Disentanglement(
        *scores, num_images=len(codes), block_size=len(codes) // num_blocks, num_bins=num_bins, seed=seed
    )


def mutual_information_gap(codes: Tensor, factors: Tensor, *, num_bins: int = 20) -> float:
    r"""Return the MIG: how much more the best latent knows of a factor than the second best does.

    .. math:: \frac1F \sum_j \frac{I(z_{(1)}; v_j) - I(z_{(2)}; v_j)}{H(v_j)}

    with latents in the order of I(.; v_j). I is that of histograms: each latent in `num_bins` bins of equal width
    between its least and its greatest value, each factor as it is. At n points it is too large by about
    (bins - 1)(values - 1) / 2n nats for every latent alike, so that most of this cancels in the gap.

    Args:
        codes: Latents (N, L), L at least 2.
        factors: Integers (N, F).
        num_bins: Bins of a latent, at least 2.

    Raises:
        ShapeError: as for `score_disentanglement`.
        ConfigurationError: for fewer than 2 bins.
        DataError: if a factor is constant.

    References:
        Chen et al., Isolating Sources of Disentanglement, 2018, arXiv 1802.04942, eq. 6; binning of means as in
        Locatello et al., Challenging Common Assumptions, 2019, arXiv 1811.12359, appendix C.
    """
    information, entropy = mutual_information(codes, factors, num_bins=num_bins)
    best = information.topk(2, dim=0).values
    return float(((best[0] - best[1]) / entropy).mean())


def mutual_information(codes: Tensor, factors: Tensor, *, num_bins: int = 20) -> tuple[Tensor, Tensor]:
    """Return I(z_i; v_j) (L, F) and H(v_j) (F,) of histograms, in nats; see `mutual_information_gap`."""
    _check(codes, factors)
    if not isinstance(num_bins, int) or num_bins < 2:
        raise ConfigurationError(f"`num_bins` must be an integer of at least 2; got {num_bins!r}.")
    z = codes.double()
    low, span = z.min(0).values, z.max(0).values - z.min(0).values
    # A latent that never moves is in one bin.
    places = ((z - low) / torch.where(span > 0, span, 1) * num_bins).long().clamp(max=num_bins - 1)
    information = torch.empty(codes.shape[1], factors.shape[1], dtype=torch.float64)
    entropy = torch.empty(factors.shape[1], dtype=torch.float64)
    for j, column in enumerate(factors.T):
        kinds, values = column.unique(return_inverse=True)
        for i, bins in enumerate(places.T):
            joint = torch.bincount(bins * len(kinds) + values, minlength=num_bins * len(kinds))
            joint = joint.view(num_bins, len(kinds)).double() / len(codes)
            information[i, j] = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)
        entropy[j] = _entropy(torch.bincount(values).double() / len(codes))
    return information, entropy


def dci(codes: Tensor, factors: Tensor, *, seed: int = 0) -> tuple[float, float, float]:
    r"""Return disentanglement, completeness and informativeness of tree ensembles that predict each factor.

    R (L, F) holds how important each latent is for each factor, in a forest of 20 bagged trees that all see every
    latent. With P the columns or rows of R as shares,

    .. math:: D = \sum_i \rho_i \Big(1 - \frac{H(P_{i \cdot})}{\log F}\Big), \quad
        C = \frac1F \sum_j \Big(1 - \frac{H(P_{\cdot j})}{\log L}\Big), \quad \rho_i = \frac{\sum_j R_{ij}}{\sum R}

    The informativeness is the mean accuracy over factors on the half of the data that the trees were not grown on.
    Factors without any predictor have noise for importances: D and C say little where I is near chance.

    Args:
        codes: Latents (N, L), L at least 2.
        factors: Integers (N, F), F at least 2.
        seed: Seed of the halves and the trees.

    Raises:
        ShapeError: as for `score_disentanglement`, or for a single factor.
        ConfigurationError: if scikit-learn is not installed.
        DataError: if a factor is constant.

    References:
        Eastwood & Williams, A Framework for the Quantitative Evaluation of Disentangled Representations, 2018, section
        2 (OpenReview By-7dz-AZ).
    """
    _check(codes, factors)
    if factors.shape[1] < 2:
        raise ShapeError("DCI tells factors apart and needs two at least; got one.")
    ensemble = import_optional("sklearn.ensemble", install="latentflows[digits]")
    train, test = _halves(len(codes), seed)
    z, v = codes.double().numpy(), factors.numpy()
    importance, accuracy = [], []
    for j in range(v.shape[1]):
        # numpy's legacy generator takes 32 bits.
        forest = ensemble.RandomForestClassifier(
            _TREES, max_features=None, random_state=noise.mix(seed, Purpose.LATENTS, 4, j) % 2**32
        )
        forest.fit(z[train], v[train, j])
        importance.append(forest.feature_importances_)
        accuracy.append(forest.score(z[test], v[test, j]))
    disentanglement, completeness = _concentration(torch.from_numpy(np.stack(importance, 1)))
    return disentanglement, completeness, float(np.mean(accuracy))


def _concentration(importance: Tensor) -> tuple[float, float]:
    """Return D and C of importances (L, F)."""
    total = importance.sum().clamp(min=1e-300)
    rows, columns = importance.sum(1), importance.sum(0)
    per_latent = [
        1 - _entropy(row / row.sum()) / np.log(len(row)) if row.sum() > 0 else 0.0 for row in importance
    ]
    per_factor = [1 - _entropy(c / c.sum()) / np.log(len(c)) if c.sum() > 0 else 0.0 for c in importance.T]
    weighted = float((rows / total * torch.tensor(per_latent, dtype=torch.float64)).sum())
    return weighted, sum(map(float, per_factor)) / len(columns)


def sap(codes: Tensor, factors: Tensor, *, categorical: Sequence[int] = (), seed: int = 0) -> float:
    """Return the SAP: how much better the best single latent predicts a factor than the second best does.

    For a factor with an order, the prediction of a latent is scored by R^2 of the regression line on it. For a
    categorical one, by the balanced accuracy, on held-out data, of as many thresholds as there are values (a tree
    with one leaf a value). The gaps are averaged over the factors.

    Args:
        codes: Latents (N, L), L at least 2.
        factors: Integers (N, F).
        categorical: Columns of `factors` without an order.
        seed: Seed of the halves.

    Raises:
        ShapeError: as for `score_disentanglement`.
        ConfigurationError: if scikit-learn is not installed, and a factor is categorical.
        DataError: if a factor is constant.

    References:
        Kumar et al., Variational Inference of Disentangled Latent Concepts, 2018, arXiv 1711.00848, section 3.
    """
    _check(codes, factors, categorical)
    gaps = []
    for j in range(factors.shape[1]):
        scores = (
            _by_thresholds(codes, factors[:, j], seed)
            if j in categorical
            else _by_lines(codes, factors[:, j])
        )
        best = scores.topk(2).values
        gaps.append(float(best[0] - best[1]))
    return sum(gaps) / len(gaps)


def _by_lines(codes: Tensor, factor: Tensor) -> Tensor:
    """Return R^2 of the factor on each latent, (L,); 0 for a latent that never moves."""
    z, v = codes.double(), factor.double()
    z, v = z - z.mean(0), v - v.mean()
    variances = z.square().sum(0) * v.square().sum()
    return torch.where(variances > 0, (z * v[:, None]).sum(0).square() / variances, 0)


def _by_thresholds(codes: Tensor, factor: Tensor, seed: int) -> Tensor:
    """Return the balanced accuracy of thresholds on each latent, on held-out data, (L,)."""
    tree = import_optional("sklearn.tree", install="latentflows[digits]")
    train, test = _halves(len(codes), seed)
    z, v = codes.double().numpy(), factor.numpy()
    scores = []
    for i in range(z.shape[1]):
        leaves = len(np.unique(v))
        cut = tree.DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
        right = cut.fit(z[train, i : i + 1], v[train]).predict(z[test, i : i + 1]) == v[test]
        scores.append(np.mean([right[v[test] == value].mean() for value in np.unique(v[test])]))
    return torch.tensor(np.array(scores))


def _halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    with noise.stream(seed, Purpose.LATENTS, 3):
        order = noise.permutation(count).numpy()
    return order[: count // 2], order[count // 2 :]


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum()


def _check(codes: Tensor, factors: Tensor, categorical: Sequence[int] = ()) -> None:
    matrices = (
        codes.ndim == factors.ndim == 2 and len(codes) == len(factors) and not factors.is_floating_point()
    )
    if not matrices or codes.shape[1] < 2 or not factors.numel():
        raise ShapeError(
            "`codes` must be (N, L) with L at least 2, and `factors` integers (N, F); got "
            f"{tuple(codes.shape)} and {tuple(factors.shape)} of {factors.dtype}."
        )
    if not torch.isfinite(codes).all():
        raise NonFiniteError("Latents must be finite; got NaN or infinity. The model has diverged.")
    constant = (factors == factors[:1]).all(0).nonzero()[:, 0].tolist()
    if constant:
        raise DataError(
            f"Factors {constant} have one value in these {len(factors)} points, and cannot be told. Leave them out, "
            "or take more data."
        )
    if not set(categorical) <= set(range(factors.shape[1])):
        raise ConfigurationError(
            f"`categorical` must hold columns 0 to {factors.shape[1] - 1}; got {tuple(categorical)}."
        )
