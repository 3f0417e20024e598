"""Named flows that zuko implements: continuous ones, and autoregressive ones with richer monotone maps.

They need zuko (`pip install 'latentflows[zuko]'`), are called through `FromZuko`, and go wherever our own flows go: as
a prior, as a likelihood, and inside `Inverse` as a posterior. None is the identity at the start.

All but `cnf` read the data: a density takes one to three network passes per layer, and a draw inverts numerically,
variable by variable, to 1e-6. The search covers [-10, 10] only: standardize the data. And between the layers of `naf`,
`unaf` and `sospf` zuko squashes to (-11, 11), which a draw undoes, so that noise in the tails leaves the range: where
layers are near the identity, beyond 3.5 standard deviations with three layers and beyond 2.1 with five. Such draws come
with a warning. Keep layers few; used inside `Inverse` (posterior), draws invert nothing and are exact.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from latentflows.bijections.adapters import FromZuko
from latentflows.bijections.base import Bijection
from latentflows.core.errors import CombinationError
from latentflows.core.optional import import_optional
from latentflows.core.precision import check_positive
from latentflows.networks.base import check_sizes

_WARN = (
    1e-2  # residual of a numeric inverse, far above its tolerance and far below what falls out of its range
)


def cnf(
    dim: int,
    *,
    width: int = 64,
    depth: int = 3,
    context: int | None = None,
    exact: bool = True,
    absolute_tolerance: float = 1e-6,
    relative_tolerance: float = 1e-5,
) -> Bijection:
    """Continuous flow: an ODE with a free-form velocity, solved adaptively. Both directions cost the same.

    Each takes as many passes as the tolerance asks for (60 to 90 for a new flow), and more as training goes on. The
    solver steps for the whole batch at once, so a row's result changes with the rows beside it: by about 1e-4, and 1e-3
    nats, at these tolerances, which bound the error of one step.

    Args:
        dim: Number of variables.
        width: Units of each hidden layer of the velocity.
        depth: Number of hidden layers; three of 64 are what FFJORD uses on 2-D data.
        context: Number of context features.
        exact: The log-determinant integrates the exact trace, `dim` backward passes per step; False takes one pass
            with a random vector (Hutchinson), unbiased for log p(x), noisy, and another number at every call.
        absolute_tolerance: Of the solver for the value; for the log-determinant zuko allows 100 times as much.
        relative_tolerance: Of the solver.

    References:
        Grathwohl et al., FFJORD, 2018, arXiv 1810.01367, eq. 4 and section 4.1.
    """
    check_sizes(dim=dim, width=width, depth=depth)
    check_positive("absolute_tolerance", absolute_tolerance)
    check_positive("relative_tolerance", relative_tolerance)
    return _adapted(
        "CNF",
        dim,
        context,
        None,
        hidden_features=[width] * depth,
        exact=exact,
        atol=absolute_tolerance,
        rtol=relative_tolerance,
    )


def naf(
    dim: int,
    *,
    num_layers: int = 3,
    width: int = 64,
    depth: int = 2,
    context: int | None = None,
    signal: int = 16,
) -> Bijection:
    """Neural autoregressive flow: each variable goes through a small monotone network. Cheap to score.

    A density is two networks per layer; a draw bisects 25 times for each variable, `dim` times over. A new one is
    flat, and narrow ones map all of [-10, 10] to less than the noise fills: draws come with a warning until trained.

    Args:
        dim: Number of variables.
        num_layers: Autoregressive layers, in alternating order; mind the tails (see above).
        width: Units of each hidden layer, of the masked network and of the monotone one.
        depth: Number of hidden layers of both.
        context: Number of context features.
        signal: Numbers through which the masked network steers the monotone one.

    References:
        Huang et al., Neural Autoregressive Flows, 2018, arXiv 1804.00779, section 3.
    """
    check_sizes(dim=dim, num_layers=num_layers, width=width, depth=depth, signal=signal)
    network = {"hidden_features": [width] * depth}
    return _adapted(
        "NAF", dim, context, _WARN, transforms=num_layers, signal=signal, network=network, **network
    )


def unaf(
    dim: int,
    *,
    num_layers: int = 3,
    width: int = 64,
    depth: int = 2,
    context: int | None = None,
    signal: int = 16,
) -> Bijection:
    """Unconstrained neural autoregressive flow: integrates a positive network per variable. Cheap to score.

    A density is three networks per layer, one of them at 32 quadrature points; a draw bisects as in `naf`.

    Args:
        dim: Number of variables.
        num_layers: Autoregressive layers, in alternating order.
        width: Units of each hidden layer, of the masked network and of the integrand.
        depth: Number of hidden layers of both.
        context: Number of context features.
        signal: Numbers through which the masked network steers the integrand.

    References:
        Wehenkel & Louppe, Unconstrained Monotonic Neural Networks, 2019, arXiv 1908.05164, section 3.
    """
    check_sizes(dim=dim, num_layers=num_layers, width=width, depth=depth, signal=signal)
    network = {"hidden_features": [width] * depth}
    return _adapted(
        "UNAF", dim, context, _WARN, transforms=num_layers, signal=signal, network=network, **network
    )


def sospf(
    dim: int,
    *,
    num_layers: int = 3,
    width: int = 64,
    depth: int = 2,
    context: int | None = None,
    degree: int = 4,
    num_polynomials: int = 3,
) -> Bijection:
    """Sum-of-squares polynomial flow: integrates a sum of squared polynomials per variable. Cheap to score.

    A density is one masked network per layer; a draw bisects each variable, `dim` times over. The integral is exact.

    Args:
        dim: Number of variables.
        num_layers: Autoregressive layers, in alternating order.
        width: Units of each hidden layer of the masked network.
        depth: Number of its hidden layers.
        context: Number of context features.
        degree: Of each polynomial before squaring.
        num_polynomials: Polynomials in the sum.

    References:
        Jaini et al., Sum-of-Squares Polynomial Flow, 2019, arXiv 1905.02325, section 3.
    """
    check_sizes(
        dim=dim,
        num_layers=num_layers,
        width=width,
        depth=depth,
        degree=degree,
        num_polynomials=num_polynomials,
    )
    return _adapted(
        "SOSPF",
        dim,
        context,
        _WARN,
        transforms=num_layers,
        hidden_features=[width] * depth,
        degree=degree,
        polynomials=num_polynomials,
    )


def bpf(
    dim: int,
    *,
    num_layers: int = 3,
    width: int = 64,
    depth: int = 2,
    context: int | None = None,
    degree: int = 16,
) -> Bijection:
    """Bernstein polynomial flow: each variable goes through an increasing polynomial on [-5, 5]. Cheap to score.

    Outside [-5, 5] it is the identity. A density is one masked network per layer; a draw bisects each variable.

    Args:
        dim: Number of variables.
        num_layers: Autoregressive layers, in alternating order.
        width: Units of each hidden layer of the masked network.
        depth: Number of its hidden layers.
        context: Number of context features.
        degree: Of the polynomial, less four: the ends are fixed.

    References:
        Sick et al., Deep Transformation Models, 2020, arXiv 2004.00464; Arpogaus et al., Short-Term Density
        Forecasting of Low-Voltage Load using Bernstein-Polynomial Normalizing Flows, 2022, arXiv 2204.13939.
    """
    check_sizes(dim=dim, num_layers=num_layers, width=width, depth=depth, degree=degree)
    return _adapted(
        "BPF", dim, context, _WARN, transforms=num_layers, hidden_features=[width] * depth, degree=degree
    )


def _adapted(name: str, dim: int, context: int | None, verify: float | None, **settings: Any) -> Bijection:
    """Build a flow of zuko and take its transform."""
    if dim < 2 and name != "CNF":
        raise CombinationError(
            f"An autoregressive flow of zuko needs two or more variables; got {dim}. Use `cnf`, or `Elementwise`."
        )
    zuko: ModuleType = import_optional("zuko", install="latentflows[zuko]")
    flow: nn.Module = getattr(zuko.flows, name)(dim, context or 0, **settings)
    transform = flow.transform
    assert isinstance(transform, nn.Module)
    return FromZuko(transform, dim, context_shape=context, verify=verify)
