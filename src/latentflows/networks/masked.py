"""The masked network of autoregressive flows (MADE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core.errors import ConfigurationError
from latentflows.networks.base import Activation, activation, add_over_samples, check_sizes


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a fixed 0/1 mask (out_features, in_features)."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask, self.bias)


class MaskedMLP(nn.Module):
    r"""Output i depends on the inputs 0 ... i - 1 alone, and on the context.

    Variable j has degree j + 1. A hidden unit of degree m reads degrees up to m; output i reads hidden degrees
    up to i. Degrees are spread evenly over 1 ... dim - 1 (from 0 with a context, so that the first variable
    hears it), and every one of them must occur in every hidden layer: an allowed dependency is lost otherwise.

    Cost: 2 N (dim W + (depth - 1) W^2 + W dim outputs) FLOPs, masked entries included.

    Args:
        dim: Number of variables.
        outputs: Outputs per variable.
        width: Units of each hidden layer; at least dim - 1, or dim with a context.
        depth: Number of hidden layers.
        activation_name: Nonlinearity.
        context: Number of context features; 0 for none.
        zero_last: Start the last layer at zero.

    Shape:
        x: (N, dim); context: (B, context) with N = K * B; output: (N, dim, outputs).

    Raises:
        ConfigurationError: if `width` is too small to carry every dependency.

    References:
        Germain et al., MADE: Masked Autoencoder for Distribution Estimation, 2015, arXiv 1502.03509, eq. 8-13.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        activation_name: Activation = "relu",
        context: int = 0,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, outputs=outputs, width=width, depth=depth)
        lowest = 0 if context else min(1, dim - 1)
        kinds = max(dim - lowest, 1)  # how many different degrees the hidden units carry
        if width < kinds:
            raise ConfigurationError(
                f"`width` must be at least {kinds} to carry every dependency among {dim} variables"
                f"{' and the context' if context else ''}; got {width}. A narrower network drops some silently."
            )
        self.dim, self.outputs = dim, outputs
        inputs = torch.arange(1, dim + 1)
        hidden = lowest + torch.arange(width) * kinds // width
        self.first = MaskedLinear(hidden[:, None] >= inputs)
        self.context = nn.Linear(context, width, bias=False) if context else None
        layers: list[nn.Module] = [activation(activation_name)]
        for _ in range(depth - 1):
            layers += [MaskedLinear(hidden[:, None] >= hidden), activation(activation_name)]
        last = MaskedLinear((inputs[:, None] > hidden).repeat_interleave(outputs, 0))
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        features = self.first(x)
        if self.context is not None and context is not None:
            features = add_over_samples(features, self.context(context))
        return self.rest(features).view(len(x), self.dim, self.outputs)
