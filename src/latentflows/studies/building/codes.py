"""From the settings of a model with codes for latents to the model, and to the objectives of its two stages."""

from __future__ import annotations

from typing import Any

from torch import nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape
from latentflows.distributions import Conditional
from latentflows.models import VQVAE, vq_vae, vq_vae_2
from latentflows.objectives import CodeLikelihood, VectorQuantization
from latentflows.studies.building.likelihoods import likelihood_class
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.models import CodesModel, VQVAE2Model, VQVAEModel

_ARGUMENTS = {"dim", "num_codes", "codebook", "decay", "restart_below", "width", "num_blocks"}


def build_codes_model(
    c: RunConfiguration, part: VQVAEModel | VQVAE2Model, event_shape: Shape, given: Shape | None
) -> VQVAE:
    """Build a VQ-VAE or VQ-VAE-2.

    Args:
        c: The configuration; its likelihood is that of the model.
        part: The settings of its model.
        event_shape: Shape of one data point.
        given: Shape of what the prior is given, or None.

    Raises:
        ConfigurationError: if the data are no pictures, are halved more often than they can be, or the maps of
            codes do not fit.
    """
    if len(event_shape) != 3:
        raise ConfigurationError(
            f"`model.kind`={c.model.kind} has maps of codes, for pictures (C, H, W); got data points of shape "
            f"{event_shape}. Use model=vae with network=mlp."
        )
    picture = (event_shape[1], event_shape[2])
    beyond = part.beyond(picture)
    if beyond is not None:
        raise ConfigurationError(beyond)
    make, raw_shape, arguments = likelihood_class(c, event_shape)

    def likelihood(event: Shape, latent: Shape, network: nn.Module) -> Conditional:
        return make(event, latent, network, **arguments)

    shared: dict[str, Any] = {
        **part.model_dump(include=_ARGUMENTS),
        "likelihood": likelihood,
        "raw_shape": raw_shape,
        "prior_width": part.prior_width,
        "prior_depth": part.prior_depth,
        "heads": part.prior_heads,
        "context_shape": given[0] if given else None,
    }
    if isinstance(part, VQVAE2Model):
        return vq_vae_2(event_shape, _fitting(part, picture), **shared)
    (space,) = part.spaces(picture)
    return vq_vae(event_shape, space, **shared)


def _fitting(part: VQVAE2Model, picture: tuple[int, int]) -> tuple[Shape, Shape]:
    """Return height and width of the two maps; refuse a fine one that is no whole multiple of the coarse one."""
    top, bottom = part.spaces(picture)
    if any(fine % coarse for coarse, fine in zip(top, bottom, strict=True)):
        names = [" x ".join(map(str, space)) for space in (bottom, top, picture)]
        raise ConfigurationError(
            f"`model.halvings` and model.top_halvings make a fine map of {names[0]} and a coarse one of {names[1]} of "
            f"pictures of {names[2]}, and the fine one must be a whole multiple. Use fewer halvings, such as "
            "model.halvings=1, or pictures of another size."
        )
    return top, bottom


def codes_objectives(part: CodesModel) -> tuple[VectorQuantization, CodeLikelihood]:
    """Return what the stage of the codes and the stage of the prior minimize."""
    return VectorQuantization(commitment=part.commitment), CodeLikelihood()
