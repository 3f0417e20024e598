"""Standard errors of figures that are no plain means: by independent blocks, or by leaving groups out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from latentflows.core import noise


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error over data; the error is NaN where it was not asked for or not defined."""

    value: float
    standard_error: float = math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Value ± 2 standard errors: about 95 %."""
        return self.value - 2 * self.standard_error, self.value + 2 * self.standard_error

    def figure(self, unit: str) -> dict[str, object]:
        """Return the figure as `evaluation.json` holds it; what is not finite is None."""
        finite = math.isfinite(self.standard_error)
        return {
            "mean": self.value if math.isfinite(self.value) else None,
            "standard_error": self.standard_error if finite else None,
            "interval": list(self.interval) if finite else None,
            "unit": unit,
        }


def mean_of_blocks(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with s / sqrt(blocks) as its error; NaN for a single one."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(fmean(values), error)


def leaving_out(
    samples: Sequence[Tensor], statistic: Callable[[Sequence[Tensor]], float], num_groups: int, *key: int
) -> Estimate:
    r"""Return a statistic of independent samples with its grouped-jackknife standard error.

    Each sample (n, ...) is cut at random into `num_groups` groups; the j-th of every sample are left out together:

    .. math:: \mathrm{se}^2 = \frac{g - 1}{g} \sum_j (\theta_{-j} - \bar\theta)^2

    The error is that of the estimator at this n; its bias is not in it. The bootstrap is not used: it draws points
    twice, which a distance between two samples takes for a difference (it would be biased by as much again).

    Cost: `num_groups` + 1 evaluations. `num_groups` = 0 gives no error.

    References:
        Efron & Stein, The jackknife estimate of variance, 1981; Shao & Tu, The Jackknife and Bootstrap, 1995, section
        1.3 (grouped).
    """
    value = statistic(samples)
    if not num_groups:
        return Estimate(value)
    with noise.stream(*key):
        cuts = [noise.permutation(len(sample)).tensor_split(num_groups) for sample in samples]
    left = []
    for j in range(num_groups):
        keep = [_without(sample, cut[j]) for sample, cut in zip(samples, cuts, strict=True)]
        left.append(statistic(keep))
    return Estimate(value, (num_groups - 1) / math.sqrt(num_groups) * stdev(left))


def _without(sample: Tensor, rows: Tensor) -> Tensor:
    kept = torch.ones(len(sample), dtype=torch.bool)
    kept[rows] = False
    return sample[kept.to(sample.device)]
