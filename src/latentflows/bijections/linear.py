"""Linear bijections: permutations and data-dependent normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.bijections.base import Bijection
from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, size


class Permutation(Bijection):
    """Reorder the flattened event: x = u[order]. Log-determinant 0.

    Args:
        event_shape: Shape of one event.
        order: A permutation of 0 ... D - 1 (a tensor; saved with the model).

    Raises:
        ConfigurationError: if `order` is not a permutation of D numbers.
    """

    order: Tensor
    back: Tensor

    def __init__(self, event_shape: int | Shape, order: Tensor) -> None:
        super().__init__(event_shape, passes=(0, 0))
        count = size(self.event_shape)
        if order.shape != (count,) or not torch.equal(order.sort().values, torch.arange(count)):
            raise ConfigurationError(
                f"`order` must be a permutation of 0 ... {count - 1}; got shape {tuple(order.shape)}."
            )
        self.register_buffer("order", order.clone())
        self.register_buffer("back", torch.argsort(order))

    @classmethod
    def reversal(cls, event_shape: int | Shape) -> Permutation:
        """Return the permutation that reverses the flattened event."""
        shape = (event_shape,) if isinstance(event_shape, int) else event_shape
        return cls(shape, torch.arange(size(shape) - 1, -1, -1))

    @classmethod
    def random(cls, event_shape: int | Shape, seed: int) -> Permutation:
        """Return a fixed random permutation; the same `seed` gives the same one."""
        shape = (event_shape,) if isinstance(event_shape, int) else event_shape
        generator = torch.Generator().manual_seed(seed)
        return cls(shape, torch.randperm(size(shape), generator=generator))

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return u.flatten(2).index_select(2, self.order).view(u.shape), u.new_zeros(())

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.flatten(2).index_select(2, self.back).view(x.shape), x.new_zeros(())


class ActNorm(Bijection):
    r"""Scale and shift every channel: x = u e^s + t, with s and t learned from a start that normalizes a batch.

    The first axis of the event is the channel axis; log|det| = (entries per channel) * sum s. Call
    `initialize(batch)` once before training: then u has mean 0 and standard deviation 1 per channel on that batch.
    The flag is saved with the model and no pass ever branches on it, so a loaded layer is never set anew.

    Cost: no network, O(D).

    Args:
        event_shape: (D,), (C, T) or (C, H, W).

    Shape:
        u, x: (*batch, *event_shape); log_det: (*batch).

    References:
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, section 3.1.
    """

    initialized: Tensor

    def __init__(self, event_shape: int | Shape) -> None:
        super().__init__(event_shape, passes=(0, 0))
        shape = (self.event_shape[0], *([1] * (len(self.event_shape) - 1)))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.register_buffer("initialized", torch.tensor(False))
        self.repeats = size(self.event_shape) // self.event_shape[0]

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Normalize this batch per channel, unless it was done before; return the normalized batch."""
        if not self.initialized:
            axes = [0, *range(2, x.ndim)]
            scale = x.std(axes, correction=0).clamp_min(
                1e-3
            )  # a channel that never varies keeps a finite scale
            self.shift.copy_(x.mean(axes).view_as(self.shift))
            self.log_scale.copy_(scale.log().view_as(self.log_scale))
            self.initialized.fill_(True)
        return self.inverse(x, context)[0]

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self.shift, u, self.log_scale.exp()), self.log_scale.sum() * self.repeats

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return (x - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum() * self.repeats
