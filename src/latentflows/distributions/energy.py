"""Energy-based priors: a base distribution tilted by a network, normalized by estimate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.core.shapes import Shape, batch_shape, size
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.flow import Flow, Pushforward
from latentflows.distributions.gaussian import StandardGaussian
from latentflows.distributions.normalizer import (
    EstimatedNormalizer,
    Normalizer,
    check_base,
    logits_of,
    weighed_draws,
)
from latentflows.distributions.sampling import ImportanceResampling, Langevin

Sampler = ImportanceResampling | Langevin


class TiltedDistribution(Distribution):
    """p(z) proportional to base(z) exp(-E(z)), as a value; `EnergyPrior` states the density.

    Args:
        base: Without batch axes.
        energy: Network that gives E.
        sampler: How it is drawn from.
        normalizer: What the error of log Z is read from.
        log_normalizer: log Z, or None where it is not known: then the density is "unnormalized".
        proposal: What importance resampling draws from; None for the base.
    """

    reparameterized = False
    density = "approximate"

    def __init__(
        self,
        base: Distribution,
        energy: nn.Module,
        sampler: Sampler,
        normalizer: Normalizer,
        log_normalizer: Tensor | None,
        proposal: Distribution | None = None,
    ) -> None:
        self.base, self._energy, self.sampler = base, energy, sampler
        self.normalizer, self.log_normalizer, self.proposal = normalizer, log_normalizer, proposal
        self.batch_shape, self.event_shape = (), base.event_shape
        if log_normalizer is None:
            self.density, self.normalized = "unnormalized", False

    @property
    def log_normalizer_error(self) -> Tensor:
        """Monte Carlo error of log Z, nats; infinite where it was never measured."""
        return self.normalizer.error

    def energy(self, z: Tensor) -> Tensor:
        """Return E(z), (*batch,), nats."""
        return logits_of(self._energy, z, self.event_shape, "EnergyPrior")

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape(x, self.event_shape, "x")
        unnormalized = self.base.log_prob(x) - self.energy(x)
        return unnormalized if self.log_normalizer is None else unnormalized - self.log_normalizer

    def log_weight(self, z: Tensor) -> Tensor:
        """Return log base(z) - E(z) - log proposal(z), (*batch,): the mean of its exponential is Z."""
        if self.proposal is None:
            return -self.energy(z)
        return self.base.log_prob(z) - self.energy(z) - self.proposal.log_prob(z)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw (*sample_shape, *event), without gradient, as `sampler` says.

        Raises:
            NonFiniteError: if the energy gives NaN.
        """
        count = size(sample_shape)
        if isinstance(self.sampler, ImportanceResampling):
            z = self.sampler.draw(self.proposal or self.base, self.log_weight, count)
        else:
            z = self._langevin(self.sampler, count)
        return z.view(*sample_shape, *self.event_shape)

    def _langevin(self, sampler: Langevin, count: int) -> Tensor:
        """Move in the space of the base's noise where the base is a flow: there it is of unit scale."""
        base = self.base
        if not isinstance(base, Pushforward):
            return sampler.draw(self.log_prob, base.sample((count,)))

        def log_density(u: Tensor) -> Tensor:
            return base.base.log_prob(u) - self.energy(base.bijection(u, None)[0])

        return base.bijection(sampler.draw(log_density, base.base.sample((count,))), None)[0]

    def tempered(self, temperature: float) -> TiltedDistribution:
        """Return base(z; temperature) exp(-E(z)), unnormalized: the energy stays, the noise under it is scaled."""
        proposal = None if self.proposal is None else self.proposal.tempered(temperature)
        base = self.base.tempered(temperature)
        return TiltedDistribution(base, self._energy, self.sampler, self.normalizer, None, proposal)


class EnergyPrior(EstimatedNormalizer):
    r"""A base distribution times exp(-E(z)), E a network.

    .. math:: p(z) = \frac{1}{Z} p_{base}(z) e^{-E(z)}, \quad Z = E_{base}[e^{-E(z)}]

    With `NoiseContrastive`, -E is the logit of a classifier between q(z) and the base, and Z tends to 1 by itself.
    It can also be trained through its log-density, jointly or in a second stage: in train mode Z is the mean over
    S new draws of the base, with its gradient; log Z is then too low by about Var(e^-E) / (2 S Z^2) nats to first
    order, and by any amount where e^-E is large at points that the base never draws. An encoder that trains against it
    goes there: the loss has no limit below. So train such a prior on a frozen encoder.

    In eval mode the density is "unnormalized" until `estimate_normalizer` (or a training pass through log p) has given
    log Z, "approximate" from then on; `NoiseContrastive` makes the stored value stale again. log Z is the `log_mean` of
    a `NormalizerEstimate`; where its effective sample size is a few draws, it stays unknown, and so does p(z).

    Cost: one pass of the energy per point; of a draw as its sampler says. A draw has no gradient.

    Args:
        base: Without a context; a flow too.
        energy: Network from (N, *event) to (N, 1).
        sampler: `ImportanceResampling` or `Langevin`; with a flow as base the latter moves in the space of its noise.
        num_normalizer_samples: S.

    Raises:
        CombinationError: if the base takes a context or has no density.
        ShapeError: at the first use, if the energy gives another shape.

    References:
        Aneja et al., A Contrastive Learning Approach for Training Variational Autoencoder Priors, 2021, arXiv
        2010.02917, eq. 3-5; Pang et al., Learning Latent Space Energy-Based Prior Model, 2020, arXiv 2006.08205
        (exponential tilting of a Gaussian).
    """

    distribution_type = TiltedDistribution

    def __init__(
        self,
        base: Conditional,
        energy: nn.Module,
        *,
        sampler: Sampler = ImportanceResampling(),  # noqa: B008 - frozen settings
        num_normalizer_samples: int = 1024,
    ) -> None:
        check_base(base, type(self).__name__, "base")
        super().__init__(base.event_shape, num_normalizer_samples=num_normalizer_samples)
        self.base, self.energy, self.sampler = base, energy, sampler

    def _tilted(self, log_normalizer: Tensor | None) -> TiltedDistribution:
        return TiltedDistribution(self.base(), self.energy, self.sampler, self.normalizer, log_normalizer)

    def _log_weight(self, num: int) -> Tensor:
        tilted = self._tilted(None)
        z, score = weighed_draws(tilted.base, num)
        return tilted.log_weight(z) + score

    def _condition(self, context: Tensor | None) -> TiltedDistribution:
        return self._tilted(self._known_log_mean())

    def contrasted(self) -> TiltedDistribution:
        """Return p for an objective that trains E without Z: log Z is not estimated, and what is stored is stale."""
        if self.training and torch.is_grad_enabled():
            self.normalizer.forget()
        return self._tilted(None)


class AdversarialPrior(EstimatedNormalizer):
    r"""A flow trained against a critic in the latent space (EVaLP, latent WGAN-GP); `LatentWasserstein` trains it.

    Without `resampling`, it is the flow: p(z) = g(z), exact, and draws follow it. With it, draws are resampled towards

    .. math:: p(z) = \frac{1}{Z} N(z; 0, I) e^{-E(z)}, \quad Z = E_g[N(z; 0, I) e^{-E(z)} / g(z)]

    and the density is that of this p, not the flow's: "unnormalized" until `estimate_normalizer`, "approximate" then.
    A critic trained for the Wasserstein distance has no scale that makes exp(-E) a density ratio: look at the
    effective sample size that `estimate_normalizer` gives before you trust either.

    Args:
        sampler: g, a flow without a context that can be drawn from and scored.
        critic: E, network from (N, *event) to (N, 1).
        resampling: Resample draws by the critic's energy, or None.
        num_normalizer_samples: Draws per training step, where it is trained through log p with `resampling`.

    Raises:
        CombinationError: if the flow takes a context or has no inverse.

    References:
        Dutta et al., Learning Energy-based Variational Latent Prior for VAEs, 2025, arXiv 2510.00260.
    """

    may_idle = True  # the critic, where the flow's density is what trains

    def __init__(
        self,
        sampler: Flow,
        critic: nn.Module,
        *,
        resampling: ImportanceResampling | None = None,
        num_normalizer_samples: int = 1024,
    ) -> None:
        check_base(sampler, type(self).__name__, "sampler")
        super().__init__(sampler.event_shape, num_normalizer_samples=num_normalizer_samples)
        self.distribution_type = Pushforward if resampling is None else TiltedDistribution
        self.sampler, self.critic, self.resampling = sampler, critic, resampling
        self.standard = StandardGaussian(sampler.event_shape)

    def _tilted(self, log_normalizer: Tensor | None) -> TiltedDistribution:
        if self.resampling is None:
            raise CombinationError(
                "An `AdversarialPrior` without `resampling` has the exact density of its flow: there is no normalizer "
                "to estimate."
            )
        flow = self.sampler()
        return TiltedDistribution(
            self.standard(), self.critic, self.resampling, self.normalizer, log_normalizer, flow
        )

    def _log_weight(self, num: int) -> Tensor:
        tilted = self._tilted(None)
        assert tilted.proposal is not None
        z, score = weighed_draws(tilted.proposal, num)
        return tilted.log_weight(z) + score

    def _condition(self, context: Tensor | None) -> Distribution:
        if self.resampling is None:
            return self.sampler()
        return self._tilted(self._known_log_mean())

    def critic_turn(self) -> None:
        """Say that the critic moves, so that a stored normalizer is stale."""
        if self.training and torch.is_grad_enabled():
            self.normalizer.forget()
