"""TarFlow: a stack of Transformer autoregressive layers, and how it is sampled with guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from latentflows.bijections import (
    Bijection,
    Chain,
    Inverse,
    LULinear,
    Permutation,
    TransformerAutoregressive,
)
from latentflows.bijections.inputs import both_contexts, checked
from latentflows.bijections.multiscale import Squeeze
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.core.shapes import Shape, as_shape
from latentflows.networks.base import check_sizes
from latentflows.transforms import Transform
from latentflows.transforms.guidance import GuidanceRule, check_guidance

Blocks = Literal["all", "deep"]


def tarflow(
    event_shape: int | Shape,
    *,
    num_blocks: int = 4,
    width: int = 128,
    depth: int | Sequence[int] = 2,
    heads: int = 4,
    patch: int = 1,
    context: int | Shape | None = None,
    context_blocks: Blocks = "all",
    transform: Transform | None = None,
) -> Bijection:
    """Transformer autoregressive layers in alternating order, mixed in between. Cheap to score: for priors and data.

    Between layers, entries of a token are mixed, as they do not see each other within one: a vector by a fixed random
    permutation, a sequence or an image by an invertible linear map of the entries of each token, a random rotation at
    the start (none where a token is a single number). A new stack over N(0, I) is N(0, I) again.

    Cost: scoring, one pass of each layer; a draw, T cached steps of each layer for T tokens, at the FLOPs of one pass:
    it is bound by launches, not arithmetic. A layer's cache is freed before the next layer starts.

    Args:
        event_shape: D or (D,), (C, T) or (C, H, W).
        num_blocks: Number of layers; with one, the first token stays Gaussian.
        width: Of each Transformer.
        depth: Attention layers of each Transformer, or one number for each, from data to noise: STARFlow takes the
            last, which touches the noise first when sampling, much deeper than the others.
        heads: Attention heads; width / heads must be even.
        patch: Entries (vector), frames (sequence) or side of the square (image) of a token.
        context: None, a number of features, or the shape of a context, as `TransformerAutoregressive` takes it.
        context_blocks: Layers that hear the context: "all" (TarFlow), or the last from data to noise, "deep"
            (STARFlow).
        transform: The elementwise map of every layer; affine if None.

    Raises:
        ConfigurationError: for sizes that do not fit.
        CombinationError: for an event of one token.

    References:
        Zhai et al., Normalizing Flows are Capable Generative Models (TarFlow), 2024, arXiv 2412.06329; Gu et al.,
        STARFlow, 2025, arXiv 2506.06276, for the deep and the shallow layers.
    """
    check_sizes(num_blocks=num_blocks)
    shape = as_shape(event_shape, "event_shape")
    depths = (depth,) * num_blocks if isinstance(depth, int) else tuple(depth)
    if len(depths) != num_blocks:
        raise ConfigurationError(
            f"`depth` must be one number, or {num_blocks} for the {num_blocks} blocks; got {depths}."
        )
    _check_blocks("context_blocks", context_blocks)
    layers: list[Bijection] = []
    for i, layers_of_block in enumerate(depths):  # from data to noise
        if i:
            layers += _mixing(shape, patch, seed=i)
        hears = context_blocks == "all" or i == num_blocks - 1
        layers.append(
            TransformerAutoregressive(
                shape,
                width=width,
                depth=layers_of_block,
                heads=heads,
                patch=patch,
                reverse=i % 2 == 1,
                transform=transform,
                context_shape=context if hears else None,
            )
        )
    return Chain(layers[::-1])


def _mixing(shape: Shape, patch: int, seed: int) -> list[Bijection]:
    """Return what mixes the entries of tokens between two layers."""
    if len(shape) == 1:
        return [Permutation.random(shape, seed=seed)]
    if shape[0] * patch == 1:
        return []
    if patch == 1:
        return [LULinear(shape, start="rotation")]
    squeeze = Squeeze(shape, factor=patch)  # the entries of a token become channels
    return [Chain([Inverse(squeeze), LULinear(squeeze.base_shape, start="rotation"), squeeze])]


@torch.no_grad()
def sample_guided(
    bijection: Bijection,
    u: Tensor,
    context: Tensor,
    unconditional: Tensor,
    *,
    weight: float,
    rule: GuidanceRule = "linear",
    blocks: Blocks = "all",
    lengths: Tensor | None = None,
) -> Tensor:
    """Sample from a stack with classifier-free guidance: base noise -> event; no gradients.

    Each guided layer maps what it gets by `TransformerAutoregressive.sample_guided`; the others map as ever, with
    their context. TarFlow guides all layers ("linear"), STARFlow the deep one, which alone hears the context
    ("gaussian"). **What comes out follows another distribution than the model's**, whose `log_prob` does not describe
    it.

    Cost: that of a draw, on twice the rows in guided layers.

    Args:
        bijection: A stack made by `tarflow`, or any `Chain`, of chains too, with such layers.
        u: Base noise (*batch, *event_shape).
        context: (*batch, *context_shape).
        unconditional: What stands for no context, (*context_shape) or with batch axes; it must have been trained.
        weight: w, 0 or more; 0 is plain sampling.
        rule: How the two maps are combined.
        blocks: Guide "all" layers that hear the context, or the "deep" one, the first of them on the way from noise.
        lengths: Frames of each padded sequence (*batch).

    Raises:
        CombinationError: if no layer can be guided, or one that can stands where it cannot be reached, as in an
            `Inverse`.
        ConfigurationError: for a negative weight, or an unknown rule or choice of blocks.
        ShapeError: if a shape is not the declared one, batch axes do not broadcast, or `lengths` do not fit.
        DataError: for what is no tensor.
    """
    check_guidance(weight, rule)
    _check_blocks("blocks", blocks)
    members = _flat(bijection)
    able = _able(bijection, members)
    guided = able if blocks == "all" else able[:1]
    name, frames = type(bijection).__name__, bijection.event_shape[-1]
    context, unconditional = both_contexts(name, context, unconditional, bijection.context_shape)
    value, _, batch = checked(name, u, bijection.base_shape, context, bijection.context_shape)
    if lengths is not None:  # a member would speak of its own frames
        bijection._valid(lengths, value, batch)
    value = value.reshape(*batch, *bijection.base_shape)
    for member in members:
        left = (
            None if lengths is None else lengths * member.event_shape[-1] // frames
        )  # squeezed ones have fewer
        if any(member is one for one in guided):
            assert isinstance(member, TransformerAutoregressive)
            value = member.sample_guided(
                value, context, unconditional, weight=weight, rule=rule, lengths=left
            )
        else:
            value, _ = member(value, context if member.context_shape else None, lengths=left)
    return value


def _flat(bijection: Bijection) -> list[Bijection]:
    """Return the members of a chain and of the chains within it, in order."""
    if not isinstance(bijection, Chain):
        return [bijection]
    members = [member for member in bijection.members if isinstance(member, Bijection)]
    return [inner for member in members for inner in _flat(member)]


def _able(bijection: Bijection, members: Sequence[Bijection]) -> list[TransformerAutoregressive]:
    """Return the members that can be guided.

    Raises:
        CombinationError: if there is none, or another one within a member.
    """
    able = [m for m in members if isinstance(m, TransformerAutoregressive) and m.context_shape]
    everywhere = [
        m for m in bijection.modules() if isinstance(m, TransformerAutoregressive) and m.context_shape
    ]
    hidden = [m for m in everywhere if not any(m is one for one in able)]
    if hidden:
        raise CombinationError(
            f"Guidance reaches a `TransformerAutoregressive` alone or as a member of a `Chain`; got {len(hidden)} of "
            f"{len(everywhere)} inside something else, such as an `Inverse` or a `Split`. Make them members."
        )
    if not able:
        raise CombinationError(
            "Guidance needs a `TransformerAutoregressive` with a context, alone or in a `Chain`; got "
            f"{type(bijection).__name__} without one. Build the layer with `context_shape`."
        )
    return able


def _check_blocks(name: str, blocks: Blocks) -> None:
    if blocks not in get_args(Blocks):
        raise ConfigurationError(f"`{name}` must be one of {get_args(Blocks)}; got {blocks!r}.")
