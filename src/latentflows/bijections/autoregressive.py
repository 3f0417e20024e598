"""Autoregressive flows: each variable moves by functions of those before it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from latentflows.bijections.base import Bijection
from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import full_precision
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.core.tracing import is_traced
from latentflows.networks.base import Activation
from latentflows.networks.inversion import Method, Problem, invert
from latentflows.networks.masked import MaskedMLP
from latentflows.transforms import Affine, Transform
from latentflows.transforms.base import check_line_transform, check_transform

Inversion = Literal["auto", "loop", "incremental", "jacobi"]


class InverseAutoregressive(Bijection):
    r"""Autoregressive map whose network reads the base noise: cheap to sample.

    .. math:: x_i = T(u_i; \theta_i(u_{<i}, c)), \quad \log|\det dx/du| = \sum_i \log T'(u_i; \theta_i)

    with T elementwise: affine by default. `Inverse(InverseAutoregressive(...))` is the masked autoregressive flow,
    cheap to score. The network runs in float32 under autocast: errors would accumulate over the inverse.

    Cost: forward one network pass. Inverse D steps one after the other, which `passes` counts, but by default in the
    arithmetic of one pass and about two to three times its wall-clock time on a CPU:

    - "incremental": every hidden unit is computed once, when the variables it reads are known. Exact at any weights.
    - "jacobi": u <- T^-1(x; theta(u)) until a row comes to rest to rounding (each pass is a check of the one before),
      at most 32 times; other rows are then solved incrementally. 8 to 14 passes on trained flows.
    - "loop": D network passes, with all their memory if a gradient is wanted.
    - "auto": Jacobi where steps are bound by the calls they take (few rows on a CPU, a GPU), else incremental.

    The first two keep u alone for the gradient, which solves one triangular system in a sweep over the variables, at
    the price of three passes. Under `torch.compile`, `torch.func` and forward-mode differentiation the loop runs, and
    where a masked layer has forward hooks, as those of `torch.nn.utils.prune`.

    Args:
        event_shape: Shape of one event; it is flattened into D variables.
        transform: T, an elementwise monotone map; `Affine()` by default.
        width: Units of each hidden layer; at least D - 1 (D with a context).
        depth: Number of hidden layers.
        order: Variables from the first to the last, a permutation of 0 ... D - 1; None for the natural order.
        context_shape: None or (C,); it enters the first layer.
        activation: Nonlinearity.
        scale_bound: Short for `transform=Affine(scale_bound)`.
        inversion: How the inverse is computed.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, C); log_det: (*batch).

    Raises:
        ConfigurationError: if `width` drops dependencies, `order` is no permutation, `inversion` is unknown, the
            transform is none, or one of angles while D > 1, or both `transform` and `scale_bound` are given.

    References:
        Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934,
        sections 3-4; Papamakarios et al., Masked Autoregressive Flow, 2017, arXiv 1705.07057, section 3; Durkan et al.,
        Neural Spline Flows, 2019, arXiv 1906.04032, section 3.1; Song et al., Accelerating Feedforward Computation
        via Parallel Nonlinear Equation Solving, 2021, arXiv 2002.03629, algorithm 1 (Jacobi).
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        width: int,
        depth: int,
        transform: Transform | None = None,
        order: Tensor | Literal["reversed"] | None = None,
        context_shape: int | Shape | None = None,
        activation: Activation = "relu",
        scale_bound: float | None = None,
        inversion: Inversion = "auto",
    ) -> None:
        dim = size(as_shape(event_shape, "event_shape"))
        super().__init__(event_shape, passes=(1, dim), context_shape=context_shape)
        if transform is not None and scale_bound is not None:
            raise ConfigurationError(
                f"`scale_bound` is that of the default map; got {scale_bound} and `transform={transform}`. Give the "
                "bound to the transform."
            )
        affine = Affine(3.0 if scale_bound is None else scale_bound)
        if transform is None:
            self.transform: Transform = affine
        elif dim == 1:  # the network reads the context alone, so an angle is as good as a number
            self.transform = check_transform(transform)
        else:
            self.transform = check_line_transform(transform, type(self).__name__)
        self.inversion = inversion
        self.network = MaskedMLP(
            dim,
            self.transform.size,
            width=width,
            depth=depth,
            activation_name=activation,
            context=size(self.context_shape) if self.context_shape else 0,
            order=_permutation(order, dim),
        )

    @property
    def inversion(self) -> Inversion:
        """How the inverse is computed; may be changed at any time."""
        return self._inversion

    @inversion.setter
    def inversion(self, method: Inversion) -> None:
        if method not in get_args(Inversion):
            raise ConfigurationError(f"`inversion` must be one of {get_args(Inversion)}; got {method!r}.")
        self._inversion: Inversion = method

    def extra_repr(self) -> str:
        return f"{self.event_shape}, transform={self.transform}, inversion={self.inversion!r}"

    def _raw(self, u: Tensor, context: Tensor | None) -> Tensor:
        return self.network(u, context).transpose(0, 1)  # parameters first

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        flat, features = self._rows(u, context)
        with full_precision(u):
            x, log = self.transform.forward(flat, self._raw(flat, features))
        log_det = log if self.transform.volume_preserving else log.sum(-1).view(u.shape[:2])
        return x.reshape(u.shape), log_det

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        flat, features = self._rows(x, context)
        order = self.network.order
        flat = flat if order is None else flat[:, order]
        with full_precision(x):
            if self.inversion == "loop" or is_traced() or self.network.has_hooks():
                u, log_det = self._one_by_one(flat, features)
            else:
                with torch.inference_mode(not torch.is_grad_enabled()):
                    weights, biases = self.network.sorted_tensors(features, len(flat))
                    columns = flat.t().contiguous()
                u, log_det = invert(self._problem(flat), columns, weights, biases)
                u = u.t()
        u = u if order is None else u[:, order.argsort()]
        return u.reshape(x.shape), log_det.view(x.shape[:2])

    def _rows(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        features = None if context is None else context.flatten(1).to(value.dtype)
        return value.reshape(-1, self.network.dim), features

    def _one_by_one(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Solve for one variable per network pass; variables stand in their order."""
        order = self.network.order
        u, logs = torch.zeros_like(x), []
        for i in range(x.shape[1]):
            raw = self._raw(u if order is None else u[:, order.argsort()], context)
            raw = raw if order is None else raw[..., order]
            value, log = self.transform.inverse(x[:, i], raw[..., i])
            u = torch.cat([u[:, :i], value[:, None], u[:, i + 1 :]], 1)
            logs.append(log.expand(len(x)))
        return u, torch.stack(logs).sum(0)

    def _problem(self, x: Tensor) -> Problem:
        network = self.network
        method: Method = "jacobi" if self.inversion == "jacobi" else "incremental"
        if self.inversion == "auto":
            entries = sum(layer.weight.numel() for layer in network.layers())
            method = _quickest(network.dim, entries * len(x), x.device)
        # a class derived from Affine may be another map
        bound = self.transform.scale_bound if type(self.transform) is Affine else None
        return Problem(network.activation_name, network.counts, self.transform.inverse, method, bound)


def _quickest(dim: int, products: int, device: torch.device) -> Method:
    """Weigh a dozen passes against D short steps, by the number of multiplications in a pass.

    Measured on one CPU core: a step takes about 25 microseconds, a pass 30 and 20 for a million multiplications. On
    a GPU both are bound by launches, of which a step has as many as a pass; while a graph is captured nothing may
    wait for the device, as the fixed-point iteration does.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "incremental"
    if device.type == "cpu":
        return "jacobi" if products < 100_000 * (dim - 14) else "incremental"
    return "jacobi" if dim > 16 else "incremental"


def _permutation(order: Tensor | str | None, dim: int) -> Tensor | None:
    """Return the order as a tensor; None for the natural one."""
    if order is None or isinstance(order, Tensor):
        return order
    if order != "reversed":
        raise ConfigurationError(
            f'`order` must be None, "reversed", or a permutation as a tensor of integers; got {order!r}.'
        )
    return torch.arange(dim - 1, -1, -1)
