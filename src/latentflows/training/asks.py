"""What a run asks for before it computes it, so that others may compute it for several runs at once."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from latentflows.training.learner import Outcome


@dataclass(frozen=True)
class Ask:
    """What a session is about to compute: a step, or the metrics of a block of validation data.

    Args:
        indices: Of its data points.
        block: Number of the block; None for a step.
    """

    indices: Tensor
    block: int | None = None


# Yields what is to be computed; is sent a step's outcome, the weights already moved, or a block's sums, or None.
Asking = Generator[Ask, Outcome | Tensor | None, None]
