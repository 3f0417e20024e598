"""What everything that uses a trained model needs: its eval mode, and data where the model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each one back in its own mode at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def to_model(model: nn.Module, value: Tensor) -> Tensor:
    """Bring data to the model's device, and floating-point data at least to its precision."""
    like = next(model.parameters(), value)
    dtype = torch.promote_types(value.dtype, like.dtype) if value.is_floating_point() else value.dtype
    return value.to(like.device, dtype)
