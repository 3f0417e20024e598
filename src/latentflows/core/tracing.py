"""Who is looking at the operations that run: hand-written derivatives are for plain eager mode alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad


def is_traced(*values: Tensor) -> bool:
    """Whether a compiler, a `torch.func` transform or forward-mode differentiation sees what runs.

    Code with a derivative of its own, or that writes into preallocated tensors, then takes its plain path.

    Args:
        values: Gradients that arrive: vectorized ones (`is_grads_batched`) can be told by nothing else.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(map(is_legacy_batchedtensor, values))
    )
