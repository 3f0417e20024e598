"""Masks of a small model's layers, applied to all its numbers at once instead of layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latentflows.networks.masked import MaskedLinear


class Masks:
    """What `MaskedLinear` layers do to weight and gradient, on the vector of all numbers.

    Two products of a vector in place of four operations and a node of autograd for each layer; the numbers are the
    same, bit for bit.

    Args:
        model: Its masked layers count whose weight is among the parameters and nobody else's.
        parameters: Whose numbers, one after the other, the vector holds.
    """

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter]) -> None:
        modules = list(model.modules())
        owners: Counter[Tensor] = Counter(p for module in modules for p in module.parameters(recurse=False))
        masked = (each for each in modules if isinstance(each, MaskedLinear))
        alone = {layer.weight: layer for layer in masked if owners[layer.weight] == 1}
        self.layers = [alone[p] for p in parameters if p in alone]
        self.vector: Tensor | None = None
        if self.layers:
            masks = [alone[p].mask if p in alone else torch.ones_like(p) for p in parameters]
            self.vector = torch.cat([mask.reshape(-1) for mask in masks])

    @contextmanager
    def on(self, numbers: Tensor) -> Iterator[None]:
        """Mask the numbers (P,), and let the layers take their weights as they are for a while."""
        if self.vector is None:
            yield
            return
        numbers.detach().mul_(self.vector)
        try:
            for layer in self.layers:
                layer.__dict__["is_clean"] = (
                    True  # the long way, through `nn.Module`, is as dear as the product
                )
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("is_clean", None)

    def apply(self, gradient: Tensor) -> None:
        """Mask a gradient (P,) in place."""
        if self.vector is not None:
            gradient.mul_(self.vector)
