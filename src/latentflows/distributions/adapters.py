"""Our distributions for other libraries: as a `torch.distributions` object, as a Pyro one, as a lazy one of zuko."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from latentflows.core.errors import CombinationError, DataError, ShapeError
from latentflows.core.optional import import_optional
from latentflows.core.shapes import Shape
from latentflows.distributions.base import Conditional, Distribution


class DiscreteSupport(constraints.Constraint):
    """The values that a discrete distribution gives probability to; its own check decides, for all at once."""

    is_discrete = True

    def __init__(self, distribution: Distribution) -> None:
        self.distribution, self.event_dim = distribution, len(distribution.event_shape)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        try:
            self.distribution.check_support(value)
        except DataError:
            inside = False
        else:
            inside = True
        return torch.tensor(inside, device=value.device).expand(value.shape[: value.ndim - self.event_dim])


class TorchDistribution(torch.distributions.Distribution):
    """A `Distribution` as torch knows them; make it with `as_torch`.

    It draws, scores and expands. `support` is all reals for anything continuous, whatever the last layer of a flow is.
    `mean` raises `NotImplementedError` where there is no closed form; `variance` and `entropy` always do.
    `rsample_and_log_prob` is zuko's extension: both from one pass, without inverting a flow.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, distribution: Distribution, batch_shape: Shape, *, validate_args: bool | None = None
    ) -> None:
        self.distribution = distribution
        self.has_rsample = distribution.reparameterized
        super().__init__(
            torch.Size(batch_shape), torch.Size(distribution.event_shape), validate_args=validate_args
        )

    def expand(self, batch_shape: Shape, _instance: object = None) -> TorchDistribution:
        """Return the same distribution over a larger batch; draws along new axes are independent.

        Raises:
            ShapeError: if the batch shape does not broadcast to it.
        """
        wanted = tuple(batch_shape)
        try:
            fits = torch.broadcast_shapes(self.batch_shape, wanted) == torch.Size(wanted)
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"`batch_shape` must be one that {tuple(self.batch_shape)} broadcasts to; got {wanted}."
            )
        return type(self)(self.distribution, wanted, validate_args=self.__dict__.get("_validate_args"))

    @property
    def support(self) -> constraints.Constraint:
        if self.distribution.discrete:
            return DiscreteSupport(self.distribution)
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        try:
            return self.distribution.mean.expand(*self.batch_shape, *self.event_shape)
        except CombinationError as error:
            raise NotImplementedError(str(error)) from None

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        rows = value.shape[: value.ndim - len(self.event_shape)]
        return self.distribution.log_prob(value).expand(torch.broadcast_shapes(rows, self.batch_shape))

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(
                f"`{type(self.distribution).__name__}` has no reparameterized draws. Use `sample`."
            )
        return self._draw(tuple(sample_shape))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return self._draw(tuple(sample_shape))

    def rsample_and_log_prob(self, shape: Shape = ()) -> tuple[Tensor, Tensor]:
        """Draw, and return the log-probability of the draws from the same pass."""
        x, log_p = self.distribution.sample_and_log_prob((*shape, *self._repeats()))
        return self._fold(x, tuple(shape), len(self.event_shape)), self._fold(log_p, tuple(shape), 0)

    def _draw(self, sample_shape: Shape) -> Tensor:
        x = self.distribution.sample((*sample_shape, *self._repeats()))
        return self._fold(x, sample_shape, len(self.event_shape))

    def _repeats(self) -> Shape:
        """How often to draw along every axis of the batch: its size where `expand` made it, else once."""
        own = self.distribution.batch_shape
        padded = (*[1] * (len(self.batch_shape) - len(own)), *own)
        return tuple(
            1 if had == wanted else wanted for had, wanted in zip(padded, self.batch_shape, strict=True)
        )

    def _fold(self, value: Tensor, sample_shape: Shape, event_ndim: int) -> Tensor:
        """Bring (*sample, *repeats, *own batch, *event) to (*sample, *batch, *event)."""
        first, axes = len(sample_shape), len(self.batch_shape)
        own = len(self.distribution.batch_shape)
        lead = [*range(first + axes - own)]  # sample axes, and batch axes that are all new
        pairs = [axis for i in range(own) for axis in (first + axes - own + i, first + axes + i)]
        event = [*range(value.ndim - event_ndim, value.ndim)]
        return value.permute(*lead, *pairs, *event).reshape(
            *sample_shape, *self.batch_shape, *value.shape[value.ndim - event_ndim :]
        )


def as_torch(distribution: Distribution) -> TorchDistribution:
    """Return a distribution as a `torch.distributions.Distribution`.

    Example:
        >>> import torch
        >>> from latentflows import StandardGaussian
        >>> normal = as_torch(StandardGaussian(2)())
        >>> normal.expand((3,)).rsample((4,)).shape
        torch.Size([4, 3, 2])

    Raises:
        CombinationError: for anything but a distribution, or if its log-probability is not normalized.
    """
    _check_normalized(distribution)
    return TorchDistribution(distribution, distribution.batch_shape)


def as_pyro(distribution: Distribution) -> Any:
    """Return a distribution as a Pyro one, for `pyro.sample`; with `expand_by`, `to_event` and `mask`.

    Raises:
        ConfigurationError: if Pyro is not installed.
        CombinationError: if its log-probability is not normalized.
    """
    _check_normalized(distribution)
    return _pyro_class()(distribution, distribution.batch_shape)


@cache
def _pyro_class() -> type[TorchDistribution]:
    mixin = import_optional(
        "pyro.distributions.torch_distribution", install="pyro-ppl"
    ).TorchDistributionMixin
    return type("PyroDistribution", (TorchDistribution, mixin), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """Return Pyro's class by its name, under which `pickle` looks for it here."""
    if name == "PyroDistribution":
        return _pyro_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LazyDistribution(nn.Module):
    """A `Conditional` as zuko's lazy distributions: a module from a context to a torch distribution.

    zuko takes it wherever it takes a `LazyDistribution`, e.g. as the base of a `zuko.lazy.Flow`. Like zuko's, one
    without a context ignores what it is given.
    """

    def __init__(self, conditional: Conditional) -> None:
        super().__init__()
        if not isinstance(conditional, Conditional):
            raise CombinationError(
                f"A conditional is expected, such as a flow; got `{type(conditional).__name__}`. For one distribution "
                "take `as_torch`."
            )
        self.conditional = conditional

    def forward(self, c: Tensor | None = None) -> TorchDistribution:
        return as_torch(self.conditional(None if self.conditional.context_shape is None else c))


def as_zuko(conditional: Conditional) -> LazyDistribution:
    """Return a conditional as zuko's lazy distributions; its distributions have `rsample_and_log_prob`."""
    return LazyDistribution(conditional)


def _check_normalized(distribution: Distribution) -> None:
    if not isinstance(distribution, Distribution):
        raise CombinationError(
            f"A distribution is expected; got `{type(distribution).__name__}`. Call a flow or another conditional "
            "first, as in `flow()` or `flow(context)`."
        )
    if not distribution.normalized:
        raise CombinationError(
            f"`{type(distribution).__name__}` has an unnormalized log-probability; torch and Pyro need a "
            "normalized one. Use it inside a VAE, or take its base."
        )
