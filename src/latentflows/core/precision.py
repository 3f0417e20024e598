"""Flow mathematics stays in float32 when the networks run in bfloat16."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from latentflows.core.errors import ConfigurationError

_NOTHING = nullcontext()


def full_precision(value: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off, if it is on, for linear algebra that enters a density."""
    device = value.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # the meta device has no autocast to ask about
        return torch.autocast(device, enabled=False)
    return _NOTHING


def at_least_float32(value: Tensor) -> Tensor:
    """Promote half-precision results of a network before they enter a bound, an exponential or a sum."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def soft_bound(value: Tensor, bound: float) -> Tensor:
    r"""Return a / (1 + |a| / b): slope 1 at 0, within (-b, b), gradient never 0."""
    return value / torch.rsub(value.abs(), 1, alpha=-1 / bound)  # 1 + |a| / b in one operation


def check_positive(name: str, value: float) -> None:
    """Refuse a bound or a scale that is not positive and finite.

    Raises:
        ConfigurationError: naming the setting and its value.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ConfigurationError(f"`{name}` must be positive and finite; got {value!r}.")
