"""What training and evaluation read: a source of batches, whatever it is made from."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.shapes import Shape, size

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


_LOOKED_AT = 64  # data points that tell one source from another,
_VALUES = 1 << 24  # fewer where they hold more values than this: 64 MiB


def data_hash(source: DataSource) -> str:
    """Return the first digits of a hash that tells data from other data.

    It is of number, shape and 64 data points, evenly spread; data that differ in others alone have the same. Noise that
    they are made with is always the same, and contexts are left out: with and without labels, on any device, it is one
    hash.
    """
    count = min(len(source), _LOOKED_AT, max(1, _VALUES // size(source.event_shape)))
    with noise.stream_on_cpu(0, noise.Purpose.DATA):
        x = source.batch(torch.linspace(0, len(source) - 1, count, dtype=torch.float64).long()).x
    digest = hashlib.sha256(f"{len(source)} {source.event_shape} {x.dtype}".encode())
    digest.update(x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
