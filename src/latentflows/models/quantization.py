"""VQ-VAE and VQ-VAE-2 for pictures, put together from residual convolutions and Transformers in a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape, size
from latentflows.distributions.base import Conditional
from latentflows.distributions.codes import AutoregressiveCodes
from latentflows.distributions.hierarchical import Hierarchical
from latentflows.models.quantizer import Quantizer
from latentflows.models.vqvae import VQVAE
from latentflows.networks import ResidualBlock, ResidualMapDecoder, ResidualMapEncoder

Likelihood = Callable[[Shape, Shape, nn.Module], Conditional]
Codebook = Literal["moving_average", "gradient"]


class CodeFeatures(nn.Module):
    """Codes of a coarse map to features of each place of a finer one: what a level's prior reads of that above.

    Codes are embedded, pass residual blocks, so that a place knows its surroundings, and are repeated to the finer
    size. Numbers before the codes, such as a label, are added to every place by a linear map.

    Args:
        space: (h, w) of the coarse map.
        num_codes: Of each of its places.
        out_space: (H, W) of the finer map, whole multiples of h and w.
        features: Numbers of each place that come out.
        num_blocks: Residual blocks.
        beside: Numbers before the codes.

    Shape:
        context: (N, beside + h w); output: (N, H W, features), places in raster order.

    Raises:
        ConfigurationError: if the finer map is no whole multiple.
    """

    def __init__(
        self,
        space: Shape,
        num_codes: int,
        out_space: Shape,
        features: int,
        *,
        num_blocks: int = 2,
        beside: int = 0,
    ) -> None:
        super().__init__()
        if any(b % a for a, b in zip(space, out_space, strict=True)):
            raise ConfigurationError(f"{out_space} must be whole multiples of {space}.")
        self.space, self.beside = space, beside
        self.factors = tuple(b // a for a, b in zip(space, out_space, strict=True))
        self.embedding = nn.Embedding(num_codes, features)
        self.linear = nn.Linear(beside, features) if beside else None
        self.body = nn.Sequential(*[ResidualBlock(features) for _ in range(num_blocks)])

    def forward(self, context: Tensor) -> Tensor:
        codes = context[:, self.beside :].long()
        h = self.embedding(codes).transpose(1, 2).unflatten(2, self.space)
        if self.linear is not None:
            h = h + self.linear(context[:, : self.beside])[:, :, None, None]
        h = self.body(h)
        for axis, factor in enumerate(self.factors, start=2):
            h = h.repeat_interleave(factor, axis)
        return h.flatten(2).transpose(1, 2)


def vq_vae(
    data_shape: Shape,
    space: Shape,
    *,
    likelihood: Likelihood,
    raw_shape: Shape | None = None,
    dim: int = 16,
    num_codes: int = 128,
    codebook: Codebook = "moving_average",
    decay: float = 0.99,
    restart_below: float = 0.05,
    width: int = 32,
    num_blocks: int = 2,
    prior_width: int = 64,
    prior_depth: int = 2,
    heads: int = 4,
    context_shape: int | None = None,
) -> VQVAE:
    """Build a VQ-VAE of one level: residual convolutions around one codebook, a Transformer as prior.

    Args:
        data_shape: (C, H, W) of one picture.
        space: (h, w) of the codes: H and W halved some times, rounded up.
        likelihood: Makes p(x|z) from the data's shape, the latents' shape and a network: `AmortizedBernoulli`.
        raw_shape: What that network gives; None for the data's shape.
        dim: D, numbers of each code.
        num_codes: M.
        codebook: How it learns, see `Quantizer`.
        decay: Of its moving averages and counts.
        restart_below: Share of the mean count below which a code restarts.
        width: Channels of the first stage of the encoder and the last of the decoder.
        num_blocks: Residual blocks of each stage.
        prior_width: Width of the prior's Transformer.
        prior_depth: Its layers.
        heads: Its attention heads.
        context_shape: Numbers that the prior is given, such as a label; None for none.

    References:
        van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, section 4.1.
    """
    latent = (dim, *space)
    return VQVAE(
        ResidualMapEncoder(data_shape, latent, width=width, num_blocks=num_blocks),
        Quantizer(latent, num_codes, codebook=codebook, decay=decay, restart_below=restart_below),
        likelihood(
            data_shape,
            latent,
            ResidualMapDecoder(latent, raw_shape or data_shape, width=width, num_blocks=num_blocks),
        ),
        AutoregressiveCodes(
            size(space),
            num_codes,
            width=prior_width,
            depth=prior_depth,
            heads=heads,
            context_shape=context_shape,
        ),
    )


def vq_vae_2(
    data_shape: Shape,
    spaces: tuple[Shape, Shape],
    *,
    likelihood: Likelihood,
    raw_shape: Shape | None = None,
    dim: int = 16,
    num_codes: int = 128,
    codebook: Codebook = "moving_average",
    decay: float = 0.99,
    restart_below: float = 0.05,
    width: int = 32,
    num_blocks: int = 2,
    prior_width: int = 64,
    prior_depth: int = 2,
    heads: int = 4,
    context_shape: int | None = None,
) -> VQVAE:
    """Build a VQ-VAE-2: a coarse and a fine map of codes, the fine one encoded and modeled given the coarse one.

    Args:
        data_shape: (C, H, W) of one picture.
        spaces: (h, w) of the top and of the bottom codes; the bottom's are whole multiples of the top's.
        likelihood: Makes p(x|z) from the data's shape, the latents' shape and a network.
        raw_shape: What that network gives; None for the data's shape.
        dim: D, numbers of each code.
        num_codes: M of each level.
        codebook: How they learn, see `Quantizer`.
        decay: Of their moving averages and counts.
        restart_below: Share of the mean count below which a code restarts.
        width: Channels of the first stage of an encoder and the last of the decoder.
        num_blocks: Residual blocks of each stage, and of the network that reads the top codes.
        prior_width: Width of the priors' Transformers.
        prior_depth: Their layers.
        heads: Their attention heads.
        context_shape: Numbers that both priors are given, such as a label; None for none.

    References:
        Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv 1906.00446, sections 3.1-3.2.
    """
    top, bottom = ((dim, *space) for space in spaces)
    tokens = size(spaces[0])
    given = context_shape or 0
    both = (2 * dim, *spaces[1])
    features = CodeFeatures(spaces[0], num_codes, spaces[1], prior_width, num_blocks=num_blocks, beside=given)
    codes = partial(AutoregressiveCodes, width=prior_width, depth=prior_depth, heads=heads)
    levels = [
        codes(tokens, num_codes, context_shape=context_shape),
        codes(size(spaces[1]), num_codes, context_shape=given + tokens, embed=features, features=prior_width),
    ]
    return VQVAE(
        [
            ResidualMapEncoder(data_shape, top, width=width, num_blocks=num_blocks),
            ResidualMapEncoder(data_shape, bottom, width=width, num_blocks=num_blocks, beside=dim),
        ],
        [
            Quantizer(shape, num_codes, codebook=codebook, decay=decay, restart_below=restart_below)
            for shape in (top, bottom)
        ],
        likelihood(
            data_shape,
            both,
            ResidualMapDecoder(both, raw_shape or data_shape, width=width, num_blocks=num_blocks),
        ),
        Hierarchical(levels, context_shape=context_shape),
    )
