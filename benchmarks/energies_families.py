"""The families of flows that `energies.py` compares, on two variables."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from latentflows.bijections import (
    AffineCoupling,
    Bijection,
    Chain,
    Elementwise,
    InverseAutoregressive,
    Planar,
    Radial,
    SplineCoupling,
    Sylvester,
    half_mask,
)
from latentflows.networks import MLP
from latentflows.transforms import Affine

DIM, WIDTH, HIDDEN = 2, 32, 2
BINS, BOUND = 8, 5.0
DEPTHS = (2, 8, 32)


@dataclass(frozen=True)
class Family:
    """One family: how it is called, how its K layers are made, and the learning rate that suits it."""

    label: str
    layers: Callable[[int], list[Bijection]]
    rate: float

    def make(self, depth: int) -> Bijection:
        """The flow, with a learned mean and scale in front of it: a diagonal Gaussian base."""
        return Chain([Elementwise(DIM, Affine()), *self.layers(depth)])


def network(in_shape, out_shape, context) -> nn.Module:
    """The network of a coupling."""
    return MLP(
        in_shape,
        out_shape,
        width=WIDTH,
        depth=HIDDEN,
        activation_name="tanh",
        context=context,
        zero_last=True,
    )


def inverse_autoregressive(depth: int) -> list[Bijection]:
    """The two orders of the variables in turn."""
    return [
        InverseAutoregressive(
            DIM,
            width=WIDTH,
            depth=HIDDEN,
            activation="tanh",
            order=None if layer % 2 == 0 else "reversed",
        )
        for layer in range(depth)
    ]


def affine_coupling(depth: int) -> list[Bijection]:
    """The two variables move in turn."""
    return [AffineCoupling(DIM, mask=half_mask(DIM, first=i % 2 == 0), network=network) for i in range(depth)]


def spline_coupling(depth: int) -> list[Bijection]:
    """The two variables move in turn, between -5 and 5: the walls begin at 4."""
    return [
        SplineCoupling(
            DIM, mask=half_mask(DIM, first=i % 2 == 0), network=network, num_bins=BINS, bound=BOUND
        )
        for i in range(depth)
    ]


FAMILIES = {
    "planar": Family("planar", lambda depth: [Planar(DIM, num_layers=depth)], 1e-2),
    "radial": Family("radial", lambda depth: [Radial(DIM, num_layers=depth)], 1e-2),
    "sylvester": Family(
        "Sylvester", lambda depth: [Sylvester(DIM, kind="orthogonal", rank=DIM, num_layers=depth)], 1e-2
    ),
    "iaf": Family("IAF", inverse_autoregressive, 5e-3),
    "affine": Family("affine coupling", affine_coupling, 5e-3),
    "spline": Family("spline coupling", spline_coupling, 5e-3),
}
