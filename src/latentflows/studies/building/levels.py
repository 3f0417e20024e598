"""Posterior and prior with several levels of latents, from their settings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from latentflows.bijections import Bijection
from latentflows.core.shapes import Shape
from latentflows.distributions import (
    AmortizedGaussian,
    Conditional,
    Flow,
    Hierarchical,
    StandardGaussian,
    gaussian_raw_shape,
)
from latentflows.models.hierarchical import Select
from latentflows.networks import MLP, LastLayer
from latentflows.studies.settings import posteriors, priors
from latentflows.studies.settings.flows import FlowSettings
from latentflows.studies.settings.options import parts

MakeFlow = Callable[[FlowSettings, int, int | None], Bijection]  # from settings, latents and context features
MakeEncoder = Callable[[Shape], tuple[nn.Module, int]]  # from what it reads; gives so many features


def levels_posterior(
    part: posteriors.Levels,
    dims: tuple[int, ...],
    seen: Shape,
    make_encoder: MakeEncoder,
    make_flow: MakeFlow,
) -> Hierarchical:
    """Build q(z_L|x) and, below it, q(z_l | x, levels above): two encoders, one for the top, one for all others.

    Args:
        part: Settings.
        dims: Latents of each level, top first.
        seen: Shape of what the posterior reads.
        make_encoder: Makes an encoder.
        make_flow: Makes a bijection that is cheap to draw.
    """
    encoder, features = make_encoder(seen)
    last = LastLayer(features, gaussian_raw_shape(dims[:1]))
    if part.top_flow is None:
        top: Conditional = AmortizedGaussian(dims[0], seen, nn.Sequential(encoder, last))
    else:
        base = AmortizedGaussian(dims[0], features, last)
        bijection = make_flow(_settings("posterior", part.top_flow), dims[0], features)
        top = Flow(base, bijection, embed=encoder, context_shape=seen)
    levels = [top]
    embed, features = make_encoder(seen)
    for index, dim in enumerate(dims[1:], start=1):
        read = features + sum(dims[:index])
        level: Conditional = AmortizedGaussian(dim, read, _between(read, dim, part.width))
        if part.flow is not None:
            level = Flow(level, make_flow(_settings("posterior", part.flow), dim, read))
        levels.append(level)
    return Hierarchical(levels, embed=embed, context_shape=seen)


def levels_prior(
    part: priors.Levels,
    dims: tuple[int, ...],
    make_flow: MakeFlow,
    *,
    top: Conditional | None = None,
    classes: int | None = None,
) -> Hierarchical:
    """Build p(z_L), or p(z_L | y), and below it p(z_l | z_{l+1}): each level reads the one right above alone.

    Args:
        part: Settings.
        dims: Latents of each level, top first.
        make_flow: Makes a bijection that is cheap to score.
        top: What the top level is, or its flow starts from; None for N(0, I).
        classes: Length of the one-hot label y that the top level reads; None without.
    """
    top = StandardGaussian(dims[0]) if top is None else top
    if part.top_flow is not None:
        top = Flow(top, make_flow(_settings("prior", part.top_flow), dims[0], classes))
    elif classes is not None:
        top = AmortizedGaussian(dims[0], classes, _between(classes, dims[0], part.width))
    levels: list[Conditional] = [top]
    for index, dim in enumerate(dims[1:], start=1):
        above = dims[index - 1]
        read = (classes or 0) + sum(dims[:index])  # the label comes first, then the top
        select, network = Select(read - above, read), _between(above, dim, part.width)
        if part.flow is None:
            levels.append(AmortizedGaussian(dim, read, nn.Sequential(select, network)))
            continue
        bijection = make_flow(_settings("prior", part.flow), dim, above)
        base = AmortizedGaussian(dim, above, network)
        levels.append(Flow(base, bijection, embed=select, context_shape=read))
    return Hierarchical(levels, context_shape=classes)


def _between(read: int, dim: int, width: int) -> MLP:
    return MLP(read, gaussian_raw_shape((dim,)), width=width, depth=1, activation_name="silu")


def _settings(place: str, name: str) -> FlowSettings:
    """Return the settings of a flow with its defaults."""
    made = parts()[place][name]()
    assert isinstance(made, FlowSettings)
    return made
