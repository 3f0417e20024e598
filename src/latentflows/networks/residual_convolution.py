"""Residual convolutions: encoders that halve the picture stage by stage, and decoders that mirror them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import LastLayer, check_sizes

_SMALLEST = 4  # pixels; a side is halved while at least this is left


class ResidualBlock(nn.Module):
    r"""x + W_2 * silu(W_1 * silu(x)), two 3 x 3 convolutions; the identity at the start.

    Source: He et al., Identity Mappings in Deep Residual Networks, 2016, arXiv 1603.05027 (activation first).
    Without batch normalization: an ELBO must not depend on which images stand beside each other.

    Shape:
        x, output: (N, channels, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))


def _sizes(shape: int | Shape, name: str) -> list[tuple[int, int]]:
    """Return height and width after every halving, the whole picture first."""
    image = as_shape(shape, name)
    if len(image) != 3 or min(image[1:]) < _SMALLEST:
        raise ConfigurationError(
            f"`{name}` must be an image (C, H, W) of at least {_SMALLEST} x {_SMALLEST} pixels for a convolution; got "
            f"{image}. Use an MLP for vectors."
        )
    sizes = [(image[1], image[2])]
    while min(_half(sizes[-1])) >= _SMALLEST and len(sizes) < 5:
        sizes.append(_half(sizes[-1]))
    return sizes


def _half(sides: tuple[int, int]) -> tuple[int, int]:
    return (sides[0] + 1) // 2, (sides[1] + 1) // 2


def _channels(width: int, stages: int) -> list[int]:
    return [width * min(2**stage, 4) for stage in range(stages)]


class ResidualConvolutionEncoder(nn.Module):
    """Stages of residual blocks, each at half the size of the last, then one linear layer over the map.

    A picture is halved down to 4 x 4 at least and four times at most; stage s has min(2^s, 4) `width` channels.
    Cost at 1 x 28 x 28, width 32 and 2 blocks: about 0.21 GFLOP per picture forward.

    Args:
        in_shape: (C, H, W), at least 4 x 4.
        out_shape: Shape of one output; None for the (8 width,) features of the last hidden layer.
        width: Channels of the first stage.
        num_blocks: Residual blocks of each stage.

    Shape:
        x: (N, C, H, W); output: (N, *out_shape).

    Raises:
        ConfigurationError: if these are no images, or a size is not positive.
    """

    def __init__(
        self, in_shape: int | Shape, out_shape: int | Shape | None, *, width: int, num_blocks: int = 2
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_blocks=num_blocks)
        sizes = _sizes(in_shape, "in_shape")
        self.in_shape = as_shape(in_shape)
        channels = _channels(width, len(sizes))
        layers: list[nn.Module] = [nn.Conv2d(self.in_shape[0], width, 3, padding=1)]
        for stage, count in enumerate(channels):
            if stage:
                layers.append(nn.Conv2d(channels[stage - 1], count, 3, stride=2, padding=1))
            layers += [ResidualBlock(count) for _ in range(num_blocks)]
        left = channels[-1] * sizes[-1][0] * sizes[-1][1]
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(left, 8 * width), nn.SiLU())
        self.last = LastLayer(8 * width, out_shape)
        self.out_shape = self.last.out_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


class _Doubled(nn.Module):
    """Twice the size by repeating pixels, cropped to the size asked for, then a 3 x 3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, out_size: tuple[int, int]) -> None:
        super().__init__()
        self.out_size = out_size
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.out_size
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return self.convolution(x[..., :height, :width])


class ResidualConvolutionDecoder(nn.Module):
    """The mirror of `ResidualConvolutionEncoder`: a vector to a map, stages of residual blocks, one linear 1 x 1.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: (C, H, W), at least 4 x 4.
        width: Channels of the last stage.
        num_blocks: Residual blocks of each stage.

    Shape:
        x: (N, *in_shape); output: (N, C, H, W).

    Raises:
        ConfigurationError: if these are no images, or a size is not positive.
    """

    def __init__(
        self, in_shape: int | Shape, out_shape: int | Shape, *, width: int, num_blocks: int = 2
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_blocks=num_blocks)
        sizes = _sizes(out_shape, "out_shape")
        self.in_shape, self.out_shape = as_shape(in_shape), as_shape(out_shape)
        channels = _channels(width, len(sizes))
        self.map_shape = (channels[-1], *sizes[-1])
        layers: list[nn.Module] = []
        for stage in reversed(range(len(sizes))):
            layers += [ResidualBlock(channels[stage]) for _ in range(num_blocks)]
            if stage:
                layers.append(_Doubled(channels[stage], channels[stage - 1], sizes[stage - 1]))
        self.first = nn.Linear(size(self.in_shape), size(self.map_shape))
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, self.out_shape[0], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.first(x.flatten(1)).view(-1, *self.map_shape))


def _halvings(shape: int | Shape, map_shape: int | Shape) -> list[tuple[int, int]]:
    """Return the sizes of a picture (C, H, W) halved until it has the space of the map, the whole picture first."""
    image, small = as_shape(shape), as_shape(map_shape)
    if len(image) == 3 and len(small) == 3:
        sizes = [(image[1], image[2])]
        while sizes[-1] != small[1:] and min(sizes[-1]) > 1:
            sizes.append(_half(sizes[-1]))
        if sizes[-1] == small[1:]:
            return sizes
        raise ConfigurationError(
            f"The map {small} must have the space of the picture {image} halved some times, rounded up: one of "
            f"{sizes}."
        )
    raise ConfigurationError(f"Both must be maps (C, H, W); got {image} and {small}. Use an MLP for vectors.")


class ResidualMapEncoder(nn.Module):
    """A picture to a smaller map: stages of residual blocks, each at half the size of the last.

    Stage s has min(2^s, 4) `width` channels. A second map of the size that comes out, such as a coarser level of
    latents, joins before the last stage's blocks.

    Cost: about 36 N_b H W W_1^2 FLOPs forward for each of the stages, N_b blocks, W_1 channels of the first.

    Args:
        in_shape: (C, H, W).
        out_shape: (D, h, w); h and w are H and W halved some times, rounded up.
        width: Channels of the first stage.
        num_blocks: Residual blocks of each stage.
        beside: Channels of the second map, 0 for none.

    Shape:
        x: (N, C, H, W); second: (N, beside, h, w); output: (N, D, h, w).

    Raises:
        ConfigurationError: if the shapes do not fit, or a size is out of range.

    References:
        Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv 1906.00446, section 3.1.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape,
        *,
        width: int,
        num_blocks: int = 2,
        beside: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_blocks=num_blocks)
        stages = len(_halvings(in_shape, out_shape))
        self.in_shape, self.out_shape = as_shape(in_shape), as_shape(out_shape)
        channels = _channels(width, stages)
        layers: list[nn.Module] = [nn.Conv2d(self.in_shape[0], width, 3, padding=1)]
        for stage in range(1, stages):
            layers += [ResidualBlock(channels[stage - 1]) for _ in range(num_blocks)]
            layers.append(nn.Conv2d(channels[stage - 1], channels[stage], 3, stride=2, padding=1))
        last = channels[-1]
        self.down = nn.Sequential(*layers)
        self.joined = nn.Conv2d(last + beside, last, 1) if beside else None
        self.body = nn.Sequential(
            *[ResidualBlock(last) for _ in range(num_blocks)],
            nn.SiLU(),
            nn.Conv2d(last, self.out_shape[0], 1),
        )

    def forward(self, x: Tensor, second: Tensor | None = None) -> Tensor:
        h = self.down(x)
        if self.joined is not None and second is not None:
            h = self.joined(torch.cat([h, second], 1))
        return self.body(h)


class ResidualMapDecoder(nn.Module):
    """The mirror of `ResidualMapEncoder`: a map to a picture.

    Args:
        in_shape: (D, h, w).
        out_shape: (C, H, W); h and w are H and W halved some times, rounded up.
        width: Channels of the last stage.
        num_blocks: Residual blocks of each stage.

    Shape:
        x: (N, D, h, w); output: (N, C, H, W).

    Raises:
        ConfigurationError: if the shapes do not fit, or a size is not positive.
    """

    def __init__(
        self, in_shape: int | Shape, out_shape: int | Shape, *, width: int, num_blocks: int = 2
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_blocks=num_blocks)
        sizes = _halvings(out_shape, in_shape)
        self.in_shape, self.out_shape = as_shape(in_shape), as_shape(out_shape)
        channels = _channels(width, len(sizes))
        layers: list[nn.Module] = [nn.Conv2d(self.in_shape[0], channels[-1], 3, padding=1)]
        for stage in reversed(range(len(sizes))):
            layers += [ResidualBlock(channels[stage]) for _ in range(num_blocks)]
            if stage:
                layers.append(_Doubled(channels[stage], channels[stage - 1], sizes[stage - 1]))
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, self.out_shape[0], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
