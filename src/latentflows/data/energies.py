"""Points in the plane from densities that are known up to a constant: what a flow is fitted to by their energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, Values
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.shapes import Shape
from latentflows.data.base import ImageData

EnergyName = Literal["ring", "wave", "parting_wave", "forked_wave"]
_BOX, _WALL = 4.0, 0.1  # the square in which the densities lie, and how fast they end outside
_EDGE = 5.0  # of a square that leaves out nothing: there the wall is 50 nats high
_CELLS = 500  # of the quadrature, on each side; nodes lie on the edge of the box
_PROPOSALS = 1 << 17  # drawn together


@dataclass(frozen=True)
class PlaneEnergy:
    r"""The energy U of a density in the plane, p(x) = e^(-U(x)) / Z.

    With e(a, s) = exp(-(a / s)^2 / 2) and w = sin(pi x_1 / 2),

    | name | U(x), without the wall | log Z |
    |---|---|---|
    | "ring" | ((abs(x) - 2) / 0.4)^2 / 2 - log(e(x_1 - 2, 0.6) + e(x_1 + 2, 0.6)) | 1.877502 |
    | "wave" | ((x_2 - w) / 0.4)^2 / 2 | 2.112941 |
    | "parting_wave" | -log(e(x_2 - w, 0.35) + e(x_2 - w + 3 e(x_1 - 1, 0.6), 0.35)) | 2.672557 |
    | "forked_wave" | -log(e(x_2 - w, 0.4) + e(x_2 - w + 3 sigmoid((x_1 - 1) / 0.3), 0.35)) | 2.724694 |

    All but the first have no norm as published: they do not decay along x_1. So each gets a wall, which is 0 on
    [-4, 4]^2 and sum_i (max(abs(x_i) - 4, 0) / 0.1)^2 / 2 outside. U is at least -log 2.

    Args:
        name: As in the table.

    Raises:
        ConfigurationError: for an unknown name.

    References:
        Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, table 1 (U1 to U4).
    """

    name: EnergyName

    def __post_init__(self) -> None:
        if self.name not in get_args(EnergyName):
            raise ConfigurationError(
                f"`name` of an energy must be one of {get_args(EnergyName)}; got {self.name!r}."
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Return U (N,) of points (N, 2).

        Raises:
            ShapeError: for another shape.
        """
        if x.ndim != 2 or x.shape[1] != 2:
            raise ShapeError(f"`x` must be points (N, 2); got shape {tuple(x.shape)}.")
        return self._published(x) + ((x.abs() - _BOX).clamp_min(0) / _WALL).square().sum(1) / 2

    def _published(self, x: Tensor) -> Tensor:
        first, second = x.unbind(1)
        if self.name == "ring":
            radius = (x.square().sum(1) + 1e-12).sqrt()  # differentiable at 0
            arcs = torch.logaddexp(_log_bump(first - 2, 0.6), _log_bump(first + 2, 0.6))
            return -_log_bump(radius - 2, 0.4) - arcs
        across = second - (math.pi / 2 * first).sin()
        if self.name == "wave":
            return -_log_bump(across, 0.4)
        if self.name == "parting_wave":
            away = 3 * _log_bump(first - 1, 0.6).exp()
            return -torch.logaddexp(_log_bump(across, 0.35), _log_bump(across + away, 0.35))
        away = 3 * ((first - 1) / 0.3).sigmoid()
        return -torch.logaddexp(_log_bump(across, 0.4), _log_bump(across + away, 0.35))

    @cached_property
    def log_normalizer(self) -> float:
        """Log Z by the trapezoid rule in float64, to 1e-6. Cost: 250,000 energies, once."""
        nodes = torch.linspace(-_EDGE, _EDGE, _CELLS + 1, dtype=torch.float64)
        total = (-self(torch.cartesian_prod(nodes, nodes))).logsumexp(0)  # there is nothing at the edge
        return float(total) + 2 * math.log(2 * _EDGE / _CELLS)

    def sample(self, count: int) -> Tensor:
        """Draw exactly, (count, 2), by rejection from a square.

        Cost: one energy for each proposal, 200 / Z of them for a draw: 13 to 31.
        """
        found, missing, like = [], count, torch.zeros(())
        while missing > 0:
            points = (2 * noise.uniform((_PROPOSALS, 2), like=like) - 1) * _EDGE
            kept = points[2 * noise.uniform((_PROPOSALS,), like=like) < (-self(points)).exp()]
            found.append(kept[:missing])
            missing -= len(found[-1])
        return torch.cat(found)


def _log_bump(value: Tensor, scale: float) -> Tensor:
    return -(value / scale).square() / 2


class EnergySplit:
    """Draws of a density in the plane, and its energy.

    Memory: 8 bytes per point.

    Args:
        x: Points (N, 2), N at least 1.
        energy: U of the density.

    Raises:
        ShapeError: for another shape.
    """

    values: Values = "continuous"
    bits_offset = None

    def __init__(self, x: Tensor, energy: PlaneEnergy) -> None:
        if x.ndim != 2 or not len(x) or x.shape[1] != 2:
            raise ShapeError(f"`x` must be points (N, 2), N at least 1; got shape {tuple(x.shape)}.")
        self.x, self.energy = x.to(torch.float32), energy
        self.event_shape: Shape = (2,)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        """Return the points at `indices` (B,), (B, 2)."""
        return Batch(self.x[indices])


def energy_points(
    name: EnergyName,
    num_train: int = 10_000,
    num_validation: int = 1000,
    num_test: int = 2000,
    *,
    seed: int = 0,
) -> ImageData:
    """Draw points from a density in the plane, whose energy every split carries.

    Args:
        name: Of the `PlaneEnergy`.
        num_train: Points to fit.
        num_validation: Points to choose by.
        num_test: Points to report.
        seed: Seed of the points.

    Returns:
        Three splits, each an `EnergySplit`.

    Raises:
        ConfigurationError: for an unknown name, or a number below 1.
    """
    energy, counts = PlaneEnergy(name), (num_train, num_validation, num_test)
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise ConfigurationError(f"Numbers of points must be positive integers; got {counts}.")
    splits = []
    for place, count in enumerate(counts):
        with noise.stream(seed, noise.Purpose.DATA, 2, place):
            splits.append(EnergySplit(energy.sample(count), energy))
    numbers = " / ".join(map(str, counts))
    return ImageData(
        "energy",
        *splits,
        description=f"points of the density {name} in the plane, {numbers} (train, validation, test), drawn with "
        f"seed {seed}",
    )
