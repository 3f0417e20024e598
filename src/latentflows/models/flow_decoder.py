"""The flow likelihood: a decoder network gives the base's mean and scale, a conditional flow bends it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from latentflows.bijections import Bijection
from latentflows.core.errors import CombinationError
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.distributions import AmortizedGaussian, Flow
from latentflows.models.image_flows import real_nvp_image
from latentflows.models.presets import real_nvp


class FlowMaker(Protocol):
    """Makes a bijection onto the data for so many context features, e.g. `partial(real_nvp, 64, num_layers=4)`."""

    def __call__(self, *, context: int) -> Bijection: ...


class _Rearranged(nn.Module):
    """A decoder whose mean and scale, in the data's order, are laid out as the flow's base noise is."""

    order: Tensor

    def __init__(self, decoder: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("order", order)

    def forward(self, features: Tensor) -> Tensor:
        raw = self.decoder(features).flatten(1).unflatten(1, (2, -1))  # mean, then scale
        return raw[..., self.order].flatten(1)


def flow_likelihood(
    event_shape: int | Shape,
    latent_shape: int | Shape,
    decoder: nn.Module,
    *,
    flow: FlowMaker | None = None,
    embed: nn.Module | None = None,
    num_features: int | None = None,
) -> Flow:
    r"""Return p(x|z) as a flow whose base and whose layers both hear z: pixels need not be independent given z.

    .. math:: x = f(u; h), \quad u \sim N(\mu(h), \sigma(h)^2), \quad h = h(z)

    The decoder gives mean and scale in the order of the data, as for `AmortizedGaussian`; they are brought into the
    order of the flow's noise. So, with a flow that starts as a permutation (Real NVP), the likelihood starts as the
    Gaussian of this decoder. `mean` has no closed form: pictures of it are refused, draw samples instead.

    A density of continuous data. For pixels in [0, 1) end the flow in `to_pixels`, as in
    `lambda context: Chain([real_nvp_image(shape, context=context), to_pixels(shape)])`.

    Cost: one decoder pass, and one pass of the flow in either direction for every z and x.

    Args:
        event_shape: Shape of one data point: (D,) or (C, H, W).
        latent_shape: Shape of one latent.
        decoder: From features (N, num_features), or latents, to (N, *gaussian_raw_shape(event_shape)).
        flow: Makes the bijection; its noise is flat, (D,), or of the data's shape. None for Real NVP with the
            defaults of its preset, one level for images.
        embed: Network from latents (N, *latent_shape) to features (N, num_features) that decoder and flow share.
            Without it both hear z itself, which is then a vector.
        num_features: Features that `embed` gives.

    Raises:
        CombinationError: if `embed` and `num_features` are not given together, or are missing for a latent that is no
            vector, or the flow does not end in the data.

    References:
        Morrow & Chiu, Variational Autoencoders with Normalizing Flow Decoders, 2020, arXiv 2004.05617.
    """
    event = as_shape(event_shape, "event_shape")
    latent = as_shape(latent_shape, "latent_shape")
    if (embed is None) != (num_features is None):
        raise CombinationError("`embed` and `num_features` go together; give both or none.")
    if num_features is None:
        if len(latent) != 1:
            raise CombinationError(
                f"A flow hears a vector of features; latents are {latent}. Give `embed` and `num_features`."
            )
        num_features = latent[0]
    bijection = _default(event, num_features) if flow is None else flow(context=num_features)
    if bijection.event_shape != event or bijection.context_shape != (num_features,):
        raise CombinationError(
            f"The flow must end in {event} and hear ({num_features},); got one that ends in {bijection.event_shape} "
            f"and hears {bijection.context_shape}. Build it with these shapes, and with the `context` it is given."
        )
    network = _Rearranged(decoder, _order(bijection, num_features))
    base = AmortizedGaussian(
        bijection.base_shape,
        num_features,
        nn.Sequential(network, nn.Unflatten(1, (2 * bijection.base_shape[0], *bijection.base_shape[1:]))),
    )
    return Flow(base, bijection, embed=embed, context_shape=None if embed is None else latent)


def _default(event: Shape, context: int) -> Bijection:
    if len(event) == 1:
        return real_nvp(event[0], context=context)
    return real_nvp_image(event, num_levels=1, context=context)


@torch.no_grad()
def _order(bijection: Bijection, num_features: int) -> Tensor:
    """Return which data entry every entry of the noise starts from, by the ranks of a ramp that went through.

    Exact for a flow that starts as a permutation and increasing elementwise maps; for a rotation there is no order, and
    the decoder learns its own.
    """
    count = size(bijection.event_shape)
    ramp = (torch.arange(count, dtype=torch.float32) + 0.5) / count
    u, _ = bijection.inverse(ramp.view(bijection.event_shape), torch.zeros(num_features))
    return u.flatten().argsort().argsort()
