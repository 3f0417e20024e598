"""The variational autoencoder: three conditionals, and the one pass that everything else reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.core.precision import at_least_float32
from latentflows.core.shapes import Shape, as_shape, batch_shape, check_context, join, joined_shape
from latentflows.distributions.base import Conditional, Distribution, sample_rows
from latentflows.distributions.flow import Flow
from latentflows.distributions.gaussian import StandardGaussian
from latentflows.distributions.hierarchical import Hierarchical
from latentflows.distributions.vamp import SharesPosterior
from latentflows.networks.masked import MaskedLinear


@dataclass(frozen=True)
class Trace:
    """One pass of a model over a batch; every objective and every metric reads this.

    Attributes:
        x: Data, (B, *event).
        z: Posterior samples, (K, B, *latent).
        log_likelihood: log p(x|z), (K, B), nats. This and the two below are NaN where the pass did not score them.
        log_prior: log p(z), (K, B), nats.
        log_posterior: log q(z|x), (K, B), nats.
        levels: (q, p) distributions of each level, top first.
        penalties: Extra terms by name, (B,).
        context: What the model was conditioned on, (B, *context), or None.
        auxiliary: The model's extra module, which its objective made, or None.
    """

    x: Tensor
    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    levels: tuple[tuple[Distribution, Distribution], ...]
    penalties: dict[str, Tensor] = field(default_factory=dict)
    context: Tensor | None = None
    auxiliary: nn.Module | None = None

    @property
    def log_weight(self) -> Tensor:
        """Log p(x, z) - log q(z|x), (K, B), nats: its mean over K is the ELBO, its log-mean-exp the IWAE bound."""
        return self.log_likelihood + self.log_prior - self.log_posterior


class VAE(nn.Module):
    r"""Posterior q(z|x), prior p(z), likelihood p(x|z), each also given c: any three conditionals that fit.

    .. math:: \log p(x) \ge E_{q(z|x)}[\log p(x|z) + \log p(z) - \log q(z|x)]

    The prior is evaluated at the z that the posterior's flow ends in, never at its base noise.

    A conditional VAE is one whose parts are given c, a label as a one-hot vector or another event. The prior takes it
    as its context. A posterior or likelihood that takes it has the context shape `joined_shape(own, c)`, where own is
    that of a data point or a latent: it reads both, joined along the first axis, a vector beside a map as constant
    channels. Which parts take it is read off their context shapes.

    Args:
        posterior: From a data point to a distribution over latents; must draw with gradients.
        prior: Over latents; must have a density. With a context it is p(z|c).
        likelihood: From a latent to a distribution over data.
        context_shape: Shape of c; None for that of the prior's context, if it has one.

    Attributes:
        parts: Names of what a `Stage` may train.
        auxiliary: A module that an objective needs besides the three (`Objective.auxiliary`), or None.

    Raises:
        CombinationError: if the three do not fit; the message says what to use instead.

    References:
        Kingma & Welling, Auto-Encoding Variational Bayes, 2014, arXiv 1312.6114;
        Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770; Sohn et al., Learning
        Structured Output Representation using Deep Conditional Generative Models, 2015 (conditional VAE).
    """

    parts: ClassVar[tuple[str, ...]] = ("posterior", "prior", "likelihood")
    auxiliary: nn.Module | None

    def __init__(
        self,
        posterior: Conditional,
        prior: Conditional,
        likelihood: Conditional,
        *,
        context_shape: int | Shape | None = None,
    ) -> None:
        super().__init__()
        if context_shape is not None:
            context_shape = as_shape(context_shape, "context_shape")
        self.context_shape = context_shape or prior.context_shape
        self._given = _check_shapes(posterior, prior, likelihood, self.context_shape)
        _check_density(posterior, prior, likelihood)
        _check_shared(posterior, prior)
        _warn_of_slow_directions(posterior, prior)
        self.posterior, self.prior, self.likelihood = posterior, prior, likelihood
        self.auxiliary = None
        self._start = StandardGaussian(prior.event_shape)
        self._at_start = False

    @property
    def event_shape(self) -> Shape:
        """Shape of one data point."""
        return self.likelihood.event_shape

    @property
    def latent_shape(self) -> Shape:
        """Shape of one latent."""
        return self.prior.event_shape

    def encode(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z|x), or q(z|x, c), for data (B, *event)."""
        return self.posterior(self.read_by_posterior(x, context))

    def read_by_posterior(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return what the posterior reads of data (B, *event): joined with the context, where it takes that."""
        return self._joined("posterior", x, context, self.event_shape)

    def prior_at(self, context: Tensor | None = None) -> Distribution:
        """Return p(z), or p(z|c)."""
        if self._at_start:
            return self._start()
        return self.prior(context if self.prior.context_shape is not None else None)

    @property
    def prior_type(self) -> type[Distribution]:
        """Class of the distributions that `prior_at` returns; the closed-form KL registry looks it up."""
        return (self._start if self._at_start else self.prior).distribution_type

    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x|z), or p(x|z, c), for latents (*sample, *batch, *latent)."""
        return self.likelihood(self._joined("likelihood", z, context, self.latent_shape))

    def _joined(self, part: str, value: Tensor, context: Tensor | None, shape: Shape) -> Tensor:
        if part not in self._given:
            return value
        assert self.context_shape is not None
        check_context(context, self.context_shape, part)
        assert context is not None
        return join(value, context.to(value.dtype), shape, self.context_shape)

    @contextmanager
    def standard_prior(self) -> Iterator[None]:
        """Put N(0, I) in the prior's place for a while: the first of two stages."""
        before, self._at_start = self._at_start, True
        try:
            yield
        finally:
            self._at_start = before

    def num_parameters(self) -> dict[str, int]:
        """Count the numbers of each part, frozen ones too, and in total; `auxiliary` is no part of the model.

        Entries that a mask removes are not counted, and a parameter that two parts share is counted once in the
        total.
        """
        modules = {name: getattr(self, name) for name in self.parts}
        counts = {name: count_parameters(module) for name, module in modules.items()}
        return counts | {"total": count_parameters(*modules.values())}

    def trace(
        self,
        x: Tensor,
        num_samples: int = 1,
        *,
        context: Tensor | None = None,
        with_likelihood: bool = True,
        with_densities: bool = True,
    ) -> Trace:
        """Encode once, draw `num_samples` latents per point, and score them.

        Cost: one encoder pass over B points, one decoder pass over K B latents; memory O(K B) decoder activations.

        Args:
            x: Data, (B, *event).
            num_samples: K.
            context: What the model is conditioned on, (B, *context), if it is.
            with_likelihood: Whether to decode; without, `log_likelihood` is NaN.
            with_densities: Whether to score z under prior and posterior; without, both are NaN (a closed-form KL
                reads `levels` alone). `log_posterior` is NaN for an autoencoder's posterior, which has no density.

        Raises:
            ShapeError: if a shape is not the declared one.
            ConfigurationError: if `num_samples` is below 1.
        """
        batch_shape(x, self.event_shape, "x")
        if num_samples < 1:
            raise ConfigurationError(f"`num_samples` must be at least 1; got {num_samples}.")
        q, p = self.encode(x, context), self.prior_at(context)
        if with_densities and q.density != "unnormalized":
            z, log_q = q.sample_and_log_prob((num_samples,))
        else:
            z = q.sample((num_samples,))
            log_q = z.new_full((), torch.nan).expand(num_samples, len(x))
        log_p = p.log_prob(z) if with_densities else z.new_full((), torch.nan).expand(num_samples, len(x))
        if with_likelihood:
            log_likelihood = self.decode(z, context).log_prob(at_least_float32(x))
        else:
            log_likelihood = z.new_full((), torch.nan).expand(num_samples, len(x))
        return Trace(
            x, z, log_likelihood, log_p, log_q, levels=((q, p),), context=context, auxiliary=self.auxiliary
        )

    @torch.no_grad()
    def check_data(self, x: Tensor, context: Tensor | None = None) -> None:
        """Refuse data points (B, *event) that the likelihood gives no probability to.

        Raises:
            ShapeError: if the shape is not the declared one.
            DataError: for gray values under a Bernoulli likelihood, NaN, and the like.
        """
        batch_shape(x, self.event_shape, "x")
        first = None if context is None else context[:1]
        self.decode(self.encode(x[:1], first).sample(), first).check_support(x)

    @torch.no_grad()
    def sample_latents(self, num: int, *, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """Draw (num, *latent) from the prior, its base noise scaled by `temperature`.

        Args:
            num: How many.
            temperature: Scale of the prior's base noise.
            context: (num, *context) for a model that is given one.
        """
        return sample_rows(self.prior_at(context), num, temperature)

    @torch.no_grad()
    def sample(self, num: int, *, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """Draw z from the prior and x from p(x|z): (num, *event). For the mean image use `decode_mean`."""
        z = self.sample_latents(num, temperature=temperature, context=context)
        return self.decode(z, context).sample()

    @torch.no_grad()
    def decode_mean(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return E[x|z], (*batch, *event), for latents (*batch, *latent)."""
        return self.decode(z, context).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return E[x|z] for one z ~ q(z|x), through the posterior's flow: (B, *event)."""
        return self.decode_mean(self.encode(x, context).sample(), context)


def count_parameters(*modules: nn.Module) -> int:
    """Count parameters once each, without the entries that masks remove."""
    whole: dict[Tensor, int] = {p: p.numel() for module in modules for p in module.parameters()}
    for module in modules:
        for part in module.modules():
            if isinstance(part, MaskedLinear):
                whole[part.weight] = int(part.mask.count_nonzero())
    return sum(whole.values())


def _check_shapes(
    posterior: Conditional, prior: Conditional, likelihood: Conditional, given: Shape | None
) -> frozenset[str]:
    """Return which of posterior and likelihood read the context besides their own."""
    latent, event = posterior.event_shape, likelihood.event_shape
    places = (("posterior", posterior, event), ("likelihood", likelihood, latent))
    joined = {name for name, part, own in places if _reads_both(part.context_shape, own, given)}
    if latent != prior.event_shape or (likelihood.context_shape != latent and "likelihood" not in joined):
        raise CombinationError(
            f"Latent shapes must agree: the posterior draws {latent}, the prior {prior.event_shape}, and the "
            f"likelihood expects {likelihood.context_shape}. Build all three with one latent shape."
        )
    if posterior.context_shape != event and "posterior" not in joined:
        raise CombinationError(
            f"The posterior reads data of shape {posterior.context_shape}, but the likelihood gives {event}. "
            "Build both with the data's shape."
        )
    if given is not None and prior.context_shape not in (None, given):
        raise CombinationError(
            f"The prior takes a context of shape {prior.context_shape}; `context_shape` is {given}. Give both one."
        )
    if given is not None and prior.context_shape is None and not joined:
        raise CombinationError(
            f"`context_shape` is {given}, but no part reads it. Build the prior with it, or the posterior or the "
            "likelihood with `joined_shape(own shape, context_shape)`; or leave it out."
        )
    return frozenset(joined)


def _reads_both(shape: Shape | None, own: Shape, given: Shape | None) -> bool:
    """Whether a part with this context shape takes its own input joined with the model's context."""
    if given is None or shape == own:
        return False
    try:
        return shape == joined_shape(own, given)
    except ShapeError:
        return False


def _check_density(posterior: Conditional, prior: Conditional, likelihood: Conditional) -> None:
    for name, part in (("prior", prior), ("likelihood", likelihood)):
        if not part.has_density:
            what = type(part.bijection).__name__ if isinstance(part, Flow) else type(part).__name__
            raise CombinationError(
                f"The {name} must score points that it did not draw, but `{what}` has no inverse. Use it as the "
                f"posterior, and take a coupling flow or Inverse(InverseAutoregressive(...)) as the {name}."
            )
    for part in drawn_parts(posterior):
        if not part.distribution_type.reparameterized:
            raise CombinationError(
                f"The posterior must draw with gradients, but `{part.distribution_type.__name__}` does not. "
                "Use a Gaussian or a flow."
            )
    if prior.distribution_type.discrete != posterior.distribution_type.discrete:
        raise CombinationError("Prior and posterior must both be continuous; one of them is discrete.")


def drawn_parts(part: Conditional) -> list[Conditional]:
    """Return what a conditional's noise comes from: the bases of its flows, in each of its levels."""
    if isinstance(part, Flow):
        return drawn_parts(part.base)
    if isinstance(part, Hierarchical):
        return [base for level in part.members for base in drawn_parts(level)]
    return [part]


def unweighable_parts(model: VAE, prior: Distribution, *, posterior: bool = True) -> list[str]:
    """Name the parts whose log p is an estimate, so that exp(log p) is biased upward; the posterior's if asked for."""
    parts = {"posterior": model.posterior, "likelihood": model.likelihood, "prior": prior}
    return [name for name, part in parts.items() if not part.weighable and (posterior or name != "posterior")]


def _check_shared(posterior: Conditional, prior: Conditional) -> None:
    """Refuse a prior made of a posterior that is not the model's own, a level of it, nor within the prior itself.

    Also one that starts from data, of a posterior that reads something else.
    """
    own = {*posterior.modules(), *prior.modules()}
    for part in prior.modules():
        if isinstance(part, SharesPosterior) and part.posterior not in own:
            raise CombinationError(
                f"The `{type(part).__name__}` is made of another posterior than the model's, and would not learn with "
                "it. Build it with the very module that is the posterior, or a level of a `Hierarchical` one."
            )
        if (
            isinstance(part, SharesPosterior)
            and part.waits_for_data
            and part.data_shape != posterior.context_shape
        ):
            raise CombinationError(
                f"The `{type(part).__name__}` starts from data, of shape {posterior.context_shape} as the posterior "
                f"reads them, but the conditional that it is made of reads {part.data_shape}. Make it of the level "
                'that reads the data, or give it `start="random"`.'
            )


def _warn_of_slow_directions(posterior: Conditional, prior: Conditional) -> None:
    places = (("posterior", posterior, 0, "sampling"), ("prior", prior, 1, "density"))
    for name, part, direction, what in places:
        if not isinstance(part, Flow):
            continue
        used, other = part.bijection.passes[direction], part.bijection.passes[1 - direction]
        if used and other is not None and used > 2 * max(other, 1):
            warnings.warn(
                f"Training uses the {what} direction of the {name}'s flow, which costs {used} network passes where "
                f"the other costs {other}. Wrap it: Inverse(...).",
                stacklevel=3,
            )
