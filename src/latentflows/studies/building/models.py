"""From the settings of a flow on data, or of a segmentation model, to the model itself."""

from __future__ import annotations

from functools import partial

from latentflows.bijections import Bijection, Chain, Reshape
from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, size
from latentflows.data import PlaneEnergy
from latentflows.models import VAE, DensityModel, segmentation_vae
from latentflows.models.image_flows import to_pixels
from latentflows.objectives import ForwardKL, MaximumLikelihood, Objective, ReverseKL
from latentflows.studies.building.parts import build_flow
from latentflows.studies.building.priors import build_flow_prior
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.flows import FlowSettings
from latentflows.studies.settings.models import FlowModel, SegmentationModel


def build_density(c: RunConfiguration, event_shape: Shape, given: Shape | None) -> DensityModel:
    """Build a flow on data: that of `prior`, over all numbers of a data point in a row.

    Dequantized pixels are reached through a sigmoid onto a little more than [0, 1), see `to_pixels`.

    Args:
        c: The configuration.
        event_shape: Shape of one data point.
        given: Shape of what the density is given, or None.

    Raises:
        ConfigurationError: if the flow does not fit so many numbers.
    """
    part, dim = c.prior, size(event_shape)
    assert isinstance(part, FlowSettings)
    if part.masked and getattr(part, "width", dim) < dim - 1:
        raise ConfigurationError(
            f"`prior.width` must be at least {dim - 1} to carry every dependency among the {dim} numbers of a data "
            f"point; got {getattr(part, 'width', None)}. Widen it, or use prior=real_nvp."
        )

    def make(context: int | None) -> Bijection:
        steps: list[Bijection] = [build_flow(part, dim, context)]
        if len(event_shape) > 1:
            steps.append(Reshape((dim,), event_shape))
        if c.data.preparation == "dequantized":
            steps.append(to_pixels(event_shape))
        return steps[0] if len(steps) == 1 else Chain(steps)

    return DensityModel(build_flow_prior(c, dim, make, given))


def density_objective(c: RunConfiguration) -> Objective:
    """Return what the stage of a flow on data minimizes."""
    assert isinstance(c.model, FlowModel)
    if c.model.objective == "maximum_likelihood":
        return MaximumLikelihood()
    energy = plane_energy(c)
    if c.model.objective == "forward_kl":
        return ForwardKL(energy)
    return ReverseKL(energy, num_samples=c.model.num_samples, warmup_epochs=c.model.warmup_epochs)


def plane_energy(c: RunConfiguration) -> PlaneEnergy:
    """Return the energy that the data of this configuration are drawn by."""
    return PlaneEnergy(c.data.energy or "ring")


def build_segmentation(c: RunConfiguration, part: SegmentationModel, picture_shape: Shape) -> VAE:
    """Build masks given a picture: a mixture from the picture, and after it the flow of `prior`, if it is one."""
    flow = partial(build_flow, c.prior, c.latent_dim) if isinstance(c.prior, FlowSettings) else None
    return segmentation_vae(
        picture_shape, latent_dim=c.latent_dim, flow=flow, **part.model_dump(exclude={"kind"})
    )
