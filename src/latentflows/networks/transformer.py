"""A small causal Transformer over tokens, with a key/value cache that is passed in and out.

Axes: N = K * B rows, B rows of context, T tokens, d entries of a token, W width, H heads, E = W / H head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.tracing import is_traced
from latentflows.networks.base import Dense, LastLayer, check_context, check_sizes

ROTARY_BASE = 10_000.0  # the longest wavelength, in tokens, over 2 pi; Su et al. 2021, section 3


@dataclass(frozen=True)
class KeyValueCache:
    """What a Transformer remembers of the tokens before `position`: a value, not state of the module.

    One step writes into the preallocated tensors and returns a cache that shares them, so only the latest cache of a
    chain of steps can be continued. Where gradients are recorded, a step copies them instead. It takes 2 L T W numbers
    per row, and is gone when the last reference is.

    Attributes:
        keys: Per layer, (N, H, T, E).
        values: Per layer, (N, H, T, E).
        context: Projected context (B, 1, W) or (B, T, W), or None.
        position: Tokens seen so far.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    context: Tensor | None
    position: int


class CausalLayer(nn.Module):
    """One pre-norm layer: h + attention(norm(h)), then h + mlp(norm(h)), the MLP W -> 4 W -> W with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = Dense(width, 3 * width, bias=False)
        self.attention_out = Dense(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(Dense(width, 4 * width), nn.GELU(), Dense(4 * width, width))

    def forward(self, h: Tensor, rotation: Tensor) -> Tensor:
        query, key, value = self._heads(h, rotation)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._rest(h, attended)

    def step(
        self, h: Tensor, rotation: Tensor, keys: Tensor, values: Tensor, position: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move one token (N, 1, W) on; return it and the cache of this layer with its key and value."""
        query, key, value = self._heads(h, rotation)
        keys, values = _put(keys, key, position), _put(values, value, position)
        seen = slice(0, position + 1)
        attended = functional.scaled_dot_product_attention(query, keys[:, :, seen], values[:, :, seen])
        return self._rest(h, attended), keys, values

    def _heads(self, h: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys, and values, each (N, H, T, E)."""
        mixed = self.query_key_value(_normalized(self.attention_norm, h).flatten(0, 1)).unflatten(
            0, h.shape[:2]
        )
        both, value = mixed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).split((2, 1))
        query, key = _rotated(both, rotation).unbind(0)
        return query, key, value[0]

    def _rest(self, h: Tensor, attended: Tensor) -> Tensor:
        rows = h.flatten(0, 1) + self.attention_out(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return (rows + self.mlp(_normalized(self.mlp_norm, rows))).view(h.shape)


class CausalTransformer(nn.Module):
    r"""Output t depends on the tokens 0 ... t - 1 alone, and on the context.

    The sequence that is read starts with a learned start token and drops the last token, so that attention over the
    token itself and those before it gives a strict dependence and the first output is learned too. Rotary positions
    make attention depend on distances; `absolute` adds a learned vector per position, for events whose tokens are
    places of their own (the entries of a vector, the patches of an image) rather than moments. The head starts at
    zero, bias included. LayerNorm runs in float32 at least.

    Padding needs no mask where it comes after the tokens and is finite: causal attention gives it no weight.

    Cost: L layers of about :math:`12 W^2` parameters; :math:`L (24 W^2 T + 4 T^2 W) + 2 T W (d + d_{out})` FLOPs
    forward per row, and the same in all for T cached steps but for the attention, which is halved; about
    :math:`17 L W T` numbers kept for the gradient; :math:`2 L T W` numbers of cache.

    The fused attention of the CPU has no second derivative and no batching rule for `torch.func.vmap` of its gradient
    (slow there, with a warning); `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the call has both.

    Args:
        num_tokens: T, the most tokens of one row.
        features: d, entries of a token.
        out_features: Outputs per token.
        width: W.
        depth: L, number of layers.
        heads: H; W / H must be an even integer.
        context: Number of context features, 0 for none.
        absolute: Add a learned vector per position.

    Shape:
        x: (N, T', d), T' at most T; context: (B, 1, context), or (B, T', context) for one per token, N = K * B;
        output: (N, T', out_features).

    Raises:
        ConfigurationError: if a size is not positive, or the head width is not even.
        CombinationError: on a call, for a context that it was not built for, or none where it was built for one.

    References:
        Zhai et al., Normalizing Flows are Capable Generative Models (TarFlow), 2024, arXiv 2412.06329;
        Gu et al., STARFlow, 2025, arXiv 2506.06276 (start token, rotary positions, final norm); Su et al., RoFormer,
        2021, arXiv 2104.09864, eq. 34.
    """

    rotation: Tensor

    def __init__(
        self,
        num_tokens: int,
        features: int,
        out_features: int,
        *,
        width: int,
        depth: int,
        heads: int,
        context: int = 0,
        absolute: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, features=features, width=width, depth=depth, heads=heads)
        if width % (2 * heads):
            raise ConfigurationError(
                f"`width` must be an even multiple of `heads`, as rotary positions turn pairs of entries of a head; "
                f"got width {width} and {heads} heads."
            )
        self.num_tokens, self.heads = num_tokens, heads
        self.embedding = nn.Linear(features, width)
        self.start = nn.Parameter(torch.randn(width) / width**0.5)
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width)) if absolute else None
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = LastLayer(width, out_features, zero=True)
        # Not saved, as weights fit sequences of any length; so loading fills it, which a module built on `meta` needs.
        self.register_buffer("rotation", _rotation(num_tokens, width // heads), persistent=False)
        self.register_load_state_dict_post_hook(_fill_rotation)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = x.shape[1]
        self._check_position(tokens - 1)
        start = self.start.expand(len(x), 1, -1)
        h = self._with_context(torch.cat([start, self.embedding(x[:, :-1])], 1), self._projected(context))
        if self.positions is not None:
            h = h + self.positions[:tokens]
        for layer in self.layers:
            h = layer(h, self.rotation[:, :tokens])
        return self._output(h)

    def cache(self, like: Tensor, context: Tensor | None = None) -> KeyValueCache:
        """Return an empty cache for as many rows as `like` (N, ...) has, with its dtype and device."""
        shape = (len(like), self.heads, self.num_tokens, 2 * self.rotation.shape[-1])
        keys = tuple(like.new_zeros(shape) for _ in self.layers)
        values = tuple(like.new_zeros(shape) for _ in self.layers)
        return KeyValueCache(keys, values, self._projected(context), 0)

    def step(self, previous: Tensor | None, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Return the output for the next token, and the cache to go on with.

        Cost: one token through every layer, 24 W^2 + 4 t W FLOPs each at position t; with gradients recorded, also a
        copy of the cache, which the graph keeps: 2 L T^2 W numbers after T steps.

        Shape:
            previous: (N, d), the token before; None at the first step; output: (N, out_features).
        """
        i = cache.position
        self._check_position(i)
        assert (previous is None) == (i == 0), (
            "the first step reads the start token, every other the last token"
        )
        rows = len(cache.keys[0])
        h = self.start.expand(rows, 1, -1) if previous is None else self.embedding(previous)[:, None]
        context = cache.context
        h = self._with_context(
            h, context if context is None or context.shape[1] == 1 else context[:, i : i + 1]
        )
        if self.positions is not None:
            h = h + self.positions[i]
        keys, values = [], []
        for layer, old_keys, old_values in zip(self.layers, cache.keys, cache.values, strict=True):
            assert isinstance(layer, CausalLayer)
            h, key, value = layer.step(h, self.rotation[:, i : i + 1], old_keys, old_values, i)
            keys.append(key)
            values.append(value)
        return self._output(h)[:, 0], KeyValueCache(tuple(keys), tuple(values), context, i + 1)

    def _check_position(self, position: int) -> None:
        if position >= self.num_tokens:
            raise ShapeError(f"At most {self.num_tokens} tokens can be read; got {position + 1}.")

    def _projected(self, context: Tensor | None) -> Tensor | None:
        check_context(self, self.context, context)
        return None if self.context is None or context is None else self.context(context)

    def _with_context(self, h: Tensor, context: Tensor | None) -> Tensor:
        """Add a context (B, 1 or T, W), projected once, to h (K * B, T, W)."""
        if context is None:
            return h
        rows = len(context)
        return (h.unflatten(0, (len(h) // max(rows, 1), rows)) + context).flatten(0, 1)

    def _output(self, h: Tensor) -> Tensor:
        return self.head(_normalized(self.norm, h))


def _normalized(norm: nn.Module, h: Tensor) -> Tensor:
    return norm(at_least_float32(h))


def _rotation(num_tokens: int, head_width: int) -> Tensor:
    """Return cosines and sines (2, T, E / 2) of position times frequency."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(num_tokens, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()]).to(torch.get_default_dtype())


def _fill_rotation(network: nn.Module, _keys: object) -> None:
    assert isinstance(network, CausalTransformer)
    fresh = _rotation(network.num_tokens, 2 * network.rotation.shape[-1]).to(network.rotation.dtype)
    if network.rotation.is_meta:  # the weights were assigned
        network.rotation = fresh.to(network.start.device)
    else:
        network.rotation.copy_(fresh)


def _rotated(h: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (e, e + E / 2) of h (..., T, E) by the angles of their positions."""
    cosine, sine = rotation.unbind(0)
    first, second = h.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _put(buffer: Tensor, entry: Tensor, position: int) -> Tensor:
    """Write `entry` (N, H, 1, E) at a position: in place, or into a copy for gradients and `torch.func`."""
    if is_traced(entry) or (torch.is_grad_enabled() and (entry.requires_grad or buffer.requires_grad)):
        return buffer.slice_scatter(entry, 2, position, position + 1)
    buffer[:, :, position : position + 1] = entry
    return buffer
