"""From the settings of a prior to the prior itself, and to what a stage of its own minimizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from latentflows.bijections import Bijection
from latentflows.core.shapes import Shape
from latentflows.distributions import (
    AdversarialPrior,
    Conditional,
    EnergyPrior,
    ExemplarPrior,
    Flow,
    FlowMatchingPrior,
    GaussianMixture,
    Hierarchical,
    ImportanceResampling,
    Langevin,
    LearnedGaussian,
    ResampledPrior,
    StandardGaussian,
    VampPrior,
)
from latentflows.models import presets, second_stage_vae
from latentflows.networks import MLP, NetworkMaker, ResidualMLP
from latentflows.objectives import (
    FlowMatching,
    LatentWasserstein,
    NoiseContrastive,
    Objective,
    PriorLikelihood,
)
from latentflows.studies.building.levels import MakeFlow, levels_prior
from latentflows.studies.settings import posteriors
from latentflows.studies.settings import priors as kinds
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.flows import FlowSettings


def build_prior(
    c: RunConfiguration, posterior: Conditional, given: Shape | None, make_flow: MakeFlow
) -> Conditional:
    """Build p(z).

    Args:
        c: The configuration.
        posterior: Of the same model; some priors are made of it.
        given: Shape of what the prior is given, or None.
        make_flow: Makes the bijection of a flow.
    """
    part, dim, classes = c.prior, c.latent_dim, given[0] if given else None
    if isinstance(part, FlowSettings):
        return build_flow_prior(c, dim, partial(make_flow, part, dim), given)
    if isinstance(part, kinds.Standard):
        return StandardGaussian(dim)
    if isinstance(part, kinds.Levels):
        assert isinstance(c.posterior, posteriors.Levels)
        assert isinstance(posterior, Hierarchical)
        number, of_data = part.top_pseudo_inputs, posterior.members[0]
        top = None if number is None else VampPrior(of_data, number, value_range=_value_range(c))
        return levels_prior(part, c.posterior.dims(dim), make_flow, top=top, classes=classes)
    if isinstance(part, kinds.GaussianMixture):
        return _mixture(part, dim, classes)
    if isinstance(part, kinds.VampPrior):
        return VampPrior(posterior, value_range=_value_range(c), **part.model_dump(exclude={"kind"}))
    if isinstance(part, kinds.ExemplarPrior):
        return ExemplarPrior(posterior, part.num_exemplars, num_components=part.num_components)
    if isinstance(part, kinds.Gaussian | kinds.FullGaussian):
        covariance: Literal["diagonal", "full"] = "full" if part.kind == "full_gaussian" else "diagonal"
        if classes is None:
            return LearnedGaussian(dim, covariance=covariance)
        return GaussianMixture(
            dim, 1, covariance=covariance, num_classes=classes
        )  # one Gaussian for each class
    return _without_closed_form(part, dim, classes, c.condition.embed)


def build_flow_prior(
    c: RunConfiguration, dim: int, make: Callable[[int | None], Bijection], given: Shape | None
) -> Flow:
    """Build a flow from `prior_base`; its networks hear what is given, or the vector that is learned for a label.

    Args:
        c: The configuration; `condition.embed` says how long the vector is.
        dim: Numbers that the flow starts from.
        make: Makes the bijection, from the length of what its networks hear, or None.
        given: Shape of the label that it is given, or None.
    """
    base, length = build_base(c.prior_base, dim), c.condition.embed
    if given is None or length is None:
        return Flow(base, make(given[0] if given else None))
    return Flow(base, make(length), embed=_table(given[0], length), context_shape=given)


def _table(classes: int, length: int) -> nn.Linear:
    """Make a vector for each class, drawn from N(0, I); a label that was left out, all zeros, has the vector 0."""
    table = nn.Linear(classes, length, bias=False)
    nn.init.normal_(table.weight)
    return table


def _value_range(c: RunConfiguration) -> Literal["free", "hard"]:
    """Return where pseudo-inputs are kept."""
    return "free" if c.data.preparation == "continuous" else "hard"


def _without_closed_form(part: kinds.Prior, dim: int, classes: int | None, length: int | None) -> Conditional:
    """Build a prior whose density is estimated, integrated or not normalized."""
    if isinstance(part, kinds.ResampledPrior):
        return ResampledPrior(
            StandardGaussian(dim),
            MLP(dim, 1, width=part.width, depth=part.depth, activation_name="tanh"),
            max_attempts=part.max_attempts,
            num_normalizer_samples=part.num_normalizer_samples,
        )
    if isinstance(part, kinds.NoiseContrastivePrior):
        energy = MLP(dim, 1, width=part.width, depth=part.depth, activation_name="silu")
        resampling = part.sampling == "resampling"
        sampler = ImportanceResampling(part.num_proposals) if resampling else Langevin(part.num_steps)
        return EnergyPrior(StandardGaussian(dim), energy, sampler=sampler)
    if isinstance(part, kinds.AdversarialPrior):
        flow = presets.real_nvp(dim, num_layers=part.num_layers, width=part.width, depth=part.depth)
        critic = MLP(dim, 1, width=part.width, depth=part.depth, activation_name="silu")
        number = part.num_proposals
        resampling = None if number is None else ImportanceResampling(number)
        return AdversarialPrior(Flow(StandardGaussian(dim), flow), critic, resampling=resampling)
    if isinstance(part, kinds.FlowMatchingPrior):
        network = partial(ResidualMLP, width=part.width, num_blocks=part.num_blocks, activation_name="silu")
        settings = part.model_dump(include={"solver", "num_steps", "tolerance", "divergence", "num_probes"})
        embed = None if classes is None or length is None else _table(classes, length)
        features = None if embed is None else length
        return FlowMatchingPrior(
            dim, _maker(network), context_shape=classes, embed=embed, features=features, **settings
        )
    assert isinstance(part, kinds.SecondStagePrior)
    return second_stage_vae(dim, **part.model_dump(exclude={"kind"}))


def _maker(network: Callable[..., ResidualMLP]) -> NetworkMaker:
    return lambda in_shape, out_shape, context: network(in_shape, out_shape, context=context, zero_last=True)


def build_base(part: kinds.Base, dim: int) -> Conditional:
    """Build what a flow starts from."""
    if isinstance(part, kinds.GaussianMixture):
        return _mixture(part, dim, None)
    return StandardGaussian(dim)


def _mixture(part: kinds.GaussianMixture, dim: int, classes: int | None) -> GaussianMixture:
    return GaussianMixture(
        dim, part.num_components, covariance=part.covariance, num_classes=classes, start=part.start
    )


def build_prior_objective(prior: kinds.Prior) -> Objective:
    """Build what the stage of the prior alone minimizes."""
    if isinstance(prior, kinds.NoiseContrastivePrior):
        return NoiseContrastive()
    if isinstance(prior, kinds.FlowMatchingPrior):
        return FlowMatching()
    if isinstance(prior, kinds.AdversarialPrior):
        return LatentWasserstein(
            gradient_penalty=prior.gradient_penalty,
            divergence_weight=prior.divergence_weight,
            critic_steps=prior.critic_steps,
        )
    return PriorLikelihood()
