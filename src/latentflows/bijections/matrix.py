"""Linear maps across channels: on vectors, and as invertible 1x1 convolutions on sequences and images."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.bijections.base import Bijection, ParameterSource
from latentflows.bijections.inputs import hide_padding
from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import full_precision, soft_bound
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.networks.base import check_sizes

Start = Literal["identity", "rotation"]
_BOUND = math.log(1000)  # of |log diagonal|: a float32 keeps three digits through the map and back


class _ChannelMixing(Bijection):
    """x = W u + t at every position; the event's first axis is the channel axis. Subclasses make W and its inverse.

    One matrix serves all positions and samples, so the inverse matrix is computed once and multiplied.
    """

    def __init__(
        self, event_shape: int | Shape, *, start: dict[str, Tensor], context_shape: int | Shape | None
    ) -> None:
        super().__init__(event_shape, passes=(0, 0), context_shape=context_shape)
        self.variable_lengths = len(self.event_shape) == 2
        self.positions = size(self.event_shape[1:])
        self.source = ParameterSource(start, self.context_shape)

    @abstractmethod
    def _matrix(self, parameters: list[Tensor], *, inverse: bool) -> Tensor:
        """Return W or its inverse, (C, C) or (B, C, C), from the source's parameters."""

    def _shift(self, parameters: list[Tensor]) -> Tensor | None:
        """Return t, (C,) or (B, C)."""
        return None

    def _log_det(self, parameters: list[Tensor]) -> Tensor:
        """Return log|det W|, () or (B,)."""
        return parameters[0].new_zeros(())

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        parameters = self.source(context)
        with full_precision(u):
            x = _mix(self._matrix(parameters, inverse=False), hide_padding(u, valid))
        shift = self._shift(parameters)
        if shift is not None:
            x = x + _over_positions(shift, u)
        return self._masked(x, u, self._log_det(parameters), valid)

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        parameters = self.source(context)
        shift = self._shift(parameters)
        centered = hide_padding(x, valid)
        if shift is not None:
            centered = centered - _over_positions(shift, x)
        with full_precision(x):
            u = _mix(self._matrix(parameters, inverse=True), centered)
        return self._masked(u, x, -self._log_det(parameters), valid)

    def _masked(
        self, out: Tensor, value: Tensor, log_det: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Leave padding as it is, and count every other position once."""
        if valid is None:
            return out, log_det * self.positions
        return torch.where(valid.unsqueeze(2), out, value), log_det * valid.sum(-1)


def _over_positions(shift: Tensor, value: Tensor) -> Tensor:
    return shift.view(*shift.shape, *[1] * (value.ndim - 3))


def _mix(weight: Tensor, value: Tensor) -> Tensor:
    """Multiply W (C, C) or (B, C, C) with every position of (K, B, C, *space)."""
    (samples, rows, channels), positions = value.shape[:3], size(tuple(value.shape[3:]))
    if weight.ndim == 2:
        if value.ndim == 3:
            return nn.functional.linear(value, weight)
        maps = value.reshape(samples * rows, channels, positions)
        return torch.bmm(weight.expand(len(maps), channels, channels), maps).view(value.shape)
    columns = value.reshape(samples, rows, channels, positions).permute(1, 2, 0, 3)
    mixed = torch.bmm(weight, columns.reshape(rows, channels, samples * positions))
    return mixed.view(columns.shape).permute(2, 0, 1, 3).reshape(value.shape)


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)


class LULinear(_ChannelMixing):
    r"""Mix channels by W = P L U: the invertible 1x1 convolution, with a log-determinant that costs nothing.

    .. math:: x_{\cdot, p} = P L U\, u_{\cdot, p}, \qquad \log|\det| = H W \sum_c \log|U_{cc}|

    P is a fixed permutation (saved with the model), L has ones on its diagonal, and the diagonal of U is a fixed
    sign times the exponential of a softly bounded number, between 1/1000 and 1000. Padded frames stay as they are.

    Cost: no network; one C x C product per position both ways, the inverse first solves two triangular systems for
    the inverse matrix, once per batch or per context. C^2 parameters.

    Args:
        event_shape: (C,), (C, T) or (C, H, W).
        start: "identity", or "rotation" for a random orthogonal matrix as in Glow.
        context_shape: None for global parameters, (F,) for parameters from the context.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, F); log_det: (*batch).

    Raises:
        ConfigurationError: for an unknown start.

    References:
        Kingma & Dhariwal, Glow, 2018, arXiv 1807.03039, section 3.2, eq. 9-11;
        Oliva et al., Transformation Autoregressive Networks, 2018, arXiv 1801.09819, for vectors.
    """

    order: Tensor
    sign: Tensor

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        start: Start = "identity",
        context_shape: int | Shape | None = None,
    ) -> None:
        _check_start(start)
        channels = as_shape(event_shape, "event_shape")[0]
        factors, order, sign = _rotation(channels) if start == "rotation" else _no_rotation(channels)
        super().__init__(event_shape, start={"factors": factors}, context_shape=context_shape)
        self.register_buffer("order", order)
        self.register_buffer("sign", sign)

    def _log_det(self, parameters: list[Tensor]) -> Tensor:
        return soft_bound(parameters[0].diagonal(dim1=-2, dim2=-1), _BOUND).sum(-1)

    def _matrix(self, parameters: list[Tensor], *, inverse: bool) -> Tensor:
        factors = parameters[0]  # L below the diagonal, U above it, log|diagonal of U| on it
        identity = _identity_like(factors)
        diagonal = soft_bound(factors.diagonal(dim1=-2, dim2=-1), _BOUND).exp() * self.sign
        lower, upper = factors.tril(-1) + identity, factors.triu(1) + diagonal.diag_embed()
        if not inverse:
            return (lower @ upper).index_select(-2, self.order)
        permuted = identity.index_select(-1, self.order)
        half = torch.linalg.solve_triangular(lower, permuted, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True)


class TriangularLinear(_ChannelMixing):
    r"""Mix channels by a full lower triangular matrix with a positive diagonal, and shift: x = L u + t.

    .. math:: \log|\det| = H W \sum_c \log L_{cc}

    On standard normal noise this is the normal with covariance L L^T. The diagonal is the exponential of a softly
    bounded number, between 1/1000 and 1000. Padded frames stay as they are.

    Cost: no network; one C x C product per position both ways, the inverse first solves a triangular system, once
    per batch or per context. C (C + 3) / 2 parameters.

    Args:
        event_shape: (C,), (C, T) or (C, H, W).
        context_shape: None for global parameters, (F,) for parameters from the context.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, F); log_det: (*batch).

    References:
        Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference, 2021, arXiv 1912.02762,
        section 3.2.
    """

    places: Tensor

    def __init__(self, event_shape: int | Shape, *, context_shape: int | Shape | None = None) -> None:
        channels = as_shape(event_shape, "event_shape")[0]
        below = channels * (channels - 1) // 2
        start = {"shift": torch.zeros(channels), "diagonal": torch.zeros(channels)}
        if below:
            start["below"] = torch.zeros(below)
        super().__init__(event_shape, start=start, context_shape=context_shape)
        rows, columns = torch.tril_indices(channels, channels, -1)
        self.register_buffer("places", rows * channels + columns)

    def _shift(self, parameters: list[Tensor]) -> Tensor:
        return parameters[0]

    def _log_det(self, parameters: list[Tensor]) -> Tensor:
        return soft_bound(parameters[1], _BOUND).sum(-1)

    def _matrix(self, parameters: list[Tensor], *, inverse: bool) -> Tensor:
        _, raw, *below = parameters
        lower = soft_bound(raw, _BOUND).exp().diag_embed()
        if below:
            lower = lower.flatten(-2).index_copy(-1, self.places, below[0]).view(lower.shape)
        if not inverse:
            return lower
        return torch.linalg.solve_triangular(lower, _identity_like(lower), upper=False)


class OrthogonalLinear(_ChannelMixing):
    r"""Rotate channels by a product of Householder reflections. Log-determinant 0.

    .. math:: x_{\cdot, p} = \prod_{i=1}^{k} \left(I - 2 \frac{v_i v_i^T}{|v_i|^2}\right) u_{\cdot, p}

    The number of reflections is even, so that the map is a rotation and can start as the identity, in pairs that
    undo each other; C of them (C - 1 where C is odd) reach every rotation. The inverse is the transpose. Padded
    frames stay as they are.

    Cost: no network; the product is one matrix, I - V T V^T (compact WY form), made once per batch or per context
    with C^2 k multiplications and a k x k triangular system; then one C x C product per position, both ways alike.

    Args:
        event_shape: (C,), (C, T) or (C, H, W).
        num_reflections: k, even; None for as many as reach every rotation.
        start: "identity", or "rotation" for a random one.
        context_shape: None for global parameters, (F,) for parameters from the context.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, F); log_det: (*batch).

    Raises:
        ConfigurationError: for an odd number of reflections, a single channel, or an unknown start.

    References:
        Tomczak & Welling, Improving Variational Auto-Encoders using Householder Flow, 2016, arXiv 1611.09630;
        Bischof & Van Loan, The WY Representation for Products of Householder Matrices, 1987.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        num_reflections: int | None = None,
        start: Start = "identity",
        context_shape: int | Shape | None = None,
    ) -> None:
        _check_start(start)
        channels = as_shape(event_shape, "event_shape")[0]
        count = channels // 2 * 2 if num_reflections is None else num_reflections
        if channels < 2:
            raise ConfigurationError(f"`OrthogonalLinear` rotates two or more channels; got {channels}.")
        check_sizes(num_reflections=count)
        if count % 2:
            raise ConfigurationError(
                f"`num_reflections` must be even, since an odd number mirrors; got {count}. Use {count + 1}."
            )
        mirrors = torch.randn(channels, count)
        if start == "identity":
            mirrors[:, 1::2] = mirrors[:, ::2]
        super().__init__(event_shape, start={"mirrors": mirrors}, context_shape=context_shape)

    def _matrix(self, parameters: list[Tensor], *, inverse: bool) -> Tensor:
        mirrors = parameters[0]
        floor = math.sqrt(torch.finfo(mirrors.dtype).tiny)  # a mirror of length 0 reflects nothing
        unit = mirrors / torch.linalg.vector_norm(mirrors, dim=-2, keepdim=True).clamp_min(floor)
        inner = unit.mT @ unit
        system = inner.triu(1) + _identity_like(inner) / 2  # T^-1
        weights = torch.linalg.solve_triangular(system, unit.mT, upper=True)
        deviation = unit @ weights
        matrix = _identity_like(deviation) - deviation
        return matrix.mT if inverse else matrix


def _check_start(start: Start) -> None:
    if start not in ("identity", "rotation"):
        raise ConfigurationError(f"`start` must be 'identity' or 'rotation'; got {start!r}.")


def _no_rotation(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return raw factors, row order and signs of the identity."""
    return torch.zeros(channels, channels), torch.arange(channels), torch.ones(channels)


def _rotation(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return raw factors, row order and signs of a random orthogonal matrix."""
    rotation = nn.init.orthogonal_(torch.empty(channels, channels, dtype=torch.float64))
    permutation, lower, upper = torch.linalg.lu(rotation)
    diagonal = upper.diagonal()
    log_scale = diagonal.abs().log().clamp(-0.99 * _BOUND, 0.99 * _BOUND)
    raw = log_scale / (1 - log_scale.abs() / _BOUND)  # undoes the soft bound
    factors = lower.tril(-1) + upper.triu(1) + raw.diag()
    dtype = torch.get_default_dtype()
    return factors.to(dtype), permutation.argmax(1), diagonal.sign().to(dtype)
