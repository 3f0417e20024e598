"""Distributions over data: for now Bernoulli; a Gaussian likelihood is an `AmortizedGaussian`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from latentflows.core import noise
from latentflows.core.errors import DataError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, batch_shape, sum_event
from latentflows.distributions.base import Conditional, Distribution, over_batch


class BernoulliValues(Distribution):
    r"""Independent binary entries as a value: log p(x) = sum_i x_i l_i - softplus(l_i), with logits l.

    Args:
        logits: (*batch, *event).
        event_ndim: Number of event axes.
    """

    reparameterized = False
    discrete = True

    def __init__(self, logits: Tensor, *, event_ndim: int) -> None:
        self.logits = at_least_float32(logits)
        cut = logits.ndim - event_ndim
        self.batch_shape, self.event_shape = tuple(logits.shape[:cut]), tuple(logits.shape[cut:])

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        # Above 37 softplus(l) = l to float64 precision, and e^l is in no danger of overflow.
        entries = (x * self.logits).sub_(functional.softplus(self.logits, threshold=37))
        return sum_event(entries, len(self.event_shape))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        draws = noise.uniform((*sample_shape, *self.logits.shape), like=self.logits)
        return (draws < self.logits.sigmoid()).to(self.logits.dtype)

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


class AmortizedBernoulli(Conditional):
    """Independent binary entries whose logits a network computes from the context: the decoder of binary images.

    Args:
        event_shape: Shape of one data point.
        context_shape: Shape of one latent.
        network: From (N, *context_shape) to logits (N, *event_shape).

    Raises:
        ShapeError: at the first use, if the network gives another shape.
    """

    distribution_type = BernoulliValues

    def __init__(self, event_shape: int | Shape, context_shape: int | Shape, network: nn.Module) -> None:
        super().__init__(event_shape, context_shape)
        self.network = network

    def _condition(self, context: Tensor | None) -> BernoulliValues:
        assert context is not None
        assert self.context_shape is not None
        logits = over_batch(self.network, context, self.context_shape)
        ndim = len(self.event_shape)
        if logits.shape[logits.ndim - ndim :] != self.event_shape:
            raise ShapeError(
                f"The network of `AmortizedBernoulli` must give {self.event_shape}; "
                f"got {tuple(logits.shape[context.ndim - len(self.context_shape) :])}."
            )
        return BernoulliValues(logits, event_ndim=ndim)
