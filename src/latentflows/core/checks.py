"""When values are looked at: a check of every number is worth its time everywhere but inside a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_OFF: ContextVar[bool] = ContextVar("values_unchecked", default=False)


@contextmanager
def values_unchecked() -> Iterator[None]:
    """Let NaN and infinity pass for a while: `fit` finds them in the loss and skips the step."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


def all_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite; True wherever looking is not possible, or not wanted.

    That is inside `values_unchecked`, under `torch.compile` and `torch.func.vmap`, and on a GPU while gradients are
    recorded, where every look would wait for the device.
    """
    if torch.compiler.is_compiling() or _OFF.get() or (value.is_cuda and torch.is_grad_enabled()):
        return True
    try:
        return bool(value.isfinite().all())
    except RuntimeError:  # under vmap no single value can be looked at
        return True
