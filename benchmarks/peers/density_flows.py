"""The same density models in five libraries: eight layers of a flow over 64 variables, two hidden layers of 256.

Every function returns the modules that hold the parameters and log p(x), nats, of a batch (N, 64). Imports are inside
the functions, so that a library that is not installed is missed only where it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """The size of the comparison, equal for all.

    Args:
        dim: Number of variables.
        width: Units of each of the two hidden layers.
        layers: Layers of the flow.
        bins: Bins of a spline.
        bound: A spline is the identity outside [-bound, bound].
    """

    dim: int = 64
    width: int = 256
    layers: int = 8
    bins: int = 8
    bound: float = 3.0


@dataclass(frozen=True)
class Density:
    """A model: what Adam updates, and log p(x)."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]


class Perceptron(nn.Sequential):
    """The network of the peers that take one from their user: linear, ReLU, linear, ReLU, linear."""

    def __init__(self, inputs: int, outputs: int, *, width: int) -> None:
        super().__init__(
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, outputs),
        )
        self.hidden_features = width  # nflows divides its splines' raw widths and heights by the root of this

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


def _ours(bijections: list) -> Density:
    from latentflows.bijections import Chain
    from latentflows.distributions import Flow, StandardGaussian

    flow = Flow(StandardGaussian(bijections[0].event_shape), Chain(bijections))
    return Density(flow, lambda x: flow().log_prob(x))


def ours_coupling(size: Size) -> Density:
    """latentflows: affine coupling, one half moves the other."""
    from latentflows.bijections import AffineCoupling, half_mask

    return _ours(
        [
            AffineCoupling(size.dim, mask=half_mask(size.dim, first=i % 2 == 0), network=_network(size))
            for i in range(size.layers)
        ]
    )


def ours_maf(size: Size) -> Density:
    """latentflows: masked autoregressive flow in alternating order."""
    from latentflows.bijections import Inverse, InverseAutoregressive

    orders = ["reversed" if i % 2 else None for i in range(size.layers)]
    return _ours(
        [Inverse(InverseAutoregressive(size.dim, width=size.width, depth=2, order=order)) for order in orders]
    )


def ours_spline(size: Size) -> Density:
    """latentflows: rational-quadratic spline coupling, one half moves the other."""
    from latentflows.bijections import SplineCoupling, half_mask

    return _ours(
        [
            SplineCoupling(
                size.dim,
                mask=half_mask(size.dim, first=i % 2 == 0),
                network=_network(size),
                num_bins=size.bins,
                bound=size.bound,
            )
            for i in range(size.layers)
        ]
    )


def _network(size: Size) -> Callable:
    from latentflows.networks import MLP

    def make(in_shape, out_shape, context):
        return MLP(in_shape, out_shape, width=size.width, depth=2, context=context, zero_last=True)

    return make


def _zuko(flow: nn.Module) -> Density:
    return Density(flow, lambda x: flow().log_prob(x))


def zuko_coupling(size: Size) -> Density:
    """From zuko `NICE`: affine coupling (its name is that of the additive one), alternating variables."""
    import zuko

    return _zuko(zuko.flows.NICE(size.dim, transforms=size.layers, hidden_features=(size.width,) * 2))


def zuko_maf(size: Size) -> Density:
    """From zuko `MAF`, orders ascending and descending in turn."""
    import zuko

    return _zuko(zuko.flows.MAF(size.dim, transforms=size.layers, hidden_features=(size.width,) * 2))


def zuko_spline(size: Size) -> Density:
    """From zuko its coupling with its spline; `NSF(passes=2)` has masked networks with twice the outputs."""
    import zuko

    return _zuko(
        zuko.flows.NICE(
            size.dim,
            transforms=size.layers,
            hidden_features=(size.width,) * 2,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=size.bound),
            shapes=[(size.bins,), (size.bins,), (size.bins - 1,)],
        )
    )


def _nflows(transforms: list, size: Size) -> Density:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform

    flow = Flow(CompositeTransform(transforms), StandardNormal([size.dim]))
    return Density(flow, flow.log_prob)


def _mask(size: Size, layer: int) -> Tensor:
    """1 where a variable moves: the second half in even layers."""
    return ((torch.arange(size.dim) >= size.dim // 2) == (layer % 2 == 0)).int()


def nflows_coupling(size: Size) -> Density:
    """From nflows `AffineCouplingTransform`, one half moves the other."""
    from nflows.transforms import AffineCouplingTransform

    network = partial(Perceptron, width=size.width)
    return _nflows([AffineCouplingTransform(_mask(size, i), network) for i in range(size.layers)], size)


def nflows_maf(size: Size) -> Density:
    """From nflows `MaskedAffineAutoregressiveTransform` with a reversal between layers."""
    from nflows.transforms import MaskedAffineAutoregressiveTransform, ReversePermutation

    layers = []
    for _ in range(size.layers):
        layers.append(
            MaskedAffineAutoregressiveTransform(size.dim, size.width, num_blocks=1, use_residual_blocks=False)
        )
        layers.append(ReversePermutation(size.dim))
    return _nflows(layers[:-1], size)


def nflows_spline(size: Size) -> Density:
    """From nflows `PiecewiseRationalQuadraticCouplingTransform`, one half moves the other."""
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform

    return _nflows(
        [
            PiecewiseRationalQuadraticCouplingTransform(
                _mask(size, i),
                partial(Perceptron, width=size.width),
                num_bins=size.bins,
                tails="linear",
                tail_bound=size.bound,
            )
            for i in range(size.layers)
        ],
        size,
    )


def _normflows(flows: list, size: Size) -> Density:
    import normflows as nf

    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(size.dim, trainable=False), flows)
    return Density(model, model.log_prob)


def normflows_coupling(size: Size) -> Density:
    """From normflows `AffineCouplingBlock` (`MaskedAffineFlow` runs two networks a layer), halves by its split mode."""
    import normflows as nf

    sizes = [size.dim // 2, size.width, size.width, size.dim]
    modes = ["channel", "channel_inv"]
    return _normflows(
        [
            nf.flows.AffineCouplingBlock(nf.nets.MLP(sizes, init_zeros=True), split_mode=modes[i % 2])
            for i in range(size.layers)
        ],
        size,
    )


def normflows_maf(size: Size) -> Density:
    """From normflows `MaskedAffineAutoregressive`, turned round by `Reverse`: its own inverse takes D passes."""
    import normflows as nf

    layers = []
    for _ in range(size.layers):
        made = nf.flows.MaskedAffineAutoregressive(
            size.dim, size.width, num_blocks=1, use_residual_blocks=False
        )
        layers += [nf.flows.Reverse(made), _NormflowsReversal()]
    return _normflows(layers[:-1], size)


class _NormflowsReversal(nn.Module):
    """A reversal, as nflows and latentflows have: normflows itself permutes by a swap of halves or at random."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.flip(1), z.new_zeros(len(z))


def normflows_spline(size: Size) -> Density:
    """From normflows the spline coupling layer itself: its wrapper adds splines of the other half and a ResNet."""
    import normflows as nf
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    return _normflows(
        [
            nf.flows.Reverse(
                PiecewiseRationalQuadraticCoupling(
                    _mask(size, i),
                    partial(Perceptron, width=size.width),
                    num_bins=size.bins,
                    tails="linear",
                    tail_bound=size.bound,
                )
            )
            for i in reversed(range(size.layers))
        ],
        size,
    )


def freia_coupling(size: Size) -> Density:
    """FrEIA `GLOWCouplingBlock`, each of which is two affine couplings: half as many blocks."""
    import math

    from FrEIA.framework import SequenceINN
    from FrEIA.modules import GLOWCouplingBlock

    model = SequenceINN(size.dim)
    for _ in range(size.layers // 2):
        model.append(GLOWCouplingBlock, subnet_constructor=partial(Perceptron, width=size.width))
    constant = 0.5 * size.dim * math.log(2 * math.pi)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = model(x)
        return log_det - 0.5 * z.square().sum(1) - constant

    return Density(model, log_prob)
