"""How much a difference between arms would vary with other images: its standard error over those it was measured on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latentflows.studies.results.results import Results


def error_over_images(results: Results, weights: Mapping[str, int], seeds: Iterable[int]) -> float | None:
    r"""Standard error over images of a paired difference in NLL, at the models that were trained.

    With :math:`d_i` the difference at image i, mean over seeds, w the weights of arms a, and n images,

    .. math:: d_i = \frac{1}{S} \sum_s \sum_a w_a \, \mathrm{nll}_{a, s, i}, \quad s_d / \sqrt{n}.

    Arms are measured on the same images, so what makes an image hard for both is not in it.

    Cost: reads 8 n bytes per run.

    Args:
        results: The results.
        weights: What each arm counts: 1 and -1 in a difference of two.
        seeds: Seeds at which all of them finished.

    Returns:
        The error, nats; None with fewer than two images, or where a run has no `nll.npy` of the figure in its record.
    """
    total: NDArray[np.float64] | None = None
    num = 0
    for seed in seeds:
        for arm, weight in weights.items():
            values = _nll_of(results, arm, seed)
            if values is None or len(values) < 2 or (total is not None and values.shape != total.shape):
                return None
            total = weight * values if total is None else total + weight * values
        num += 1
    if total is None:
        return None
    return float((total / num).std(ddof=1)) / math.sqrt(len(total))


def _nll_of(results: Results, arm: str, seed: int) -> NDArray[np.float64] | None:
    """NLL of every image of a run, where its mean is the NLL in the record: a later evaluation may have replaced it."""
    run = results.runs[arm, seed]
    values, figure = results.files(run).nll, (run.figures or {}).get("nll")
    if values is None or figure is None or not math.isclose(values.mean(), figure.mean, rel_tol=1e-9):
        return None
    return values
