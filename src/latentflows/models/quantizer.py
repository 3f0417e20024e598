"""Vector quantization: each latent vector is replaced by the nearest of M learned ones."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.precision import at_least_float32, full_precision
from latentflows.core.running import Running, gathered_over_processes, total_over_processes
from latentflows.core.shapes import Shape, as_shape, batch_shape, size

_LOST = 1e-20  # moving count below which a code's moving mean is no longer trusted


class Quantized(NamedTuple):
    """What quantizing a batch gives.

    Attributes:
        z: The chosen codes, (B, *event); its gradient goes to the latents as if nothing had been replaced.
        codes: Their indices, (B, T), int64.
        codebook_loss: Sum over tokens of |sg(latent) - code|^2, (B,); zero for a codebook of moving averages.
        commitment: Sum over tokens of |latent - sg(code)|^2, (B,).
    """

    z: Tensor
    codes: Tensor
    codebook_loss: Tensor
    commitment: Tensor


class Quantizer(Running):
    r"""A codebook of M vectors of D numbers, and the map of every latent vector to the nearest of them.

    .. math:: c_t = \arg\min_i |z_t - e_i|^2, \quad L = |sg(z) - e_c|^2 + \beta |z - sg(e_c)|^2

    The gradient passes the arg min unchanged (straight-through): that of the quantized z is given to z. The codebook
    follows the latents that chose it, by the gradient of the first term, or as moving averages,

    .. math:: N_i \leftarrow \gamma N_i + (1 - \gamma) n_i, \quad m_i \leftarrow \gamma m_i + (1 - \gamma) \sum z,
        \quad e_i = m_i / N_i

    with n_i and the sum over the tokens of the whole step, all pieces and processes together. Both start at zero, so
    that a code is from the start an average of what chose it. A code whose moving count N_i falls below
    `restart_below` of the mean count takes the place of a latent of the step, drawn at random, and the mean count;
    after the first step these are all codes that nothing chose. The moments of an optimizer are left as they are.

    `fit` takes moving averages and restarts in after the optimizer has moved: see `Running`.

    Cost: 2 N M D FLOPs for N tokens, and N M numbers. Memory of the step: 2 M D numbers for each piece.

    Args:
        event_shape: Shape of one latent: a map (D, h, w) or (D, t), one token at each place, or a vector (E,).
        num_codes: M.
        num_tokens: Tokens that a vector is cut in, D = E / T each; must be 1 for a map.
        codebook: "moving_average", or "gradient".
        decay: gamma, for moving averages and counts.
        restart_below: Share of the mean count below which a code restarts; 0 for never.

    Raises:
        ConfigurationError: if a setting is out of range, or a vector cannot be cut so.

    References:
        van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, eq. 1-3 and appendix A.1;
        Dhariwal et al., Jukebox, 2020, arXiv 2005.00341, section 3.1 (restarts).
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor | None

    def __init__(
        self,
        event_shape: int | Shape,
        num_codes: int,
        *,
        num_tokens: int = 1,
        codebook: Literal["moving_average", "gradient"] = "moving_average",
        decay: float = 0.99,
        restart_below: float = 0.05,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, "event_shape")
        _check(self.event_shape, num_codes, num_tokens, codebook, decay, restart_below)
        self.space = self.event_shape[1:]
        self.num_codes, self.num_tokens = num_codes, size(self.space) * num_tokens
        self.dim = self.event_shape[0] // num_tokens
        self.decay, self.restart_below = decay, restart_below
        start = torch.empty(num_codes, self.dim).uniform_(-1 / num_codes, 1 / num_codes)
        self.register_buffer("counts", torch.zeros(num_codes))
        if codebook == "gradient":
            self.codebook = nn.Parameter(start)
            self.register_buffer("sums", None)
        else:
            self.register_buffer("codebook", start)
            self.register_buffer("sums", torch.zeros(num_codes, self.dim))

    def forward(self, z: Tensor) -> Quantized:
        """Replace latents (B, *event) by codes; in train mode with gradients, gather what moves the codes.

        Raises:
            ShapeError: if the latents have another shape.
        """
        if batch_shape(z, self.event_shape, "z") != z.shape[:1]:
            raise ShapeError(f"`z` must have one batch axis before {self.event_shape}; got {tuple(z.shape)}.")
        tokens = self._tokens(at_least_float32(z))
        codes = self.nearest(tokens)
        chosen = functional.embedding(codes, self.codebook)
        if self.training and torch.is_grad_enabled():
            self._gather(tokens.detach().flatten(0, 1), codes.flatten())
        commitment = (tokens - chosen.detach()).square().flatten(1).sum(1)
        loss = torch.zeros_like(commitment)
        if self.sums is None:
            loss = (tokens.detach() - chosen).square().flatten(1).sum(1)
        # The code to the last bit, which z + (e - z) is not, with the gradient of the latent.
        passed = chosen.detach() + (tokens - tokens.detach())
        return Quantized(self._event(passed), codes, loss, commitment)

    @torch.no_grad()
    def nearest(self, tokens: Tensor) -> Tensor:
        """Return the index of the nearest code of each token, (..., D) to (...), the first of several."""
        with full_precision(tokens):
            center = self.codebook.mean(0)  # distances do not change, and rounding is that of small numbers
            book = (self.codebook - center).to(tokens.dtype)
            products = (tokens - center) @ book.t()
            return (book.square().sum(1) - 2 * products).argmin(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """Return the latents (*batch, *event) of codes (*batch, T)."""
        batch = batch_shape(codes, (self.num_tokens,), "codes")
        flat = functional.embedding(codes.reshape(size(batch), self.num_tokens).long(), self.codebook)
        return self._event(flat).view(*batch, *self.event_shape)

    def _forget(self) -> None:
        self._counts: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._candidates: list[Tensor] = []

    @torch.no_grad()
    def _take_in(self) -> None:
        if not self._counts:
            return
        counts = total_over_processes(torch.stack(self._counts).sum(0))
        self.counts.lerp_(counts, 1 - self.decay)
        if self.sums is not None:
            self.sums.lerp_(total_over_processes(torch.stack(self._sums).sum(0)), 1 - self.decay)
            seen = (self.counts > _LOST)[:, None]
            self.codebook.copy_(torch.where(seen, self.sums / self.counts[:, None], self.codebook))
        if self._candidates:
            self._restart()

    def _restart(self) -> None:
        """Put dead codes where latents of the step are; every process takes the same ones, in the pieces' order."""
        rows = min(len(each) for each in self._candidates)
        pieces = gathered_over_processes(torch.stack([each[:rows] for each in self._candidates]))
        candidates = (
            pieces.flatten(0, 1).transpose(0, 1).flatten(0, 1)
        )  # the first of each piece, then the second
        mean = self.counts.mean()
        dead = self.counts < self.restart_below * mean
        order = dead.cumsum(0) - 1
        dead = dead & (order < len(candidates))
        placed = candidates[order.clamp(0, len(candidates) - 1)]
        self.codebook.copy_(torch.where(dead[:, None], placed, self.codebook))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        if self.sums is not None:
            self.sums.copy_(torch.where(dead[:, None], placed * mean, self.sums))

    @torch.no_grad()
    def _gather(self, tokens: Tensor, codes: Tensor) -> None:
        tokens = tokens.to(self.codebook.dtype)
        counts = torch.zeros_like(self.counts)
        self._counts.append(counts.index_add(0, codes, torch.ones_like(tokens[:, 0])))
        if self.sums is not None:
            self._sums.append(torch.zeros_like(self.sums).index_add(0, codes, tokens))
        if self.restart_below:
            chosen = noise.permutation(len(tokens))[: self.num_codes].to(tokens.device)
            self._candidates.append(tokens[chosen])
        self.gathered()

    def _tokens(self, z: Tensor) -> Tensor:
        """Turn (B, *event) into (B, T, D), places in raster order."""
        if self.space:
            return z.flatten(2).transpose(1, 2)
        return z.unflatten(1, (self.num_tokens, self.dim))

    def _event(self, tokens: Tensor) -> Tensor:
        """Turn (B, T, D) into (B, *event)."""
        if self.space:
            return tokens.transpose(1, 2).reshape(len(tokens), *self.event_shape)
        return tokens.flatten(1)


def code_usage(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    r"""Return the perplexity of codes and the share of the M codes that occur at all.

    .. math:: \exp\left(-\sum_i p_i \log p_i\right), \quad p_i = \text{share of code } i

    It is M where all codes are chosen equally often, and 1 where one is chosen alone.

    Args:
        codes: Any shape, integers.
        num_codes: M.
    """
    flat = codes.reshape(-1)
    counts = torch.zeros(num_codes, dtype=torch.float64, device=codes.device)
    counts = counts.index_add(0, flat, torch.ones_like(flat, dtype=torch.float64))
    shares = counts / max(len(flat), 1)
    return torch.special.entr(shares).sum().exp(), (counts > 0).double().mean()


def _check(
    event: Shape, num_codes: int, num_tokens: int, codebook: str, decay: float, restart_below: float
) -> None:
    if not isinstance(num_codes, int) or num_codes < 2:
        raise ConfigurationError(f"`num_codes` must be an integer of at least 2; got {num_codes!r}.")
    if not isinstance(num_tokens, int) or num_tokens < 1 or event[0] % num_tokens:
        raise ConfigurationError(
            f"`num_tokens` must divide the {event[0]} entries of a vector; got {num_tokens!r} for {event}."
        )
    if len(event) > 1 and num_tokens > 1:
        raise ConfigurationError(
            f"A map {event} has one token at each place: leave `num_tokens` out; got {num_tokens}."
        )
    if codebook not in ("moving_average", "gradient"):
        raise ConfigurationError(f'`codebook` must be "moving_average" or "gradient"; got {codebook!r}.')
    if not 0 <= decay < 1:
        raise ConfigurationError(f"`decay` must be in [0, 1); got {decay!r}.")
    if not 0 <= restart_below < 1:
        raise ConfigurationError(f"`restart_below` must be in [0, 1); got {restart_below!r}.")
