"""How fits to the four 2-D energies of Rezende & Mohamed are measured: what `energies.py` takes from quadrature.

The densities are those of `data=energy`, `latentflows.data.PlaneEnergy`: the published energies with a wall, without
which three of them have no finite integral.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflows.data.energies import EnergyName, PlaneEnergy

BOX = 4.0  # half the side of the square in which they lie
ENERGIES: dict[str, EnergyName] = {  # by their names in the paper
    "U1": "ring",
    "U2": "wave",
    "U3": "parting_wave",
    "U4": "forked_wave",
}


def walled(name: str, z: Tensor) -> Tensor:
    """The energy (...) of points (..., 2) with its wall, up to its normalizer."""
    return PlaneEnergy(ENERGIES[name])(z.reshape(-1, 2)).view(z.shape[:-1])


@dataclass(frozen=True)
class Integrals:
    """What quadrature gives, in nats.

    Args:
        log_z_box: log of the integral of exp(-U) over the box.
        log_z: log of the integral of exp(-U') over the plane.
        entropy: Entropy of p.
    """

    log_z_box: float
    log_z: float
    entropy: float


def integrals(name: str, *, cells: int = 4_000) -> Integrals:
    """Trapezoid rule in float64; `cells` per box side, a multiple of 4, so that nodes lie on the edge of the box.

    The wall is 50 nats high one unit outside the box, where the grid ends.
    """
    box = _trapezoid(name, BOX, cells)
    plane = _trapezoid(name, BOX + 1, cells * 5 // 4)
    return Integrals(log_z_box=box[0], log_z=plane[0], entropy=plane[1])


def _trapezoid(name: str, edge: float, cells: int) -> tuple[float, float]:
    """Log-integral of exp(-U') over [-edge, edge]^2, and the entropy of what lies there."""
    nodes = torch.linspace(-edge, edge, cells + 1, dtype=torch.float64)
    weights = torch.full_like(nodes, 2 * edge / cells)
    weights[[0, -1]] /= 2
    total = first = 0.0
    for rows, row_weights in zip(nodes.split(250), weights.split(250), strict=True):
        z = torch.stack(torch.meshgrid(rows, nodes, indexing="ij"), -1)
        energy = walled(name, z)
        mass = (-energy).exp() * row_weights[:, None] * weights
        total += mass.sum().item()
        first += (mass * energy).sum().item()
    return math.log(total), math.log(total) + first / total


def bin_masses(name: str, bins: int, *, refine: int = 10) -> Tensor:
    """Mass of p in each of `bins` x `bins` squares of the box, first axis first; midpoint rule, sums to at most 1."""
    count = bins * refine
    nodes = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * BOX / count) - BOX
    energy = walled(name, torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1))
    mass = (-energy).exp().view(bins, refine, bins, refine).sum((1, 3)) * (2 * BOX / count) ** 2
    return mass / math.exp(integrals(name, cells=1_000).log_z)


def histogram(z: Tensor, bins: int) -> Tensor:
    """Share of the rows (N, 2) that falls in each of `bins` x `bins` squares of the box."""
    cell = ((z + BOX) * (bins / (2 * BOX))).floor().long()
    inside = ((cell >= 0) & (cell < bins)).all(-1)
    index = cell[inside] @ torch.tensor([bins, 1])
    return torch.bincount(index, minlength=bins * bins).view(bins, bins).double() / len(z)


def missed(p: Tensor, q: Tensor) -> float:
    """Mass of p in the squares to which q gives less than a tenth of it: what a fit has dropped."""
    return p[q < 0.1 * p].sum().item()
