"""What is looked at after every epoch besides the loss: does the posterior collapse, or grow needle-sharp?

A prior that learns while it regularizes the posterior may chase it, and both may leave for a scale of their own. The
figures below say so while there is time to stop: `fit` writes them to every line of `metrics.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import CombinationError, DataError
from latentflows.models.density import Model
from latentflows.models.inference import evaluation_mode
from latentflows.models.vae import VAE
from latentflows.objectives.divergence import squared_mmd

SAMPLES = 10  # of each posterior
ACTIVE = 0.01  # variance of the posterior mean over data above which a unit counts as active
NEEDLE = 0.01  # spread within posteriors over spread of all latents below which they count as points


def look(model: Model, source: DataSource, count: int, seed: int, device: torch.device) -> dict[str, float]:
    """Diagnose the first `count` points of a source, under noise that never changes; nothing for fewer than 2."""
    count = min(count, len(source))
    if count < 2 or not isinstance(model, VAE):
        return {}
    with noise.stream(seed, noise.Purpose.DIAGNOSTICS, 0):
        batch = source.batch(torch.arange(count)).to(device)
    return diagnose(model, batch, seed)


@torch.no_grad()
def diagnose(model: VAE, batch: Batch, seed: int) -> dict[str, float]:
    r"""Measure posterior and prior on a batch: figures by name.

    With z_nk, K = 10, drawn from q(z|x_n), m_n their mean, and an average over latent dimensions where none is named:

    - `posterior_scale`: root of the mean of Var_k(z_nk), the width of a single posterior;
    - `latent_scale`: root of the variance of all z, the width of the aggregate posterior q(z);
    - `active_units`: number of dimensions with Var_n(m_n) > 0.01, corrected for what K draws add (Burda et al.,
      Importance Weighted Autoencoders, 2016, arXiv 1509.00519, section 5.1);
    - `mmd`: squared maximum mean discrepancy between q(z), one draw for each x, and as many draws of the prior, with
      the kernel 1 / (1 + |a - b|^2 / m), m the mean of |a - b|^2 over both: without bias, so it may be negative;
      about 0 where they agree, and near 1 / (2 N) is noise (Gretton et al., A Kernel Two-Sample Test, 2012, eq. 3).
      Left out where the prior cannot be drawn from.

    Cost: K encodings of N points and N draws of the prior; memory O(N^2 + K N D).

    Args:
        model: In any mode; given back as it was.
        batch: N data points, at least 2.
        seed: Of all draws: the same in every epoch.
    """
    with evaluation_mode(model), noise.stream(seed, noise.Purpose.DIAGNOSTICS, 1):
        with values_unchecked():  # of a posterior that has diverged the figures are NaN; the run goes on
            z = model.encode(*batch).sample((SAMPLES,)).double().flatten(2)
        within = _variance(z)  # (N, D)
        across = _variance(z.mean(0)) - within.mean(0) / SAMPLES
        figures = {
            "posterior_scale": float(within.mean().sqrt()),
            "latent_scale": float(_variance(z.flatten(0, 1)).mean().sqrt()),
            "active_units": float((across > ACTIVE).sum()) if across.isfinite().all() else torch.nan,
        }
        try:
            drawn = model.sample_latents(len(batch.x), context=batch.context).double().flatten(1)
        except (CombinationError, DataError):
            return figures
        return figures | {"mmd": _discrepancy(z[0], drawn)}


def _variance(values: Tensor) -> Tensor:
    """Return the variance along the first axis, in a fraction of the time that `Tensor.var` takes there."""
    return (values - values.mean(0)).square().sum(0) / (len(values) - 1)


def _discrepancy(a: Tensor, b: Tensor) -> float:
    """Estimate the squared discrepancy of two samples (N, D) of one size, with a kernel as wide as they lie apart."""
    variance = _variance(torch.cat([a, b])).mean().clamp(min=torch.finfo(a.dtype).tiny)
    scale = float(variance.sqrt())  # the mean squared distance is 2 D times the variance
    return float(squared_mmd(a, b, "inverse_multiquadratic", scale).mean())


def faults(figures: Mapping[str, float]) -> dict[str, str]:
    """Say in words what is wrong, by a short name: "collapse" or "needle"; empty where nothing is.

    A posterior of width 0 is an autoencoder's, a point by design: no needle.
    """
    found = {}
    if figures.get("active_units") == 0:
        found["collapse"] = (
            f"The posterior has collapsed: no latent dimension depends on the data (none has a variance of its "
            f"posterior mean above {ACTIVE:g}). Where a KL holds it back, warm up its weight or use free bits."
        )
    within, overall = figures.get("posterior_scale"), figures.get("latent_scale")
    if within and overall and within < NEEDLE * overall:
        found["needle"] = (
            f"The posterior has grown needle-sharp: a width of {within:.3g} where all latents spread over "
            f"{overall:.3g}. The prior may be chasing it: fit the prior in a second stage, bound the posterior's "
            "scale, or learn or raise the likelihood's variance."
        )
    return found
