"""The masked network of autoregressive flows (MADE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core.dense import linear
from latentflows.core.errors import ConfigurationError
from latentflows.networks.base import Activation, activation, add_over_samples, check_sizes


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a fixed 0/1 mask (out_features, in_features).

    Attributes:
        is_clean: Whether somebody vouches, for the length of a pass and its gradient, that the weight is 0 wherever
            the mask is, and masks the gradient too: the product is left out. Only `fit` does, for small models.
    """

    mask: Tensor
    is_clean = False

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight if self.is_clean else self.weight * self.mask, self.bias)


class MaskedMLP(nn.Module):
    r"""Output i depends on the inputs before i in `order` alone, and on the context.

    The j-th variable of the order has degree j (from 1). A hidden unit of degree m reads degrees up to m; an output
    reads hidden degrees below its own. Degrees are spread evenly over 1 ... dim - 1 (from 0 with a context, so that
    the first variable hears it), and every one of them must occur in every hidden layer: an allowed dependency is
    lost otherwise. Hidden units are sorted by degree.

    Activations whose derivative follows from what comes out (relu, elu) overwrite what a masked layer returns: a
    forward hook that keeps its output must clone it, and PyTorch refuses full backward hooks on masked layers.

    Cost: 2 N (dim W + (depth - 1) W^2 + W dim outputs) FLOPs, masked entries included.

    Args:
        dim: Number of variables.
        outputs: Outputs per variable.
        width: Units of each hidden layer; at least dim - 1, or dim with a context.
        depth: Number of hidden layers.
        activation_name: Nonlinearity.
        context: Number of context features; 0 for none.
        zero_last: Start the last layer at zero.
        order: Permutation of 0 ... dim - 1, the variables from the first to the last; None for the natural order.

    Shape:
        x: (N, dim); context: (B, context) with N = K * B; output: (N, outputs, dim).

    Raises:
        ConfigurationError: if `width` is too small to carry every dependency, or `order` is no permutation.

    References:
        Germain et al., MADE: Masked Autoencoder for Distribution Estimation, 2015, arXiv 1502.03509, section 4.
    """

    order: Tensor | None

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
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, outputs=outputs, width=width, depth=depth)
        inputs = _input_degrees(dim, order)
        lowest = 0 if context else min(1, dim - 1)
        hidden = _hidden_degrees(dim, width, lowest)
        self.dim, self.outputs = dim, outputs
        self.activation_name: Activation = activation_name
        self.register_buffer("order", order)
        self.first = MaskedLinear(hidden[:, None] >= inputs)
        self.context = nn.Linear(context, width, bias=False) if context else None
        rest: list[nn.Module] = [activation(activation_name, overwrite=True)]
        for _ in range(depth - 1):
            rest += [MaskedLinear(hidden[:, None] >= hidden), activation(activation_name, overwrite=True)]
        last = MaskedLinear((inputs[:, None] > hidden).repeat(outputs, 1))
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(*rest, last)
        self.counts = [int((hidden <= degree).sum()) for degree in range(dim + 1)]

    def layers(self) -> list[MaskedLinear]:
        """Return the masked layers from the first to the last."""
        return [self.first, *(layer for layer in self.rest if isinstance(layer, MaskedLinear))]

    def has_hooks(self) -> bool:
        """Return whether a call of a masked layer may do more than its weights say.

        `torch.nn.utils.prune` and the old `weight_norm` make the weight anew in such a hook, at every call.
        """
        return any(layer._forward_pre_hooks or layer._forward_hooks for layer in self.layers())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        features = self.first(x)
        if self.context is not None and context is not None:
            features = add_over_samples(features, self.context(context))
        return self.rest(features).view(len(x), self.outputs, self.dim)

    def sorted_tensors(self, context: Tensor | None, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return masked weights and biases with the variables in their order, for code that solves by degree.

        Where `has_hooks`, they are not what a call computes with.

        Shape:
            context: (B, context) with rows = K * B; weights: (W, dim), (W, W) ..., (dim, outputs, W);
            biases: (W, rows) with a context, else (W, 1), then (W, 1) ..., and (dim, outputs, 1).
        """
        layers = self.layers()
        if torch.is_grad_enabled():  # a gradient that overflows under the mask must not become inf * 0
            weights = [torch.where(layer.mask.bool(), layer.weight, 0.0) for layer in layers]
        else:
            weights = [layer.weight * layer.mask for layer in layers]
        biases = [layer.bias[:, None] for layer in layers]
        if self.context is not None and context is not None:
            offset = self.context(context).t()
            samples = rows // len(context) if len(context) else 1
            biases[0] = (offset[:, None] + biases[0][:, None]).expand(-1, samples, -1).flatten(1)
        last, bias = (
            value[-1].view(self.outputs, self.dim, -1).transpose(0, 1) for value in (weights, biases)
        )
        if self.order is not None:
            weights[0], last, bias = weights[0][:, self.order], last[self.order], bias[self.order]
        return [*weights[:-1], last.contiguous()], [*biases[:-1], bias.contiguous()]


def _input_degrees(dim: int, order: Tensor | None) -> Tensor:
    """Return the place of every variable in the order, from 1."""
    natural = torch.arange(dim)
    if order is None:
        return natural + 1
    if (
        order.is_floating_point()
        or order.shape != (dim,)
        or not torch.equal(order.cpu().sort().values, natural)
    ):
        raise ConfigurationError(
            f"`order` must be a permutation of 0 to {dim - 1}; got {order.dtype} {order.tolist()}."
        )
    return torch.argsort(order.cpu()) + 1


def _hidden_degrees(dim: int, width: int, lowest: int) -> Tensor:
    """Spread the degrees evenly over the units of a hidden layer, from the lowest to dim - 1."""
    kinds = max(dim - lowest, 1)  # how many different degrees the hidden units carry
    if width < kinds:
        raise ConfigurationError(
            f"`width` must be at least {kinds} to carry every dependency among {dim} variables"
            f"{'' if lowest or dim == 1 else ' and the context'}; got {width}. A narrower network drops some silently."
        )
    return lowest + torch.arange(width) * kinds // width
