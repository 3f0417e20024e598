"""Every bijection, with and without a context. A new bijection adds a line to `CASES`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentflows.bijections import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Chain,
    Inverse,
    InverseAutoregressive,
    Permutation,
    Planar,
    alternating_mask,
    half_mask,
)
from latentflows.models import presets
from latentflows.networks import MLP, GatedMLP

FEATURES = 3  # of the context, where there is one
SCALES = (0.01, 1.0, 3.0)  # of randomized parameters


def mlp(in_shape, out_shape, context):
    return MLP(in_shape, out_shape, width=8, depth=2, activation_name="tanh", context=context, zero_last=True)


def gated(in_shape, out_shape, context):
    return GatedMLP(in_shape, out_shape, width=8, depth=2, context=context, zero_last=True)


@dataclass(frozen=True)
class Case:
    """How to make a bijection from a number of context features, and what it promises."""

    make: Callable[[int | None], Bijection]
    identity: bool = True  # as built, before training
    context: bool = True  # it can take one


def mixed(context):
    layers = [
        ActNorm(4),
        AffineCoupling(4, mask=half_mask(4, first=True), network=mlp, context_shape=context),
        Permutation.reversal(4),
        InverseAutoregressive(4, width=8, depth=1, context_shape=context, activation="tanh"),
    ]
    return Chain(layers)


def small(preset, **settings):
    return lambda c: preset(4, num_layers=3, context=c, **settings)


CASES = {
    "permutation": Case(lambda c: Permutation.random(4, seed=1), identity=False, context=False),
    "permutation_image": Case(lambda c: Permutation.reversal((1, 2, 3)), identity=False, context=False),
    "actnorm": Case(lambda c: ActNorm(4), context=False),
    "actnorm_image": Case(lambda c: ActNorm((2, 3, 2)), context=False),
    "additive": Case(
        lambda c: AdditiveCoupling(5, mask=half_mask(5, first=True), network=mlp, context_shape=c)
    ),
    "affine_first": Case(
        lambda c: AffineCoupling(5, mask=half_mask(5, first=True), network=mlp, context_shape=c)
    ),
    "affine_second": Case(
        lambda c: AffineCoupling(5, mask=half_mask(5, first=False), network=gated, context_shape=c)
    ),
    "affine_image": Case(
        lambda c: AffineCoupling(
            (2, 1, 3), mask=alternating_mask((2, 1, 3), even=True), network=mlp, context_shape=c
        )
    ),
    "iaf": Case(lambda c: InverseAutoregressive(4, width=8, depth=2, context_shape=c, activation="tanh")),
    "maf": Case(
        lambda c: Inverse(InverseAutoregressive(4, width=8, depth=2, context_shape=c, activation="tanh"))
    ),
    "planar": Case(lambda c: Planar(4, context_shape=c)),
    "planar_3_layers": Case(lambda c: Planar(4, num_layers=3, context_shape=c)),
    "planar_inverse": Case(lambda c: Inverse(Planar(4, context_shape=c))),
    "chain": Case(mixed, identity=False),
    "preset_real_nvp": Case(small(presets.real_nvp, width=8), identity=False),
    "preset_nice": Case(small(presets.nice, width=8), identity=False),
    "preset_iaf": Case(small(presets.iaf, width=8), identity=False),
    "preset_maf": Case(small(presets.maf, width=8), identity=False),
    "preset_planar": Case(small(presets.planar)),
}


def randomize(module: torch.nn.Module, scale: float) -> None:
    """Draw every parameter anew: matrices with variance scale^2 / inputs, everything else with scale^2."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim == 2 else 1
            parameter.normal_().mul_(scale / math.sqrt(fan_in))


def build(name: str, context: bool, *, scale: float | None = 1.0, dtype=torch.float64) -> Bijection:
    """Make a case with parameters of that scale, or as they start with None."""
    bijection = CASES[name].make(FEATURES if context else None).to(dtype)
    if scale is not None:
        randomize(bijection, scale)
    return bijection


def context_of(bijection: Bijection, *batch: int, dtype=torch.float64) -> Tensor | None:
    return torch.randn(*batch, FEATURES, dtype=dtype) if bijection.context_shape else None


def run(bijection: Bijection, direction: str, value: Tensor, context: Tensor | None = None):
    return bijection(value, context) if direction == "forward" else bijection.inverse(value, context)


def value_of(bijection: Bijection, direction: str, *batch: int, context=None, dtype=torch.float64) -> Tensor:
    """Draw what a direction reads; for an inverse that has a forward, a point that noise maps to."""
    if direction == "forward":
        return torch.randn(*batch, *bijection.base_shape, dtype=dtype)
    if bijection.passes[0] is None:
        return torch.randn(*batch, *bijection.event_shape, dtype=dtype)
    u = torch.randn(*batch, *bijection.base_shape, dtype=dtype)
    with torch.no_grad():
        return bijection(u, context)[0]


def _instances():
    for name, case in CASES.items():
        for context in (False, True) if case.context else (False,):
            yield name, context, case.make(FEATURES if context else None)


def _label(name, context, *rest):
    return "-".join([name + ("+context" if context else ""), *rest])


INSTANCES = [pytest.param(name, context, id=_label(name, context)) for name, context, _ in _instances()]
CONDITIONED = [
    pytest.param(name, context, id=_label(name, context)) for name, context, _ in _instances() if context
]
INVERTIBLE = [
    pytest.param(name, context, id=_label(name, context))
    for name, context, made in _instances()
    if None not in made.passes
]
DIRECTED = [
    pytest.param(name, context, direction, id=_label(name, context, direction))
    for name, context, made in _instances()
    for direction, passes in zip(("forward", "inverse"), made.passes, strict=True)
    if passes is not None
]
MISSING = [
    pytest.param(name, context, direction, id=_label(name, context, direction))
    for name, context, made in _instances()
    for direction, passes in zip(("forward", "inverse"), made.passes, strict=True)
    if passes is None
]
CHEAP = [
    pytest.param(name, context, direction, id=_label(name, context, direction))
    for name, context, made in _instances()
    for direction, passes in zip(("forward", "inverse"), made.passes, strict=True)
    if passes is not None and passes <= min(p for p in made.passes if p is not None)
]
