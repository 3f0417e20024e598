"""What every network here is: a plain module from one batch axis to one batch axis, knowing no probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, as_shape, size

# Builds a network from what goes in and what comes out: (in_shape, out_shape, context) -> module. `context` is 0 for
# none, a number of features for a vector, or the shape of a map (C, T) or (C, H, W). The module is called as net(x) or
# net(x, context) with x (N, *in_shape) and context (B, *context), N = K * B; networks of padded sequences that are
# called with lengths also take a 0/1 mask (N, 1, T) as a third argument.
NetworkMaker = Callable[[Shape, Shape, Any], nn.Module]

Activation = Literal["relu", "elu", "silu", "tanh", "gelu"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


def activation(name: Activation) -> nn.Module:
    """Return the activation of that name.

    Raises:
        ConfigurationError: for an unknown name.
    """
    if name not in _ACTIVATIONS:
        raise ConfigurationError(f"`activation` must be one of {sorted(_ACTIVATIONS)}; got {name!r}.")
    return _ACTIVATIONS[name]()


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are not positive integers.

    Raises:
        ConfigurationError: naming the size.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"`{name}` must be a positive integer; got {value!r}.")


def add_over_samples(features: Tensor, context_features: Tensor | None) -> Tensor:
    """Add context features (B, W) to features (K * B, W), projected once and broadcast over the K samples."""
    if context_features is None:
        return features
    rows, width = context_features.shape
    samples = len(features) // rows if rows else 1
    return (features.view(samples, rows, width) + context_features).view(samples * rows, width)


class LastLayer(nn.Module):
    """A linear layer from features to an output of any shape; with `out_shape` None the features themselves.

    Args:
        features: Number of features that come in.
        out_shape: Shape of one output, or None.
        zero: Start at zero.

    Shape:
        x: (N, features); output: (N, *out_shape).
    """

    def __init__(self, features: int, out_shape: int | Shape | None, *, zero: bool = False) -> None:
        super().__init__()
        self.out_shape = (features,) if out_shape is None else as_shape(out_shape, "out_shape")
        self.linear = None if out_shape is None else nn.Linear(features, size(self.out_shape))
        if zero and self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.linear is None else self.linear(x)
        return out if len(self.out_shape) == 1 else out.view(-1, *self.out_shape)
