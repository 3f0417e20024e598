"""Multilayer perceptrons, plain and gated; the context, if any, enters the first layer."""

from __future__ import annotations

from torch import Tensor, nn

from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import (
    Activation,
    Dense,
    LastLayer,
    activation,
    add_over_samples,
    check_context,
    check_sizes,
    num_features,
)


class MLP(nn.Module):
    r"""Fully connected network of `depth` hidden layers.

    .. math:: h_1 = a(W_1 x + V c + b_1), \quad h_l = a(W_l h_{l-1} + b_l), \quad y = W h_L + b

    Cost: 2 N (in W + (depth - 1) W^2 + W out) FLOPs; the context costs 2 B C W, once for all samples.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: Shape of one output; None for the (width,) features of the last hidden layer.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        activation_name: Nonlinearity of the hidden layers.
        context: Number of context features, or the shape of a context, which is flattened; 0 for none.
        zero_last: Start the last layer at zero, so that a flow starts as the identity.

    Shape:
        x: (N, *in_shape); context: (B, *context) with N = K * B; output: (N, *out_shape).

    Raises:
        ConfigurationError: if a size is not positive.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape | None,
        *,
        width: int,
        depth: int,
        activation_name: Activation = "relu",
        context: int | Shape = 0,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width=width, depth=depth)
        self.in_shape = as_shape(in_shape)
        self.first = Dense(size(self.in_shape), width)
        features = num_features(context)
        self.context = Dense(features, width, bias=False) if features else None
        layers: list[nn.Module] = [activation(activation_name)]
        for _ in range(depth - 1):
            layers += [Dense(width, width), activation(activation_name)]
        self.hidden = nn.Sequential(*layers)
        self.last = LastLayer(width, out_shape, zero=zero_last)
        self.out_shape = self.last.out_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(self, self.context, context)
        features = self.first(x.flatten(1))
        if self.context is not None and context is not None:
            features = add_over_samples(features, self.context(context.flatten(1)))
        return self.last(self.hidden(features))


class GatedLinear(nn.Module):
    r"""A linear layer times the sigmoid of another: (W x + b) * sigmoid(V x + c).

    Both products are one matrix multiplication. He-normal start, as in Tomczak & Welling, VAE with a VampPrior,
    2018, arXiv 1705.07120 (their code).

    Shape:
        x: (N, in_features); output: (N, out_features).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = Dense(in_features, 2 * out_features)
        nn.init.kaiming_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.linear(x), dim=-1)


class GatedMLP(nn.Module):
    r"""`depth` gated linear layers and a linear output; `GatedLinear` is the only nonlinearity.

    The network of the VampPrior and Exemplar-VAE tables (arXiv 1705.07120, 2004.04795: 784-300-300-40).
    Cost: twice that of an `MLP` of the same width.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: Shape of one output; None for the (width,) features of the last hidden layer.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        context: Number of context features, or the shape of a context, which is flattened; 0 for none.
        zero_last: Start the last layer at zero.

    Shape:
        x: (N, *in_shape); context: (B, *context) with N = K * B; output: (N, *out_shape).

    Raises:
        ConfigurationError: if a size is not positive.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape | None,
        *,
        width: int,
        depth: int,
        context: int | Shape = 0,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width=width, depth=depth)
        self.in_shape = as_shape(in_shape)
        self.first = GatedLinear(size(self.in_shape), width)
        features = num_features(context)
        self.context = Dense(features, 2 * width, bias=False) if features else None
        self.hidden = nn.Sequential(*(GatedLinear(width, width) for _ in range(depth - 1)))
        self.last = LastLayer(width, out_shape, zero=zero_last)
        self.out_shape = self.last.out_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(self, self.context, context)
        features = self.first.linear(x.flatten(1))
        if self.context is not None and context is not None:
            features = add_over_samples(features, self.context(context.flatten(1)))
        return self.last(self.hidden(nn.functional.glu(features, dim=-1)))
