"""Matrix products of dense layers, by the quicker of the two libraries that PyTorch carries on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.core.tracing import is_traced

_WORTH = 1 << 21  # products from which the other library gains more than a node of our own costs
_FEW = 64  # input features up to which a gradient for the weight is a third cheaper the other way round


def _find() -> Any:
    """Return oneDNN's product with a bias, or None in a build where it does not work."""
    one = torch.ones(1, 1, device="cpu")
    try:
        product = torch.ops.mkldnn._linear_pointwise.default
        product(one, one, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return product


_PRODUCT = _find()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Return :math:`x W^T + b`, as `torch.nn.functional.linear` does, with all its derivatives.

    Large float32 products on a CPU go through oneDNN, forward and backward: PyTorch takes them to MKL, which on
    processors of other makers needs about twice the time (AMD EPYC with AVX-512, torch 2.13: 512 rows, 256 to 256
    features, 0.29 ms for 0.65 ms). Everything else is `functional.linear`: other types and devices, a bias that is
    broadcast, `torch.backends.mkldnn` switched off, and wherever operations are traced or counted.

    Shape:
        x: (N, in_features); weight: (out_features, in_features); bias: (out_features,); output: (N, out_features).
    """
    return _Linear.apply(x, weight, bias) if _gains(x, weight, bias) else functional.linear(x, weight, bias)


def _gains(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the other library is quicker, computes the same, and nobody looks at the operations that run."""
    return (
        _PRODUCT is not None
        and not (
            torch.compiler.is_compiling() or torch.jit.is_tracing()
        )  # first: these would guard or record a size
        and x.numel() * weight.shape[0] >= _WORTH  # where most layers of small models end
        and x.is_cpu
        and weight.is_cpu
        and x.dtype == torch.float32
        and weight.dtype == torch.float32
        and not _is_observed()
        and not torch.is_autocast_enabled("cpu")
        and x.ndim == 2
        and weight.ndim == 2
        and x.shape[1] == weight.shape[1]
        and (bias is None or _fits(bias, len(weight)))
        and torch._C._get_mkldnn_enabled()
    )


def _fits(bias: Tensor, features: int) -> bool:
    """Whether it is the bias that the other library takes for granted: any other gives wrong numbers, not an error."""
    return bias.is_cpu and bias.dtype == torch.float32 and bias.shape == (features,)


def _is_observed() -> bool:
    """Whether a transform or a mode (one that counts FLOPs, say) should see a product it knows."""
    return is_traced() or torch._C._len_torch_dispatch_stack() > 0


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b^T + bias. Rows without gaps, or their transpose, or it is a thousand times slower."""
    bias = None if bias is None else bias.contiguous()  # its strides are ignored
    return _PRODUCT(a, b, bias, "none", [], "")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Return :math:`a b^T + bias` by the quicker library, for code that autograd does not see.

    Shape:
        a: (M, K); b: (N, K); bias: (N,); output: (M, N).
    """
    if _gains(a, b, bias):
        return _product(_without_gaps(a), _without_gaps(b), bias)
    return a @ b.t() if bias is None else torch.addmm(bias, a, b.t())


def _without_gaps(matrix: Tensor) -> Tensor:
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    """A dense layer as one node of autograd whose three products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)  # as they came: a copy would have no graph for second derivatives
        return _product(x.contiguous(), weight.contiguous(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient, (of_x, of_weight, of_bias) = gradients[0], ctx.needs_input_grad
        if torch.is_grad_enabled() or _is_observed():  # to be differentiated, vectorized or counted
            return (
                gradient @ weight if of_x else None,
                gradient.t() @ x if of_weight else None,
                gradient.sum(0) if of_bias else None,
            )
        gradient = gradient.contiguous()
        return (
            _product(gradient, weight.contiguous().t()) if of_x else None,
            _of_weight(gradient, x.contiguous()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Return gradient^T x, without gaps. The library copies what lies across first: let that be few features."""
    features = x.shape[1]
    if features <= _FEW and features < gradient.shape[1]:
        turned = _product(x.t(), gradient.t())
        return turned.t().contiguous()  # fused optimizers take its layout for the weight's
    return _product(gradient.t(), x.t())
