"""From the settings of a likelihood to the likelihood itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn

from latentflows.bijections import Bijection, Chain
from latentflows.core.shapes import Shape, joined_shape
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedCategorical,
    AmortizedContinuousBernoulli,
    AmortizedGaussian,
    AmortizedLaplace,
    AmortizedLogisticMixture,
    AmortizedStudentT,
    BatchOptimalGaussian,
    Conditional,
    categorical_raw_shape,
    gaussian_raw_shape,
    logistic_raw_shape,
)
from latentflows.models import presets
from latentflows.models.flow_decoder import flow_likelihood
from latentflows.models.hierarchical import Select
from latentflows.models.image_flows import real_nvp_image, to_pixels
from latentflows.networks import MLP
from latentflows.studies.settings import likelihoods as kinds
from latentflows.studies.settings.configuration import LEVELS, RunConfiguration
from latentflows.studies.settings.posteriors import DeepGaussian

Decoder = Callable[[Shape, Shape], nn.Module]  # from the shapes that go in and come out
Scale = float | Literal["amortized", "shared"]


def build_likelihood(
    c: RunConfiguration, event_shape: Shape, given: Shape | None, decoder: Decoder
) -> Conditional:
    """Build p(x|z).

    Args:
        c: The configuration.
        event_shape: Shape of one data point.
        given: Shape of what it is given besides z, or None.
        decoder: Makes the network.
    """
    latent = (c.latent_dim,)
    seen = latent if given is None else joined_shape(latent, given)
    make, raw_shape, arguments = likelihood_class(c, event_shape)
    if isinstance(c.likelihood, kinds.FlowLikelihood):
        return _flow(c, c.likelihood, event_shape, seen, decoder)
    return make(event_shape, seen, _reading(c, decoder, seen, raw_shape), **arguments)


def _reading(c: RunConfiguration, make: Decoder, seen: Shape, out_shape: Shape) -> nn.Module:
    """Make a network that reads what the likelihood is given, but not the latents above the lowest level of a DLGM."""
    if not isinstance(c.posterior, DeepGaussian):
        return make(seen, out_shape)
    above = c.latent_dim - c.posterior.dims(c.latent_dim)[-1]  # they come first
    return nn.Sequential(Select(above, seen[0]), make((seen[0] - above, *seen[1:]), out_shape))


def likelihood_class(
    c: RunConfiguration, event: Shape
) -> tuple[Callable[..., Conditional], Shape, dict[str, Any]]:
    """Return the class, the output shape of its network, and its other arguments."""
    part = c.likelihood
    levels = getattr(part, "levels", None) or LEVELS.get(c.data.name, 256)
    scale: Scale = getattr(part, "scale", None) or "shared"
    if getattr(part, "variance", None) == "amortized":
        scale = "amortized"
    raw = gaussian_raw_shape(event, scale=scale)
    if isinstance(part, kinds.GaussianLikelihood):
        if part.variance == "batch_optimal":
            return BatchOptimalGaussian, event, {}
        return AmortizedGaussian, raw, {"scale": scale}
    if isinstance(part, kinds.LaplaceLikelihood):
        return AmortizedLaplace, raw, {"scale": scale}
    if isinstance(part, kinds.StudentTLikelihood):
        return AmortizedStudentT, raw, {"scale": scale, "degrees": part.degrees or "shared"}
    if isinstance(part, kinds.CategoricalLikelihood):
        return AmortizedCategorical, categorical_raw_shape(event, levels), {"levels": levels}
    if isinstance(part, kinds.LogisticLikelihood):
        arguments = {"num_components": part.num_components, "coupled": part.coupled, "scale": part.variance}
        return (
            AmortizedLogisticMixture,
            logistic_raw_shape(event, **arguments),
            arguments | {"levels": levels},
        )
    if isinstance(part, kinds.ContinuousBernoulliLikelihood):
        return AmortizedContinuousBernoulli, event, {}
    return AmortizedBernoulli, event, {"gray": True} if part.kind == "gray_bernoulli" else {}


def _flow(
    c: RunConfiguration, part: kinds.FlowLikelihood, event: Shape, seen: Shape, decoder: Decoder
) -> Conditional:
    features = part.num_features
    embed = partial(MLP, width=max(features, 64), depth=1, activation_name="silu")
    pixels = c.data.preparation == "dequantized"
    return flow_likelihood(
        event,
        seen,
        decoder((features,), gaussian_raw_shape(event)),
        flow=partial(_bijection, part, event, pixels),
        embed=_reading(c, embed, seen, (features,)),
        num_features=features,
    )


def _bijection(part: kinds.FlowLikelihood, event: Shape, pixels: bool, *, context: int) -> Bijection:
    """Make Real NVP onto the data; onto [0, 1) for dequantized pixels."""
    if len(event) == 1:
        flow = presets.real_nvp(
            event[0], num_layers=part.num_layers, width=part.width, depth=1, context=context
        )
    else:
        flow = real_nvp_image(
            event, num_levels=1, num_blocks=part.num_blocks, width=part.width, context=context
        )
    return Chain([flow, to_pixels(event)]) if pixels else flow
