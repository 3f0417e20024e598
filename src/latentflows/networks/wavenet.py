"""Gated dilated convolutions over sequences, not causal: the network of audio flows."""

from __future__ import annotations

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, as_shape
from latentflows.networks.base import (
    FrameMasked,
    MapContext,
    add_over_samples,
    check_context,
    check_sizes,
    keep_frames,
)


class WaveNet(FrameMasked):
    r"""Dilated convolutions with gates, residual and skip connections; frames see both sides.

    .. math:: h_0 = A x, \quad
              g_l = \tanh(F_l h_{l-1} + V_l c) \odot \sigma(G_l h_{l-1} + W_l c), \quad
              h_l = h_{l-1} + R_l g_l, \quad y = E \sum_l S_l g_l

    F_l and G_l are convolutions of kernel k and dilation growth^(l - 1), computed as one, and so are R_l and S_l; all
    else is per frame. The last layer E starts at zero. Without the weight normalization of the published networks.

    Every output sees 1 + (k - 1) (1 + growth + ... + growth^(depth - 1)) frames (`receptive_field`): WaveGlow 511 at
    k = 3, depth 8, growth 2; VITS 17 at k = 5, depth 4, growth 1.

    Cost: 2 N T (in W + depth (2 k + 2) W^2 - W^2 + W out) FLOPs; the context costs 4 B C W depth, times T for a
    map, once for all samples. One pass, all frames in parallel.

    Args:
        in_shape: (C, T).
        out_shape: (C', T).
        width: Channels of the hidden layers, W.
        depth: Number of gated layers.
        kernel: k, odd.
        growth: Each layer's dilation is this many times that of the one before.
        context: Number of features of a vector (a speaker), or the shape (C, T) of one per frame (a spectrogram, a
            text encoding); 0 for none.
        zero_last: Start the last layer at zero, so that a flow starts as the identity.

    Shape:
        x: (N, C, T); context: (B, *context) with N = K * B; valid: (N, 1, T), 1 where a frame counts and 0 on
        padding, or None; output: (N, C', T), 0 on padding. Every convolution reads zeros on padding, as it does
        beyond the ends, so that longer padding changes nothing.

    Raises:
        ConfigurationError: for anything but sequences of one length, an even kernel, or a context of another length.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.

    References:
        Prenger et al., WaveGlow, 2018, arXiv 1811.00002, section 2.1; Kim et al., FloWaveNet, 2018, arXiv 1811.02155,
        section 3; Kim et al., VITS, 2021, arXiv 2106.06103, section 2.5; van den Oord et al., WaveNet, 2016, arXiv
        1609.03499, sections 2.3-2.5.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape,
        *,
        width: int,
        depth: int,
        kernel: int = 3,
        growth: int = 2,
        context: int | Shape = 0,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(width=width, depth=depth, kernel=kernel, growth=growth)
        before, after = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        if len(before) != 2 or len(after) != 2 or before[1] != after[1]:
            raise ConfigurationError(
                f"`WaveNet` maps a sequence (C, T) to one of the same length; got {before} and {after}. In a "
                "coupling, use layout 'channels' or 'masked'."
            )
        if kernel % 2 == 0:
            raise ConfigurationError(f"`kernel` must be odd, so that the length stays; got {kernel}.")
        self.in_shape, self.out_shape, self.width = before, after, width
        self.receptive_field = 1 + (kernel - 1) * sum(growth**i for i in range(depth))
        self.first = nn.Conv1d(before[0], width, 1)
        self.context = MapContext(context, 2 * width * depth, before[1:]) if context else None
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, kernel, dilation=growth**i, padding=kernel // 2 * growth**i)
            for i in range(depth)
        )
        # After the last layer nothing reads the residual, so it has a skip connection alone.
        self.mixes = nn.ModuleList(
            nn.Conv1d(width, 2 * width if i < depth - 1 else width, 1) for i in range(depth)
        )
        self.last = nn.Conv1d(width, after[0], 1)
        if zero_last:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        check_context(self, self.context, context)
        features = None if self.context is None or context is None else self.context(context)
        h, skip = self.first(x), None
        for i, (convolution, mix) in enumerate(zip(self.gates, self.mixes, strict=True)):
            gates = convolution(keep_frames(h, valid))
            if features is not None:
                gates = add_over_samples(gates, features.narrow(1, 2 * self.width * i, 2 * self.width))
            value, gate = gates.chunk(2, 1)
            mixed = mix(value.tanh() * gate.sigmoid())
            more = mixed[:, : self.width]
            skip = more if skip is None else skip + more
            if i < len(self.gates) - 1:
                h = h + mixed[:, self.width :]
        return keep_frames(self.last(skip), valid)
