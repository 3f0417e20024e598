"""Gated convolutions over a map, causal over its height and not over its width: the network of WaveFlow.

Letters of shapes: N rows of a batch, C channels, W hidden channels, H height, T width, k kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, as_shape
from latentflows.networks.base import MapContext, add_over_samples, check_sizes, keep_frames


class RowCache(NamedTuple):
    """What the next row needs to know of those above it."""

    above: tuple[Tensor, ...]  # of each layer the last k - 1 rows that it read, (N, W, k - 1, T)
    features: Tensor | None  # of the context, for all layers, (B, 2 W depth, H or 1, T or 1)
    valid: Tensor | None  # (N, 1, 1, T)
    row: int


class HeightCausalWaveNet(nn.Module):
    r"""Row i of the output depends on the rows 0 ... i - 1, on all columns near by, and on the context.

    .. math:: h_0 = A\, \mathrm{down}(x), \quad
              g_l = \tanh(F_l h_{l-1} + V_l c) \odot \sigma(G_l h_{l-1} + W_l c), \quad
              h_l = h_{l-1} + R_l g_l, \quad y = E \sum_l S_l g_l

    `down` moves all rows down by one. F_l and G_l are k x k convolutions that see their own row and the k - 1 above,
    and columns at distances of growth^(l - 1). E starts at zero. Each row sees 1 + (k - 1) depth rows above it.

    Cost: 2 N H T (in W + depth (2 k^2 + 2) W^2 - W^2 + W out) FLOPs; H calls of `step` cost the same together, since
    each layer keeps the rows that it reads again.

    Args:
        in_shape: (C, H, T).
        out_shape: (C', H, T).
        width: Channels of the hidden layers, W.
        depth: Number of gated layers.
        kernel: k, odd.
        growth: Each layer's dilation over the width is this many times that of the one before.
        context: Number of features of a vector, or the shape (F, H, T) of a map; 0 for none.

    Shape:
        x: (N, C, H, T); context: (B, *context) with N = K * B; valid: (N, 1, 1, T), 1 where a column counts and 0 on
        padding, or None; output: (N, C', H, T).

    Raises:
        ConfigurationError: for other shapes, an even kernel, or too few layers to see all rows above.

    References:
        Ping et al., WaveFlow, 2020, arXiv 1912.01219, section 3; van den Oord et al., WaveNet, 2016,
        arXiv 1609.03499, section 2.3, for the gates.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: int,
        depth: int,
        kernel: int = 3,
        growth: int = 2,
        context: int | Shape = 0,
    ) -> None:
        super().__init__()
        check_sizes(width=width, depth=depth, kernel=kernel, growth=growth)
        before, after = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        if len(before) != 3 or before[1:] != after[1:]:
            raise ConfigurationError(f"Maps (C, H, T) of one space are needed; got {before} and {after}.")
        if kernel % 2 == 0:
            raise ConfigurationError(f"`kernel` must be odd, so that the width stays; got {kernel}.")
        seen = 1 + (kernel - 1) * depth
        if seen < before[1] - 1:
            raise ConfigurationError(
                f"`depth` {depth} with `kernel` {kernel} sees {seen} rows, but the last of {before[1]} rows depends on "
                f"{before[1] - 1}: dependencies would be dropped. Use more layers, a larger kernel, or less height."
            )
        self.in_shape, self.out_shape, self.width, self.kernel = before, after, width, kernel
        self.first = nn.Conv2d(before[0], width, 1)
        self.context = MapContext(context, 2 * width * depth, before[1:]) if context else None
        self.gates = nn.ModuleList(
            nn.Conv2d(width, 2 * width, kernel, dilation=(1, growth**i), padding=(0, kernel // 2 * growth**i))
            for i in range(depth)
        )
        # After the last layer nothing reads the residual, so it has a skip connection alone.
        self.mixes = nn.ModuleList(
            nn.Conv2d(width, 2 * width if i < depth - 1 else width, 1) for i in range(depth)
        )
        self.last = nn.Conv2d(width, after[0], 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        down = functional.pad(x, (0, 0, 1, 0))[:, :, :-1]
        cache = self.start(x, context, valid)
        return self._through(down, cache, cache.features)[0]

    def start(self, like: Tensor, context: Tensor | None = None, valid: Tensor | None = None) -> RowCache:
        """Return the cache of the first row, with nothing above; `like` (N, ...) gives batch, type and device."""
        shape = (len(like), self.width, self.kernel - 1, self.in_shape[2])
        above = tuple(like.new_zeros(shape) for _ in self.gates)
        return RowCache(above, self._features(context), valid, 0)

    def step(self, previous: Tensor, cache: RowCache) -> tuple[Tensor, RowCache]:
        """Return the output of the next row, and the cache to go on with.

        Shape:
            previous: (N, C, 1, T), the row above; zeros at the first step; output: (N, C', 1, T).
        """
        features = cache.features
        if features is not None and features.shape[2] > 1:
            features = features.narrow(2, cache.row, 1)
        out, above = self._through(previous, cache, features)
        return out, cache._replace(above=above, row=cache.row + 1)

    def _features(self, context: Tensor | None) -> Tensor | None:
        return None if self.context is None or context is None else self.context(context)

    def _through(
        self, x: Tensor, cache: RowCache, features: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Move rows through all layers; return the output and the last k - 1 rows that each layer read."""
        h, skip, below = self.first(x), None, []
        for i, (convolution, mix) in enumerate(zip(self.gates, self.mixes, strict=True)):
            rows = torch.cat([cache.above[i], keep_frames(h, cache.valid)], 2)
            below.append(rows[:, :, rows.shape[2] - self.kernel + 1 :])
            gates = convolution(rows)
            if features is not None:
                gates = add_over_samples(gates, features.narrow(1, 2 * self.width * i, 2 * self.width))
            value, gate = gates.chunk(2, 1)
            mixed = mix(value.tanh() * gate.sigmoid())
            more = mixed[:, : self.width]
            skip = more if skip is None else skip + more
            if i < len(self.gates) - 1:
                h = h + mixed[:, self.width :]
        return self.last(skip), tuple(below)
