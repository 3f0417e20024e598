"""Several levels of latents as one distribution over all of them, by the chain rule."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError, ShapeError
from latentflows.core.shapes import Shape, as_shape, batch_shape, broadcast_shape, join, joined_shape
from latentflows.distributions.base import Conditional, Distribution, over_batch
from latentflows.distributions.flow import Flow, Pushforward

Density = Literal["exact", "estimate", "approximate", "unnormalized"]
_KINDS: tuple[Density, ...] = ("exact", "estimate", "approximate", "unnormalized")


class Ancestral(Distribution):
    r"""A product of conditionals over one concatenated event, drawn from the top level down, as a value.

    .. math:: \log p(z) = \log p(z_L) + \sum_{l < L} \log p(z_l | h, z_L, \ldots, z_{l+1})

    Args:
        top: Distribution of z_L.
        levels: The conditionals of the levels below, top first.
        own: h, (*batch, *own_shape), that every level below the top is given beside the levels above it; or None.
        own_shape: Shape of one h.
        temperature: Scale of the noise of each level.
    """

    def __init__(
        self,
        top: Distribution,
        levels: Sequence[Conditional],
        own: Tensor | None,
        own_shape: Shape | None,
        *,
        temperature: float = 1.0,
    ) -> None:
        self.top, self.levels, self.own, self.own_shape = top, tuple(levels), own, own_shape
        self.temperature = temperature
        self.shapes = (top.event_shape, *(level.event_shape for level in levels))
        self.event_shape = _stacked(self.shapes)
        rows = () if own is None or own_shape is None else tuple(own.shape[: own.ndim - len(own_shape)])
        self.batch_shape = broadcast_shape(top.batch_shape, rows, "the levels")
        sources = [top, *(source for level in levels for source in _sources(level, temperature))]
        self.weighable = all(source.weighable for source in sources)
        kinds = [each.distribution_type if isinstance(each, Conditional) else each for each in sources]
        self.reparameterized = all(kind.reparameterized for kind in kinds)
        self.normalized = all(kind.normalized for kind in kinds)
        self.density = _KINDS[max(_KINDS.index(kind.density) for kind in kinds)]
        errors = [each.log_normalizer_error for each in sources if isinstance(each, Distribution)]
        known = [error for error in errors if error is not None]  # independent of each other
        self.log_normalizer_error = torch.stack(known).square().sum().sqrt() if known else None

    def split(self, x: Tensor) -> list[Tensor]:
        """Cut (*batch, *event) in the levels, top first."""
        batch_shape(x, self.event_shape, "x")
        return list(x.split([shape[0] for shape in self.shapes], -len(self.event_shape)))

    def level(self, index: int, above: Sequence[Tensor]) -> Distribution:
        """Return the distribution of the level `index` below the top, given all levels above it."""
        level = self.levels[index - 1]
        d = level(_context(level, self.own, self.own_shape, above, self.shapes[:index]))
        return d if self.temperature == 1 else d.tempered(self.temperature)

    def log_prob(self, x: Tensor) -> Tensor:
        parts = self.split(x)
        log_p = self.top.log_prob(parts[0])
        for index in range(1, len(parts)):
            log_p = log_p + self.level(index, parts[:index]).log_prob(parts[index])
        return log_p

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        parts = [self.top.sample(self._rows(self.top, sample_shape))]
        for index in range(1, len(self.shapes)):
            d = self.level(index, parts)
            parts.append(d.sample(self._rows(d, sample_shape)))
        return torch.cat(parts, -len(self.event_shape))

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        z, log_p = self.top.sample_and_log_prob(self._rows(self.top, sample_shape))
        parts = [z]
        for index in range(1, len(self.shapes)):
            d = self.level(index, parts)
            z, log_q = d.sample_and_log_prob(self._rows(d, sample_shape))
            parts.append(z)
            log_p = log_p + log_q
        return torch.cat(parts, -len(self.event_shape)), log_p

    def _rows(self, d: Distribution, sample_shape: Shape) -> Shape:
        """Return the sample shape that gives a level's draws all axes of the whole."""
        whole = (*sample_shape, *self.batch_shape)
        return whole[: len(whole) - len(d.batch_shape)]

    @torch.no_grad()
    def initialize(self, x: Tensor | None = None, *, sample_shape: Shape = ()) -> Tensor:
        """Set the data-dependent layers of every level, as `Pushforward.initialize` does; return the events."""
        parts = [] if x is None else self.split(x)
        for index in range(len(self.shapes)):
            d = self.top if index == 0 else self.level(index, parts[:index])
            rows = self._rows(d, sample_shape)
            if isinstance(d, Pushforward | Ancestral):
                made = d.initialize(sample_shape=rows) if x is None else d.initialize(parts[index])
            else:
                made = d.sample(rows) if x is None else parts[index]
            if x is None:
                parts.append(made)
        return torch.cat(parts, -len(self.event_shape))

    def tempered(self, temperature: float) -> Self:
        return type(self)(
            self.top.tempered(temperature),
            self.levels,
            self.own,
            self.own_shape,
            temperature=self.temperature * temperature,
        )

    def detached(self) -> Ancestral:
        levels = []
        for level in self.levels:
            if not level.has_density:
                raise CombinationError(
                    f"A level of the hierarchy, `{type(level).__name__}`, has no density at points that it did not "
                    "draw. Use a Gaussian, or a flow with an inverse."
                )
            tensors = {id(p): p.detach() for p in level.parameters()}
            tensors |= {id(b): b for b in level.buffers()}
            levels.append(copy.deepcopy(level, tensors))
        own = None if self.own is None else self.own.detach()
        return Ancestral(self.top.detached(), levels, own, self.own_shape, temperature=self.temperature)


class AncestralMasses(Ancestral):
    """The product of conditionals over discrete events: its `log_prob` is of a mass."""

    discrete = True


class Hierarchical(Conditional):
    r"""Several levels of latents as one conditional over their concatenation (z_L, ..., z_1), top first.

    As posterior, q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ...; as prior, p(z) = p(z_L) p(z_{L-1}|z_L) .... Each level is any
    conditional, also a flow, and reads the levels above it:

    | level | its context |
    |---|---|
    | top | the context itself; its features, where that is the shape it declares; none |
    | below, with a context | `joined_shape(features, levels above)`: both, joined along the first axis |
    | below, without | the levels above |

    Features are what `embed` makes of the context, or without it the context. A level that declares no context is
    independent of everything. One that shall read less, as the level right above alone, gets a network that selects.

    Only a Monte Carlo KL exists between two of them.

    Cost: that of the levels, one after the other, for draws and densities alike.

    Args:
        levels: Top first; their events share all axes but the first.
        embed: Network from the context to features (N, *features), run once for all levels that read them.
        context_shape: Shape of one context; None without.

    Raises:
        CombinationError: if some levels are discrete and others not, or a level does not read what stands above it.
        ShapeError: if the levels' events do not stack.

    References:
        Rezende et al., Stochastic Backpropagation, 2014, arXiv 1401.4082, section 3 (deep latent Gaussian models);
        Tomczak & Welling, VAE with a VampPrior, 2018, arXiv 1705.07120, section 4 (two levels).
    """

    distribution_type: type[Ancestral] = Ancestral

    def __init__(
        self,
        levels: Sequence[Conditional],
        *,
        embed: nn.Module | None = None,
        context_shape: int | Shape | None = None,
    ) -> None:
        if not levels:
            raise CombinationError("`levels` must hold at least one conditional; got none.")
        shape = None if context_shape is None else as_shape(context_shape, "context_shape")
        if embed is not None and shape is None:
            raise CombinationError("`embed` needs `context_shape`, the shape of what it reads.")
        discrete = all(level.distribution_type.discrete for level in levels)
        for level in levels:
            kind = level.distribution_type
            if kind.discrete != discrete or kind.density == "unnormalized":
                raise CombinationError(
                    f"A level must be continuous and have a density; got `{type(level).__name__}`. Use a Gaussian, or "
                    "discrete levels alone."
                )
        density = all(level.has_density for level in levels)
        super().__init__(_stacked([level.event_shape for level in levels]), shape, has_density=density)
        self.distribution_type = AncestralMasses if discrete else Ancestral
        self._own_shape = _features(levels, shape) if embed is not None else shape
        _check_contexts(levels, shape, self._own_shape)
        self.levels, self.embed = nn.ModuleList(levels), embed

    def _condition(self, context: Tensor | None) -> Ancestral:
        top, *below = self.members
        own = context
        if self.embed is not None:
            assert context is not None
            assert self.context_shape is not None
            own = over_batch(self.embed, context, self.context_shape)
        return self.distribution_type(top(self._of_top(context, own)), below, own, self._own_shape)

    @property
    def members(self) -> list[Conditional]:
        """The levels, top first."""
        return [level for level in self.levels if isinstance(level, Conditional)]

    def _of_top(self, context: Tensor | None, own: Tensor | None) -> Tensor | None:
        shape = self.members[0].context_shape
        return None if shape is None else context if shape == self.context_shape else own

    def contexts(
        self, z: Tensor, context: Tensor | None
    ) -> Iterator[tuple[Conditional, Tensor, Tensor | None]]:
        """Give each level with its part of events z (*batch, *event) and the context that it reads there."""
        value = self(context)
        assert isinstance(value, Ancestral)
        parts = value.split(z)
        for index, level in enumerate(self.members):
            if index == 0:
                yield level, parts[0], self._of_top(context, value.own)
            else:
                above = parts[:index]
                yield (
                    level,
                    parts[index],
                    _context(level, value.own, self._own_shape, above, value.shapes[:index]),
                )


def _context(
    level: Conditional,
    own: Tensor | None,
    own_shape: Shape | None,
    above: Sequence[Tensor],
    shapes: Sequence[Shape],
) -> Tensor | None:
    """Return what a level below the top reads."""
    if level.context_shape is None:
        return None
    stacked = _stacked(shapes)
    joined = above[0] if len(above) == 1 else torch.cat(list(above), -len(stacked))
    if own is None or own_shape is None:
        return joined
    return join(own, joined, own_shape, stacked)


def _sources(level: Conditional, temperature: float) -> list[Distribution | Conditional]:
    """Return what decides how the draws and densities of a level are to be read.

    That is the value of each part that reads no context, whose state may decide, and of others the part itself.
    """
    if level.context_shape is None:
        with torch.no_grad():  # with gradients, in train mode, a normalizer would be estimated anew
            value = level()
        return [value if temperature == 1 else value.tempered(temperature)]
    if isinstance(level, Flow):
        return _sources(level.base, temperature)
    if isinstance(level, Hierarchical):
        return [source for member in level.members for source in _sources(member, temperature)]
    return [level]


def _stacked(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of events concatenated along their first axis.

    Raises:
        ShapeError: if their other axes differ.
    """
    if len({shape[1:] for shape in shapes}) > 1:
        raise ShapeError(
            f"The levels' events must agree in all axes but the first; got {', '.join(map(str, shapes))}."
        )
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _features(levels: Sequence[Conditional], context_shape: Shape | None) -> Shape | None:
    """Read the shape of the features off what the levels declare."""
    found = set()
    if levels[0].context_shape not in (None, context_shape):
        found.add(levels[0].context_shape)
    for index, level in enumerate(levels[1:], start=1):
        above = _stacked([each.event_shape for each in levels[:index]])
        shape = level.context_shape
        if shape is not None:
            found.add((shape[0] - above[0], *shape[1:]))
    if len(found) != 1 or min(min(shape) for shape in found) < 1:
        raise CombinationError(
            "With `embed` the levels must read features of one shape, each level below the top joined with all levels "
            f"above it; theirs would be {sorted(map(str, found)) or 'read by none'}."
        )
    return found.pop()


def _check_contexts(levels: Sequence[Conditional], context_shape: Shape | None, own: Shape | None) -> None:
    top = levels[0].context_shape
    if top is not None and top not in (context_shape, own):
        raise CombinationError(
            f"The top level reads a context of shape {top}; the hierarchy's is {context_shape}. Give both one shape."
        )
    for index, level in enumerate(levels[1:], start=1):
        above = _stacked([each.event_shape for each in levels[:index]])
        expected = above if own is None else joined_shape(own, above)
        if level.context_shape not in (None, expected):
            raise CombinationError(
                f"Level {index + 1} from the top must read a context of shape {expected}, "
                f"{'the levels above it' if own is None else 'features joined with the levels above'}; it reads "
                f"{level.context_shape}."
            )
    if context_shape is not None and all(level.context_shape is None for level in levels):
        raise CombinationError("`context_shape` is given, but no level reads a context. Leave it out.")
