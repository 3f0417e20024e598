"""VQ-VAE and VQ-VAE-2: codes from a learned codebook as latents, with a prior over the codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, batch_shape
from latentflows.distributions.base import Conditional, Distribution, sample_rows
from latentflows.distributions.codes import AutoregressiveCodes
from latentflows.distributions.delta import Delta
from latentflows.distributions.hierarchical import Hierarchical
from latentflows.models.quantizer import Quantized, Quantizer, code_usage
from latentflows.models.vae import Trace, count_parameters


class Codes(NamedTuple):
    """What a VQ-VAE makes of data.

    Attributes:
        z: The quantized latents of all levels, joined at the size of the last, (B, *latent).
        indices: Codes of all levels, top first, each in raster order, (B, T), int64.
        levels: What each level's quantizer gave, top first.
    """

    z: Tensor
    indices: Tensor
    levels: tuple[Quantized, ...]


class VQVAE(nn.Module):
    r"""An encoder, a codebook, a likelihood p(x|e) and a prior over codes p(c); one level of codes, or several.

    .. math:: c = c(x), \quad \log p(x) \ge \log p(x | e_{c(x)}) + \log p(c(x))

    The bound is the ELBO of a posterior that is sure of its code: both terms are exact, and no sample is involved. It
    cannot be tightened by more samples, for all would be the same; what it misses is the mass of all other codes that
    could have made x.

    With several levels, VQ-VAE-2, the top one is encoded from x alone, each below from x and the codes above, and the
    likelihood reads all. A coarser map is brought to a finer one's size by repeating its entries.

    It trains in two stages: `VectorQuantization` for encoder, quantizer and likelihood, then `CodeLikelihood` for the
    prior, by exact cross-entropy on the codes of the frozen encoder. A prior may be given a context, as a label.

    Args:
        encoder: From data (N, *event) to the latents of the quantizer's shape; for levels one each, top first, those
            below the top called with (x, above), the latents of all levels above at their own size.
        quantizer: Of each level.
        likelihood: From latents to a distribution over data: any, its `context_shape` being the `latent_shape`.
        prior: Over the codes of all levels, one discrete event (T,): `AutoregressiveCodes`, or a `Hierarchical` of
            them.

    Attributes:
        parts: Names of what a `Stage` may train.
        auxiliary: A module that an objective needs besides (`Objective.auxiliary`), or None.

    Raises:
        CombinationError: if the parts do not fit; the message says what would.

    References:
        van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, section 3;
        Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv 1906.00446, algorithm 1.
    """

    parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer", "likelihood", "prior")
    auxiliary: nn.Module | None

    def __init__(
        self,
        encoder: nn.Module | Sequence[nn.Module],
        quantizer: Quantizer | Sequence[Quantizer],
        likelihood: Conditional,
        prior: Conditional,
    ) -> None:
        super().__init__()
        encoders = [encoder] if isinstance(encoder, nn.Module) else list(encoder)
        quantizers = [quantizer] if isinstance(quantizer, Quantizer) else list(quantizer)
        self.latent_shape = _joined_levels(encoders, quantizers)
        self.num_tokens = sum(level.num_tokens for level in quantizers)
        _check_parts(quantizers, self.latent_shape, likelihood, prior)
        self.encoder, self.quantizer = nn.ModuleList(encoders), nn.ModuleList(quantizers)
        self.likelihood, self.prior = likelihood, prior
        self.auxiliary = None

    @property
    def event_shape(self) -> Shape:
        """Shape of one data point."""
        return self.likelihood.event_shape

    @property
    def context_shape(self) -> Shape | None:
        """Shape of what the prior is given, or None."""
        return self.prior.context_shape

    @property
    def levels(self) -> list[Quantizer]:
        """The quantizers, top first."""
        return [level for level in self.quantizer if isinstance(level, Quantizer)]

    def quantize(self, x: Tensor) -> Codes:
        """Encode data (B, *event), every level with its codes."""
        batch_shape(x, self.event_shape, "x")
        made: list[Quantized] = []
        for encoder, level in zip(self.encoder, self.levels, strict=True):
            above = [_resized(each.z, level.space) for each in made]
            made.append(level(encoder(x, torch.cat(above, 1)) if above else encoder(x)))
        indices = torch.cat([each.codes for each in made], 1)
        return Codes(self._joined([each.z for each in made]), indices, tuple(made))

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes of data (B, *event), (B, T)."""
        with torch.no_grad():
            return self.quantize(x).indices

    def embed(self, codes: Tensor) -> Tensor:
        """Return the latents (*batch, *latent) of codes (*batch, T)."""
        batch = batch_shape(codes, (self.num_tokens,), "codes")
        parts = codes.reshape(-1, self.num_tokens).split([level.num_tokens for level in self.levels], 1)
        z = self._joined([level.embed(part) for level, part in zip(self.levels, parts, strict=True)])
        return z.view(*batch, *self.latent_shape)

    def _joined(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([_resized(z, self.latent_shape[1:]) for z in levels], 1)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return the quantized latents of data as a point; the context is the prior's and is not looked at."""
        return Delta(self.quantize(x).z, event_ndim=len(self.latent_shape))

    def prior_at(self, context: Tensor | None = None) -> Distribution:
        """Return p(c), or p(c|context), over the codes (T,)."""
        return self.prior(context if self.context_shape is not None else None)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x|z) for quantized latents (*batch, *latent)."""
        return self.likelihood(z)

    def num_parameters(self) -> dict[str, int]:
        """Count the numbers of each part and in total; a codebook counts, whichever way it learns."""
        counts = {name: count_parameters(getattr(self, name)) for name in self.parts}
        counts["quantizer"] = sum(level.codebook.numel() for level in self.levels)
        return counts | {"total": sum(counts.values())}

    def trace(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        with_likelihood: bool = True,
        with_prior: bool = True,
    ) -> Trace:
        """Encode a batch and score it; `log_weight`, (1, B), is the bound on log p(x), and log q is 0.

        `penalties` holds the squared distances "codebook" and "commitment", summed over levels and tokens, and
        "perplexity" and "code_usage" of the batch at the level where each is lowest, the same for every point.

        Raises:
            ShapeError: if a shape is not the declared one.
        """
        if with_likelihood:
            found = self.quantize(x)
        else:
            with torch.no_grad():
                found = self.quantize(x)
        missing = found.z.new_full((1, len(x)), torch.nan)
        log_likelihood, log_prior = missing, missing
        if with_likelihood:
            log_likelihood = self.decode(found.z).log_prob(at_least_float32(x)).unsqueeze(0)
        if with_prior:
            log_prior = self.prior_at(context).log_prob(found.indices).unsqueeze(0)
        none = torch.zeros_like(missing)
        return Trace(
            x,
            found.z.unsqueeze(0),
            log_likelihood,
            log_prior,
            none,
            levels=(),
            penalties=_penalties(found, self.levels),
            context=context,
            auxiliary=self.auxiliary,
        )

    @torch.no_grad()
    def check_data(self, x: Tensor, context: Tensor | None = None) -> None:
        """Refuse data points (B, *event) that the likelihood gives no probability to.

        Raises:
            ShapeError: if the shape is not the declared one.
            DataError: for gray values under a Bernoulli likelihood, NaN, and the like.
        """
        batch_shape(x, self.event_shape, "x")
        self.decode(self.quantize(x[:1]).z).check_support(x)

    @torch.no_grad()
    def sample_codes(self, num: int, *, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """Draw codes (num, T) from the prior, the logits of every step divided by `temperature`.

        Raises:
            ShapeError: if there is not one row of context per draw.
        """
        return sample_rows(self.prior_at(context), num, temperature)

    @torch.no_grad()
    def sample_latents(self, num: int, *, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """Draw codes from the prior and return their latents, (num, *latent)."""
        return self.embed(self.sample_codes(num, temperature=temperature, context=context))

    @torch.no_grad()
    def sample(self, num: int, *, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """Draw codes from the prior and x from p(x|z): (num, *event). For the mean image use `decode_mean`."""
        return self.decode(self.sample_latents(num, temperature=temperature, context=context)).sample()

    @torch.no_grad()
    def decode_mean(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return E[x|z], (*batch, *event), for quantized latents (*batch, *latent)."""
        return self.decode(z).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return E[x|z] at the codes of x: (B, *event)."""
        return self.decode_mean(self.quantize(x).z)


def _penalties(found: Codes, levels: Sequence[Quantizer]) -> dict[str, Tensor]:
    usage = [
        code_usage(made.codes, level.num_codes) for made, level in zip(found.levels, levels, strict=True)
    ]
    points = found.levels[0].commitment
    perplexity, used = (torch.stack(each).min().to(points.dtype) for each in zip(*usage, strict=True))
    return {
        "codebook": torch.stack([level.codebook_loss for level in found.levels]).sum(0),
        "commitment": torch.stack([level.commitment for level in found.levels]).sum(0),
        "perplexity": perplexity.expand_as(points),
        "code_usage": used.expand_as(points),
    }


def _resized(z: Tensor, space: Shape) -> Tensor:
    """Repeat the entries of a map (B, D, *own space) until it has this space."""
    for axis, length in enumerate(space, start=2):
        z = z if z.shape[axis] == length else z.repeat_interleave(length // z.shape[axis], axis)
    return z


def _joined_levels(encoders: Sequence[nn.Module], quantizers: Sequence[Quantizer]) -> Shape:
    """Return the shape of all levels joined at the size of the last one."""
    if not quantizers or len(encoders) != len(quantizers):
        raise CombinationError(
            f"Each level needs an encoder and a quantizer; got {len(encoders)} and {len(quantizers)}."
        )
    space = quantizers[-1].space
    for below, level in zip(quantizers[1:], quantizers[:-1], strict=True):
        same = len(below.space) == len(level.space)
        if not same or any(b % a for a, b in zip(level.space, below.space, strict=True)):
            raise CombinationError(
                f"Levels stand top first, each coarser than the next by whole factors; got spaces {level.space} "
                f"above {below.space}."
            )
    return (sum(level.event_shape[0] for level in quantizers), *space)


def _check_parts(
    quantizers: Sequence[Quantizer], latent: Shape, likelihood: Conditional, prior: Conditional
) -> None:
    if likelihood.context_shape != latent:
        raise CombinationError(
            f"The likelihood must read latents of shape {latent}, all levels joined; it reads "
            f"{likelihood.context_shape}."
        )
    if not likelihood.has_density:
        raise CombinationError(
            f"The likelihood must score data that it did not draw, but `{type(likelihood).__name__}` cannot. Use a "
            "flow with an inverse."
        )
    tokens = sum(level.num_tokens for level in quantizers)
    if not prior.distribution_type.discrete or prior.event_shape != (tokens,):
        raise CombinationError(
            f"The prior must be over the codes, a discrete event of shape {(tokens,)}; got `{type(prior).__name__}` "
            f"of {prior.event_shape}. Use `AutoregressiveCodes`, or a `Hierarchical` of them."
        )
    expected = tuple(level.num_codes for level in quantizers for _ in range(level.num_tokens))
    found = _code_sizes(prior)
    if found is not None and found != expected:
        raise CombinationError(
            f"Prior and quantizers must have the same numbers of codes; got {sorted(set(found))} and "
            f"{sorted(set(expected))} (token by token, top level first)."
        )


def _code_sizes(prior: Conditional) -> tuple[int, ...] | None:
    """Return how many codes each token of a prior may take, or None where that is not known."""
    if isinstance(prior, AutoregressiveCodes):
        return (prior.num_codes,) * prior.event_shape[0]
    if isinstance(prior, Hierarchical):
        sizes = [_code_sizes(level) for level in prior.members]
        known = [each for each in sizes if each is not None]
        return sum(known, start=()) if len(known) == len(sizes) else None
    return None
