"""The four 2-D energies of Rezende & Mohamed, normalized: what `energies.py` fits, and how a fit is measured.

The published energies U2, U3 and U4 do not decay along the first axis, so exp(-U) has no finite integral on the plane.
Here every energy gets a wall, which is 0 on the box [-4, 4]^2 (the range of the published figure) and rises outside:

    U'(z) = U(z) + 0.5 * sum_i (max(|z_i| - 4, 0) / 0.1)^2,     p(z) = exp(-U'(z)) / Z

Source: Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, table 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BOX = 4.0
WALL = 0.1


def _bump(value: Tensor, scale: float) -> Tensor:
    """Logarithm of exp(-(value / scale)^2 / 2)."""
    return -0.5 * (value / scale) ** 2


def _wave(z: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * z[..., 0])


def ring(z: Tensor) -> Tensor:
    """U1: the left and the right arc of a ring of radius 2."""
    radius = torch.linalg.vector_norm(z, dim=-1)
    arcs = torch.logaddexp(_bump(z[..., 0] - 2, 0.6), _bump(z[..., 0] + 2, 0.6))
    return -_bump(radius - 2, 0.4) - arcs


def wave(z: Tensor) -> Tensor:
    """U2: a band along a sine."""
    return -_bump(z[..., 1] - _wave(z), 0.4)


def parting_wave(z: Tensor) -> Tensor:
    """U3: a band that parts in two around z1 = 1 and comes together again."""
    away = 3 * _bump(z[..., 0] - 1, 0.6).exp()
    across = z[..., 1] - _wave(z)
    return -torch.logaddexp(_bump(across, 0.35), _bump(across + away, 0.35))


def forked_wave(z: Tensor) -> Tensor:
    """U4: a band that forks at z1 = 1."""
    away = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    across = z[..., 1] - _wave(z)
    return -torch.logaddexp(_bump(across, 0.4), _bump(across + away, 0.35))


ENERGIES: dict[str, Callable[[Tensor], Tensor]] = {
    "U1": ring,
    "U2": wave,
    "U3": parting_wave,
    "U4": forked_wave,
}


def walled(name: str, z: Tensor) -> Tensor:
    """The energy with its wall, up to its normalizer."""
    return ENERGIES[name](z) + 0.5 * ((z.abs() - BOX).clamp_min(0) / WALL).square().sum(-1)


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
