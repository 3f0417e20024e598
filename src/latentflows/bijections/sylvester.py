"""Sylvester flows: planar flows with a wider bottleneck, for posteriors with parameters from the encoder."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.bijections.base import Bijection, ParameterSource
from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import full_precision
from latentflows.core.shapes import Shape
from latentflows.networks.base import check_sizes

Frame = tuple[Tensor, Tensor]
Kind = Literal["orthogonal", "householder", "triangular"]
_LARGEST = math.sqrt(1 - 1e-3)  # of |r_ii| and |r~_ii|: their product stays above -(1 - 0.001)


class Sylvester(Bijection):
    r"""Bend M directions per layer at once, with parameters of its own or from the context.

    .. math:: x = u + Q R \tanh(\tilde R Q^T u + b), \qquad
              \log|\det| = \sum_{i=1}^{M} \log\left(1 + (1 - \tanh_i^2)\, r_{ii} \tilde r_{ii}\right)

    R and R~ are upper triangular (M, M), Q is (D, M) with orthonormal columns. It is invertible where
    :math:`r_{ii} \tilde r_{ii} > -1`; both diagonals pass through a tanh scaled to 1 - 0.0005. R = 0 is the identity,
    which is where a new layer starts. The kind says what Q is:

    - "orthogonal" (O-SNF): the first M = `rank` columns of a product of M reflections, which reaches every Q up to
      signs that R and R~ absorb. The paper orthogonalizes a free matrix by an iteration, which converges slowly where
      that matrix is ill-conditioned; reflections are orthogonal to rounding at any parameter value, and take a tenth
      of the time of 30 iterations.
    - "householder" (H-SNF): a product of `num_householder` reflections, M = D.
    - "triangular" (T-SNF): the identity, and in every second layer the reversal of all variables, M = D.

    Cost: no network, and no Q is ever formed. With k reflections 2 (D k + M k + M^2) multiplications per point and
    layer, and a k x k triangular system per context. Parameters per layer: D k + M (M + 2). No inverse: use it for
    posteriors.

    Args:
        dim: Number of variables D.
        kind: What Q is.
        rank: M for "orthogonal", at most D; for the others it is D and not given.
        num_householder: Reflections for "householder"; not given for the others.
        num_layers: How many maps follow each other.
        context_shape: None for global parameters, (C,) for parameters from the context.

    Shape:
        u: (*batch, D); context: (*batch, C); log_det: (*batch).

    Raises:
        ConfigurationError: for a setting that the kind needs and lacks, or does not have.

    References:
        van den Berg, Hasenclever, Tomczak & Welling, Sylvester Normalizing Flows for Variational Inference, 2018,
        arXiv 1803.05649, section 3: theorem 1 for the determinant, theorem 2 for the constraint.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: Kind,
        rank: int | None = None,
        num_householder: int | None = None,
        num_layers: int = 1,
        context_shape: int | Shape | None = None,
    ) -> None:
        super().__init__(dim, passes=(0, None), context_shape=context_shape)
        check_sizes(dim=dim, num_layers=num_layers)
        self.kind, self.rank = kind, dim if rank is None else rank
        reflections = _count_reflections(dim, kind, rank, num_householder)
        m = self.rank
        mixing = torch.randn(num_layers, m, m) / math.sqrt(m)
        start = {  # with R = 0 alone; were R~ = 0 too, nothing could ever learn
            "factors": mixing.tril(-1),  # R on and above the diagonal, the transpose of R~ below it
            "diagonal": torch.ones(num_layers, m),  # of R~, before the tanh
            "b": torch.zeros(num_layers, 1, m),
        }
        if reflections:
            start["mirrors"] = torch.randn(num_layers, dim, reflections)
        self.source = ParameterSource(start, self.context_shape)

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = self.source(context)
        rows = u.transpose(0, 1)  # (B, K, D): one matrix per context, K rows each
        if context is None:
            parameters = [parameter.unsqueeze(0) for parameter in parameters]
            rows = u.reshape(1, -1, u.shape[-1])
        with full_precision(u):
            x, log_det = self._bend(rows, parameters)
        if context is None:
            return x.view(u.shape), log_det.view(u.shape[:2])
        return x.transpose(0, 1), log_det.transpose(0, 1)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise self._missing("inverse, so a density cannot be evaluated at a given point", "posterior")

    def _bend(self, x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Apply all layers to rows (N, K, D) that share parameters (N, L, ...); return log-dets (N, K)."""
        factors, raw_diagonal, offsets, *mirrors = parameters
        diagonal = _LARGEST * factors.diagonal(dim1=-2, dim2=-1).tanh()
        inner_diagonal = _LARGEST * raw_diagonal.tanh()
        outer = (factors.triu(1) + diagonal.diag_embed()).unbind(1)  # R
        inner = (factors.tril(-1) + inner_diagonal.diag_embed()).unbind(1)  # R~ transposed, as rows take it
        frames = self._frames(*mirrors) if mirrors else [None] * len(outer)
        bends = []
        for layer, (r, r_inner, b, frame) in enumerate(
            zip(outer, inner, offsets.unbind(1), frames, strict=True)
        ):
            along = self._coordinates(x, layer, frame)
            bends.append(torch.baddbmm(b, along, r_inner).tanh())
            x = x + self._directions(torch.bmm(bends[-1], r.mT), layer, frame)
        bend = torch.stack(bends, 1)  # (N, L, K, M)
        product = (diagonal * inner_diagonal).unsqueeze(2)
        return x, torch.addcmul(product, bend * bend, product, value=-1).log1p().sum((1, 3))

    def _frames(self, mirrors: Tensor) -> list[Frame]:
        r"""Return U (N, D, k) and W (N, k, M) of every layer; Q is the first M columns of I, minus U W.

        The product of reflections I - 2 u_i u_i^T is I - U T U^T with T^-1 = I / 2 + the part of U^T U above its
        diagonal (compact WY form).
        """
        floor = math.sqrt(torch.finfo(mirrors.dtype).tiny)
        unit = mirrors / torch.linalg.vector_norm(mirrors, dim=-2, keepdim=True).clamp_min(floor)
        half = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device) / 2
        system = (unit.mT @ unit).triu(1) + half
        weights = torch.linalg.solve_triangular(system, unit[..., : self.rank, :].mT, upper=True)
        return list(zip(unit.unbind(1), weights.unbind(1), strict=True))

    def _coordinates(self, x: Tensor, layer: int, frame: Frame | None) -> Tensor:
        """Return Q^T x for every row."""
        if frame is None:
            return x.flip(-1) if layer % 2 else x
        unit, weights = frame
        return torch.baddbmm(x[..., : self.rank], torch.bmm(x, unit), weights, alpha=-1)

    def _directions(self, y: Tensor, layer: int, frame: Frame | None) -> Tensor:
        """Return Q y for every row."""
        if frame is None:
            return y.flip(-1) if layer % 2 else y
        unit, weights = frame
        wide = functional.pad(y, (0, self.event_shape[0] - self.rank))
        return torch.baddbmm(wide, torch.bmm(y, weights.mT), unit.mT, alpha=-1)


def _count_reflections(dim: int, kind: Kind, rank: int | None, num_householder: int | None) -> int:
    """Return the number of reflections, after refusing settings that do not belong to the kind.

    Raises:
        ConfigurationError: naming the setting.
    """
    if kind not in ("orthogonal", "householder", "triangular"):
        raise ConfigurationError(f"`kind` must be 'orthogonal', 'householder' or 'triangular'; got {kind!r}.")
    settings = {"rank": (rank, "orthogonal"), "num_householder": (num_householder, "householder")}
    for name, (value, owner) in settings.items():
        if (value is not None) != (kind == owner):
            got = "none" if value is None else repr(value)
            raise ConfigurationError(
                f"`{name}` belongs to kind {owner!r}, and only to it; got {got} with {kind!r}."
            )
        if value is not None:
            check_sizes(**{name: value})
    if rank is not None and rank > dim:
        raise ConfigurationError(f"`rank` must be at most `dim`, {dim}; got {rank}.")
    return rank or num_householder or 0
