"""Prior holes: whether draws of the aggregate posterior and of the prior can be told apart, by two kinds of test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.core.batches import DataSource
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.core.noise import Purpose, permutation, stream
from latentflows.evaluation.base import (
    Figures,
    Protocol,
    Use,
    blocks,
    check_event,
    check_positive_integers,
    checked_count,
    draw_once,
    finite,
)
from latentflows.models.inference import evaluation_mode
from latentflows.models.vae import VAE
from latentflows.networks import MLP

Kernel = Literal["rbf", "imq"]

_BLOCK = 256  # images encoded together
_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths, in units of the median distance
_MEDIAN_POINTS = 1000  # points whose distances give the median
_PAIRS = 1 << 22  # entries of the kernel matrix in memory at once


@dataclass(frozen=True)
class KernelTest:
    """A kernel two-sample test.

    Attributes:
        squared_mmd: Unbiased estimate of MMD^2; 0 on average where both samples share one distribution.
        standard_error: Its error where the distributions differ; of no use where they do not, see `p_value`.
        p_value: Share of relabelings, the given one among them, whose estimate is as large.
        bandwidth: Median distance in the pooled sample.
        protocol: How it was measured.
    """

    squared_mmd: float
    standard_error: float
    p_value: float
    bandwidth: float
    protocol: Protocol

    def figures(self) -> Figures:
        """Return the estimate with its error and p-value, in the form of `Bounds.figures`."""
        return {
            f"mmd_{self.protocol['kernel']}": {
                "mean": self.squared_mmd,
                "standard_error": finite(self.standard_error),
                "unit": "squared MMD",
                "p_value": self.p_value,
            }
        }


@dataclass(frozen=True)
class ClassifierTest:
    """A classifier two-sample test.

    Attributes:
        accuracy: Share of held-out points whose sample is told; 1/2 on average where both share one distribution.
        standard_error: sqrt(a (1 - a) / m).
        p_value: Probability of at least this many right out of m by fair coins.
        protocol: How it was measured.
    """

    accuracy: float
    standard_error: float
    p_value: float
    protocol: Protocol

    def figures(self) -> Figures:
        """Return the accuracy with its error and p-value, in the form of `Bounds.figures`."""
        return {
            "classifier_accuracy": {
                "mean": self.accuracy,
                "standard_error": self.standard_error,
                "unit": "share",
                "p_value": self.p_value,
            }
        }


@dataclass(frozen=True)
class Holes:
    """Whether the prior fits the aggregate posterior.

    Attributes:
        rbf: Kernel test with Gaussian kernels.
        imq: Kernel test with inverse multiquadratic kernels, which also see differences far out.
        classifier: Classifier test.
        protocol: Which draws were compared.
    """

    rbf: KernelTest
    imq: KernelTest
    classifier: ClassifierTest
    protocol: Protocol

    def figures(self) -> Figures:
        """Return the figures of all three tests."""
        return self.rbf.figures() | self.imq.figures() | self.classifier.figures()


def evaluate_holes(
    model: VAE,
    source: DataSource,
    *,
    num_images: int | None = None,
    num_permutations: int = 499,
    seed: int = 0,
) -> Holes:
    """Test whether draws of q(z) = E_x q(z|x) and of p(z) can be told apart: where they can, the prior has holes.

    One z is drawn from q(z|x) for each of n images, and n from the prior. Every draw is independent of the others, so
    the tests are exact: with q(z) = p(z) their p-values are uniform. A large p-value is no proof of equality; it says
    that n draws do not show a difference. Only draws are needed, so any prior will do.

    A prior with a context is given that of each image, so that E_c q(z|c) is compared with E_c p(z|c): an error that
    differs in sign from context to context may cancel. The two samples then share their contexts and resemble each
    other more than independent ones do, so that the p-values of the kernel tests are too large.

    The test set answers whether the prior fits unseen data; on training images an encoder that overfits looks better.

    Cost: n encoder passes and draws, and what `kernel_test` (twice) and `classifier_test` cost.

    Args:
        model: In any mode.
        source: Data points; their noise is drawn once.
        num_images: n, the first n of the source; None for all.
        num_permutations: Relabelings of the kernel tests.
        seed: Seed of everything drawn.

    Raises:
        ConfigurationError: for settings out of range.
        DataError: if all latents coincide, or there are fewer than 4.
        ShapeError: for data of another shape than the model's.
    """
    count = checked_count(num_images, len(source))
    check_event(model, source)
    data = draw_once(source, count, seed=seed)
    posterior, prior, density = [], [], ""
    with evaluation_mode(model), torch.no_grad():
        for block in blocks(model, data, _BLOCK):
            with stream(seed, Purpose.EVALUATION, Use.LATENTS, block.start, 0):
                posterior.append(model.encode(block.x, block.context).sample())
            with stream(seed, Purpose.EVALUATION, Use.PRIOR, block.start, 0):
                p = model.prior_at(block.context)
                prior.append(p.sample() if p.batch_shape else p.sample((len(block.x),)))
                density = p.density
    from_q, from_p = torch.cat(posterior), torch.cat(prior)
    rbf, imq = (
        kernel_test(from_q, from_p, kernel=kernel, num_permutations=num_permutations, seed=seed)
        for kernel in ("rbf", "imq")
    )
    protocol: Protocol = {
        "compared": "one draw of q(z|x) per image, as many draws of the prior",
        "num_images": count,
        "prior_density": density,
        "seed": seed,
    }
    return Holes(rbf, imq, classifier_test(from_q, from_p, seed=seed), protocol)


def kernel_test(
    first: Tensor,
    second: Tensor,
    *,
    kernel: Kernel = "rbf",
    num_permutations: int = 499,
    seed: int = 0,
) -> KernelTest:
    r"""Estimate the squared maximum mean discrepancy of two samples without bias, with a permutation p-value.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j) + \sum_{i \ne j} k(y_i, y_j)}{n (n - 1)}
              - \frac{2}{n^2} \sum_{i, j} k(x_i, y_j)

    k is the mean over five bandwidths h = m (1/4, 1/2, 1, 2, 4), m the median distance in the pooled sample (of at most
    1,000 of its points): exp(-d^2 / 2 h^2) for "rbf", 1 / (1 + d^2 / h^2) for "imq". m does not see which sample a
    point is from, so relabeling the pooled sample gives an exact test: p = (1 + #(as large)) / (1 + R). The standard
    error is 2 sd(h_i) / sqrt(n), with h_i the share of point i, of both samples.

    Cost: (2 n)^2 kernels, computed once for all relabelings, and (2 n)^2 R multiplications. Memory: at most 2^22
    kernels in float64 and 2 n (R + 1) labels.

    Args:
        first: (n, *event).
        second: (n, *event).
        kernel: "rbf" or "imq".
        num_permutations: R.
        seed: Seed of the relabelings.

    Raises:
        ConfigurationError: for an unknown kernel or a count that is not positive.
        ShapeError: if the samples differ in shape.
        DataError: if there are fewer than 4 points in each, a value is not finite, or the median distance is 0.

    References:
        Gretton et al., A Kernel Two-Sample Test, 2012, JMLR 13, eq. 3 and section 8 (median heuristic); Tolstikhin et
        al., Wasserstein Auto-Encoders, 2018, arXiv 1711.01558 (inverse multiquadratic kernel).
    """
    check_positive_integers(num_permutations=num_permutations)
    if kernel not in ("rbf", "imq"):
        raise ConfigurationError(f'`kernel` must be "rbf" or "imq"; got {kernel!r}.')
    points, count = _pooled(first, second)
    with stream(seed, Purpose.EVALUATION, Use.PERMUTATION, 0, 0):
        some = points[permutation(2 * count)[:_MEDIAN_POINTS].to(points.device)]
        orders = [permutation(2 * count) for _ in range(num_permutations)]
    bandwidth = float(torch.nn.functional.pdist(some).median())
    if not bandwidth > 0:
        raise DataError(
            "Half of the points coincide: the median distance is 0, and no kernel width follows from it."
        )
    labels = torch.ones(2 * count, num_permutations + 1, dtype=torch.float64)
    labels[count:, 0] = -1
    for column, order in enumerate(orders, 1):
        labels[order[count:], column] = -1
    total, signed, shares = _kernel_sums(points, labels.to(points.device), kernel, bandwidth)
    # Off the diagonal, sums within samples and between them: (total +- signed) / 2.
    estimates = (total + signed) / 2 / (count * (count - 1)) - (total - signed) / 2 / count**2
    observed = estimates[0]
    # Rounding must not decide ties: a relabeling that swaps the samples gives the same estimate.
    as_large = int((estimates[1:] >= observed - 1e-12).sum())
    variance = shares.view(2, count).var(1).sum()
    return KernelTest(
        squared_mmd=float(observed),
        standard_error=float((4 * variance / count).sqrt()),
        p_value=(1 + as_large) / (1 + num_permutations),
        bandwidth=bandwidth,
        protocol={
            "kernel": kernel,
            "bandwidths": "median distance times 1/4, 1/2, 1, 2, 4",
            "num_per_sample": count,
            "num_permutations": num_permutations,
            "seed": seed,
        },
    )


def _kernel_sums(
    points: Tensor, labels: Tensor, kernel: Kernel, bandwidth: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of k_ij and of s_i k_ij s_j over i != j, per column of labels s, and each point's share (N,)."""
    num = len(points)
    norms = points.square().sum(1)
    total = points.new_zeros(())
    signed = points.new_zeros(labels.shape[1])
    shares = []
    half = num // 2
    step = max(1, _PAIRS // num)
    for start in range(0, num, step):
        part = slice(start, start + step)
        squares = (norms[part, None] + norms - 2 * points[part] @ points.T).clamp(min=0) / bandwidth**2
        if kernel == "rbf":
            values = sum(torch.exp(squares / (-2 * scale**2)) for scale in _SCALES)
        else:
            values = sum((1 + squares / scale**2).reciprocal() for scale in _SCALES)
        assert isinstance(values, Tensor)
        values = values / len(_SCALES)
        rows = torch.arange(start, start + len(values), device=points.device)
        values[rows - start, rows] = 0
        total += values.sum()
        signed += ((values @ labels) * labels[part]).sum(0)
        in_first, in_second = values[:, :half].sum(1), values[:, half:].sum(1)
        is_first = rows < half
        own, other = torch.where(is_first, in_first, in_second), torch.where(is_first, in_second, in_first)
        shares.append(own / (half - 1) - other / half)
    return total, signed, torch.cat(shares)


def classifier_test(
    first: Tensor,
    second: Tensor,
    *,
    width: int = 64,
    num_steps: int = 500,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> ClassifierTest:
    """Train a small network to tell two samples apart on half of the points, and test it on the other half.

    Each sample is shuffled and cut in two. Where both share one distribution, a held-out point of the first is told
    right with some probability a, one of the second with 1 - a. So the number of right answers out of m has mean m / 2
    and at most the variance of m fair coins, whatever the network learned, and the p-value errs on the safe side.
    (Cutting the pooled points instead makes one half short of what the other has too much of: a network that learns
    which is more frequent is then wrong too often.) The accuracy says how large a difference is, in terms one can
    picture; the p-value says whether it is one.

    Network: two hidden layers of `width` ReLUs on standardized variables, Adam. Cost: num_steps * batch_size passes.

    Args:
        first: (n, *event).
        second: (n, *event).
        width: Units per layer.
        num_steps: Optimizer steps.
        batch_size: Points per step.
        learning_rate: Of Adam.
        seed: Seed of split, network and batches.

    Raises:
        ConfigurationError: for settings out of range.
        ShapeError: if the samples differ in shape.
        DataError: if there are fewer than 4 points in each, or a value is not finite.

    References:
        Lopez-Paz & Oquab, Revisiting Classifier Two-Sample Tests, 2017, arXiv 1610.06545, section 3.
    """
    check_positive_integers(width=width, num_steps=num_steps, batch_size=batch_size)
    points, count = _pooled(first, second)
    spread = points.std(0)
    points = ((points - points.mean(0)) / torch.where(spread > 0, spread, 1)).float()
    labels = torch.cat([torch.ones(count), torch.zeros(count)]).to(points.device)
    with stream(seed, Purpose.EVALUATION, Use.CLASSIFIER, 0, 0):
        order = torch.stack([permutation(count), count + permutation(count)]).to(points.device)
        train, held_out = order[:, : count // 2].flatten(), order[:, count // 2 :].flatten()
        network = MLP(points.shape[1], 1, width=width, depth=2).to(points.device)
        with torch.enable_grad():
            adam = torch.optim.Adam(network.parameters(), lr=learning_rate)
            for _ in range(num_steps):
                batch = train[permutation(len(train))[:batch_size].to(points.device)]
                loss = functional.binary_cross_entropy_with_logits(
                    network(points[batch])[:, 0], labels[batch]
                )
                adam.zero_grad()
                loss.backward()
                adam.step()
    with torch.no_grad():
        right = int(((network(points[held_out])[:, 0] > 0) == (labels[held_out] > 0.5)).sum())
    tested = len(held_out)
    accuracy = right / tested
    return ClassifierTest(
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / tested),
        p_value=coin_tail(right, tested),
        protocol={
            "network": f"MLP, 2 x {width} ReLUs, {num_steps} steps of Adam at {learning_rate}, batch {batch_size}",
            "num_train": len(train),
            "num_held_out": tested,
            "seed": seed,
        },
    )


def coin_tail(heads: int, tosses: int) -> float:
    """Return the probability that `tosses` fair coins give at least `heads` heads, from an exact sum."""
    k = torch.arange(heads, tosses + 1, dtype=torch.float64)
    total = torch.tensor(tosses, dtype=torch.float64)
    log_mass = (total + 1).lgamma() - (k + 1).lgamma() - (total - k + 1).lgamma() - total * math.log(2)
    return min(1.0, float(log_mass.exp().sum()))


def _pooled(first: Tensor, second: Tensor) -> tuple[Tensor, int]:
    """Return both samples as float64 rows (2 n, D), and n."""
    if first.shape != second.shape or first.ndim < 2:
        raise ShapeError(
            "Two samples of one size and event shape are compared, (n, *event); got "
            f"{tuple(first.shape)} and {tuple(second.shape)}. Draw as many of one as of the other."
        )
    points = torch.cat([first, second]).detach().flatten(1).double()
    if len(first) < 4 or not bool(points.isfinite().all()):
        what = "a value that is not finite" if len(first) >= 4 else f"{len(first)} points"
        raise DataError(f"Each sample needs at least 4 points, all of them finite; got {what}.")
    return points, len(first)
