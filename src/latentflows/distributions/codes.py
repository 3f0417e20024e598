"""Masses of sequences of codes: an autoregressive categorical model with a causal Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.precision import at_least_float32, check_positive
from latentflows.core.shapes import Shape, as_shape, batch_shape, size
from latentflows.distributions.base import Conditional, Distribution, draw_index, over_batch
from latentflows.networks.transformer import CausalTransformer


class CodeSequence(Distribution):
    r"""Sequences of T codes among M as a value, each code given those before it.

    .. math:: \log p(c) = \sum_t \log p(c_t | c_1, \ldots, c_{t-1}), \quad p(c_t | \cdot) = \text{softmax}(l_t / \tau)

    A temperature tau divides the logits of every step. The masses still add up to one, but they are not p^(1/tau),
    which would need the sum over all M^T sequences.

    Cost: a density is one pass of the Transformer; a draw T cached steps, of the same cost in all. Memory of draws:
    2 L T W numbers of cache per row.

    Args:
        network: From embedded codes to logits.
        embedding: Of the codes.
        context: (*batch, 1 or T, F), or None.
        num_tokens: T.
        temperature: tau.
    """

    reparameterized = False
    discrete = True

    def __init__(
        self,
        network: CausalTransformer,
        embedding: nn.Embedding,
        context: Tensor | None,
        *,
        num_tokens: int,
        temperature: float = 1.0,
    ) -> None:
        check_positive("temperature", temperature)
        self.network, self.embedding, self.temperature = network, embedding, temperature
        self.batch_shape = () if context is None else tuple(context.shape[:-2])
        self.context = None if context is None else context.reshape(-1, *context.shape[-2:])
        self.event_shape = (num_tokens,)

    def logits(self, codes: Tensor) -> Tensor:
        """Return the logits of every step, (N, T, M), for codes (N, T) with N = K * B."""
        raw = self.network(self.embedding(codes), self.context)
        return at_least_float32(raw) / self.temperature

    def log_prob(self, x: Tensor) -> Tensor:
        batch = batch_shape(x, self.event_shape, "x")
        batch = torch.broadcast_shapes(batch, self.batch_shape)
        codes = x.expand(*batch, *self.event_shape).reshape(size(batch), *self.event_shape).long()
        steps = self.logits(codes).log_softmax(-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        return steps.sum(-1).view(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        batch = (*sample_shape, *self.batch_shape)
        like = self.embedding.weight.new_zeros(size(batch), 1)
        cache, previous = self.network.cache(like, self.context), None
        codes = []
        for _ in range(self.event_shape[0]):
            raw, cache = self.network.step(previous, cache)
            codes.append(draw_index(at_least_float32(raw) / self.temperature, ()))
            previous = self.embedding(codes[-1])
        return torch.stack(codes, -1).view(*batch, *self.event_shape)

    def tempered(self, temperature: float) -> CodeSequence:
        context = (
            None if self.context is None else self.context.view(*self.batch_shape, *self.context.shape[1:])
        )
        return CodeSequence(
            self.network,
            self.embedding,
            context,
            num_tokens=self.event_shape[0],
            temperature=self.temperature * temperature,
        )

    def check_support(self, x: Tensor) -> None:
        codes = self.embedding.num_embeddings
        if not ((x >= 0) & (x < codes) & (x == x.round())).all():
            raise DataError(
                f"Codes must be whole numbers from 0 to {codes - 1}; got values from {float(x.min()):g} to "
                f"{float(x.max()):g}. Take them from the quantizer that this prior was built for."
            )


class AutoregressiveCodes(Conditional):
    r"""A causal Transformer over T codes among M: the prior of a VQ-VAE, or of one level of several.

    It starts as the uniform distribution, log p(c) = -T log M. Codes of a map come in raster order; each place has a
    learned position.

    Cost: about T (24 W^2 + 4 T W) L + 2 T W M FLOPs for a density, or for a draw.

    Args:
        num_tokens: T.
        num_codes: M.
        width: W.
        depth: L, number of layers.
        heads: Attention heads; W / heads must be even.
        context_shape: Shape of what it is given, such as the codes of the levels above; None for nothing.
        embed: Network from the context to features, (N, F) for all tokens or (N, T, F) for each its own; None for a
            vector that is used as it is.
        features: F; None for the length of the context.

    Raises:
        ConfigurationError: if a size is out of range.

    References:
        van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, section 3.3 (a PixelCNN
        there); Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv 1906.00446, section
        3.2 (attention, and levels given those above).
    """

    distribution_type = CodeSequence

    def __init__(
        self,
        num_tokens: int,
        num_codes: int,
        *,
        width: int,
        depth: int,
        heads: int,
        context_shape: int | Shape | None = None,
        embed: nn.Module | None = None,
        features: int | None = None,
    ) -> None:
        if not isinstance(num_codes, int) or num_codes < 2:
            raise ConfigurationError(f"`num_codes` must be an integer of at least 2; got {num_codes!r}.")
        if (embed is None) != (features is None) or (embed is not None and context_shape is None):
            raise ConfigurationError(
                "`embed` and `features`, the number that it gives, come together, with a `context_shape`; got "
                f"embed={type(embed).__name__}, features={features!r}, context_shape={context_shape!r}."
            )
        shape = None if context_shape is None else as_shape(context_shape, "context_shape")
        if embed is None and shape is not None and len(shape) != 1:
            raise ConfigurationError(f"A context of shape {shape} needs `embed`, a network that reads it.")
        super().__init__(num_tokens, shape)
        self.num_codes, self.embed = num_codes, embed
        self.network = CausalTransformer(
            num_tokens,
            width,
            num_codes,
            width=width,
            depth=depth,
            heads=heads,
            context=features or (0 if shape is None else size(shape)),
            absolute=True,
        )
        self.embedding = nn.Embedding(num_codes, width)

    def _condition(self, context: Tensor | None) -> CodeSequence:
        if context is not None and self.context_shape is not None:
            rows = context.ndim - len(self.context_shape)
            if self.embed is not None:
                context = over_batch(self.embed, context, self.context_shape)
            if context.ndim == rows + 1:
                context = context.unsqueeze(-2)
        return CodeSequence(self.network, self.embedding, context, num_tokens=self.event_shape[0])
