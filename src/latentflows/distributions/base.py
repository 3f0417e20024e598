"""The two interfaces of the house: a `Distribution` is a value, a `Conditional` is a module that makes one.

`Conditional : context -> Distribution`. A posterior q(z|x), a prior p(z) and a likelihood p(x|z) are all
conditionals, and a flow is one way to make one. Modules are called *Gaussian*, *Bernoulli*, *Flow*; the values they
return *Normal*, *BernoulliValues*, *Pushforward*. A value holds tensors and no trainable state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, DataError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, as_shape, batch_shape, check_context, size


class Distribution(ABC):
    """A distribution over events, for every point of a batch.

    Attributes:
        batch_shape: One distribution each.
        event_shape: Shape of one draw.
        reparameterized: Draws carry gradients to the parameters.
        normalized: `log_prob` integrates to one, as far as `density` says.
        discrete: `log_prob` is of a mass, not of a density.
        density: What `log_prob` gives: "exact"; "estimate", a random number whose exponential is p(x) on average;
            "approximate", with an error that the class states; "unnormalized", without a known constant.
        weighable: The exponential of `log_prob` is p(x), or p(x) on average, up to what `density` says; where it is
            not, a bound from importance weights can exceed the truth.
        log_normalizer_error: Error of `log_prob` from a normalizer that was estimated, nats; infinite where that was
            never measured, None where there is none.
        values: Kinds of data that this is a likelihood of: "binary", "unit" (gray levels), "continuous".
    """

    batch_shape: Shape
    event_shape: Shape
    reparameterized: bool = True
    normalized: bool = True
    discrete: bool = False
    density: Literal["exact", "estimate", "approximate", "unnormalized"] = "exact"
    weighable: bool = True
    log_normalizer_error: Tensor | None = None
    values: frozenset[str] = frozenset({"continuous"})

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, summed over the event: (*sample, *batch) for x (*sample, *batch, *event)."""

    @abstractmethod
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw (*sample_shape, *batch, *event)."""

    def sample_and_log_prob(self, sample_shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draw, and return the log-probability of the draw, without ever inverting a flow."""
        x = self.sample(sample_shape)
        return x, self.log_prob(x)

    @property
    def mean(self) -> Tensor:
        """The expectation, (*batch, *event).

        Raises:
            CombinationError: where it has no closed form.
        """
        raise CombinationError(
            f"`{type(self).__name__}` has no mean in closed form. Draw samples and average them."
        )

    @property
    def variance(self) -> Tensor:
        """The variance of every entry, (*batch, *event).

        Raises:
            CombinationError: where it has no closed form.
        """
        raise CombinationError(
            f"`{type(self).__name__}` has no variance in closed form. Draw samples and take theirs."
        )

    def tempered(self, temperature: float) -> Distribution:
        """Return the distribution whose noise is scaled by `temperature` (not p^(1/T), for flows).

        Raises:
            CombinationError: where there is no such scale.
        """
        raise CombinationError(f"`{type(self).__name__}` has no temperature. Use temperature 1.")

    def detached(self) -> Distribution:
        """Return the same distribution with parameters that carry no gradient; `log_prob` still has one in x.

        Raises:
            CombinationError: where the class does not offer it.
        """
        raise CombinationError(
            f"`{type(self).__name__}` cannot hold its parameters fixed while it is differentiated in its value. "
            "Use a Gaussian, or a flow with an inverse."
        )

    def check_support(self, x: Tensor) -> None:
        """Refuse data that this distribution gives no probability to; training and evaluation call it once.

        Raises:
            DataError: naming what was expected.
        """
        if not torch.isfinite(x).all():
            raise DataError("Data must be finite; got NaN or infinity.")


class Conditional(nn.Module, ABC):
    """A module that turns a context into a `Distribution`; without a context it is unconditional.

    To write one, implement `_condition`. It receives the context as given, checked, (*batch, *context_shape).

    Attributes:
        event_shape: Shape of one draw.
        context_shape: Shape of one context, or None.
        has_density: It can score points that it did not draw.
        distribution_type: Class of the distributions it returns; the closed-form KL registry looks it up.
        learns_from_draws: Draws carry gradients to all parameters, where they carry any.
        may_idle: Some objectives give some of its parameters no gradient; data parallel training must know.
        weighable: As for `Distribution`; False where its settings make its densities estimates in the logarithm.
        values: Kinds of data that it is a likelihood of, as for `Distribution`; here settings may decide.
    """

    distribution_type: type[Distribution]
    learns_from_draws: bool = True
    may_idle: bool = False
    weighable: bool = True
    values: frozenset[str] = frozenset({"continuous"})

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape | None = None,
        *,
        has_density: bool = True,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, "event_shape")
        self.context_shape = None if context_shape is None else as_shape(context_shape, "context_shape")
        self.has_density = has_density

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution given `context` (*batch, *context_shape).

        Raises:
            ShapeError: if the context is missing, unwanted, or of the wrong shape.
        """
        check_context(context, self.context_shape, type(self).__name__)
        return self._condition(context)

    @abstractmethod
    def _condition(self, context: Tensor | None) -> Distribution: ...


def network_output(
    conditional: Conditional, network: nn.Module, context: Tensor | None, raw_shape: Shape
) -> Tensor:
    """Run the network of an amortized conditional: (*batch, *raw_shape), at least float32.

    Raises:
        ShapeError: if the network gives another shape.
    """
    assert context is not None
    assert conditional.context_shape is not None
    raw = at_least_float32(over_batch(network, context, conditional.context_shape))
    batch = context.ndim - len(conditional.context_shape)
    if tuple(raw.shape[batch:]) != raw_shape:
        raise ShapeError(
            f"The network of `{type(conditional).__name__}` must give {raw_shape}; got {tuple(raw.shape[batch:])}."
        )
    return raw


def sample_rows(p: Distribution, num: int, temperature: float) -> Tensor:
    """Draw (num, *event): from one distribution, or one draw from each of `num`, one for each row of a context.

    Raises:
        ShapeError: if there is another number of rows.
    """
    if p.batch_shape not in ((), (num,)):
        raise ShapeError(f"`context` must hold one row per sample, {num}; got batch shape {p.batch_shape}.")
    if temperature != 1:
        p = p.tempered(temperature)
    return p.sample((num,) if not p.batch_shape else ())


def over_batch(network: nn.Module, context: Tensor, context_shape: Shape) -> Tensor:
    """Run a network, which sees exactly one batch axis, over any batch axes of its input."""
    batch = batch_shape(context, context_shape, "context")
    if len(batch) == 1:
        return network(context)
    out = network(context.reshape(size(batch), *context_shape))
    return out.view(*batch, *out.shape[1:])


def draw_index(logits: Tensor, sample_shape: Shape) -> Tensor:
    """Draw from categoricals over the last axis by inverse cdf: (*sample_shape, *logits.shape[:-1]), int64.

    Memory: that of the logits, however many draws there are.
    """
    rows, count = logits.shape[:-1], logits.shape[-1]
    cdf = logits.softmax(-1).cumsum(-1)
    cdf = cdf / cdf[..., -1:]  # the last is 1 and above every u; an entry without mass is never taken
    u = noise.uniform((*sample_shape, *rows), like=logits)
    columns = u.reshape(-1, size(rows)).t().contiguous()
    index = torch.searchsorted(cdf.reshape(-1, count), columns, right=True)
    return index.clamp(max=count - 1).t().reshape(u.shape)
