"""Autoregression over a folded sequence (WaveFlow): a few steps whatever the length, and one pass for a density."""

from __future__ import annotations

import torch
from torch import Tensor

from latentflows.bijections.base import Bijection
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.precision import full_precision
from latentflows.core.shapes import Shape, as_shape
from latentflows.networks.base import check_sizes
from latentflows.networks.height_causal import HeightCausalWaveNet
from latentflows.transforms import Affine, Transform
from latentflows.transforms.base import check_line_transform


class HeightAutoregressive(Bijection):
    r"""Fold a sequence to `height` rows, each moved by functions of the rows before it.

    .. math:: X_{i, j} = x_{j h + i}, \qquad X_i = f(U_i;\, \theta_i(X_{<i}, c)), \qquad
              \log|\det dx/du| = \sum_{i, j} \log f'(U_{i, j})

    Neighbouring frames lie in one column, so a row is every h-th frame and is made all at once: h = T is a full
    autoregressive model, h = 2 a coupling. Cheap to score, and cheap enough to sample: `Inverse(...)` swaps the two.
    The network runs in float32 under autocast: errors would accumulate over the rows.

    Cost: inverse one pass of the network; forward h steps of one row each, together the arithmetic of one pass
    (rows that were read are kept). The identity at the start.

    Args:
        event_shape: (C, T), T a multiple of the height.
        height: h.
        width: Channels of the network's hidden layers.
        depth: Number of its gated layers; at least (h - 2) / (kernel - 1), so that each row sees all before it.
        kernel: k, odd.
        growth: Each layer's dilation over the width is this many times that of the one before.
        transform: f.
        reverse: The last row comes first; alternate it between layers.
        context_shape: None, (F,), or a map (F, T), which is folded alike.

    Shape:
        u, x: (*batch, C, T); context: (*batch, *context_shape); log_det: (*batch). With lengths, a column that holds
        any padding is padding.

    Raises:
        ShapeError: if the event is no sequence, or its length no multiple of the height.
        ConfigurationError: if the network is too shallow for the height, the transform is none or one of angles, or the
            context has another length.

    References:
        Ping et al., WaveFlow: A Compact Flow-based Model for Raw Audio, 2020, arXiv 1912.01219, section 3.
    """

    def __init__(
        self,
        event_shape: Shape,
        *,
        height: int,
        width: int,
        depth: int,
        kernel: int = 3,
        growth: int = 2,
        transform: Transform = Affine(),  # noqa: B008 (settings alone, frozen)
        reverse: bool = False,
        context_shape: int | Shape | None = None,
    ) -> None:
        check_sizes(height=height)
        event = as_shape(event_shape, "event_shape")
        if len(event) != 2 or event[1] % height:
            raise ShapeError(
                f"`event_shape` must be a sequence (C, T) with T a multiple of `height` {height}; got {event}. Pad or "
                "crop the sequence, or choose another height."
            )
        super().__init__(event, passes=(height, 1), context_shape=context_shape)
        folded = (event[0], height, event[1] // height)
        self.transform = check_line_transform(transform, type(self).__name__)
        self.height, self.reverse, self.folded = height, reverse, folded
        self.network = HeightCausalWaveNet(
            folded,
            (transform.size * event[0], *folded[1:]),
            width=width,
            depth=depth,
            kernel=kernel,
            growth=growth,
            context=self._folded_context_shape(),
        )
        self.variable_lengths = True

    def _folded_context_shape(self) -> int | Shape:
        if self.context_shape is None:
            return 0
        if len(self.context_shape) == 1:
            return self.context_shape[0]
        if len(self.context_shape) != 2 or self.context_shape[1] != self.event_shape[1]:
            raise ConfigurationError(
                f"`context_shape` must be a vector (F,) or a map (F, {self.event_shape[1]}); got {self.context_shape}. "
                "Upsample it to the length of the sequence."
            )
        return (self.context_shape[0], *self.folded[1:])

    def _fold(self, value: Tensor) -> Tensor:
        """Return (N, C, T) as rows (N, C, h, T / h), the first that is made first."""
        rows = value.unflatten(-1, (-1, self.height)).transpose(-1, -2)
        return rows.flip(-2) if self.reverse else rows

    def _unfold(self, rows: Tensor) -> Tensor:
        rows = rows.flip(-2) if self.reverse else rows
        return rows.transpose(-1, -2).flatten(-2)

    def _context(self, context: Tensor | None, like: Tensor) -> Tensor | None:
        context = (
            None if context is None else context.to(like.dtype)
        )  # autocast may have made it half as long
        return self._fold(context) if context is not None and context.ndim == 3 else context

    def _columns(self, valid: Tensor | None) -> Tensor | None:
        """Return the mask (N, 1, 1, T / h) of columns without padding."""
        if valid is None:
            return None
        return valid.flatten(0, 1).unflatten(-1, (-1, self.height)).all(-1)[:, None, None]

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows, columns = self._fold(x.flatten(0, 1)), self._columns(valid)
        mask = None if columns is None else columns.to(x.dtype)
        read = _hidden(rows, columns)
        with full_precision(x):
            raw = self.network(read, self._context(context, x), mask)
        u, log_derivative = self._move(rows, raw, columns, inverse=True)
        return self._unfold(u).view(x.shape), log_derivative.flatten(1).sum(1).view(x.shape[:2])

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        noise, columns = self._fold(u.flatten(0, 1)), self._columns(valid)
        row = torch.zeros_like(noise[:, :, :1])
        rows, total = [], row.new_zeros(len(noise))
        with full_precision(u):
            cache = self.network.start(
                noise, self._context(context, u), None if columns is None else columns.to(u.dtype)
            )
            for i in range(self.height):
                raw, cache = self.network.step(_hidden(row, columns), cache)
                row, log_derivative = self._move(noise[:, :, i : i + 1], raw, columns, inverse=False)
                rows.append(row)
                total = total + log_derivative.flatten(1).sum(1)
        return self._unfold(torch.cat(rows, 2)).view(u.shape), total.view(u.shape[:2])

    def _move(
        self, rows: Tensor, raw: Tensor, columns: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Move rows (N, C, R, w) by raw parameters (N, P C, R, w), padding excepted; log-derivatives of that shape."""
        raw = raw.view(len(rows), self.transform.size, *rows.shape[1:]).movedim(1, 0)
        raw = _hidden(raw, columns)  # zero raw parameters are the identity
        move = self.transform.inverse if inverse else self.transform.forward
        moved, log_derivative = move(_hidden(rows, columns), raw)
        log_derivative = log_derivative.expand(rows.shape)
        if columns is None:
            return moved, log_derivative
        return torch.where(columns, moved, rows), log_derivative.masked_fill(~columns, 0.0)


def _hidden(rows: Tensor, columns: Tensor | None) -> Tensor:
    """Return rows (..., R, w) with zeros on padding, so that no arithmetic and no gradient meets what lies there."""
    return rows if columns is None else rows.masked_fill(~columns, 0.0)
