"""How much a difference between arms would vary with other images: its standard error over those it was measured on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latentflows.studies.results.results import Results


def error_over_images(results: Results, arm: str, other: str, seeds: Iterable[int]) -> float | None:
    r"""Standard error over images of the paired difference in NLL, at the models that were trained.

    With :math:`d_i` the difference at image i, mean over seeds, and n images,

    .. math:: d_i = \frac{1}{S} \sum_s (\mathrm{nll}_{s, i} - \mathrm{nll}'_{s, i}), \quad s_d / \sqrt{n}.

    Arms are measured on the same images, so what makes an image hard for both is not in it.

    Cost: reads 8 n bytes per run.

    Args:
        results: The results.
        arm: Name of the arm.
        other: Name of the arm that it is compared with.
        seeds: Seeds at which both finished.

    Returns:
        The error, nats; None with fewer than two images, or where a run has no `nll.npy` of the figure in its record.
    """
    total: NDArray[np.float64] | None = None
    num = 0
    for seed in seeds:
        one, two = (_nll_of(results, name, seed) for name in (arm, other))
        if one is None or two is None or one.shape != two.shape or len(one) < 2:
            return None
        total, num = one - two if total is None else total + one - two, num + 1
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
