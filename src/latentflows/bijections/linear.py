"""Linear bijections without a matrix: permutations and data-dependent normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.bijections.base import Bijection, DataDependent
from latentflows.bijections.inputs import hide_padding
from latentflows.core.errors import ConfigurationError, DataError, NonFiniteError
from latentflows.core.shapes import Shape, as_shape, size

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Permutation(Bijection):
    """Reorder the flattened event, or its channels alone: x = u[order]. Log-determinant 0.

    Cost: no network, one copy. Permuting channels leaves padded frames as they are.

    Args:
        event_shape: Shape of one event.
        order: A permutation of 0 ... D - 1, or of 0 ... C - 1 for channels (a tensor; saved with the model).
        channels: Permute the first axis of the event, the same way at every position.

    Shape:
        u, x: (*batch, *event_shape); log_det: (*batch).

    Raises:
        ConfigurationError: if `order` is not a tensor of integers, or not a permutation of that many numbers.
    """

    order: Tensor
    back: Tensor

    def __init__(self, event_shape: int | Shape, order: Tensor, *, channels: bool = False) -> None:
        super().__init__(event_shape, passes=(0, 0))
        count = _length(self.event_shape, channels)
        if not isinstance(order, Tensor) or order.dtype not in _INTEGERS:
            kind = order.dtype if isinstance(order, Tensor) else type(order).__name__
            raise ConfigurationError(
                f"`order` must be a tensor of integers, a permutation of 0 ... {count - 1}; got {kind}. Give "
                f"`torch.tensor([...])`, or use `Permutation.random` or `Permutation.reversal`."
            )
        order = order.long()
        numbers = torch.arange(count, device=order.device)
        if order.shape != (count,) or not torch.equal(order.sort().values, numbers):
            raise ConfigurationError(
                f"`order` must be a permutation of 0 ... {count - 1}; got shape {tuple(order.shape)}."
            )
        self.channels = channels
        self.variable_lengths = channels and len(self.event_shape) == 2
        self.register_buffer("order", order.clone())
        self.register_buffer("back", torch.argsort(order))

    @classmethod
    def reversal(cls, event_shape: int | Shape, *, channels: bool = False) -> Permutation:
        """Return the permutation that reverses the flattened event, or its channels."""
        shape = as_shape(event_shape, "event_shape")
        return cls(shape, torch.arange(_length(shape, channels)).flip(0), channels=channels)

    @classmethod
    def random(cls, event_shape: int | Shape, seed: int, *, channels: bool = False) -> Permutation:
        """Return a fixed random permutation; the same `seed` gives the same one."""
        shape = as_shape(event_shape, "event_shape")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(_length(shape, channels), generator=generator)
        return cls(shape, order, channels=channels)

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._reordered(u, self.order, valid), u.new_zeros(())

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._reordered(x, self.back, valid), x.new_zeros(())

    def _reordered(self, value: Tensor, order: Tensor, valid: Tensor | None) -> Tensor:
        entries = value if self.channels else value.flatten(2)
        out = entries.index_select(2, order).view(value.shape)
        return out if valid is None else torch.where(valid.unsqueeze(2), out, value)


def _length(shape: Shape, channels: bool) -> int:
    return shape[0] if channels else size(shape)


class ActNorm(DataDependent):
    r"""Scale and shift every channel: x = u e^s + t, with s and t learned from a start that normalizes a batch.

    The first axis of the event is the channel axis; log|det| = (entries per channel) * sum s. Call
    `initialize(batch)` once before training, or leave it to `fit`: the batch then comes out with mean 0 and standard
    deviation 1 per channel, as u where it passes from events to noise, as x where a posterior's noise passes the other
    way. The flag is saved with the model and no pass ever branches on it, so a loaded layer is never set anew. Padded
    frames stay as they are and do not count.

    s and t depend on no context, since they are the statistics of a whole batch; a scale and shift per context is
    `Elementwise` with `Affine`. Of several processes the first one's numbers count: `fit` lets it alone initialize, and
    DistributedDataParallel sends them to the others; without `fit`, call `initialize` before you wrap the model.

    Cost: no network, O(D).

    Args:
        event_shape: (D,), (C, T) or (C, H, W).

    Shape:
        u, x: (*batch, *event_shape); log_det: (*batch).

    References:
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, section 3.1.
    """

    def __init__(self, event_shape: int | Shape) -> None:
        super().__init__(event_shape, passes=(0, 0))
        self.variable_lengths = len(self.event_shape) == 2
        shape = (self.event_shape[0], *([1] * (len(self.event_shape) - 1)))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.repeats = size(self.event_shape) // self.event_shape[0]

    def _measure(self, value: Tensor, valid: Tensor | None, *, forward: bool) -> None:
        axes = [0, 1, *range(3, value.ndim)]
        counts = torch.ones_like(value) if valid is None else valid.unsqueeze(2).expand(value.shape).to(value)
        total = counts.sum(axes, keepdim=True)
        if total.min() < 2:
            raise DataError(
                f"`initialize` needs two or more values of each channel to normalize them; got a batch of shape "
                f"{tuple(value.shape[1:])} with {int(total.min())}. Give more rows."
            )
        value = hide_padding(value, valid)
        mean = (value * counts).sum(axes, keepdim=True) / total
        variance = ((value - mean).square() * counts).sum(axes, keepdim=True) / total
        scale = variance.sqrt().clamp_min(1e-3)  # a channel that never varies keeps a finite scale
        log_scale, shift = (-scale.log(), -mean / scale) if forward else (scale.log(), mean)
        if not (log_scale.isfinite() & shift.isfinite()).all():
            raise NonFiniteError(
                "`ActNorm.initialize` needs a finite mean and standard deviation of every channel; got NaN or "
                "infinity. Remove rows that are not finite, and scale values whose square overflows."
            )
        self.log_scale.copy_(log_scale[0, 0])
        self.shift.copy_(shift[0, 0])

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._start(u, valid, forward=True)
        x, log_det = (
            torch.addcmul(self.shift, hide_padding(u, valid), self.log_scale.exp()),
            self.log_scale.sum(),
        )
        if valid is None:
            return x, log_det * self.repeats
        return torch.where(valid.unsqueeze(2), x, u), log_det * valid.sum(-1)

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._start(x, valid, forward=False)
        u, log_det = (hide_padding(x, valid) - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum()
        if valid is None:
            return u, log_det * self.repeats
        return torch.where(valid.unsqueeze(2), u, x), log_det * valid.sum(-1)
