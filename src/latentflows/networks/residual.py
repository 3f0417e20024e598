"""Residual multilayer perceptron, with a context that gates every block."""

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
    multiply_over_samples,
    num_features,
)

_SMALL = 1e-3  # the second layer of a block starts this small, so that the block starts near the identity


class ResidualBlock(nn.Module):
    r"""Two linear layers around a skip connection, activations before them: h + W_2 a(W_1 a(h)) * sigmoid(V c).

    Shape:
        h: (N, width); context: (B, features) with N = K * B; output: (N, width).
    """

    def __init__(self, width: int, *, activation_name: Activation, features: int) -> None:
        super().__init__()
        second = Dense(width, width)
        nn.init.uniform_(second.weight, -_SMALL, _SMALL)
        nn.init.uniform_(second.bias, -_SMALL, _SMALL)
        self.body = nn.Sequential(
            activation(activation_name), Dense(width, width), activation(activation_name), second
        )
        self.gate = Dense(features, width) if features else None

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        step = self.body(h)
        if self.gate is not None and context is not None:
            step = multiply_over_samples(step, self.gate(context).sigmoid())
        return h + step


class ResidualMLP(nn.Module):
    r"""A linear layer, residual blocks of two layers each, and a linear output: the network of neural spline flows.

    .. math:: h_0 = W_0 x + V_0 c + b_0, \quad
              h_l = h_{l-1} + W_{l,2}\, a(W_{l,1}\, a(h_{l-1})) \odot \sigma(V_l c), \quad y = W h_L + b

    The context enters the first layer by addition and every block by a gate. Without normalization and dropout.
    It starts close to a linear map; prefer it to an `MLP` where more than three hidden layers are wanted.

    Cost: 2 N (in W + 2 L W^2 + W out) FLOPs; the context costs 2 B C W (L + 1), once for all samples.

    Args:
        in_shape: Shape of one input; flattened.
        out_shape: Shape of one output; None for the (width,) features.
        width: Units of each layer, W.
        num_blocks: Number of residual blocks, L.
        activation_name: Nonlinearity.
        context: Number of context features, or the shape of a context, which is flattened; 0 for none.
        zero_last: Start the last layer at zero, so that a flow starts as the identity.

    Shape:
        x: (N, *in_shape); context: (B, *context) with N = K * B; output: (N, *out_shape).

    Raises:
        ConfigurationError: if a size is not positive.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.

    References:
        Durkan et al., Neural Spline Flows, 2019, arXiv 1906.04032, appendix B (the gate is in
        their code); He et al., Identity Mappings in Deep Residual Networks, 2016, arXiv 1603.05027.
    """

    def __init__(
        self,
        in_shape: int | Shape,
        out_shape: int | Shape | None,
        *,
        width: int,
        num_blocks: int,
        activation_name: Activation = "relu",
        context: int | Shape = 0,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_blocks=num_blocks)
        self.in_shape = as_shape(in_shape)
        features = num_features(context)
        self.first = Dense(size(self.in_shape), width)
        self.context = Dense(features, width, bias=False) if features else None
        self.blocks = nn.ModuleList(
            ResidualBlock(width, activation_name=activation_name, features=features)
            for _ in range(num_blocks)
        )
        self.last = LastLayer(width, out_shape, zero=zero_last)
        self.out_shape = self.last.out_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(self, self.context, context)
        h = self.first(x.flatten(1))
        if self.context is not None and context is not None:
            context = context.flatten(1)
            h = add_over_samples(h, self.context(context))
        for block in self.blocks:
            h = block(h, context)
        return self.last(h)
