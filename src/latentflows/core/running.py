"""Modules whose buffers follow the data step by step, besides what gradients do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Running(nn.Module, ABC):
    """Gathers what it sees in train mode, and takes it in once the optimizer has moved.

    `fit` calls `begin` before and `commit` after a step, for the parts that learn. So a step that is skipped leaves no
    trace, and pieces of one batch count as one batch. In a loop of your own that calls neither, each pass in train mode
    with gradients is taken in at once, as batch normalization does: right too, with each piece counting as a batch.

    To write one, gather in `forward`, call `gathered`, and implement `_forget` and `_take_in`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leave()

    def begin(self) -> None:
        """Forget what was gathered; from here on `commit` alone takes it in."""
        self._in_step = True
        self._forget()

    def commit(self) -> None:
        """Take in what all processes have gathered; every process calls it, and ends with the same numbers."""
        self._take_in()
        self.leave()

    def leave(self) -> None:
        """Forget what was gathered in a step that was not taken; the next pass is taken in at once again."""
        self._in_step = False
        self._forget()

    def gathered(self) -> None:
        """Say that there is more to take in, which outside of a step happens now."""
        if not self._in_step:
            self.commit()

    @abstractmethod
    def _forget(self) -> None: ...

    @abstractmethod
    def _take_in(self) -> None: ...


def total_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes that train together; without others, return the values themselves."""
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered_over_processes(values: Tensor) -> Tensor:
    """Return (P, *values.shape), the values of every process in their order, for values of one shape."""
    if not (dist.is_available() and dist.is_initialized()):
        return values.unsqueeze(0)
    together = torch.zeros(dist.get_world_size(), *values.shape, dtype=values.dtype, device=values.device)
    together[dist.get_rank()] = values
    return total_over_processes(together)
