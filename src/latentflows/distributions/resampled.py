"""A prior that keeps or rejects draws of another one, by a learned probability (LARS)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, NonFiniteError
from latentflows.core.shapes import Shape, size
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.normalizer import (
    EstimatedNormalizer,
    Normalizer,
    check_base,
    logits_of,
    weighed_draws,
)

_FEW = 4096  # proposals at least per round of rejection: rounds are cheaper together


class TruncatedRejection(Distribution):
    """What truncated rejection sampling draws from, as a value; `ResampledPrior` states the density.

    Args:
        proposal: pi.
        network: Gives the logit of a(z).
        log_rejection: log(1 - Z), or None where Z is not known; then it draws, but has no density.
        max_attempts: T.
        normalizer: What the error of Z is read from.
    """

    reparameterized = False
    density = "approximate"

    def __init__(
        self,
        proposal: Distribution,
        network: nn.Module,
        log_rejection: Tensor | None,
        max_attempts: int,
        normalizer: Normalizer,
    ) -> None:
        self.proposal, self.network, self.log_rejection = proposal, network, log_rejection
        self.max_attempts, self.normalizer = max_attempts, normalizer
        self.batch_shape, self.event_shape = (), proposal.event_shape

    def _logits(self, z: Tensor) -> Tensor:
        return logits_of(self.network, z, self.event_shape, "ResampledPrior")

    @property
    def log_normalizer_error(self) -> Tensor:
        """Error of log p(z) from Z, nats, averaged over draws; infinite where it was never measured."""
        return self.normalizer.error

    def log_prob(self, x: Tensor) -> Tensor:
        if self.log_rejection is None:
            raise CombinationError(
                "At a temperature the normalizer of a `ResampledPrior` is not known, so it has no density. Use "
                "temperature 1."
            )
        log_attempts, log_last = _attempts(self.log_rejection, self.max_attempts)
        log_accepted = nn.functional.logsigmoid(self._logits(x)) + log_attempts
        return self.proposal.log_prob(x) + torch.logaddexp(log_accepted, log_last)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw (*sample_shape, *event), without gradient.

        Raises:
            NonFiniteError: if the network gives NaN.
        """
        count = size(sample_shape)
        found = self.proposal.sample((count,))  # the last attempt, which is always taken
        waiting = torch.arange(count, device=found.device)
        left = self.max_attempts - 1
        while left and len(waiting):
            rounds = min(left, max(1, _FEW // len(waiting)))
            z = self.proposal.sample((rounds, len(waiting)))
            logits = self._logits(z)
            if bool(logits.isnan().any()):  # NaN would pass for a rejection
                raise NonFiniteError("The acceptance network gives NaN. Take an earlier checkpoint.")
            accepted = noise.uniform(tuple(z.shape[:2]), like=z) < logits.sigmoid()
            first, any_accepted = accepted.int().argmax(0), accepted.any(0)
            chosen = z[first, torch.arange(len(waiting), device=z.device)]
            found[waiting[any_accepted]] = chosen[any_accepted].to(found.dtype)
            waiting, left = waiting[~any_accepted], left - rounds
        return found.view(*sample_shape, *self.event_shape)

    def tempered(self, temperature: float) -> TruncatedRejection:
        """Return the distribution with proposals at a temperature; it draws, but has no density."""
        proposal = self.proposal.tempered(temperature)
        return TruncatedRejection(proposal, self.network, None, self.max_attempts, self.normalizer)


def _attempts(log_rejection: Tensor, max_attempts: int) -> tuple[Tensor, Tensor]:
    """Return the log of the expected number of free attempts, and the log of the chance of the last one.

    (1 - (1 - Z)^(T - 1)) / Z is summed as 1 + (1 - Z) + ... + (1 - Z)^(T - 2): stable and differentiable for any Z.
    """
    powers = torch.arange(max_attempts - 1, device=log_rejection.device, dtype=log_rejection.dtype)
    return (powers * log_rejection).logsumexp(0), (max_attempts - 1) * log_rejection


class ResampledPrior(EstimatedNormalizer):
    r"""Learned accept/reject sampling (LARS): draws of a proposal, kept with probability a(z); the T-th always is.

    .. math:: p(z) = \pi(z) \left( a(z) \frac{1 - (1 - Z)^{T-1}}{Z} + (1 - Z)^{T-1} \right), \quad
              Z = E_{\pi}[a(z)]

    Z is not known in closed form. In train mode it is the mean over S new draws, with its gradient; its logarithm is
    then biased by about Var(a) / (2 S Z^2) nats. Eval mode uses the moving average of training until
    `estimate_normalizer` puts a measured value in its place. The density is "approximate": a bound computed from it is
    one only up to the error of Z. It shifts every log p(z) in the same direction, but not by the same amount:

    .. math:: -\frac{\partial \log p(z)}{\partial \log Z} \text{ is between }
              1 - \frac{T Z (1 - Z)^{T-1}}{1 - (1 - Z)^T} \ (a = 1) \text{ and } \frac{(T - 1) Z}{1 - Z} \ (a = 0)

    At T = 100 and Z = 0.02 these are 0.69 and 2.02; where T Z is large, 1 for every z that has a chance to be kept.
    `log_normalizer_error` is the error in nats averaged over draws of p (here 0.86 times that of log Z).

    The first weights are measured when it is built. The weight that `NormalizerEstimate` speaks of is 1 - a(z).

    Cost: one pass of the network per point, S per training step, 1 / Z on average per draw and at most T. A draw has
    no gradient: this is a prior, not a posterior.

    Args:
        proposal: pi; a standard Gaussian, or any other without a context. Its parameters are trained too.
        network: From (N, *event) to the logit of a, (N, 1).
        max_attempts: T, at least 2.
        num_normalizer_samples: S.

    Raises:
        CombinationError: if the proposal has a context or no density.
        ConfigurationError: for settings out of range.
        ShapeError: if the network gives another shape.

    References:
        Bauer & Mnih, Resampled Priors for Variational Autoencoders, 2019, arXiv 1810.11428, section 3 (the density of
        the truncated sampler; T = 100; Z by Monte Carlo with a moving average).
    """

    distribution_type = TruncatedRejection
    fewest_draws = 0  # 1 - a(z) is at most 1

    def __init__(
        self,
        proposal: Conditional,
        network: nn.Module,
        *,
        max_attempts: int = 100,
        num_normalizer_samples: int = 1024,
    ) -> None:
        check_base(proposal, type(self).__name__, "proposal")
        if not isinstance(max_attempts, int) or max_attempts < 2:
            raise ConfigurationError(
                f"`max_attempts` must be an integer of at least 2; got {max_attempts!r}. One attempt is the proposal."
            )
        super().__init__(proposal.event_shape, num_normalizer_samples=num_normalizer_samples)
        self.proposal, self.network, self.max_attempts = proposal, network, max_attempts
        self.estimate_normalizer(num_normalizer_samples)
        self.normalizer.error.fill_(torch.inf)  # the weights may be set before any use

    @property
    def acceptance(self) -> Tensor:
        """Z, the stored probability that a proposal is kept."""
        return -torch.expm1(self.normalizer.log_mean)

    def _log_weight(self, num: int) -> Tensor:
        z, score = weighed_draws(self.proposal(), num)
        logits = logits_of(self.network, z, self.event_shape, type(self).__name__)
        return nn.functional.logsigmoid(-logits) + score

    def _slope(self, log_mean: Tensor) -> Tensor:
        powers = torch.arange(self.max_attempts - 1, device=log_mean.device, dtype=log_mean.dtype)
        grown = (powers * (powers * log_mean).exp()).sum()
        last = (self.max_attempts - 1) * (log_mean * (self.max_attempts - 1)).exp()
        return -torch.expm1(log_mean) * grown + last

    def _condition(self, context: Tensor | None) -> TruncatedRejection:
        return TruncatedRejection(
            self.proposal(), self.network, self._log_mean_weight(), self.max_attempts, self.normalizer
        )
