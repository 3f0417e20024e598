"""Stochastic segmentation: a conditional VAE of masks given a picture, with a mixture and a flow as its prior."""

from __future__ import annotations

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.precision import check_positive, soft_bound
from latentflows.core.shapes import Shape, joined_shape
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    AmortizedMixture,
    Conditional,
    Flow,
    gaussian_raw_shape,
    mixture_raw_shape,
)
from latentflows.models.flow_decoder import FlowMaker
from latentflows.models.vae import VAE
from latentflows.networks import GatedConvolutionEncoder, LastLayer, ResidualConvolution
from latentflows.networks.base import check_sizes


class _BoundedMeans(nn.Module):
    """Bound the first D numbers of a Gaussian's raw output softly."""

    def __init__(self, dim: int, bound: float) -> None:
        super().__init__()
        self.dim, self.bound = dim, bound

    def forward(self, raw: Tensor) -> Tensor:
        bounded = raw.clone()
        bounded[:, : self.dim] = soft_bound(raw[:, : self.dim], self.bound)
        return bounded


def segmentation_vae(
    picture_shape: Shape,
    *,
    latent_dim: int = 4,
    num_components: int = 4,
    flow: FlowMaker | None = None,
    width: int = 8,
    decoder_width: int = 16,
    num_blocks: int = 2,
    mean_bound: float = 5.0,
    scale_bound: float = 2.0,
) -> VAE:
    r"""Build p(mask | picture): a VAE given the picture, its prior a mixture.

    A flow may stand after the mixture of Gaussians.

    .. math::
        p(z|c) = f_c \sharp \sum_m w_m(c) \, N(\mu_m(c), \sigma_m(c)^2), \quad q(z|y, c) = N(\mu, \sigma^2), \quad
        p(y|z, c) = \prod_{ij} \mathrm{Bernoulli}(y_{ij}; \pi_{ij}(z, c))

    with picture c and mask y. What the picture does not decide is in z: drawing z and taking the likelier value of each
    pixel gives one plausible mask that hangs together. Without a flow and with one component the prior is the
    conditional Gaussian of the Probabilistic U-Net. Posterior and mixture have bounded means and scales, which keeps
    the latents in use. The KL to a mixture has no closed form: train with `ELBO(kl="monte_carlo")`.

    Encoders of the prior (of the picture) and of the posterior (of picture and mask) are gated convolutions; the
    decoder is a residual convolution over the picture with z beside it as constant channels: it sees
    3 + 4 `num_blocks` pixels along each axis, so what depends on more than that must come through z.

    Cost of a training step, multiplications per picture: two encoders, and the decoder's
    9 |space| W (C + D + 2 W `num_blocks`) for each sample of z, W its width.

    Args:
        picture_shape: (C, H, W), at least 4 x 4.
        latent_dim: D; 2 or more with a flow of couplings.
        num_components: M of the mixture; 1 is a Gaussian.
        flow: Makes the flow after the mixture, which hears the encoder's features:
            `partial(real_nvp, latent_dim, num_layers=4)`; None for none.
        width: Channels of the encoders' first block; they give 8 times as many features.
        decoder_width: Channels of the decoder.
        num_blocks: Residual blocks of the decoder.
        mean_bound: Largest absolute mean of posterior and mixture.
        scale_bound: Largest absolute log-scale of both.

    Returns:
        A VAE whose data points are masks (1, H, W), with `context_shape` the picture's.

    Raises:
        ConfigurationError: for a size that is not positive, or a picture that is none.
        CombinationError: if the flow does not fit the latents.

    References:
        Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018, arXiv 1806.05034 (the model, with
        one Gaussian); GMM-based VAE model with Normalising Flow for effective stochastic segmentation, 2025 (mixture,
        flow and bounds); Selvan et al., Uncertainty quantification in medical image segmentation with normalizing
        flows, 2020, arXiv 2006.02683 (flow alone).
    """
    check_sizes(latent_dim=latent_dim, num_components=num_components, decoder_width=decoder_width)
    for name, value in (("mean_bound", mean_bound), ("scale_bound", scale_bound)):
        check_positive(name, value)
    if len(picture_shape) != 3:
        raise ConfigurationError(f"`picture_shape` must be (C, H, W); got {picture_shape}.")
    mask_shape, latent = (1, *picture_shape[1:]), (latent_dim,)
    both = joined_shape(mask_shape, picture_shape)
    encoder = nn.Sequential(
        GatedConvolutionEncoder(both, gaussian_raw_shape(latent), width=width),
        _BoundedMeans(latent_dim, mean_bound),
    )
    posterior = AmortizedGaussian(latent, both, encoder, scale_bound=scale_bound)
    prior = _prior(picture_shape, latent_dim, num_components, flow, width, mean_bound, scale_bound)
    seen = joined_shape(latent, picture_shape)
    decoder = ResidualConvolution(
        seen, mask_shape, width=decoder_width, num_blocks=num_blocks, zero_last=False
    )
    likelihood = AmortizedBernoulli(mask_shape, seen, decoder)
    return VAE(posterior, prior, likelihood, context_shape=picture_shape)


def _prior(
    picture: Shape,
    dim: int,
    num_components: int,
    flow: FlowMaker | None,
    width: int,
    mean_bound: float,
    scale_bound: float,
) -> Conditional:
    encoder = GatedConvolutionEncoder(picture, None, width=width)
    features = encoder.out_shape[0]
    last = LastLayer(features, mixture_raw_shape((dim,), num_components))
    bounds = {"mean_bound": mean_bound, "scale_bound": scale_bound}
    if flow is None:
        network = nn.Sequential(encoder, last)
        return AmortizedMixture(dim, picture, network, num_components=num_components, **bounds)
    base = AmortizedMixture(dim, features, last, num_components=num_components, **bounds)
    return Flow(base, flow(context=features), embed=encoder, context_shape=picture)
