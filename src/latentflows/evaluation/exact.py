"""Log-likelihood of a flow on data: one number for each data point, with no bound and no samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, NonFiniteError, ShapeError
from latentflows.core.noise import Purpose, stream
from latentflows.core.shapes import size
from latentflows.evaluation.base import Figures, checked_count, figure
from latentflows.models.density import DensityModel
from latentflows.models.inference import evaluation_mode, to_model
from latentflows.objectives.requirements import density_of

_BLOCK_NUMBERS = 1 << 18  # numbers of data scored together


@dataclass(frozen=True)
class Likelihood:
    """Log p(x) of every data point under a density model.

    Attributes:
        nll: -log p(x), nats, float64 on the CPU, (n,).
        num_dimensions: Numbers in one data point, D.
        bits_offset: What is added to nll / (D ln 2) in bits per dimension; None where those are undefined.
        density: What the model's log p(x) is: "exact", "estimate" or "approximate", as its class says.
    """

    nll: Tensor
    num_dimensions: int
    bits_offset: float | None
    density: str

    def figures(self) -> Figures:
        """Return the means over data points with their standard errors s / sqrt(n), as `evaluation.json` holds them."""
        bits = None
        if self.bits_offset is not None:
            bits = figure(self.nll / (self.num_dimensions * math.log(2)) + self.bits_offset, "bits/dim")
        return {"nll": figure(self.nll, "nats"), "bits_per_dim": bits}


def evaluate_likelihood(
    model: DensityModel, source: DataSource, *, num_images: int | None = None, seed: int = 0
) -> Likelihood:
    r"""Measure log p(x) of every data point.

    On dequantized images -log p(x) of one draw of the noise is, on average, an upper bound on that of the discrete
    image (Theis et al.); bits per dimension are nll / (D ln 2) + the source's `bits_offset`, 8 for 256 gray levels.

    Cost: one density pass per data point; memory that of 2^18 numbers of data in the flow.

    Args:
        model: In any mode; evaluated without dropout and the like, and given back as it was.
        source: Data points; dequantization noise is drawn once, from `seed`.
        num_images: Only the first n of the source; None for all.
        seed: Seed of the source's noise.

    Raises:
        ConfigurationError: if `num_images` is out of range.
        CombinationError: for a density without a known constant or an inverse, or binary data.
        ShapeError: for data of another shape than the model's.
        DataError: if the density gives no probability to a data point.
        NonFiniteError: if a log-density is NaN or infinite; it is never left out of a mean.

    References:
        Theis et al., A note on the evaluation of generative models, 2016, arXiv 1511.01844, section 3.1.
    """
    count = checked_count(num_images, len(source))
    _check(model, source)
    block = max(1, _BLOCK_NUMBERS // size(model.event_shape))
    pieces = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, count, block):
            with stream(seed, Purpose.EVALUATION, start, 0):
                batch = source.batch(torch.arange(start, min(start + block, len(source))))
                x = to_model(model, batch.x)
                context = None if batch.context is None else to_model(model, batch.context)
                model.check_data(x, context)
                pieces.append(-model.trace(x, context=context).log_likelihood[0].double())
    nll = torch.cat(pieces)[:count].cpu()
    broken = (~nll.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        raise NonFiniteError(
            f"Log-densities must be finite; got others for {len(broken)} of {count} data points (the first is number "
            f"{broken[0]}). The model has diverged, or one of its parts overflows; nothing is left out of a mean to "
            "hide it. Take an earlier checkpoint."
        )
    return Likelihood(nll, size(model.event_shape), source.bits_offset, density_of(model.density))


def _check(model: DensityModel, source: DataSource) -> None:
    if tuple(source.event_shape) != model.event_shape:
        raise ShapeError(
            f"Data points must have the model's shape {model.event_shape}; got {tuple(source.event_shape)}. "
            "Evaluate on data prepared as in training."
        )
    density = model.density
    if not density.has_density or density_of(density) == "unnormalized":
        raise CombinationError(
            f"`{type(density).__name__}` has no inverse or no known constant, so it gives no log p(x) of data. Use a "
            "coupling flow or Inverse(InverseAutoregressive(...))."
        )
    if source.values not in density.values:
        raise CombinationError(
            f"The model is a density of {sorted(density.values)} values, but the data are {source.values}: its "
            "figures would not be their likelihood. Dequantize the data, or state other `values`."
        )
