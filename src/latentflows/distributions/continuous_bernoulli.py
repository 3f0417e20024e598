"""The continuous Bernoulli: the likelihood on [0, 1] that the cross-entropy of gray values lacks a constant of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, batch_shape, sum_event
from latentflows.distributions.base import Conditional, Distribution, network_output
from latentflows.distributions.likelihoods import check_unit_interval

_SMALL = 0.5  # logits below it go through the series, whose terms after the last are below 1e-16
# log(sinh(y) / y) = y^2/6 - y^4/180 + ..., y = l/2, as coefficients of l^2, l^4, ..., l^12
_SERIES = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000)


class ContinuousBernoulliValues(Distribution):
    r"""Independent entries in [0, 1] as a value, with logits l.

    .. math:: \log p(x) = \sum_i x_i l_i - A(l_i), \quad A(l) = \log\frac{e^l - 1}{l}, \quad
        E[x] = \frac{1}{1 - e^{-l}} - \frac1l

    It is lambda^x (1 - lambda)^(1 - x) with lambda = sigmoid(l), normalized over [0, 1]: Bernoulli's formula and
    log C(lambda) = log l - log tanh(l / 2), at least log 2. lambda is not the mean.

    At l = 0 numerator and denominator vanish. Below |l| = 0.5, log p is written as l (x - 1/2) - log(sinh(l/2) / (l/2))
    with a series for the last term; above, as -|l| y - log((1 - e^-|l|) / |l|), with y = 1 - x for positive l and x
    for negative ones, where nothing cancels. Values and gradients are exact to rounding for every finite logit.

    Draws are by inverse cdf and carry no gradient. A density, so no bits per dimension of gray levels: add the noise
    of dequantization for those.

    Args:
        logits: (*batch, *event).
        event_ndim: Number of event axes.

    References:
        Loaiza-Ganem & Cunningham, The continuous Bernoulli: fixing a pervasive error in variational autoencoders,
        2019, arXiv 1907.06845, eq. 6 to 8.
    """

    reparameterized = False
    values = frozenset({"continuous", "unit"})

    def __init__(self, logits: Tensor, *, event_ndim: int) -> None:
        self.logits = at_least_float32(logits)
        cut = logits.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(logits.shape[:cut]), tuple(logits.shape[cut:])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        small, size = self._split()
        rest = torch.where(self.logits > 0, 1 - x, x)
        large = -size * rest - (-torch.expm1(-size)).log() + size.log()
        near = self._near_zero()
        entries = torch.where(small, near * (x - 0.5) - _series(near), large)
        return sum_event(entries, len(self.event_shape))

    def _split(self) -> tuple[Tensor, Tensor]:
        """Return where |l| is small, and |l| with 1 in those places: the branch not taken must be finite too."""
        size = self.logits.abs()
        small = size < _SMALL
        return small, torch.where(small, 1.0, size)

    def _near_zero(self) -> Tensor:
        return torch.where(self.logits.abs() < _SMALL, self.logits, 0.0)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        u = noise.uniform((*sample_shape, *self.logits.shape), like=self.logits)
        size = self.logits.abs()
        tiny = size < torch.finfo(size.dtype).tiny
        size = torch.where(tiny, 1.0, size)
        rest = -torch.log1p(u * torch.expm1(-size)) / size  # the exponential of rate |l|, cut off at 1
        rest = torch.where(tiny, u, rest)
        return torch.where(self.logits > 0, 1 - rest, rest).clamp(0, 1)  # rounding may pass the border

    @property
    def mean(self) -> Tensor:
        small, size = self._split()
        above = -1 / torch.expm1(-size) - 1 / size
        large = torch.where(self.logits > 0, above, 1 - above)
        return torch.where(small, 0.5 + _slope(self._near_zero()), large)

    def check_support(self, x: Tensor) -> None:
        check_unit_interval(x, "A continuous Bernoulli likelihood")


def _series(logits: Tensor) -> Tensor:
    """Return log(sinh(l / 2) / (l / 2)) for |l| <= 0.5."""
    square, total = logits * logits, torch.zeros_like(logits)
    for coefficient in reversed(_SERIES):
        total = (total + coefficient) * square
    return total


def _slope(logits: Tensor) -> Tensor:
    """Return the derivative of `_series`."""
    square, total = logits * logits, torch.zeros_like(logits)
    for power, coefficient in reversed(list(enumerate(_SERIES, 1))):
        total = total * square + 2 * power * coefficient
    return total * logits


class AmortizedContinuousBernoulli(Conditional):
    """Entries in [0, 1] whose logits a network computes from the context; it starts as uniform at logits 0.

    Args:
        event_shape: Shape of one data point.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to logits (N, *event_shape).

    Raises:
        ShapeError: at the first use, if the network gives another shape.
    """

    distribution_type = ContinuousBernoulliValues
    values = frozenset({"continuous", "unit"})

    def __init__(self, event_shape: int | Shape, context_shape: int | Shape, network: nn.Module) -> None:
        super().__init__(event_shape, context_shape)
        self.network, self.raw_shape = network, self.event_shape

    def _condition(self, context: Tensor | None) -> ContinuousBernoulliValues:
        logits = network_output(self, self.network, context, self.raw_shape)
        return ContinuousBernoulliValues(logits, event_ndim=len(self.event_shape))
