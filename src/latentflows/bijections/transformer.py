"""Autoregressive flows over tokens, with a causal Transformer as conditioner.

Axes: K samples, B points, N = K * B, T tokens, d entries of a token, P raw parameters of one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from latentflows.bijections.base import Bijection
from latentflows.bijections.inputs import both_contexts, checked, fit_frames, other_type
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.core.precision import check_positive, full_precision
from latentflows.core.shapes import Shape, as_shape, size
from latentflows.core.tracing import is_traced
from latentflows.networks.base import check_sizes
from latentflows.networks.tokens import cut, join, num_tokens
from latentflows.networks.transformer import CausalTransformer
from latentflows.transforms import Additive, Affine, Transform
from latentflows.transforms.base import check_line_transform
from latentflows.transforms.guidance import GuidanceRule, check_guidance, guided

Inversion = Literal["cached", "loop", "jacobi"]
Move = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of one token: (u, raw parameters) -> x, log dx/du
MAX_PASSES = 30  # of Jacobi iteration; published models are usable after 10 to 30 (arXiv 2505.12849)
ROUNDING = 100  # spacings of numbers that a converged value may still move by


@dataclass(frozen=True)
class JacobiReport:
    """A sample found by Jacobi iteration, and how far it can be trusted.

    Attributes:
        x: The events (*batch, *event_shape).
        log_det: log|det dx/du| in nats, (*batch).
        passes: Network passes over all tokens, the last of which measured the residual.
        residual: Largest change of an entry by that pass, over max(1, |entry|), (*batch).
        fallback: Rows that missed the tolerance and were solved again, exactly, by the cached loop, (*batch).
    """

    x: Tensor
    log_det: Tensor
    passes: int
    residual: Tensor
    fallback: Tensor


class TransformerAutoregressive(Bijection):
    r"""Move each token given the tokens before it, as a causal Transformer says (a block of TarFlow and STARFlow).

    .. math:: u_t = f^{-1}(x_t;\; \theta_t), \quad \theta_t = \text{Transformer}(x_0 \dots x_{t-1}, c)

    for an elementwise map f, affine by default: :math:`x_t = u_t e^{s_t} + m_t`. It is a masked autoregressive flow
    whose variables are tokens: **cheap to score**, T steps to sample; `Inverse(TransformerAutoregressive(...))` is
    cheap to sample. Tokens are runs of `patch` entries of a vector (D,), of `patch` frames of a sequence (C, T), or
    squares of side `patch` of an image (C, H, W) in raster order. The entries of a token do not see each other within
    a layer, and the first token of the order is only moved by what is learned and by the context: stack two or more,
    in alternating order, with mixing between them (`latentflows.models.tarflow`).

    It starts as the identity. The Transformer runs in float32 under autocast, both ways: rounding would add up over
    the steps of sampling.

    Cost: inverse, one network pass, in parallel over tokens; forward, T steps of the network, one token after the
    other. `CausalTransformer` has the formulas of FLOPs, memory and parameters; how forward pays them:

    - "cached": keys and values are kept, so T steps cost the FLOPs of one pass or less. Exact.
    - "loop": a pass over all tokens before, for every token: about T / 2 times the FLOPs. For tests and benchmarks.
    - "jacobi": all tokens at once, repeated until a further pass changes nothing, at most 30 times; rows that do not
      get there are solved by the cached loop. Fewer launches, more FLOPs; see `jacobi`.

    Where gradients are recorded, forward is an ordinary cached loop whose graph keeps a copy of the cache per step,
    2 L T^2 W numbers per row; call it under `torch.no_grad()` to sample only. With gradients, and under
    `torch.compile`, `torch.func` and forward-mode differentiation, "jacobi" takes the cached loop.

    Padded sequences (`lengths`): a token that holds any padding stays as it is and adds nothing to the
    log-determinant. A reversed layer reverses the valid tokens only, so padding stays behind them and causal attention
    never sees it.

    Args:
        event_shape: (D,), (C, T) or (C, H, W).
        width: W, of the Transformer.
        depth: Number of its layers.
        heads: Number of attention heads; width / heads must be even.
        patch: Entries, frames, or side of the square of a token; it must divide the length of every axis it cuts.
        reverse: Run through the tokens from the last to the first.
        transform: The elementwise map.
        context_shape: None; (F,) for features or the embedding of a label; (F, T) or (F, H, W) for a map as long or
            as large as the event, which is cut like the event, each token hearing its own piece and those before it.
        inversion: How forward is computed.

    Shape:
        u, x: (*batch, *event_shape); context: (*batch, *context_shape); log_det: (*batch).

    Raises:
        CombinationError: for fewer than two tokens, or a context that does not fit.
        ConfigurationError: for sizes that do not divide or are not positive, or a transform of angles.

    References:
        Zhai et al., Normalizing Flows are Capable Generative Models (TarFlow), 2024, arXiv 2412.06329;
        Gu et al., STARFlow: Scaling Latent Normalizing Flows for High-resolution Image Synthesis, 2025,
        arXiv 2506.06276.
    """

    def __init__(
        self,
        event_shape: int | Shape,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 1,
        reverse: bool = False,
        transform: Transform | None = None,
        context_shape: int | Shape | None = None,
        inversion: Inversion = "cached",
    ) -> None:
        shape = as_shape(event_shape, "event_shape")
        tokens = num_tokens(shape, patch)
        super().__init__(shape, passes=(tokens, 1), context_shape=context_shape)
        if inversion not in get_args(Inversion):
            raise ConfigurationError(f"`inversion` must be one of {get_args(Inversion)}; got {inversion!r}.")
        self.patch, self.reverse, self.inversion = patch, reverse, inversion
        self.transform = (
            Affine() if transform is None else check_line_transform(transform, type(self).__name__)
        )
        self.num_tokens, self.token_size = tokens, size(shape) // tokens
        self.variable_lengths = len(shape) == 2
        self.network = CausalTransformer(
            tokens,
            self.token_size,
            self.transform.size * self.token_size,
            width=width,
            depth=depth,
            heads=heads,
            context=self._context_features(),
            absolute=not self.variable_lengths,
        )

    def _context_features(self) -> int:
        if self.context_shape is None:
            return 0
        if len(self.context_shape) == 1:
            return self.context_shape[0]
        if len(self.event_shape) == 1 or self.context_shape[1:] != self.event_shape[1:]:
            raise CombinationError(
                "`context_shape` must be a vector, or a map as long or as large as the event "
                f"{self.event_shape}; got {self.context_shape}."
            )
        return size(self.context_shape) // self.num_tokens

    def _inverse(
        self, x: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens, piece, keep = self._tokens(x, context, valid)
        with full_precision(x):
            raw = self._raw(self.network(tokens, piece))
            u, log_derivative = self.transform.inverse(tokens, raw)
        return self._event(x, u, log_derivative, keep)

    def _forward(
        self, u: Tensor, context: Tensor | None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens, piece, keep = self._tokens(u, context, valid)
        with full_precision(u):
            if self.inversion == "loop":
                x, log_derivative = self._loop(tokens, piece)
            elif self.inversion == "cached" or torch.is_grad_enabled() or is_traced():
                x, log_derivative = self._stepwise(tokens, piece)
            else:
                x, log_derivative, *_ = self._jacobi(tokens, piece, keep, None, MAX_PASSES)
        return self._event(u, x, log_derivative, keep)

    @torch.no_grad()
    def jacobi(
        self,
        u: Tensor,
        context: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        tolerance: float | None = None,
        max_passes: int = MAX_PASSES,
    ) -> JacobiReport:
        """Sample by fixed-point iteration over all tokens at once, and report how it went; no gradients.

        After k passes the first k tokens are exact, so T + 1 passes always suffice. A row is accepted when a further
        pass changes none of its entries by more than `tolerance` * max(1, |entry|), and then stays as it is; a loose
        tolerance gives another distribution. Rows not accepted in `max_passes` are solved by the cached loop.

        Cost: `passes` network passes over all tokens; T cached steps more for rows that fall back.

        Args:
            u: Base noise (*batch, *event_shape).
            context: (*batch, *context_shape), where the layer takes one.
            lengths: Frames of each padded sequence (*batch).
            tolerance: Largest relative change; None for 100 times the spacing of numbers of this dtype.
            max_passes: Largest number of passes.

        Raises:
            ShapeError: if a shape is not the declared one.
            ConfigurationError: if a setting is not positive.
            NonFiniteError: if a value is NaN or infinite.

        References:
            Song et al., Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving, 2021,
            arXiv 2002.03629; Liu & Qin, Accelerate TarFlow Inversion with GS-Jacobi Iteration, 2025,
            arXiv 2505.12849.
        """
        check_sizes(max_passes=max_passes)
        if tolerance is not None:
            check_positive("tolerance", tolerance)
        value, context, valid, batch = self._aligned(u, context, self.context_shape, lengths)
        tokens, piece, keep = self._tokens(value, context, valid)
        with full_precision(value):
            x, log_derivative, passes, residual, fallback = self._jacobi(
                tokens, piece, keep, tolerance, max_passes
            )
        x, log_det = self._event(value, x, log_derivative, keep)
        return JacobiReport(
            x.reshape(*batch, *self.event_shape),
            log_det.reshape(batch),
            passes,
            residual.reshape(batch),
            fallback.reshape(batch),
        )

    @torch.no_grad()
    def sample_guided(
        self,
        u: Tensor,
        context: Tensor,
        unconditional: Tensor,
        *,
        weight: float,
        rule: GuidanceRule = "linear",
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Map base noise by a map pushed away from that without a context (classifier-free guidance); no gradients.

        Each token is moved by the affine map that `transforms.guidance.guided` makes of the layer's two, with the
        context and with the one that stands for none. **What comes out follows another distribution than this
        layer's**: neither `inverse` nor a `log_prob` describes it, so no log-determinant is returned. At weight 0 it
        is `forward`.

        Cost: the cached loop on twice the rows.

        Args:
            u: Base noise (*batch, *event_shape).
            context: (*batch, *context_shape).
            unconditional: What stands for no context, (*context_shape) or with batch axes. It must have been trained:
                TarFlow puts the mean of all label embeddings in the place of some labels.
            weight: w, 0 or more.
            rule: How the two maps are combined.
            lengths: Frames of each padded sequence (*batch).

        Raises:
            CombinationError: without a context, or for a map that is neither affine nor additive.
            ConfigurationError: for a negative weight or an unknown rule.
            ShapeError: if a shape is not the declared one, or batch axes do not broadcast.
            DataError: for what is no tensor; a NonFiniteError if a value is NaN or infinite.
        """
        shape = self.context_shape
        if shape is None or type(self.transform) not in (Affine, Additive):
            raise CombinationError(
                "Guidance needs a layer with a context and an affine or additive map; got context shape "
                f"{shape} and {type(self.transform).__name__}."
            )
        check_guidance(weight, rule)
        pair = torch.cat(both_contexts(type(self).__name__, context, unconditional, shape), -len(shape))
        value, pair, valid, batch = self._aligned(u, pair, (2 * shape[0], *shape[1:]), lengths)
        assert pair is not None
        twice = None if valid is None else torch.cat([valid, valid], 1)
        tokens, piece, keep = self._tokens(
            torch.cat([value, value], 1), torch.cat(pair.chunk(2, 1)), twice
        )  # 2 B points for each sample: the B with their context, and the same B without

        def move(u_token: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
            shift, log_scale = self.transform.forward(torch.zeros_like(u_token), raw)
            shifts, log_scales, noises = (
                v.expand_as(u_token).unflatten(0, (len(value), 2, value.shape[1]))
                for v in (shift, log_scale, u_token)
            )
            shift, log_scale = guided(
                shifts[:, 0], shifts[:, 1], log_scales[:, 0], log_scales[:, 1], weight, rule
            )
            return (shift[:, None] + noises * log_scale[:, None].exp()).flatten(0, 2), log_scale.new_zeros(())

        with full_precision(value):
            x, log_derivative = self._stepwise(tokens, piece, move)
        x, _ = self._event(torch.cat([value, value], 1), x, log_derivative, keep)
        return x[:, : value.shape[1]].reshape(*batch, *self.event_shape)

    def _aligned(
        self, u: Tensor, context: Tensor | None, context_shape: Shape | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Shape]:
        """Return noise (K, B, ...), context (B, ...), mask (K, B, frames) and the batch shape."""
        value, context, batch = checked(type(self).__name__, u, self.base_shape, context, context_shape)
        mismatch = other_type(self, value)
        if mismatch is not None:
            raise mismatch
        return value, context, None if lengths is None else self._valid(lengths, value, batch), batch

    def _tokens(
        self, value: Tensor, context: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return tokens (N, T, d) in their order, the context's (B or N, 1 or T, F), and which are no padding."""
        keep = None if valid is None else fit_frames(valid, self.num_tokens).flatten(0, 1)
        tokens = cut(value, self.patch, self.event_shape).flatten(0, 1)
        piece = None if context is None else context.to(value.dtype)
        if piece is not None:
            assert self.context_shape is not None
            mapped = len(self.context_shape) > 1
            piece = cut(piece, self.patch, self.context_shape) if mapped else piece[:, None]
            if mapped and keep is not None:
                piece = piece.repeat(len(value), 1, 1)  # every row has its own order
                piece = piece.masked_fill(~keep[..., None], 0)  # NaN would reach earlier tokens
            piece = self._arranged(piece, keep) if mapped else piece
        if keep is not None:
            tokens = tokens.masked_fill(~keep[..., None], 0)
        return self._arranged(tokens, keep), piece, keep

    def _arranged(self, tokens: Tensor, keep: Tensor | None) -> Tensor:
        """Reverse the tokens (..., T, d) of a reversed layer, padding left at the end. Twice is once undone."""
        if not self.reverse:
            return tokens
        if keep is None:
            return tokens.flip(-2)
        place = torch.arange(self.num_tokens, device=tokens.device)
        count = keep.sum(-1, keepdim=True)
        order = torch.where(place < count, count - 1 - place, place)
        return tokens.gather(1, order[..., None].expand_as(tokens))

    def _event(
        self, before: Tensor, tokens: Tensor, log_derivative: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Put tokens back into events like `before`, where padding comes from; sum the log-derivatives."""
        log_derivative = log_derivative.expand_as(tokens)
        moved = self._arranged(tokens, keep)
        if keep is not None:
            log_derivative = log_derivative.masked_fill(~keep[..., None], 0)
            untouched = cut(before, self.patch, self.event_shape).flatten(0, 1)
            moved = torch.where(keep[..., None], moved, untouched)
        moved = join(moved.unflatten(0, before.shape[:2]), self.patch, self.event_shape)
        return moved, log_derivative.sum((1, 2)).view(before.shape[:2])

    def _raw(self, out: Tensor) -> Tensor:
        """Return raw parameters (P, ..., d) of outputs (..., P * d)."""
        return out.unflatten(-1, (self.transform.size, self.token_size)).movedim(-2, 0)

    def _stepwise(self, u: Tensor, piece: Tensor | None, move: Move | None = None) -> tuple[Tensor, Tensor]:
        """Sample token after token from cached keys and values, by the layer's map or by another one."""
        move = self.transform.forward if move is None else move
        cache, previous = self.network.cache(u, piece), None
        tokens, log_derivatives = [], []
        for i in range(self.num_tokens):
            out, cache = self.network.step(previous, cache)
            previous, log_derivative = move(u[:, i], self._raw(out))
            tokens.append(previous)
            log_derivatives.append(log_derivative.expand_as(previous))
        return torch.stack(tokens, 1), torch.stack(log_derivatives, 1)

    def _loop(self, u: Tensor, piece: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sample token after token, each from a pass over all those before it."""
        x, log_derivatives = u[:, :0], []
        for i in range(self.num_tokens):
            heard = piece if piece is None or piece.shape[1] == 1 else piece[:, : i + 1]
            out = self.network(torch.cat([x, u[:, i : i + 1]], 1), heard)[:, i:]  # the last token is not read
            token, log_derivative = self.transform.forward(u[:, i : i + 1], self._raw(out))
            x = torch.cat([x, token], 1)
            log_derivatives.append(log_derivative.expand_as(token))
        return x, torch.cat(log_derivatives, 1)

    def _jacobi(
        self, u: Tensor, piece: Tensor | None, keep: Tensor | None, tolerance: float | None, max_passes: int
    ) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
        """Sample all tokens at once; return them, log-derivatives, passes, residual (N) and fallback (N)."""
        tolerance = ROUNDING * torch.finfo(u.dtype).eps if tolerance is None else tolerance
        x, passes = u, 0
        while True:
            new, log_derivative = self.transform.forward(u, self._raw(self.network(x, piece)))
            passes += 1
            change = (new - x).abs() / new.abs().clamp_min(1)
            if keep is not None:
                change = change.masked_fill(~keep[..., None], 0)
            residual = change.flatten(1).amax(1)
            fallback = ~(residual <= tolerance)  # NaN too
            if passes == max_passes or not bool(fallback.any()):
                break
            x = torch.where(fallback[:, None, None], new, x)
        log_derivative = log_derivative.expand_as(x)
        rows = fallback.nonzero().flatten()
        if len(rows):
            part = None if piece is None else piece[rows % len(piece)]
            exact, exact_log_derivative = self._stepwise(u[rows], part)
            x = x.index_copy(0, rows, exact)
            log_derivative = log_derivative.index_copy(0, rows, exact_log_derivative)
        return x, log_derivative, passes, residual, fallback
