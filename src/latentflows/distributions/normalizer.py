"""The normalizer of a density that has none in closed form: estimated from draws, with its Monte Carlo error."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, NonFiniteError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.running import Running, gathered_over_processes
from latentflows.core.shapes import Shape, batch_shape
from latentflows.distributions.base import Conditional, Distribution, over_batch

_DECAY = 0.99  # of the moving average that follows training
_CHUNK = 1 << 14  # draws weighted together
_FEWEST = 100  # effective draws: with fewer neither the mean weight nor its error (0.1 nats) can be believed


class NormalizerEstimate(NamedTuple):
    """What `estimate_normalizer` found.

    Attributes:
        log_mean: Log of the mean weight; the class says of which weight.
        error: First-order Monte Carlo error of log p(z) from it, nats.
        effective_sample_size: (sum w)^2 / sum w^2 of the weights. Below 100 (and half of the draws) a few draws carry
            all weight, others are sure to be missing, and nothing is known: `error` is infinite.
        num_draws: Draws used.
    """

    log_mean: float
    error: float
    effective_sample_size: float
    num_draws: int


class Normalizer(Running):
    """The logarithm of a mean weight, as buffers that are saved with the model.

    While training, each step's own estimate is used, with its gradient, and a moving average of the means follows,
    for validation: once per step, from all pieces and processes, see `Running`. It is that of the weights that learn,
    also where a moving average of them (`ema_decay`) is what is validated. An estimate from many draws replaces it.

    Attributes:
        log_mean: Log of the mean weight.
        error: Error of log p(z) that comes from it, nats, to first order; infinite where it was never measured.
        known: Whether `log_mean` belongs to the present weights, as far as training told; where it was estimated, also
            whether enough draws gave it.
    """

    log_mean: Tensor
    error: Tensor
    known: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("error", torch.full((), torch.inf))
        self.register_buffer("known", torch.tensor(False))

    def follow(self, log_weight: Tensor) -> Tensor:
        """Return the log of the mean of weights (S,), with gradient, and gather it.

        Its expectation is below the log of the expected weight by Var(w) / (2 S mean(w)^2), to first order. A value
        that is not finite is returned as it is, so that the step is skipped, and the average leaves it out.
        """
        fresh = log_weight.logsumexp(0) - math.log(len(log_weight))
        self._gathered.append(fresh.detach())
        self.error.fill_(torch.inf)
        self.gathered()
        return fresh

    def _forget(self) -> None:
        self._gathered: list[Tensor] = []

    @torch.no_grad()
    def _take_in(self) -> None:
        if self._gathered:
            gathered = gathered_over_processes(torch.stack(self._gathered)).flatten()
            fresh = gathered.logsumexp(0) - math.log(len(gathered))
            moved = torch.logaddexp(self.log_mean + math.log(_DECAY), fresh + math.log1p(-_DECAY))
            moved, finite = torch.where(self.known, moved, fresh), fresh.isfinite()
            self.log_mean.copy_(torch.where(finite, moved, self.log_mean))
            self.known.logical_or_(finite)

    @torch.no_grad()
    def forget(self) -> None:
        """Say that the weights move, so that the stored value is stale, and with it what this step gathered."""
        self._forget()
        self.known.fill_(False)
        self.error.fill_(torch.inf)

    @torch.no_grad()
    def store(self, log_weight: Tensor, fewest: int = _FEWEST) -> tuple[Tensor, float, float]:
        """Set the value from weights (S,) in float64; returns it, its error and the effective sample size.

        Where fewer than `fewest` effective draws carry all weight, the error is infinite and the value stays unknown.

        Raises:
            NonFiniteError: if a weight is NaN or infinite, or all are zero.
        """
        num = len(log_weight)
        log_sum = log_weight.logsumexp(0)
        if bool(log_weight.isnan().any()) or not bool(log_sum.isfinite()):
            raise NonFiniteError(
                "The weights of a normalizer must be finite and not all zero; got others. The network has diverged: "
                "take an earlier checkpoint, or a smaller learning rate."
            )
        effective = float((2 * log_sum - (2 * log_weight).logsumexp(0)).exp())
        measured = effective >= min(fewest, num / 2)
        error = math.sqrt(max(num / effective - 1, 0.0) / (num - 1)) if measured and num > 1 else math.inf
        value = log_sum - math.log(num)
        self.log_mean.copy_(value)
        self.error.fill_(error)
        self.known.fill_(measured)
        return value, error, effective


class EstimatedNormalizer(Conditional):
    """An unconditional distribution whose normalizer is a mean over draws; implement `_log_weight`.

    `fewest_draws` is the effective sample size below which nothing is known: 0 where weights are bounded.

    In train mode with gradients, the normalizer is estimated at every pass from `num_normalizer_samples` new draws,
    and its gradient is part of that of log p(z): without it, training would raise log p(z) without limit. In eval mode
    the stored value is used.

    Args:
        event_shape: Shape of one draw.
        num_normalizer_samples: S, draws per training step.

    Raises:
        ConfigurationError: if S is below 2.
    """

    fewest_draws = _FEWEST

    def __init__(self, event_shape: int | Shape, *, num_normalizer_samples: int) -> None:
        super().__init__(event_shape)
        if not isinstance(num_normalizer_samples, int) or num_normalizer_samples < 2:
            raise ConfigurationError(
                f"`num_normalizer_samples` must be an integer of at least 2; got {num_normalizer_samples!r}."
            )
        self.num_normalizer_samples = num_normalizer_samples
        self.normalizer = Normalizer()

    @abstractmethod
    def _log_weight(self, num: int) -> Tensor:
        """Draw `num` points and return their log weights (num,)."""

    def _slope(self, log_mean: Tensor) -> Tensor:
        """Return the derivative of log p(z) in the log of the mean weight, averaged over draws z, up to its sign."""
        return torch.ones_like(log_mean)

    def _log_mean_weight(self) -> Tensor:
        """Return the log of the mean weight: a new estimate while training, the stored one otherwise."""
        if self.training and torch.is_grad_enabled():
            return self.normalizer.follow(self._log_weight(self.num_normalizer_samples))
        return self.normalizer.log_mean

    def _known_log_mean(self) -> Tensor | None:
        """Return the log of the mean weight, or None where the stored one is stale or was never estimated."""
        value = self._log_mean_weight()
        fresh = self.training and torch.is_grad_enabled()
        return value if fresh or bool(self.normalizer.known) else None

    @torch.no_grad()
    def estimate_normalizer(self, num: int = 1 << 18, *, seed: int = 0) -> NormalizerEstimate:
        """Estimate the normalizer of the present weights from `num` draws, and keep it for eval mode.

        Call it after training, before any figure is computed. Cost: `num` passes of the network; memory O(2^14).

        Args:
            num: Draws; the error falls as 1 / sqrt(num).
            seed: Seed of the draws; noise outside is not disturbed.

        Raises:
            ConfigurationError: if `num` is below 2.
            NonFiniteError: if a weight is NaN or infinite.
        """
        if not isinstance(num, int) or num < 2:
            raise ConfigurationError(f"`num` must be an integer of at least 2; got {num!r}.")
        weights = []
        for start in range(0, num, _CHUNK):
            with noise.stream(seed, noise.Purpose.NORMALIZER, start):
                weights.append(self._log_weight(min(_CHUNK, num - start)).double())
        value, error, effective = self.normalizer.store(torch.cat(weights), self.fewest_draws)
        error *= float(self._slope(value))
        self.normalizer.error.fill_(error)
        return NormalizerEstimate(float(value), error, effective, num)


def logits_of(network: nn.Module, z: Tensor, event_shape: Shape, owner: str) -> Tensor:
    """Return one number per point z (*batch, *event): (*batch,), at least float32.

    Raises:
        ShapeError: if the network gives another shape than (N, 1).
    """
    batch = batch_shape(z, event_shape, "z")
    out = at_least_float32(over_batch(network, z, event_shape))
    if tuple(out.shape) != (*batch, 1):
        raise ShapeError(
            f"The network of `{owner}` must give one number per point, (N, 1); got {tuple(out.shape[len(batch) :])} "
            "per point. Build it with `out_shape=(1,)`."
        )
    return out.squeeze(-1)


def weighed_draws(distribution: Distribution, num: int) -> tuple[Tensor, Tensor]:
    r"""Draw (num, *event), and zeros (num,) to be added to the log weights of these draws.

    Where draws carry no gradient, those of a mixture, the zeros have the one that the mean weight would lack:

    .. math:: \nabla E_p[w] = E_p[\nabla w + w \nabla \log p]

    That costs one density per draw.
    """
    z = distribution.sample((num,))
    if distribution.reparameterized or not torch.is_grad_enabled():
        return z, z.new_zeros(num)
    z = z.detach()
    log_p = distribution.log_prob(z)
    return z, log_p - log_p.detach()


def check_base(base: Conditional, owner: str, what: str) -> None:
    """Refuse a base that takes a context, is discrete, or cannot be scored.

    Raises:
        CombinationError: naming it.
    """
    if base.context_shape is not None or base.distribution_type.discrete or not base.has_density:
        raise CombinationError(
            f"The {what} of `{owner}` must be a continuous distribution without a context that can score any point; "
            f"got `{type(base).__name__}`. Use a StandardGaussian, a LearnedGaussian or a flow with an inverse."
        )
