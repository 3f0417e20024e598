"""Gated convolutions: an encoder that halves the picture and a decoder that mirrors it."""

from __future__ import annotations

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import LastLayer, check_sizes


class GatedConvolution(nn.Module):
    r"""A convolution times the sigmoid of another, both computed as one.

    Source: van den Berg et al., Sylvester Normalizing Flows, 2018, arXiv 1803.05649, appendix.

    Shape:
        x: (N, in_channels, H, W); output: (N, out_channels, H / stride, W / stride) rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, 2 * out_channels, kernel, stride=stride, padding=kernel // 2
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.convolution(x), dim=1)


class GatedTransposedConvolution(nn.Module):
    """The mirror of `GatedConvolution`: doubles height and width, then crops to the size asked for.

    Shape:
        x: (N, in_channels, H, W); output: (N, out_channels, *out_size), out_size at most (2 H, 2 W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, out_size: tuple[int, int], *, kernel: int = 5
    ) -> None:
        super().__init__()
        self.out_size = out_size
        self.convolution = nn.ConvTranspose2d(
            in_channels, 2 * out_channels, kernel, stride=2, padding=kernel // 2, output_padding=1
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.out_size
        return nn.functional.glu(self.convolution(x), dim=1)[..., :height, :width]


def _image(shape: int | Shape, name: str) -> tuple[int, int, int]:
    image = as_shape(shape)
    if len(image) != 3 or min(image[1:]) < 4:
        raise ConfigurationError(
            f"`{name}` must be an image (C, H, W) of at least 4 x 4 pixels for a convolution; got {image}. "
            "Use an MLP for vectors."
        )
    return image[0], image[1], image[2]


def _half(n: int) -> int:
    return (n + 1) // 2


class GatedConvolutionEncoder(nn.Module):
    """Five gated convolutions, two of them with stride 2, and one over what is left of the picture.

    32, 32 (stride 2), 64, 64 (stride 2), 64 channels at `width` 32 and kernel 5, then a gated linear layer on
    the whole map: the encoder of the Sylvester experiments (arXiv 1803.05649) for any picture size.
    Cost at 1 x 28 x 28 and width 32: about 0.09 GFLOP per picture forward.

    Args:
        in_shape: (C, H, W), at least 4 x 4.
        out_shape: Shape of one output; None for the (8 width,) features of the last hidden layer.
        width: Channels of the first block; the second has twice as many.
        context: Must be 0.

    Shape:
        x: (N, C, H, W); output: (N, *out_shape).
    """

    def __init__(
        self, in_shape: int | Shape, out_shape: int | Shape | None, *, width: int, context: int = 0
    ) -> None:
        super().__init__()
        check_sizes(width=width)
        if context:
            raise ConfigurationError("A convolutional network takes no context; use kind mlp or gated_mlp.")
        channels, height, across = _image(in_shape, "in_shape")
        self.in_shape = (channels, height, across)
        left = 2 * width * _half(_half(height)) * _half(_half(across))
        self.body = nn.Sequential(
            GatedConvolution(channels, width),
            GatedConvolution(width, width, stride=2),
            GatedConvolution(width, 2 * width),
            GatedConvolution(2 * width, 2 * width, stride=2),
            GatedConvolution(2 * width, 2 * width),
            nn.Flatten(),
            nn.Linear(left, 16 * width),
            nn.GLU(dim=-1),
        )
        self.last = LastLayer(8 * width, out_shape)
        self.out_shape = self.last.out_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.last(self.body(x))


class GatedConvolutionDecoder(nn.Module):
    """The mirror of `GatedConvolutionEncoder`: a vector to a map, five gated convolutions, one linear 1 x 1.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: (C, H, W), at least 4 x 4.
        width: Channels of the last block; the first has twice as many.
        context: Must be 0.

    Shape:
        x: (N, *in_shape); output: (N, C, H, W).
    """

    def __init__(
        self, in_shape: int | Shape, out_shape: int | Shape, *, width: int, context: int = 0
    ) -> None:
        super().__init__()
        check_sizes(width=width)
        if context:
            raise ConfigurationError("A convolutional network takes no context; use kind mlp or gated_mlp.")
        channels, height, across = _image(out_shape, "out_shape")
        self.in_shape, self.out_shape = as_shape(in_shape), (channels, height, across)
        half, quarter = (_half(height), _half(across)), (_half(_half(height)), _half(_half(across)))
        self.map_shape = (2 * width, *quarter)
        self.first = nn.Sequential(nn.Linear(size(self.in_shape), 2 * size(self.map_shape)), nn.GLU(dim=-1))
        self.body = nn.Sequential(
            GatedConvolution(2 * width, 2 * width),
            GatedTransposedConvolution(2 * width, width, half),
            GatedConvolution(width, width),
            GatedTransposedConvolution(width, width, (height, across)),
            GatedConvolution(width, width),
            nn.Conv2d(width, channels, 1),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.body(self.first(x.flatten(1)).view(-1, *self.map_shape))
