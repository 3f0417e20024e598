"""Named flows: recipes over shared parts, with published defaults where there are any; each says which way is cheap.

Vector flows take the number of variables, `glow`, `real_nvp_image` and `tarflow` a shape. All but the flows of zuko
start as a permutation or a rotation of their input, so that a flow over N(0, I) starts as N(0, I).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from latentflows.bijections import (
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Chain,
    Inverse,
    InverseAutoregressive,
    LULinear,
    Permutation,
    Planar,
    Radial,
    SplineCoupling,
    Sylvester,
    alternating_mask,
    half_mask,
)
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.core.shapes import Shape
from latentflows.models.image_flows import glow, real_nvp_image
from latentflows.models.tarflow import tarflow
from latentflows.models.zuko_flows import bpf, cnf, naf, sospf, unaf
from latentflows.networks import MLP, ResidualMLP
from latentflows.networks.base import Activation, check_sizes
from latentflows.transforms import RationalQuadraticSpline

__all__ = [
    "bpf",
    "cnf",
    "glow",
    "iaf",
    "maf",
    "naf",
    "nice",
    "nsf_autoregressive",
    "nsf_coupling",
    "planar",
    "radial",
    "real_nvp",
    "real_nvp_image",
    "sospf",
    "sylvester_householder",
    "sylvester_orthogonal",
    "sylvester_triangular",
    "tarflow",
    "unaf",
]

Mask = Literal["half", "alternating"]


def real_nvp(
    dim: int,
    *,
    num_layers: int = 8,
    width: int = 128,
    depth: int = 2,
    mask: Mask = "half",
    own_mask: Sequence[int] | Tensor | None = None,
    context: int | None = None,
    activation: Activation = "relu",
    additive: bool = False,
) -> Bijection:
    """Affine couplings over alternating halves, a fixed random permutation after every two. Cheap both ways.

    Every second coupling moves the other half, so two layers and a permutation touch and mix all variables. It
    starts as a pure permutation: the last layer of each network is zero. `mask` says which entries make a half: the
    first ones, or every second one. `own_mask`, a 0 or 1 for each variable, takes its place: the first coupling lets
    the ones stay, the second the zeros, and so on, of permuted variables. `additive=True` gives NICE.

    Source: Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803.

    Raises:
        CombinationError: for fewer than two variables.
        ConfigurationError: for a mask that does not divide them in two groups, or two masks.
    """
    _check_two(dim)
    check_sizes(num_layers=num_layers, width=width, depth=depth)
    if isinstance(own_mask, Tensor):
        own_mask = own_mask.tolist()
    if own_mask is not None and (len(own_mask) != dim or {*own_mask} != {0, 1}):
        raise ConfigurationError(
            f"`own_mask` must hold 0 or 1 for each of {dim} variables, each of both at least once; got "
            f"{list(own_mask)}."
        )
    if mask not in get_args(Mask):
        raise ConfigurationError(f"`mask` must be one of {get_args(Mask)}; got {mask!r}.")
    if own_mask is not None and mask != "half":
        raise ConfigurationError(
            f"`own_mask` takes the place of `mask`; got both {list(own_mask)} and {mask!r}. Give one of them."
        )

    def network(in_shape: Shape, out_shape: Shape, features: int) -> nn.Module:
        return MLP(
            in_shape,
            out_shape,
            width=width,
            depth=depth,
            activation_name=activation,
            context=features,
            zero_last=True,
        )

    coupling = AdditiveCoupling if additive else AffineCoupling
    layers: list[Bijection] = []
    for i in range(num_layers):
        if i and i % 2 == 0:
            layers.append(Permutation.random(dim, seed=i))
        even = i % 2 == 0
        stays = half_mask(dim, first=even) if mask == "half" else alternating_mask(dim, even=even)
        if own_mask is not None:
            stays = torch.tensor(own_mask) == (1 if even else 0)
        layers.append(coupling(dim, mask=stays, network=network, context_shape=context))
    return Chain(layers)


nice = partial(real_nvp, additive=True)
"""`real_nvp` with additive couplings (NICE, arXiv 1410.8516): volume-preserving. Cheap both ways."""


def nsf_coupling(
    dim: int,
    *,
    num_layers: int = 5,
    width: int = 128,
    num_blocks: int = 2,
    num_bins: int = 8,
    bound: float = 3.0,
    context: int | None = None,
) -> Bijection:
    """Spline couplings with residual networks in pairs, a permutation and an LU map after every pair. Cheap both ways.

    A pair moves one half of the variables, then the other. Splines and sizes are those of the paper's VAE
    experiments, which also end in a linear map but permute at random before every coupling: of 32 variables 3 are
    then moved by none of 5 couplings, and trained in posterior and prior they lag by ten nats (docs/published.md).
    Nothing beyond `bound` moves: latents of a VAE are of unit scale, data must be standardized.

    Source: Durkan et al., Neural Spline Flows, 2019, arXiv 1906.04032, RQ-NSF (C), section 5.2 and appendix B.2.

    Raises:
        CombinationError: for fewer than two variables.
    """
    _check_two(dim)
    check_sizes(num_layers=num_layers, width=width, num_blocks=num_blocks)

    def network(in_shape: Shape, out_shape: Shape, features: int) -> nn.Module:
        return ResidualMLP(
            in_shape, out_shape, width=width, num_blocks=num_blocks, context=features, zero_last=True
        )

    layers: list[Bijection] = []
    for i in range(num_layers):
        if i and i % 2 == 0:
            layers += [Permutation.random(dim, seed=i), LULinear(dim)]
        stays = alternating_mask(dim, even=i % 2 == 0)
        layers.append(
            SplineCoupling(
                dim, mask=stays, network=network, num_bins=num_bins, bound=bound, context_shape=context
            )
        )
    return Chain([*layers, LULinear(dim)])


def iaf(
    dim: int,
    *,
    num_layers: int = 4,
    width: int = 128,
    depth: int = 2,
    context: int | None = None,
    activation: Activation = "elu",
) -> Bijection:
    """Inverse autoregressive layers in alternating order. Cheap to sample: for posteriors.

    Scoring a point that it did not draw takes `dim` steps per layer, at the FLOPs of one pass.

    Source: Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.
    """
    check_sizes(num_layers=num_layers, width=width, depth=depth)
    return Chain(
        [
            InverseAutoregressive(
                dim,
                width=width,
                depth=depth,
                order="reversed" if i % 2 else None,
                context_shape=context,
                activation=activation,
            )
            for i in range(num_layers)
        ]
    )


def maf(
    dim: int,
    *,
    num_layers: int = 4,
    width: int = 128,
    depth: int = 2,
    context: int | None = None,
    activation: Activation = "elu",
) -> Bijection:
    """The inverse of `iaf`: cheap to score, for priors and data; a draw takes `dim` steps per layer.

    Source: Papamakarios et al., Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.
    """
    return Inverse(
        iaf(dim, num_layers=num_layers, width=width, depth=depth, context=context, activation=activation)
    )


def nsf_autoregressive(
    dim: int,
    *,
    num_layers: int = 5,
    width: int = 128,
    depth: int = 2,
    num_bins: int = 8,
    bound: float = 3.0,
    context: int | None = None,
    activation: Activation = "relu",
) -> Bijection:
    """Autoregressive splines, each after a permutation and an LU linear map. Cheap to score: for priors and data.

    `Inverse(nsf_autoregressive(...))` is cheap to sample, for posteriors; it begins with a linear map. The masked
    networks are plain where the paper's are residual.

    Source: Durkan et al., Neural Spline Flows, 2019, arXiv 1906.04032, RQ-NSF (AR), section 5.2 and appendix B.2.
    """
    check_sizes(num_layers=num_layers, width=width, depth=depth)
    spline = RationalQuadraticSpline(num_bins=num_bins, bound=bound)

    layers: list[Bijection] = [Permutation.random(dim, seed=0), LULinear(dim)]
    for i in range(1, num_layers + 1):
        layer = InverseAutoregressive(
            dim, transform=spline, width=width, depth=depth, context_shape=context, activation=activation
        )
        layers += [Inverse(layer), Permutation.random(dim, seed=i), LULinear(dim)]
    return Chain(layers)


def planar(dim: int, *, num_layers: int = 8, context: int | None = None) -> Bijection:
    """Planar layers. Cheap to sample, no inverse: for posteriors only.

    Source: Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.
    """
    return Planar(dim, num_layers=num_layers, context_shape=context)


def radial(dim: int, *, num_layers: int = 8, context: int | None = None) -> Bijection:
    """Radial layers. Cheap both ways; each stretches space around one point.

    Source: Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.
    """
    return Radial(dim, num_layers=num_layers, context_shape=context)


def sylvester_orthogonal(
    dim: int, *, num_layers: int = 4, rank: int | None = None, context: int | None = None
) -> Bijection:
    """Sylvester layers of a rank (min(dim, 8) if None) along learned directions. Cheap to sample: posteriors only.

    Source: van den Berg et al., Sylvester Normalizing Flows, 2018, arXiv 1803.05649 (O-SNF).
    """
    check_sizes(dim=dim)
    rank = min(dim, 8) if rank is None else rank
    return Sylvester(dim, kind="orthogonal", rank=rank, num_layers=num_layers, context_shape=context)


def sylvester_householder(
    dim: int, *, num_layers: int = 4, num_householder: int | None = None, context: int | None = None
) -> Bijection:
    """Sylvester layers rotated by reflections (min(dim, 8) if None). Cheap to sample: posteriors only.

    Source: van den Berg et al., Sylvester Normalizing Flows, 2018, arXiv 1803.05649 (H-SNF).
    """
    check_sizes(dim=dim)
    return Sylvester(
        dim,
        kind="householder",
        num_householder=min(dim, 8) if num_householder is None else num_householder,
        num_layers=num_layers,
        context_shape=context,
    )


def sylvester_triangular(dim: int, *, num_layers: int = 4, context: int | None = None) -> Bijection:
    """Sylvester layers over alternating orders. Cheap to sample, no inverse: for posteriors only.

    Source: van den Berg et al., Sylvester Normalizing Flows, 2018, arXiv 1803.05649 (T-SNF).
    """
    return Sylvester(dim, kind="triangular", num_layers=num_layers, context_shape=context)


def _check_two(dim: int) -> None:
    if not isinstance(dim, int):
        raise ConfigurationError(
            f"`dim` must be the number of variables; got {dim!r}. For images take `real_nvp_image` or `glow`."
        )
    if dim < 2:
        raise CombinationError(f"A coupling flow needs two or more variables; got {dim}. Use `maf` or `iaf`.")
