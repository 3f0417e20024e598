"""Every conditional, small. A new one adds a line to `CASES`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentflows.core.shapes import Shape
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Conditional,
    Flow,
    LearnedGaussian,
    StandardGaussian,
    gaussian_raw_shape,
)
from latentflows.models import presets
from latentflows.networks import MLP
from tests.bijections.cases import randomize


def network(in_shape: int | Shape, out_shape: int | Shape | None) -> nn.Module:
    return MLP(in_shape, out_shape, width=6, depth=1, activation_name="tanh")


def gaussian(event_shape: Shape, context_shape: Shape, **settings) -> AmortizedGaussian:
    kinds = {key: settings[key] for key in ("covariance", "scale") if key in settings}
    raw_shape = gaussian_raw_shape(event_shape, **kinds)
    return AmortizedGaussian(event_shape, context_shape, network(context_shape, raw_shape), **settings)


def bernoulli(event_shape: Shape, context_shape: Shape) -> AmortizedBernoulli:
    return AmortizedBernoulli(event_shape, context_shape, network(context_shape, event_shape))


def nvp(context: int | None = None):
    return presets.real_nvp(2, num_layers=3, width=6, context=context, activation="tanh")


@dataclass(frozen=True)
class Case:
    """How to make a conditional, and what it can do."""

    make: Callable[[], Conditional]
    mean: bool = True  # it has one in closed form
    temperature: bool = True
    reparameterized: bool = True


CASES = {
    "standard": Case(lambda: StandardGaussian(2)),
    "standard_image": Case(lambda: StandardGaussian((1, 2, 3))),
    "learned_diagonal": Case(lambda: LearnedGaussian(2)),
    "learned_image": Case(lambda: LearnedGaussian((2, 3))),
    "learned_full": Case(lambda: LearnedGaussian(2, covariance="full")),
    "amortized": Case(lambda: gaussian((2,), (3,))),
    "amortized_image": Case(lambda: gaussian((2, 1, 3), (2, 2))),
    "amortized_full": Case(lambda: gaussian((2,), (3,), covariance="full")),
    "amortized_shared": Case(lambda: gaussian((2,), (3,), scale="shared")),
    "amortized_fixed": Case(lambda: gaussian((2, 2), (3,), scale=0.3)),
    "bernoulli": Case(lambda: bernoulli((1, 2, 3), (3,)), temperature=False, reparameterized=False),
    "flow": Case(lambda: Flow(StandardGaussian(2), nvp()), mean=False),
    "flow_learned_base": Case(lambda: Flow(LearnedGaussian(2), presets.maf(2, width=6)), mean=False),
    "flow_base_context": Case(lambda: Flow(gaussian((2,), (3,)), presets.iaf(2, width=6)), mean=False),
    "flow_bijection_context": Case(
        lambda: Flow(StandardGaussian(2), presets.maf(2, width=6, context=3)), mean=False
    ),
    "flow_both_contexts": Case(lambda: Flow(gaussian((2,), (3,)), nvp(3)), mean=False),
    "flow_embedded": Case(
        lambda: Flow(gaussian((2,), (4,)), nvp(4), embed=network((1, 2, 2), 4), context_shape=(1, 2, 2)),
        mean=False,
    ),
    "flow_without_inverse": Case(
        lambda: Flow(gaussian((2,), (3,)), presets.planar(2, num_layers=2, context=3)), mean=False
    ),
}


def build(name: str, *, scale: float = 0.7, dtype=torch.float64) -> Conditional:
    conditional = CASES[name].make().to(dtype)
    randomize(conditional, scale)
    return conditional


def context_of(conditional: Conditional, *batch: int, dtype=torch.float64) -> Tensor | None:
    if conditional.context_shape is None:
        return None
    return torch.randn(*batch, *conditional.context_shape, dtype=dtype)


PLANE = [name for name, case in CASES.items() if case.make().event_shape == (2,)]
SCORED = [name for name, case in CASES.items() if case.make().has_density]
CONDITIONED = [name for name, case in CASES.items() if case.make().context_shape is not None]
