"""Multiscale flows over images: Glow and Real NVP as chains from flat noise (D,) to an image (C, H, W).

Both are cheap both ways: `Flow(StandardGaussian(D), glow((3, 32, 32)))` is a model of images trained by maximum
likelihood. Call `initialize(batch)` once before training, which sets the normalization layers from data.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from latentflows.bijections import (
    ActNorm,
    AffineCoupling,
    Bijection,
    Chain,
    LULinear,
    Reshape,
    Split,
    Squeeze,
    channel_mask,
    checkerboard_mask,
)
from latentflows.bijections.elementwise import Sigmoid
from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import NetworkMaker, check_sizes
from latentflows.networks.coupling_convolution import CouplingConvolution, ResidualConvolution


def glow(
    event_shape: Shape,
    *,
    num_levels: int = 3,
    num_steps: int = 32,
    width: int = 512,
    context: int | None = None,
) -> Bijection:
    """Glow: levels of squeeze, steps, and half of the channels factored out by a learned Gaussian. Cheap both ways.

    A step is, from data to noise, actnorm, an invertible 1x1 convolution that starts as a rotation, and an affine
    coupling over channels. The defaults are the paper's for 32 x 32 (section 5; 44 million parameters in its code).
    The Gaussian given the kept half has the couplings' network, where the published code has one convolution.

    Cost: num_levels * num_steps + num_levels - 1 network passes in either direction.

    Args:
        event_shape: (C, H, W), H and W multiples of 2^num_levels.
        num_levels: L.
        num_steps: Steps at each level, K.
        width: Channels of the hidden layers of every network.
        context: Number of context features; every network hears them.

    Raises:
        ConfigurationError: if so many levels do not fit.

    References:
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, section 3 and figure 2.
    """
    check_sizes(num_steps=num_steps, width=width)
    shape = _image(event_shape, halvings=num_levels, levels=num_levels)
    network: NetworkMaker = partial(_glow_network, width=width)
    flow: Bijection | None = None
    for level in reversed(range(num_levels)):
        fine = _shape_at(shape, level)
        squeezed = (4 * fine[0], fine[1] // 2, fine[2] // 2)
        layers = [_noise(squeezed, flow, network, context)]
        for _ in range(num_steps):
            mask = channel_mask(squeezed, first=True)
            layers += [
                AffineCoupling(
                    squeezed, mask=mask, network=network, layout="channels", context_shape=context
                ),
                LULinear(squeezed, start="rotation"),
                ActNorm(squeezed),
            ]
        flow = Chain([*layers, Squeeze(fine)])
    assert flow is not None
    return flow


def real_nvp_image(
    event_shape: Shape,
    *,
    num_levels: int = 2,
    num_blocks: int = 8,
    width: int = 64,
    context: int | None = None,
) -> Bijection:
    """Real NVP on images: checkerboard couplings, squeeze, channel couplings, half factored out. Cheap both ways.

    From data to noise a level has three couplings over alternating checkerboards, a squeeze, three over alternating
    halves of the channels, and then half of the channels are noise; the last level has four checkerboards. The
    defaults are the paper's for 32 x 32 (section 4.1: 8 blocks of 64 channels, downscaled once). Actnorm stands where
    the paper has batch normalization, and starts the same. For data in [0, 1) end the chain in `to_pixels`.

    Cost: 6 (num_levels - 1) + 4 network passes in either direction.

    Args:
        event_shape: (C, H, W), H and W multiples of 2^(num_levels - 1).
        num_levels: Levels; the image is halved between them.
        num_blocks: Residual blocks of every network.
        width: Channels of the hidden layers of every network.
        context: Number of context features; every network hears them.

    Raises:
        ConfigurationError: if so many levels do not fit: the last one needs two pixels or more.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, section 3.6 and 4.1.
    """
    check_sizes(num_blocks=num_blocks, width=width)
    shape = _image(event_shape, halvings=num_levels - 1, levels=num_levels, pixels=2)
    network: NetworkMaker = partial(_residual_network, width=width, num_blocks=num_blocks)
    last = _shape_at(shape, num_levels - 1)
    flow: Bijection = Chain([Reshape(size(last), last), *_checkerboards(last, 4, network, context)])
    for level in reversed(range(num_levels - 1)):
        fine = _shape_at(shape, level)
        squeezed = (4 * fine[0], fine[1] // 2, fine[2] // 2)
        channels: list[Bijection] = []
        for i in range(3):
            mask = channel_mask(squeezed, first=i % 2 == 0)
            channels += [
                AffineCoupling(
                    squeezed, mask=mask, network=network, layout="channels", context_shape=context
                ),
                ActNorm(squeezed),
            ]
        flow = Chain(
            [
                Split(squeezed, flow, network=None),
                *channels,
                Squeeze(fine),
                *_checkerboards(fine, 3, network, context),
            ]
        )
    return flow


def to_pixels(event_shape: int | Shape, *, margin: float = 0.05) -> Bijection:
    r"""Map the real line to pixels in [0, 1], with the log-determinant in nats: the last member of a chain.

    .. math:: x = (\sigma(u) - m) / (1 - 2 m)

    The margin m keeps the two ends of the range finite: u is logit(m + (1 - 2 m) x). With pixels k + noise, k in
    0 ... 255, scaled to [0, 1), bits per dimension are nll / (D ln 2) + 8.

    Args:
        event_shape: Shape of one event.
        margin: m, between 0 and 0.5.

    Raises:
        ConfigurationError: if the margin is out of range.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, section 4.1.
    """
    if not 0 < margin < 0.5:
        raise ConfigurationError(f"`margin` must lie between 0 and 0.5, both excluded; got {margin}.")
    beyond = margin / (1 - 2 * margin)
    return Sigmoid(event_shape, lower=-beyond, upper=1 + beyond)


def _image(event_shape: Shape, *, halvings: int, levels: int, pixels: int = 1) -> tuple[int, int, int]:
    """Check that an image can be halved so often, with so many pixels left.

    Raises:
        ConfigurationError: naming how many levels fit.
    """
    check_sizes(num_levels=levels)
    shape = as_shape(event_shape, "event_shape")
    if len(shape) != 3:
        raise ConfigurationError(f"`event_shape` must be an image (C, H, W); got {shape}.")
    if shape[1] * shape[2] < pixels:
        raise ConfigurationError(
            f"A checkerboard needs two pixels or more; got images {shape}. Use `real_nvp`, for vectors."
        )
    fit, height, width = 0, shape[1], shape[2]
    while height % 2 == width % 2 == 0 and height * width >= 4 * pixels:
        fit, height, width = fit + 1, height // 2, width // 2
    if halvings > fit:
        most = fit + levels - halvings
        fewer = f"at most {most} levels fit. Use fewer, or pad" if most else "no level fits. Pad"
        divides = shape[1] % 2**halvings == shape[2] % 2**halvings == 0  # but leaves too few pixels
        left, larger = (f" with {pixels} pixels left", "larger ") if divides else ("", "")
        raise ConfigurationError(
            f"`num_levels` {levels} halves images {halvings} times, but {shape} can be halved {fit} times{left}: "
            f"{fewer} the images to {larger}multiples of {2**halvings}."
        )
    return shape[0], shape[1], shape[2]


def _shape_at(shape: tuple[int, int, int], level: int) -> tuple[int, int, int]:
    """Return what a level sees before its squeeze: a squeeze and a half make twice the channels."""
    channels, height, width = shape
    return channels * 2**level, height // 2**level, width // 2**level


def _noise(shape: Shape, inner: Bijection | None, network: NetworkMaker, context: int | None) -> Bijection:
    """Return what a level starts from: noise at the last one, else half noise and half the coarser levels."""
    if inner is None:
        return Reshape(size(shape), shape)
    return Split(shape, inner, network=network, context_shape=context)


def _checkerboards(shape: Shape, count: int, network: NetworkMaker, context: int | None) -> list[Bijection]:
    layers: list[Bijection] = []
    for i in range(count):
        mask = checkerboard_mask(shape, even=i % 2 == 0)
        layers += [
            AffineCoupling(shape, mask=mask, network=network, layout="masked", context_shape=context),
            ActNorm(shape),
        ]
    return layers


def _glow_network(in_shape: Shape, out_shape: Shape, context: int, *, width: int) -> nn.Module:
    return CouplingConvolution(in_shape, out_shape, width=width, context=context)


def _residual_network(
    in_shape: Shape, out_shape: Shape, context: int, *, width: int, num_blocks: int
) -> nn.Module:
    return ResidualConvolution(in_shape, out_shape, width=width, num_blocks=num_blocks, context=context)
