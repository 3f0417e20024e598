"""Named flows: recipes over shared parts, each saying which direction is cheap."""

from __future__ import annotations

from functools import partial

from torch import nn

from latentflows.bijections import (
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Chain,
    Inverse,
    InverseAutoregressive,
    Permutation,
    Planar,
    half_mask,
)
from latentflows.core.errors import CombinationError
from latentflows.core.shapes import Shape
from latentflows.networks import MLP
from latentflows.networks.base import Activation, check_sizes


def real_nvp(
    dim: int,
    *,
    num_layers: int = 8,
    width: int = 128,
    depth: int = 2,
    context: int | None = None,
    activation: Activation = "relu",
    additive: bool = False,
) -> Bijection:
    """Affine couplings over alternating halves, a fixed random permutation after every two. Cheap both ways.

    Every second coupling moves the other half, so two layers and a permutation touch and mix all variables. It
    starts as a pure permutation: the last layer of each network is zero. `additive=True` gives NICE.

    Raises:
        CombinationError: for fewer than two variables.
    """
    if dim < 2:
        raise CombinationError(f"A coupling flow needs two or more variables; got {dim}. Use `maf` or `iaf`.")
    check_sizes(num_layers=num_layers, width=width, depth=depth)

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
        layers.append(
            coupling(dim, mask=half_mask(dim, first=i % 2 == 0), network=network, context_shape=context)
        )
    return Chain(layers)


nice = partial(real_nvp, additive=True)
"""`real_nvp` with additive couplings (NICE, arXiv 1410.8516): volume-preserving."""


def iaf(
    dim: int,
    *,
    num_layers: int = 4,
    width: int = 128,
    depth: int = 2,
    context: int | None = None,
    activation: Activation = "elu",
) -> Bijection:
    """Inverse autoregressive layers with the order reversed in between. Cheap to sample: for posteriors."""
    check_sizes(num_layers=num_layers, width=width, depth=depth)
    layers: list[Bijection] = []
    for i in range(num_layers):
        if i:
            layers.append(Permutation.reversal(dim))
        layers.append(
            InverseAutoregressive(dim, width=width, depth=depth, context_shape=context, activation=activation)
        )
    return Chain(layers)


def maf(
    dim: int,
    *,
    num_layers: int = 4,
    width: int = 128,
    depth: int = 2,
    context: int | None = None,
    activation: Activation = "elu",
) -> Bijection:
    """The inverse of `iaf`: cheap to score, for priors and data; a draw costs `dim` passes per layer."""
    return Inverse(
        iaf(dim, num_layers=num_layers, width=width, depth=depth, context=context, activation=activation)
    )


def planar(dim: int, *, num_layers: int = 8, context: int | None = None) -> Bijection:
    """Planar layers. Cheap to sample, no inverse: for posteriors only."""
    return Planar(dim, num_layers=num_layers, context_shape=context)
