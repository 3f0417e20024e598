"""What every network here is: a plain module from one batch axis to one batch axis, knowing no probability."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core.dense import linear
from latentflows.core.errors import CombinationError, ConfigurationError
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
_OVERWRITING: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "elu": functional.elu_,
    "silu": partial(functional.silu, inplace=True),
    "tanh": torch.tanh_,
    "gelu": lambda value: value.copy_(functional.gelu(value)),
}
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda gradient, after: torch.ops.aten.threshold_backward(gradient, after, 0),
    "elu": lambda gradient, after: torch.ops.aten.elu_backward(gradient, 1, 1, 1, True, after),
    "silu": torch.ops.aten.silu_backward,
    "tanh": torch.ops.aten.tanh_backward,
    "gelu": torch.ops.aten.gelu_backward,
}
_FROM_INPUT = ("silu", "gelu")  # their derivative is a function of what went in; the others' of what came out


def activation(name: Activation, *, overwrite: bool = False) -> nn.Module:
    """Return the activation of that name.

    Args:
        name: Which one.
        overwrite: Reuse the memory of what goes in, where the derivative is a function of what comes out.

    Raises:
        ConfigurationError: for an unknown name.
    """
    if name not in _ACTIVATIONS:
        raise ConfigurationError(f"`activation` must be one of {sorted(_ACTIVATIONS)}; got {name!r}.")
    if overwrite and name in _OVERWRITING:
        return _OVERWRITING[name]()
    return _ACTIVATIONS[name]()


def in_place(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the activation that overwrites its argument; for tensors that autograd does not see."""
    return _IN_PLACE[name]


def activate_(name: Activation, value: Tensor) -> Tensor:
    """Overwrite `value` with its activation, and return what `through_activation` wants to be given."""
    kept = value.clone() if name in _FROM_INPUT else value
    _IN_PLACE[name](value)
    return kept


def through_activation(name: Activation, gradient: Tensor, kept: Tensor) -> Tensor:
    """Return the gradient before an activation from the one after it and what `activate_` returned."""
    return _GRADIENTS[name](gradient, kept)


def made_network(network: NetworkMaker, in_shape: Shape, out_shape: Shape, context: Any) -> nn.Module:
    """Call a maker of networks.

    Raises:
        ConfigurationError: if it is a network, or a class that is built otherwise, in place of a maker.
    """
    name, takes = type(network).__name__, not isinstance(network, nn.Module)
    if takes:
        name = getattr(network, "__name__", name)
        try:
            inspect.signature(network).bind(in_shape, out_shape, context)
        except TypeError:
            takes = False
        except ValueError:  # a builtin, which does not tell what it takes
            pass
    if not takes:
        raise ConfigurationError(
            f"`network` must be a function that makes a network of an input shape, an output shape and a context; got "
            f"`{name}`. Write one, such as `lambda in_shape, out_shape, context: MLP(in_shape, out_shape, width=64, "
            "context=context)`."
        )
    return network(in_shape, out_shape, context)


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are not positive integers.

    Raises:
        ConfigurationError: naming the size.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"`{name}` must be a positive integer; got {value!r}.")


def add_over_samples(features: Tensor, context_features: Tensor | None) -> Tensor:
    """Add context features (B, W, ...) to features (K * B, W, ...), projected once and broadcast over the K samples.

    Axes after W may be 1 in the context features: a vector context of a network of maps.
    """
    if context_features is None:
        return features
    rows = len(context_features)
    samples = len(features) // rows if rows else 1
    grouped = features.view(samples, rows, *features.shape[1:])
    return (grouped + context_features).view(features.shape)


def multiply_over_samples(features: Tensor, context_features: Tensor) -> Tensor:
    """Multiply features (K * B, W) by context features (B, W), as `add_over_samples` adds them."""
    rows = len(context_features)
    samples = len(features) // rows if rows else 1
    return (features.view(samples, rows, *features.shape[1:]) * context_features).view(features.shape)


def num_features(context: int | Shape) -> int:
    """Return how many numbers a context has, given as a `NetworkMaker` gets it; 0 for none."""
    return context if isinstance(context, int) else size(as_shape(context, "context"))


def check_context(network: nn.Module, projection: nn.Module | None, context: Tensor | None) -> None:
    """Refuse a context that the network was not built for, and none where it was built for one.

    Args:
        network: The network, for its name.
        projection: What takes the context in; None in a network built without one.
        context: What the network was called with.

    Raises:
        CombinationError: naming the network.
    """
    if (projection is None) == (context is None):
        return
    name = type(network).__name__
    if context is None:
        raise CombinationError(
            f"`{name}` was built for a context; got none. Call it with one, or build it with `context=0`."
        )
    raise CombinationError(
        f"`{name}` was built without a context; got one of shape {tuple(context.shape)}. Build it with `context`: a "
        "maker `network(in_shape, out_shape, context)` passes its third argument on."
    )


def map_shape(shape: int | Shape, name: str) -> Shape:
    """Return the shape of a sequence (C, T) or an image (C, H, W).

    Raises:
        ConfigurationError: for any other shape.
    """
    found = as_shape(shape, name)
    if len(found) not in (2, 3):
        raise ConfigurationError(
            f"`{name}` must be a sequence (C, T) or an image (C, H, W) for a convolution; got {found}. Use a dense "
            "network for vectors; in a coupling, layout 'channels' or 'masked' keeps the space."
        )
    return found


class FrameMasked(nn.Module, ABC):
    """A network of maps that keeps padding out of sequences: what it gives for other frames does not depend on it."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Return (N, *out_shape) of x (N, *in_shape).

        Shape:
            context: (B, *context) with N = K * B; valid: (N, 1, T), 1 where a frame of a sequence counts, 0 on padding.
        """


def keep_frames(h: Tensor, valid: Tensor | None) -> Tensor:
    """Set padding of maps (N, C, ..., T) to zero, as what a convolution reads beyond the ends is.

    Whatever lies there: in a product zero times infinity would be NaN.

    Args:
        h: Maps.
        valid: (N, 1, ..., T), 1 where a frame counts; None for no padding.
    """
    return h if valid is None else h.masked_fill(valid == 0, 0)


class MapContext(nn.Module):
    """Project a context for a network of maps: a vector to every position alike, a map position by position.

    Args:
        context: Number of features of a vector context, or the shape of a map (C, T) or (C, H, W).
        width: Features that come out.
        space: Space of the network's maps, (T,) or (H, W).

    Shape:
        context: (B, *context); output: (B, width, *space), with 1 for every axis of `space` if it is a vector.

    Raises:
        ConfigurationError: if the context is a map over another space.
    """

    def __init__(self, context: int | Shape, width: int, space: Shape) -> None:
        super().__init__()
        shape = as_shape(context, "context")
        if shape[1:] not in ((), space):
            raise ConfigurationError(
                f"A context must be a vector (C,) or a map over the same space {space}; got shape {shape}. Upsample, "
                "crop or flatten it first."
            )
        self.out_shape = (width, *(shape[1:] or [1] * len(space)))
        self.projection = nn.Conv1d(shape[0], width, 1, bias=False)

    def forward(self, context: Tensor) -> Tensor:
        flat = context.flatten(2) if context.ndim > 2 else context.unsqueeze(2)
        return self.projection(flat).view(len(context), *self.out_shape)


class Dense(nn.Linear):
    """`torch.nn.Linear` by the quicker of PyTorch's two libraries: see `latentflows.core.dense`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


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
        self.linear = None if out_shape is None else Dense(features, size(self.out_shape))
        if zero and self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.linear is None else self.linear(x)
        return out if len(self.out_shape) == 1 else out.view(-1, *self.out_shape)
