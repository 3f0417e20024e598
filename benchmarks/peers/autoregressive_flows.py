"""The same masked autoregressive flow in four libraries: five layers, each with two hidden layers of 256.

Every function returns both directions of one model with weights drawn anew: at the start some flows are the identity,
which a fixed-point iteration inverts at once. Imports are inside the functions, so that a library that is not installed
is missed only where it is asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYERS, WIDTH, BINS, BOUND = 5, 256, 8, 3.0


@dataclass(frozen=True)
class Model:
    """A flow: its parameters, x from base noise, base noise from x."""

    module: nn.Module
    sample: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]


def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of standard deviation 0.5 / sqrt(inputs), biases of 0.3: at larger ones some peers overflow."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 / math.sqrt(parameter.shape[-1]) if parameter.ndim == 2 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def ours(dim: int, spline: bool, inversion: str) -> Model:
    """latentflows: every second layer in reversed order."""
    from latentflows.bijections import Chain, Inverse, InverseAutoregressive
    from latentflows.transforms import Affine, RationalQuadraticSpline

    layers = [
        Inverse(
            InverseAutoregressive(
                dim,
                width=WIDTH,
                depth=2,
                transform=RationalQuadraticSpline(BINS, BOUND) if spline else Affine(),
                order="reversed" if i % 2 else None,
                inversion=inversion,
            )
        )
        for i in range(LAYERS)
    ]
    flow = draw(Chain(layers))
    return Model(flow, lambda u: flow(u)[0], lambda x: flow.inverse(x)[0])


def zuko(dim: int, spline: bool) -> Model:
    """From zuko `MAF` and `NSF`; their transforms lead from data to noise."""
    import zuko

    settings = {"transforms": LAYERS, "hidden_features": (WIDTH, WIDTH)}
    flow = zuko.flows.NSF(dim, bins=BINS, **settings) if spline else zuko.flows.MAF(dim, **settings)
    draw(flow)
    return Model(flow, lambda u: flow().transform.inv(u), lambda x: flow().transform(x))


def nflows(dim: int, spline: bool) -> Model:
    """From nflows its masked layers with feedforward blocks, a reversal between two."""
    from nflows.transforms import (
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        ReversePermutation,
    )

    settings = {"num_blocks": 1, "use_residual_blocks": False}
    parts = []
    for _ in range(LAYERS):
        if spline:
            parts.append(
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    dim, WIDTH, num_bins=BINS, tails="linear", tail_bound=BOUND, **settings
                )
            )
        else:
            parts.append(MaskedAffineAutoregressiveTransform(dim, WIDTH, **settings))
        parts.append(ReversePermutation(dim))
    flow = draw(CompositeTransform(parts[:-1]))
    return Model(flow, lambda u: flow.inverse(u)[0], lambda x: flow(x)[0])


def normflows(dim: int, spline: bool, *, residual: bool) -> Model:
    """From normflows `MaskedAffineAutoregressive` in its slow direction, which is as exact as the others'.

    Without residual blocks it has as many parameters as ours; with two of them, its default, 2.7 times as many.
    """
    if spline:
        raise ValueError(
            "normflows' autoregressive spline has residual blocks throughout; it is not compared"
        )
    from normflows.flows import MaskedAffineAutoregressive, Permute

    settings = {"num_blocks": 2} if residual else {"num_blocks": 1, "use_residual_blocks": False}
    parts = nn.ModuleList()
    for _ in range(LAYERS):
        parts.append(MaskedAffineAutoregressive(dim, WIDTH, **settings))
        parts.append(Permute(dim, mode="swap"))
    draw(parts)

    def sample(u: Tensor) -> Tensor:
        for part in reversed(parts):
            u = part.inverse(u)[0]
        return u

    def invert(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)[0]
        return x

    return Model(parts, sample, invert)
