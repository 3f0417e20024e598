"""Every conditional, small. A new one adds a line to `CASES`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentflows.bijections import LULinear
from latentflows.core.shapes import Shape
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedCategorical,
    AmortizedContinuousBernoulli,
    AmortizedGaussian,
    AmortizedLaplace,
    AmortizedLogisticMixture,
    AmortizedLowRankGaussian,
    AmortizedMixture,
    AmortizedStudentT,
    BatchOptimalGaussian,
    Conditional,
    Distribution,
    ExemplarPrior,
    Flow,
    GaussianMixture,
    Hierarchical,
    LearnedGaussian,
    StandardGaussian,
    VampPrior,
    categorical_raw_shape,
    gaussian_raw_shape,
    logistic_raw_shape,
    low_rank_raw_shape,
    mixture_raw_shape,
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


def amortized_mixture(event_shape: Shape, context_shape: Shape, num_components: int) -> AmortizedMixture:
    raw_shape = mixture_raw_shape(event_shape, num_components)
    net = network(context_shape, raw_shape)
    return AmortizedMixture(event_shape, context_shape, net, num_components=num_components)


def bernoulli(event_shape: Shape, context_shape: Shape) -> AmortizedBernoulli:
    return AmortizedBernoulli(event_shape, context_shape, network(context_shape, event_shape))


def laplace(event_shape: Shape, context_shape: Shape, scale="shared") -> AmortizedLaplace:
    raw_shape = gaussian_raw_shape(event_shape, scale=scale)
    return AmortizedLaplace(event_shape, context_shape, network(context_shape, raw_shape), scale=scale)


def student_t(
    event_shape: Shape, context_shape: Shape, scale="shared", degrees="shared"
) -> AmortizedStudentT:
    raw_shape = gaussian_raw_shape(event_shape, scale=scale)
    net = network(context_shape, raw_shape)
    return AmortizedStudentT(event_shape, context_shape, net, scale=scale, degrees=degrees)


def continuous_bernoulli(event_shape: Shape, context_shape: Shape) -> AmortizedContinuousBernoulli:
    return AmortizedContinuousBernoulli(event_shape, context_shape, network(context_shape, event_shape))


def optimal(event_shape: Shape, context_shape: Shape, **settings) -> BatchOptimalGaussian:
    return BatchOptimalGaussian(event_shape, context_shape, network(context_shape, event_shape), **settings)


def categorical(event_shape: Shape, context_shape: Shape, levels: int = 4) -> AmortizedCategorical:
    net = network(context_shape, categorical_raw_shape(event_shape, levels))
    return AmortizedCategorical(event_shape, context_shape, net, levels=levels)


def logistic(
    event_shape: Shape, context_shape: Shape, levels: int = 4, **settings
) -> AmortizedLogisticMixture:
    net = network(context_shape, logistic_raw_shape(event_shape, **settings))
    return AmortizedLogisticMixture(event_shape, context_shape, net, levels=levels, **settings)


def low_rank(dim: int, context_shape: Shape, rank: int = 2) -> AmortizedLowRankGaussian:
    net = network(context_shape, low_rank_raw_shape((dim,), rank))
    return AmortizedLowRankGaussian(dim, context_shape, net, rank=rank)


class WithPosterior(Conditional):
    """A prior beside the posterior that it is made of, as a model holds both."""

    def __init__(self, posterior: Conditional, make: Callable[[Conditional], Conditional]) -> None:
        super().__init__(posterior.event_shape)
        self.posterior, self.prior = posterior, make(posterior)
        self.distribution_type = self.prior.distribution_type

    def _condition(self, context: Tensor | None) -> Distribution:
        return self.prior()


def exemplars(posterior: Conditional, count: int = 5) -> ExemplarPrior:
    prior = ExemplarPrior(posterior, count, num_components=count)
    prior.initialize(torch.rand(count, *prior.data_shape))
    return prior


def flow_posterior(context: int = 3) -> Flow:
    return Flow(gaussian((2,), (context,)), nvp(context))


def hierarchy_given(context_shape: Shape) -> Hierarchical:
    """Two levels of one latent each; the lower one reads features and the upper one, and is a flow."""
    low = Flow(gaussian((1,), (5,)), LULinear(1, context_shape=5))
    levels = [gaussian((1,), context_shape), low]
    return Hierarchical(levels, embed=network(context_shape, 4), context_shape=context_shape)


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
    "laplace": Case(lambda: laplace((2, 2), (3,), "amortized")),
    "laplace_shared": Case(lambda: laplace((3,), (3,))),
    "student_t": Case(lambda: student_t((2, 2), (3,), "amortized", 4.5)),
    "student_t_shared": Case(lambda: student_t((2, 1, 2), (3,))),
    "optimal_shared": Case(lambda: optimal((1, 2, 3), (3,)).eval()),
    "continuous_bernoulli": Case(
        lambda: continuous_bernoulli((1, 2, 3), (3,)), temperature=False, reparameterized=False
    ),
    "categorical": Case(lambda: categorical((1, 2, 3), (3,)), temperature=False, reparameterized=False),
    "logistic": Case(lambda: logistic((2, 2), (3,)), temperature=False, reparameterized=False),
    "logistic_global": Case(
        lambda: logistic((2, 2), (3,), scale="shared"), temperature=False, reparameterized=False
    ),
    "logistic_mixture": Case(
        lambda: logistic((3, 2, 1), (3,), num_components=2), temperature=False, reparameterized=False
    ),
    "logistic_coupled": Case(
        lambda: logistic((3, 2, 1), (3,), num_components=2, coupled=True),
        mean=False,
        temperature=False,
        reparameterized=False,
    ),
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
    "low_rank": Case(lambda: low_rank(2, (3,), 1)),
    "low_rank_wide": Case(lambda: low_rank(4, (2, 2), 3)),
    "mixture": Case(lambda: GaussianMixture(2, 3), reparameterized=False),
    "mixture_full": Case(lambda: GaussianMixture(2, 3, covariance="full"), reparameterized=False),
    "mixture_image": Case(lambda: GaussianMixture((1, 2, 3), 2), reparameterized=False),
    "mixture_classes": Case(lambda: GaussianMixture(2, 2, num_classes=3), reparameterized=False),
    "mixture_class_gaussians": Case(
        lambda: GaussianMixture(2, 1, num_classes=3, covariance="full"), reparameterized=False
    ),
    "amortized_mixture": Case(lambda: amortized_mixture((2,), (3,), 3), reparameterized=False),
    "amortized_mixture_image": Case(lambda: amortized_mixture((1, 2, 3), (2, 2), 2), reparameterized=False),
    "flow_mixture": Case(lambda: Flow(GaussianMixture(2, 3), nvp()), mean=False, reparameterized=False),
    "vamp": Case(
        lambda: WithPosterior(gaussian((2,), (3,)), lambda q: VampPrior(q, 4, deviation=0.1)),
        reparameterized=False,
    ),
    "vamp_weights": Case(
        lambda: WithPosterior(
            low_rank(2, (3,)), lambda q: VampPrior(q, 4, value_range="soft", learned_weights=True)
        ),
        reparameterized=False,
    ),
    "vamp_flow": Case(
        lambda: WithPosterior(flow_posterior(), lambda q: VampPrior(q, 4, value_range="free")),
        mean=False,
        reparameterized=False,
    ),
    "exemplar": Case(lambda: WithPosterior(gaussian((2,), (3,)), exemplars), reparameterized=False),
    "hierarchy": Case(lambda: Hierarchical([LearnedGaussian(1), gaussian((1,), (1,))]), mean=False),
    "hierarchy_mixture": Case(
        lambda: Hierarchical([GaussianMixture(1, 2), gaussian((1,), (1,)), gaussian((2,), (2,))]),
        mean=False,
        reparameterized=False,
    ),
    "hierarchy_given": Case(lambda: hierarchy_given((3,)), mean=False),
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
    context = torch.randn(*batch, *conditional.context_shape, dtype=dtype)
    return context.softmax(-1) if isinstance(conditional, GaussianMixture) else context  # labels, soft ones


PLANE = [name for name, case in CASES.items() if case.make().event_shape == (2,)]
SCORED = [name for name, case in CASES.items() if case.make().has_density]
CONDITIONED = [name for name, case in CASES.items() if case.make().context_shape is not None]
