"""From the settings of a part to the part itself, through tables keyed by `kind`; no name is ever imported.

Within a part the encoder or decoder draws its first weights first: two configurations with one seed and one network
start with equal networks, whatever their flows are. `given` is the shape of what a part is given besides its own input
(a label), or None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from latentflows.bijections import Bijection, Inverse
from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, joined_shape
from latentflows.distributions import (
    AmortizedDelta,
    AmortizedGaussian,
    AmortizedLowRankGaussian,
    Conditional,
    Flow,
    gaussian_raw_shape,
    has_closed_form_kl,
    low_rank_raw_shape,
)
from latentflows.models import VAE, presets
from latentflows.networks import (
    MLP,
    GatedConvolutionDecoder,
    GatedConvolutionEncoder,
    GatedMLP,
    LastLayer,
    ResidualConvolutionDecoder,
    ResidualConvolutionEncoder,
)
from latentflows.objectives import (
    ELBO,
    GECO,
    IWAE,
    Autoencoder,
    BetaTC,
    Capacity,
    FactorVAE,
    InfoVAE,
    Objective,
    RegularizedAutoencoder,
    SparseAutoencoder,
    WassersteinAutoencoder,
)
from latentflows.studies.building.levels import levels_posterior
from latentflows.studies.settings import networks, objectives, posteriors
from latentflows.studies.settings.base import Settings
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.flows import FlowSettings
from latentflows.studies.settings.options import tag_of

_FLOWS: dict[
    str, Callable[..., Bijection]
] = {  # the fields of a kind's settings are the arguments of its preset
    "bpf": presets.bpf,
    "cnf": presets.cnf,
    "iaf": presets.iaf,
    "maf": presets.maf,
    "naf": presets.naf,
    "nice": presets.nice,
    "nsf_autoregressive": presets.nsf_autoregressive,
    "nsf_coupling": presets.nsf_coupling,
    "planar": presets.planar,
    "radial": presets.radial,
    "real_nvp": presets.real_nvp,
    "sospf": presets.sospf,
    "sylvester_householder": presets.sylvester_householder,
    "sylvester_orthogonal": presets.sylvester_orthogonal,
    "sylvester_triangular": presets.sylvester_triangular,
    "tarflow": presets.tarflow,
    "unaf": presets.unaf,
}

_OBJECTIVES: dict[type[Settings], type[Objective]] = {
    objectives.AutoencoderObjective: Autoencoder,
    objectives.BetaTCObjective: BetaTC,
    objectives.CapacityObjective: Capacity,
    objectives.ELBOObjective: ELBO,
    objectives.FactorObjective: FactorVAE,
    objectives.GECOObjective: GECO,
    objectives.IWAEObjective: IWAE,
    objectives.InfoVAEObjective: InfoVAE,
    objectives.RegularizedAutoencoderObjective: RegularizedAutoencoder,
    objectives.SparseAutoencoderObjective: SparseAutoencoder,
    objectives.WassersteinObjective: WassersteinAutoencoder,
}


_SMALLEST = 4  # height and width of an image that a convolution takes


def build_posterior(c: RunConfiguration, event_shape: Shape, given: Shape | None) -> Conditional:
    """Build q(z|x)."""
    part, latent = c.posterior, (c.latent_dim,)
    seen = event_shape if given is None else joined_shape(event_shape, given)
    if isinstance(part, posteriors.Levels):
        dims, encoder_of = part.dims(c.latent_dim), partial(_encoder, c.network)
        return levels_posterior(part, dims, seen, encoder_of, _drawn_flow)
    encoder, features = _encoder(c.network, seen)
    if isinstance(part, FlowSettings):
        last = LastLayer(features, gaussian_raw_shape(latent))
        bijection = _drawn_flow(part, c.latent_dim, features)
        base = AmortizedGaussian(latent, features, last)
        return Flow(base, bijection, embed=encoder, context_shape=seen)
    if isinstance(part, posteriors.LowRankGaussian):
        last = LastLayer(features, low_rank_raw_shape(latent, part.rank))
        return AmortizedLowRankGaussian(latent, seen, nn.Sequential(encoder, last), rank=part.rank)
    if isinstance(part, posteriors.Delta):
        return AmortizedDelta(latent, seen, nn.Sequential(encoder, LastLayer(features, latent)))
    covariance: Literal["diagonal", "full"] = "full" if part.kind == "full_gaussian" else "diagonal"
    scale = part.scale if isinstance(part, posteriors.Noisy) else "amortized"
    last = LastLayer(features, gaussian_raw_shape(latent, covariance=covariance, scale=scale))
    network = nn.Sequential(encoder, last)
    return AmortizedGaussian(latent, seen, network, covariance=covariance, scale=scale)


def build_flow(part: FlowSettings, dim: int, context: int | None = None) -> Bijection:
    """Build the bijection of a flow by its preset."""
    arguments = part.model_dump(exclude={part.tag})
    return _FLOWS[tag_of(type(part))](dim, context=context, **arguments)


def _drawn_flow(part: FlowSettings, dim: int, context: int | None) -> Bijection:
    """Build the bijection of a posterior, which is drawn from in every step, and scored where it was drawn.

    It is turned around where drawing takes more passes than scoring. Where an ODE is solved, the passes are those of
    one example, and what is built must not depend on them: saved weights would not fit.
    """
    bijection = build_flow(part, dim, context)
    forward, inverse = bijection.passes
    turned = not bijection.solved and inverse is not None and (forward is None or forward > inverse)
    return Inverse(bijection) if turned else bijection


def _encoder(network: networks.Network, in_shape: Shape) -> tuple[nn.Module, int]:
    """Return the network from a data point to features, and how many they are.

    Raises:
        ConfigurationError: for a convolution over what is no image, or too small a one.
    """
    convolutions = networks.GatedConvolutionNetwork | networks.ResidualConvolutionNetwork
    if isinstance(network, convolutions) and (len(in_shape) != 3 or min(in_shape[1:]) < _SMALLEST):
        raise ConfigurationError(
            f"`network.kind`={network.kind} needs images (C, H, W) of at least {_SMALLEST} x {_SMALLEST} pixels; got "
            f"data points of shape {in_shape}. Use network=mlp or gated_mlp."
        )
    if isinstance(network, networks.GatedConvolutionNetwork):
        encoder = GatedConvolutionEncoder(in_shape, None, width=network.width)
    elif isinstance(network, networks.ResidualConvolutionNetwork):
        encoder = ResidualConvolutionEncoder(
            in_shape, None, width=network.width, num_blocks=network.num_blocks
        )
    elif isinstance(network, networks.GatedMLPNetwork):
        encoder = GatedMLP(in_shape, None, width=network.width, depth=network.depth)
    else:
        encoder = MLP(
            in_shape, None, width=network.width, depth=network.depth, activation_name=network.activation
        )
    return encoder, encoder.out_shape[0]


def build_decoder(network: networks.Network, in_shape: Shape, out_shape: Shape) -> nn.Module:
    """Build the network from a latent to what a likelihood needs."""
    width = network.decoder_width or network.width
    if isinstance(network, networks.GatedConvolutionNetwork):
        return GatedConvolutionDecoder(in_shape, out_shape, width=width)
    if isinstance(network, networks.ResidualConvolutionNetwork):
        return ResidualConvolutionDecoder(in_shape, out_shape, width=width, num_blocks=network.num_blocks)
    if isinstance(network, networks.GatedMLPNetwork):
        return GatedMLP(in_shape, out_shape, width=width, depth=network.depth)
    return MLP(in_shape, out_shape, width=width, depth=network.depth, activation_name=network.activation)


def build_objective(part: objectives.Objective, model: VAE, num_points: int | None = None) -> Objective:
    """Build what training minimizes.

    Args:
        part: Its settings; `kl=auto` depends on the model.
        model: With N(0, I) in its prior's place, if that is how it will be trained.
        num_points: Number of training data points, which some objectives need.
    """
    arguments = part.model_dump(exclude={"kind"})
    if arguments.get("kl") == "auto":
        closed = has_closed_form_kl(model.posterior.distribution_type, model.prior_type)
        sampled = arguments.get("anneal") == "joint" or arguments.get("gradient") == "stick_the_landing"
        arguments["kl"] = "closed_form" if closed and not sampled else "monte_carlo"
    if isinstance(part, objectives.BetaTCObjective):
        if num_points is None:
            raise ConfigurationError(
                "`objective.kind`=beta_tc needs the number of training points: `num_points`."
            )
        arguments["num_points"] = num_points
    return _OBJECTIVES[type(part)](**arguments)


def build_auxiliary(part: objectives.Objective, model: VAE) -> nn.Module | None:
    """Build the module that the objective trains besides the model, if it has one."""
    kind = _OBJECTIVES[type(part)]
    return None if kind.auxiliary is Objective.auxiliary else build_objective(part, model).auxiliary(model)
