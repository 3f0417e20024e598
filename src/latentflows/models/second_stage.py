"""A VAE as the prior of another one: the second stage of Dai & Wipf."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.core.shapes import Shape, batch_shape, broadcast_shape, size
from latentflows.distributions import AmortizedGaussian, Conditional, Distribution, StandardGaussian
from latentflows.distributions.data_dependent import waiting_priors
from latentflows.distributions.gaussian import check_temperature
from latentflows.models.vae import VAE, drawn_parts
from latentflows.networks import MLP, LastLayer
from latentflows.networks.base import check_sizes


class LatentMarginal(Distribution):
    """The distribution of the data of an inner VAE, with its density by importance sampling, as a value.

    Args:
        inner: The VAE whose data are our latents z.
        context: (*batch, *context), or None.
        num_samples: n.
        temperature: Scale of the noise of the inner prior and of the inner likelihood.
    """

    density = "estimate"

    def __init__(
        self, inner: VAE, context: Tensor | None, num_samples: int, temperature: float = 1.0
    ) -> None:
        self.inner, self.context, self.num_samples = inner, context, num_samples
        self.temperature = temperature
        self.event_shape = inner.event_shape
        self.batch_shape = (
            () if context is None else batch_shape(context, inner.context_shape or (), "context")
        )
        self.reparameterized = inner.likelihood.distribution_type.reparameterized

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log of an estimate of p(x) that is right on average, (*sample, *batch), nats.

        New inner latents are drawn at every call.
        """
        batch = broadcast_shape(batch_shape(x, self.event_shape, "x"), self.batch_shape, "x and the context")
        rows = x.expand(*batch, *self.event_shape).reshape(size(batch), *self.event_shape)
        context = self._contexts(batch)
        q = self.inner.encode(rows, context)
        u, log_q = q.sample_and_log_prob((self.num_samples,))
        log_joint = self._prior(context).log_prob(u) + self._likelihood(u, context).log_prob(rows)
        return ((log_joint - log_q).logsumexp(0) - math.log(self.num_samples)).view(batch)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw u from the inner prior and z from the inner likelihood, its noise included."""
        batch = (*sample_shape, *self.batch_shape)
        context = self._contexts(batch)
        prior = self._prior(context)
        u = prior.sample(() if prior.batch_shape else (size(batch),))
        return self._likelihood(u, context).sample().view(*batch, *self.event_shape)

    def tempered(self, temperature: float) -> LatentMarginal:
        check_temperature(temperature)
        return LatentMarginal(self.inner, self.context, self.num_samples, self.temperature * temperature)

    def _contexts(self, batch: Shape) -> Tensor | None:
        if self.context is None:
            return None
        shape = self.inner.context_shape or ()
        return self.context.expand(*batch, *shape).reshape(size(batch), *shape)

    def _prior(self, context: Tensor | None) -> Distribution:
        prior = self.inner.prior_at(context)
        return prior if self.temperature == 1 else prior.tempered(self.temperature)

    def _likelihood(self, u: Tensor, context: Tensor | None) -> Distribution:
        likelihood = self.inner.decode(u, context)
        return likelihood if self.temperature == 1 else likelihood.tempered(self.temperature)


class LatentVariablePrior(Conditional):
    r"""A prior with latents of its own: p(z) is the evidence of z under an inner VAE.

    .. math:: \hat p(z) = \frac1n \sum_{i=1}^n \frac{p(z|u_i) \, p(u_i)}{q(u_i|z)}, \quad u_i \sim q(u|z), \quad
              E[\hat p(z)] = p(z)

    log_prob is the log of this estimate. As the estimate is right on average, an importance-weighted bound of the outer
    model stays a lower bound in expectation, and tends to log p(x) with the outer number of samples alone; the outer
    ELBO is too low by the inner gap. `density` is "estimate". Draws include the noise of the inner likelihood: without
    it they would follow another distribution.

    Trained jointly, or in a second stage by `PriorLikelihood`, whose loss for n = 1 is the inner VAE's own -ELBO; z is
    drawn anew from q(z|x) each epoch.

    Cost: one inner encoder pass per z, n inner decoder passes; a draw is one decoder pass.

    Args:
        inner: Its data are the latents of the outer model; its prior may be a flow, a mixture, or any other with an
            exact density.
        num_samples: n.

    Raises:
        CombinationError: if the inner likelihood is discrete, it or the inner prior has no exact density, or the
            inner prior waits for data points.
        ConfigurationError: if `num_samples` is below 1.

    References:
        Dai & Wipf, Diagnosing and Enhancing VAE Models, 2019, arXiv 1903.05789, section 4; Burda et al. 2016, arXiv
        1509.00519, eq. 8 (the estimate).
    """

    distribution_type = LatentMarginal

    learns_from_draws = False  # the inner encoder has no part in a draw
    may_idle = True

    def __init__(self, inner: VAE, *, num_samples: int = 1) -> None:
        if inner.likelihood.distribution_type.discrete:
            raise CombinationError(
                "The likelihood of a second-stage VAE must be a density of the latents; got "
                f"`{type(inner.likelihood).__name__}`, which is discrete. Use an AmortizedGaussian."
            )
        parts = [
            part.distribution_type for part in (*drawn_parts(inner.prior), *drawn_parts(inner.likelihood))
        ]
        if not all(part.density in ("exact", "estimate") for part in parts):
            raise CombinationError(
                "The inner prior and likelihood of a second-stage VAE must have an exact density, or p(z) would be "
                f"wrong without a sign of it; got `{type(inner.prior).__name__}` and "
                f"`{type(inner.likelihood).__name__}`. Use Gaussians, mixtures or flows."
            )
        if any(prior.reads == "data" for prior in waiting_priors(inner.prior)):
            raise CombinationError(
                f"The inner `{type(inner.prior).__name__}` starts from data points, but those of an inner VAE are "
                'latents, which come later. Use `start="random"`.'
            )
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ConfigurationError(f"`num_samples` must be a positive integer; got {num_samples!r}.")
        super().__init__(inner.event_shape, inner.context_shape)
        self.inner, self.num_samples = inner, num_samples

    def _condition(self, context: Tensor | None) -> LatentMarginal:
        return LatentMarginal(self.inner, context, self.num_samples)


class _SkipMLP(nn.Module):
    """An MLP whose last linear layer also reads its input."""

    def __init__(self, in_features: int, out_shape: Shape, *, width: int, depth: int) -> None:
        super().__init__()
        self.features = MLP((in_features,), None, width=width, depth=depth)
        self.last = LastLayer(in_features + width, out_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.features(x)], 1))


def second_stage_vae(
    latent_dim: int,
    *,
    inner_dim: int | None = None,
    width: int = 1024,
    depth: int = 3,
    num_samples: int = 1,
) -> LatentVariablePrior:
    """Build the second stage of Dai & Wipf: a Gaussian VAE over latents, its variance one learned number.

    Encoder and decoder are MLPs whose last layer reads their input too.

    Args:
        latent_dim: Number of latents of the outer model.
        inner_dim: Number of latents of the inner one; as many by default.
        width: Units of each hidden layer.
        depth: Hidden layers.
        num_samples: Of the estimate of p(z).

    Raises:
        ConfigurationError: for a size that is not positive.

    References:
        Dai & Wipf 2019, arXiv 1903.05789, appendix (3 layers of 1024 units; as many latents as the first stage).
    """
    inner_dim = latent_dim if inner_dim is None else inner_dim
    check_sizes(latent_dim=latent_dim, inner_dim=inner_dim, width=width, depth=depth)
    encoder = _SkipMLP(latent_dim, (2 * inner_dim,), width=width, depth=depth)
    decoder = _SkipMLP(inner_dim, (latent_dim,), width=width, depth=depth)
    inner = VAE(
        AmortizedGaussian(inner_dim, latent_dim, encoder),
        StandardGaussian(inner_dim),
        AmortizedGaussian(latent_dim, inner_dim, decoder, scale="shared"),
    )
    return LatentVariablePrior(inner, num_samples=num_samples)
