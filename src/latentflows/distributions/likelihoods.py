"""The Bernoulli likelihood of binary data; those of other data are in the files beside this one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import DataError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, batch_shape, sum_event
from latentflows.distributions.base import Conditional, Distribution, network_output


class BernoulliValues(Distribution):
    r"""Independent binary entries as a value: log p(x) = sum_i x_i l_i - softplus(l_i), with logits l.

    Args:
        logits: (*batch, *event).
        event_ndim: Number of event axes.
    """

    reparameterized = False
    discrete = True
    values = frozenset({"binary"})

    def __init__(self, logits: Tensor, *, event_ndim: int) -> None:
        self.logits = at_least_float32(logits)
        cut = logits.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(logits.shape[:cut]), tuple(logits.shape[cut:])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        # Above 37 softplus(l) = l to float64 precision, and e^l is in no danger of overflow.
        entries = (x * self.logits).sub_(functional.softplus(self.logits, threshold=37))
        return sum_event(entries, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        probability = self.logits.sigmoid()
        drawn = noise.uniform((*sample_shape, *self.logits.shape), like=self.logits) < probability
        return torch.where(probability.isnan(), probability, drawn.to(self.logits.dtype))  # NaN is no black

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def check_support(self, x: Tensor) -> None:
        if not ((x == 0) | (x == 1)).all():
            low, high = float(x.min()), float(x.max())
            raise DataError(
                f"A Bernoulli likelihood needs binary data, 0 or 1; got values between {low:g} and {high:g} that "
                "are neither. Binarize the data (dynamic_binary, fixed_binary), or use a Gaussian likelihood: on "
                "gray values the cross-entropy is no likelihood."
            )


class GrayBernoulliValues(Distribution):
    r"""The formula of `BernoulliValues` on gray values in [0, 1]: the negative cross-entropy, which is no likelihood.

    Over [0, 1] it does not integrate to one but to (e^l - 1) / (l (1 + e^l)), with logits l: at most 1/2 per entry,
    and least where the decoder is sure. So there is no bound on any p(x). Draws are binary.

    Args:
        logits: (*batch, *event).
        event_ndim: Number of event axes.
    """

    reparameterized = False
    normalized = False
    density = "unnormalized"
    values = frozenset({"unit"})

    def __init__(self, logits: Tensor, *, event_ndim: int) -> None:
        self.binary = BernoulliValues(logits, event_ndim=event_ndim)
        self.batch_shape, self.event_shape = self.binary.batch_shape, self.binary.event_shape

    def log_prob(self, x: Tensor) -> Tensor:
        return self.binary.log_prob(x)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.binary.sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self.binary.mean

    def check_support(self, x: Tensor) -> None:
        check_unit_interval(x, "A Bernoulli cross-entropy on gray values")


def check_unit_interval(x: Tensor, owner: str) -> None:
    """Refuse values outside [0, 1], NaN included.

    Raises:
        DataError: naming the range of the values.
    """
    if not ((x >= 0) & (x <= 1)).all():
        low, high = float(x.min()), float(x.max())
        raise DataError(
            f"{owner} needs values in [0, 1]; got values from {low:g} to {high:g}. Scale the data, or use a Gaussian "
            "likelihood."
        )


class AmortizedBernoulli(Conditional):
    """Independent binary entries whose logits a network computes from the context: the decoder of binary images.

    Args:
        event_shape: Shape of one data point.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to logits (N, *event_shape).
        gray: Take gray values in [0, 1] in place of binary ones, as much published code does. What is trained is then
            no likelihood, as a warning says: its figures are comparable with nothing, and no bits per dimension exist.
            `AmortizedContinuousBernoulli` is the likelihood with these logits.

    Raises:
        ShapeError: at the first use, if the network gives another shape.
    """

    distribution_type: type[BernoulliValues | GrayBernoulliValues] = BernoulliValues
    values = frozenset({"binary"})

    def __init__(
        self,
        event_shape: int | Shape,
        context_shape: int | Shape,
        network: nn.Module,
        *,
        gray: bool = False,
    ) -> None:
        super().__init__(event_shape, context_shape)
        self.network, self.raw_shape = network, self.event_shape
        if gray:
            self.distribution_type, self.values = GrayBernoulliValues, GrayBernoulliValues.values
            warnings.warn(
                "A Bernoulli cross-entropy on gray values is no likelihood: it does not integrate to one over [0, 1], "
                "and its figures are comparable with nothing. Use a continuous Bernoulli, a discretized logistic or a "
                "Gaussian for a likelihood.",
                stacklevel=2,
            )

    def _condition(self, context: Tensor | None) -> Distribution:
        logits = network_output(self, self.network, context, self.raw_shape)
        return self.distribution_type(logits, event_ndim=len(self.event_shape))
