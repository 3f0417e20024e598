"""What training and evaluation read: a source of batches, whatever it is made from."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from latentflows.core.shapes import Shape

Values = Literal["binary", "unit", "continuous"]


class Batch(NamedTuple):
    """Data points `x` of shape (B, *event), and what they are conditioned on, if anything."""

    x: Tensor
    context: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move to a device; nothing is copied where it is there already."""
        context = None if self.context is None else self.context.to(device, non_blocking=True)
        return Batch(self.x.to(device, non_blocking=True), context)


class DataSource(Protocol):
    """A data set in memory that gives batches by index.

    `values` is "binary" for {0, 1}, "unit" for gray values in [0, 1] (no density is defined on them),
    "continuous" for real values with a density. Bits per dimension are nll / (D ln 2) + `bits_offset`, and
    are undefined where `bits_offset` is None; for the probability mass of gray levels nothing is added.
    """

    @property
    def event_shape(self) -> Shape: ...

    @property
    def values(self) -> Values: ...

    @property
    def bits_offset(self) -> float | None: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """Return the data points at `indices` (B,); noise, if any, comes from `latentflows.core.noise`."""
        ...
