"""When values are looked at: a check of every number is worth its time everywhere but inside a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)

_OFF: ContextVar[bool] = ContextVar("values_unchecked", default=False)
_NOTED: ContextVar[list[Tensor] | None] = ContextVar("values_noted", default=None)


@contextmanager
def values_unchecked() -> Iterator[None]:
    """Let NaN and infinity pass for a while: `fit` finds them in the loss and skips the step."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


@contextmanager
def values_noted() -> Iterator[list[Tensor]]:
    """Let everything pass for a while, and note each look's answer, a bool tensor of no axes: for vectorized values."""
    noted: list[Tensor] = []
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def all_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite; True wherever looking is not possible, or not wanted.

    That is inside `values_unchecked` and `values_noted`; for values that do not exist (a compiler, a tracer or another
    mode sees the operations, or the device is "meta"); for vectorized values, as under `torch.func.vmap`; and on a GPU
    while gradients are recorded, where every look would wait for the device, or a CUDA graph is captured, where no look
    is allowed. Any other error is not hidden.
    """
    if torch.compiler.is_compiling():  # which knows no context variables
        return True
    noted = _NOTED.get()
    if noted is not None:
        noted.append(value.isfinite().all())
        return True
    if _OFF.get() or (
        value.is_cuda and (torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing())
    ):
        return True
    if (
        value.is_meta
        or torch._C._len_torch_dispatch_stack()
        or torch.jit.is_tracing()
        or _is_vectorized(value)
    ):
        return True
    return bool(value.isfinite().all())


def _is_vectorized(value: Tensor) -> bool:
    """Whether the value is many values, behind any number of `torch.func` transforms."""
    while is_functorch_wrapped_tensor(value):
        if is_batchedtensor(value):
            return True
        value = get_unwrapped(value)
    return is_legacy_batchedtensor(value)
