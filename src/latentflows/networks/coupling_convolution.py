"""Convolutions that keep the space: networks of couplings over images and sequences.

In shapes, `space` is (H, W) of an image or (T,) of a sequence.
"""

from __future__ import annotations

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape
from latentflows.networks.base import (
    Activation,
    FrameMasked,
    MapContext,
    activation,
    add_over_samples,
    check_context,
    check_sizes,
    keep_frames,
    map_shape,
)


def _convolution(space: Shape, channels: int, out: int, kernel: int, *, zero: bool = False) -> nn.Module:
    """Make a convolution over that space which keeps its size."""
    made = {1: nn.Conv1d, 2: nn.Conv2d}[len(space)](channels, out, kernel, padding=kernel // 2)
    for parameter in made.parameters() if zero else ():
        nn.init.zeros_(parameter)
    return made


def _check(in_shape: int | Shape, out_shape: int | Shape, kernel: int, **sizes: int) -> tuple[Shape, Shape]:
    """Return both shapes as maps over one space.

    Raises:
        ConfigurationError: if they are none, or a size is not positive, or the kernel is even.
    """
    check_sizes(kernel=kernel, **sizes)
    before, after = map_shape(in_shape, "in_shape"), map_shape(out_shape, "out_shape")
    if before[1:] != after[1:]:
        raise ConfigurationError(
            f"`in_shape` and `out_shape` must share one space; got {before} and {after}."
        )
    if kernel % 2 == 0:
        raise ConfigurationError(f"`kernel` must be odd, so that the space keeps its size; got {kernel}.")
    return before, after


class CouplingConvolution(FrameMasked):
    r"""Three convolutions of kernel k, 1 and k, the last one zero at the start: the network of Glow's couplings.

    .. math:: y = C_k\, a(C_1\, a(C_k\, x + V c))

    Without the normalization between layers and the learned output scale of the published code. Every output sees
    2 k - 1 positions along each axis of the space (5 at k = 3).

    Cost: 2 N |space| (k^d in W + W^2 + k^d W out) FLOPs, d the axes of the space.

    Args:
        in_shape: (C, T) or (C, H, W).
        out_shape: The same space with other channels.
        width: Channels of both hidden layers, W.
        kernel: k, odd.
        activation_name: Nonlinearity.
        context: Number of features of a vector, or the shape of a map over the same space; 0 for none. A vector is
            heard at every position alike, a map position by position.
        zero_last: Start the last layer at zero, so that a flow starts as the identity.

    Shape:
        x: (N, C, *space); context: (B, *context) with N = K * B; valid: (N, 1, T) or None;
        output: (N, out, *space).

    Raises:
        ConfigurationError: for vectors, an even kernel, or a context over another space.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.

    References:
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, section 5: 3 x 3, 1 x 1, 3 x 3, with 512 channels.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape,
        *,
        width: int,
        kernel: int = 3,
        activation_name: Activation = "relu",
        context: int | Shape = 0,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        before, after = _check(in_shape, out_shape, kernel, width=width)
        self.in_shape, self.out_shape, space = before, after, before[1:]
        self.first = _convolution(space, before[0], width, kernel)
        self.context = MapContext(context, width, space) if context else None
        self.middle = _convolution(space, width, width, 1)
        self.last = _convolution(space, width, after[0], kernel, zero=zero_last)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor, context: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        check_context(self, self.context, context)
        h = self.first(keep_frames(x, valid))
        if self.context is not None and context is not None:
            h = add_over_samples(h, self.context(context))
        h = self.activation(self.middle(self.activation(h)))
        return keep_frames(self.last(keep_frames(h, valid)), valid)


class ResidualConvolution(FrameMasked):
    r"""Residual blocks of two convolutions, activations before them: the network of Real NVP's couplings.

    .. math:: h_0 = C_k\, x + V c, \quad h_l = h_{l-1} + C_k\, a(C_k\, a(h_{l-1})), \quad y = C_1\, a(h_L)

    Without batch and weight normalization and the skip connections of the published network. Every output sees
    1 + (k - 1)(2 L + 1) positions along each axis.

    Cost: 2 N |space| (k^d in W + 2 L k^d W^2 + W out) FLOPs, d the axes of the space.

    Args:
        in_shape: (C, T) or (C, H, W).
        out_shape: The same space with other channels.
        width: Channels of the hidden layers, W.
        num_blocks: Number of residual blocks, L.
        kernel: k, odd.
        activation_name: Nonlinearity.
        context: Number of features of a vector, or the shape of a map over the same space; 0 for none.
        zero_last: Start the last layer at zero, so that a flow starts as the identity.

    Shape:
        x: (N, C, *space); context: (B, *context) with N = K * B; valid: (N, 1, T) or None;
        output: (N, out, *space).

    Raises:
        ConfigurationError: for vectors, an even kernel, or a context over another space.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, arXiv 1605.08803, section 4.1.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape,
        *,
        width: int,
        num_blocks: int,
        kernel: int = 3,
        activation_name: Activation = "relu",
        context: int | Shape = 0,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        before, after = _check(in_shape, out_shape, kernel, width=width, num_blocks=num_blocks)
        self.in_shape, self.out_shape, space = before, after, before[1:]
        self.first = _convolution(space, before[0], width, kernel)
        self.context = MapContext(context, width, space) if context else None
        pairs = [[_convolution(space, width, width, kernel) for _ in range(2)] for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        self.last = _convolution(space, width, after[0], 1, zero=zero_last)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor, context: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        check_context(self, self.context, context)
        h = self.first(keep_frames(x, valid))
        if self.context is not None and context is not None:
            h = add_over_samples(h, self.context(context))
        for block in self.blocks:
            step = h
            for layer in block.children():
                step = layer(keep_frames(self.activation(step), valid))
            h = h + step
        return keep_frames(self.last(self.activation(h)), valid)
