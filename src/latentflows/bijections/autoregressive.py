"""Autoregressive flows: each variable moves by functions of those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from latentflows.bijections.base import Bijection
from latentflows.core.precision import check_positive, full_precision, soft_bound
from latentflows.core.shapes import Shape, size
from latentflows.networks.base import Activation
from latentflows.networks.masked import MaskedMLP


class InverseAutoregressive(Bijection):
    r"""Affine autoregressive map whose network reads the base noise: cheap to sample.

    .. math:: x_i = u_i e^{s_i(u_{<i}, c)} + m_i(u_{<i}, c), \quad \log|\det dx/du| = \sum_i s_i

    with s = a / (1 + |a| / b). `Inverse(InverseAutoregressive(...))` is the masked autoregressive flow, cheap to
    score. The network runs in float32 under autocast: errors would accumulate over the D steps of the inverse.

    Cost: one network pass forward; D passes inverse, one variable after the other.

    Args:
        dim: Number of variables D.
        width: Units of each hidden layer; at least D - 1 (D with a context).
        depth: Number of hidden layers.
        context_shape: None or (C,).
        activation: Nonlinearity.
        scale_bound: b, the largest absolute log-scale.

    Shape:
        u, x: (*batch, D); context: (*batch, C); log_det: (*batch).

    References:
        Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934,
        eq. 6-10; Papamakarios et al., Masked Autoregressive Flow, 2017, arXiv 1705.07057, eq. 3-6.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int,
        depth: int,
        context_shape: int | Shape | None = None,
        activation: Activation = "relu",
        scale_bound: float = 3.0,
    ) -> None:
        super().__init__(dim, passes=(1, dim), context_shape=context_shape)
        features = size(self.context_shape) if self.context_shape else 0
        check_positive("scale_bound", scale_bound)
        self.scale_bound = scale_bound
        self.network = MaskedMLP(
            dim, 2, width=width, depth=depth, activation_name=activation, context=features
        )

    def _coefficients(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with full_precision(u):
            features = None if context is None else context.flatten(1).to(u.dtype)
            raw = self.network(u.flatten(0, 1), features).view(*u.shape, 2)
        shift, scale = raw.unbind(-1)
        return shift, soft_bound(scale, self.scale_bound)

    def _forward(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._coefficients(u, context)
        return torch.addcmul(shift, u, log_scale.exp()), log_scale.sum(-1)

    def _inverse(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        u, log_scale = torch.zeros_like(x), x
        for i in range(x.shape[-1]):
            shift, log_scale = self._coefficients(u, context)
            column = (x[..., i] - shift[..., i]) * (-log_scale[..., i]).exp()
            u = torch.cat([u[..., :i], column[..., None], u[..., i + 1 :]], -1)
        return u, -log_scale.sum(-1)
