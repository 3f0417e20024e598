"""What is looked at after every epoch besides the loss: does the posterior collapse, or grow needle-sharp?

A prior that learns while it regularizes the posterior may chase it, and both may leave for a scale of their own. The
figures below say so while there is time to stop: `fit` writes them to every line of `metrics.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import CombinationError, DataError
from latentflows.models.density import Model
from latentflows.models.inference import evaluation_mode, posterior_moments, variance_of_first
from latentflows.models.vae import VAE
from latentflows.objectives.divergence import squared_mmd

SAMPLES = 10  # of each posterior whose moments have no closed form
_ERRORS = 4  # standard errors that a variance found by draws must lie above the threshold
ACTIVE = 0.01  # variance of the posterior mean over data above which a unit counts as active
NEEDLE = 0.01  # width of single posteriors over that of all latents below which they count as points


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

    With m_n and v_n the mean and variance of q(z|x_n), a = Var_n(m_n) and v the mean of v_n, all of one latent
    dimension, and z_n one draw:

    - `posterior_scale`: root of v, the width of a single posterior, averaged (as v) over dimensions;
    - `latent_scale`: root of a + v, the width of the aggregate posterior q(z), averaged likewise;
    - `active_units`: number of dimensions with a > 0.01 (Burda et al., Importance Weighted Autoencoders, 2016, arXiv
      1509.00519, section 5.1), which takes latents of a width of about 1 for granted;
    - `largest_share`: the largest a / (a + v), the part of a dimension's variance that data explain, at any width
      (of a flow what is proven of it, see below);
    - `needle_units`: number of dimensions with sqrt(v / (a + v)) < 0.01, v > 0: posteriors are points there;
    - `mmd`: squared maximum mean discrepancy between q(z), one draw for each x, and as many draws of the prior, with
      the kernel 1 / (1 + |a - b|^2 / m), m the mean of |a - b|^2 over both: without bias, so it may be negative;
      about 0 where they agree, and near 1 / (2 N) is noise (Gretton et al., A Kernel Two-Sample Test, 2012, eq. 3).
      Left out where the prior cannot be drawn from.

    Moments are exact for Gaussians. A flow's are those of K = 10 draws; what these add to Var_n(m_n), v / K, is
    subtracted, and four times the noise of that correction, v / K sqrt(2 / (N - 1)), before a is compared with
    anything: 0.05 for N = 112 and v = 1.

    Cost: one encoding of N points, one draw of each posterior (K + 1 of a flow's), and N draws of the prior; memory
    O(N^2) (+ K N D for a flow).

    Args:
        model: In any mode; given back as it was.
        batch: N data points, at least 2.
        seed: Of all draws: the same in every epoch.
    """
    with evaluation_mode(model), noise.stream(seed, noise.Purpose.DIAGNOSTICS, 1):
        with values_unchecked():  # of a posterior that has diverged the figures are NaN; the run goes on
            q = model.encode(*batch)
            z = q.sample().double().flatten(1)
            mean, within, error = (value.flatten(1) for value in posterior_moments(q, SAMPLES)[:3])
        added, within = error.mean(0), within.mean(0)
        margin = _ERRORS * added * math.sqrt(2 / (len(mean) - 1))
        figures = _widths(variance_of_first(mean) - added, within, margin)
        try:
            drawn = model.sample_latents(len(batch.x), context=batch.context).double().flatten(1)
        except (CombinationError, DataError):
            return figures
        return figures | {"mmd": _discrepancy(z, drawn)}


def _widths(across: Tensor, within: Tensor, margin: Tensor) -> dict[str, float]:
    """Compare the variance of the means with that of the posteriors, each (D,) as the margin of the first is."""
    whole = (within + across).clamp(min=torch.finfo(within.dtype).tiny)  # latents that never move
    proven = across - margin
    known = bool(across.isfinite().all())
    return {
        "posterior_scale": float(within.mean().sqrt()),
        "latent_scale": float(whole.mean().sqrt()),
        "active_units": float((proven > ACTIVE).sum()) if known else torch.nan,
        "largest_share": float((proven / whole).clamp(min=0).max()),
        "needle_units": float(((within > 0) & (within < NEEDLE**2 * whole)).sum()) if known else torch.nan,
    }


def _discrepancy(a: Tensor, b: Tensor) -> float:
    """Estimate the squared discrepancy of two samples (N, D) of one size, with a kernel as wide as they lie apart."""
    variance = variance_of_first(torch.cat([a, b])).mean().clamp(min=torch.finfo(a.dtype).tiny)
    scale = float(variance.sqrt())  # the mean squared distance is 2 D times the variance
    return float(squared_mmd(a, b, "inverse_multiquadratic", scale).mean())


def faults(figures: Mapping[str, float]) -> dict[str, str]:
    """Say in words what is wrong, by a short name: "collapse" or "needle"; empty where nothing is.

    A posterior of width 0 is an autoencoder's, a point by design: no needle.
    """
    found = {}
    share = figures.get("largest_share")
    if share is not None and share < ACTIVE:
        found["collapse"] = (
            "The posterior has collapsed: no latent dimension is seen to depend on the data (none owes them provably "
            f"more than {ACTIVE:.0%} of its variance). Where a KL holds it back, warm up its weight or use free bits."
        )
    needles = figures.get("needle_units", 0.0)
    if needles > 0:
        found["needle"] = (
            f"The posterior has grown needle-sharp in {needles:.0f} latent dimension{'s' if needles > 1 else ''}: "
            f"single posteriors have less than {NEEDLE:.0%} of the width of all latents there. The prior may be "
            "chasing it: fit the prior in a second stage, bound the posterior's scale, or learn or raise the "
            "likelihood's variance."
        )
    return found


def impossible(kl: float | None) -> dict[str, str]:
    """Say in words that no density has such a mean KL (nats), by the short name "divergence"; empty where one may.

    One nat below zero is more than chance gives the mean over an epoch.
    """
    if kl is None or not kl < -1:
        return {}
    return {
        "divergence": (
            f"The KL of posterior and prior is {kl:.4g} nats, and no density makes it negative: log p(z) is too high "
            "where the posterior lies, since a normalizer from draws misses mass there, or a solver is too coarse. "
            "Train such a prior on a frozen encoder, or use one with an exact density."
        )
    }
