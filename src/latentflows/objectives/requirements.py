"""What objectives may need of a model, each with the refusal of one that does not have it.

`Objective.needs` lists them, so the table of what combines with what is read off the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from latentflows.core.errors import CombinationError
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.continuous_likelihoods import AmortizedStudentT
from latentflows.distributions.flow import Flow, Pushforward
from latentflows.distributions.gaussian import DiagonalNormal
from latentflows.models.vae import VAE, drawn_parts, unweighable_parts

Need = Literal[
    "posterior_density",
    "prior_density",
    "weighable_prior",
    "fixed_posterior",
    "diagonal_posterior",
    "prior_learns_from_draws",
    "likelihood_mean",
]
DENSITY_FREE = "`Autoencoder`, `RegularizedAutoencoder`, `SparseAutoencoder` or `WassersteinAutoencoder`"


def density_of(part: Conditional) -> str:
    """Return what `log_prob` of this conditional gives; a flow's is that of its base, unless a solver is in it."""
    if not isinstance(part, Flow):
        return part.distribution_type.density
    base = density_of(part.base)
    return "approximate" if part.solved and base == "exact" else base


def _draws_with_gradients(part: Conditional) -> bool:
    return all(base.distribution_type.reparameterized for base in drawn_parts(part))


def require(owner: str, model: VAE, needs: Sequence[Need]) -> None:
    """Refuse a model that lacks one of `needs`.

    Args:
        owner: Name of the objective, for the message.
        model: With N(0, I) in its prior's place, if that is how it will be trained.
        needs: What it must be able to do.

    Raises:
        CombinationError: saying what is missing and what to use.
    """
    for need in needs:
        _CHECKS[need](owner, model)


def require_prior(owner: str, model: object, kind: type[Conditional]) -> None:
    """Refuse a model whose prior is not of the kind that an objective is made for.

    Raises:
        CombinationError: naming both.
    """
    prior = model.prior if isinstance(model, VAE) else None
    if not isinstance(prior, kind):
        raise CombinationError(
            f"`{owner}` trains the prior `{kind.__name__}`; the model's is `{type(prior).__name__}`. Use "
            "`PriorLikelihood` for a prior with a density."
        )


def _posterior_density(owner: str, model: VAE) -> None:
    if density_of(model.posterior) == "unnormalized":
        raise CombinationError(
            f"`{owner}` needs log q(z|x), but {_name(model.posterior)} has no density. Use a Gaussian or a flow "
            f"posterior, or an objective for autoencoders: {DENSITY_FREE}."
        )


def _prior_density(owner: str, model: VAE) -> None:
    in_force = model.prior_type
    density = density_of(model.prior) if in_force is Pushforward else in_force.density
    if density == "unnormalized":
        raise CombinationError(
            f"`{owner}` needs log p(z), but {_name(model.prior)} knows it up to a constant only, which would be "
            "optimized away. Train with N(0, I) in its place (`Stage(standard_prior=True)`) and fit the prior in a "
            "stage with its own objective, or use a prior with a density."
        )


def _weighable_prior(owner: str, model: VAE) -> None:
    shape = model.context_shape
    like = next(model.prior.parameters(), torch.zeros(()))
    with torch.no_grad():  # with gradients, in train mode, a normalizer would be estimated anew
        prior = model.prior_at(None if shape is None else like.new_zeros(1, *shape))
    if unfit := unweighable_parts(model, prior):
        raise CombinationError(
            f"`{owner}` averages importance weights, but exp(log p) of {_name(getattr(model, unfit[0]))} is "
            "biased upward, since its log p is an estimate. "
            'Make its divergence exact (divergence="exact", `cnf(exact=True)`), or use `ELBO`.'
        )


def _fixed_posterior(owner: str, model: VAE) -> None:
    part: Conditional = model.posterior
    while isinstance(part, Flow) and part.has_density:
        part = part.base
    if not part.has_density or part.distribution_type.detached is Distribution.detached:
        raise CombinationError(
            f"`{owner}` with this gradient differentiates log q(z|x) in z alone, which "
            f"{_name(model.posterior)} does not offer. Use a Gaussian, or a flow with an inverse (real_nvp, iaf, "
            "nsf_coupling), or the standard gradient."
        )


def _diagonal_posterior(owner: str, model: VAE) -> None:
    if model.posterior.distribution_type is not DiagonalNormal:
        raise CombinationError(
            f"`{owner}` needs the density of every single latent given x, which a diagonal Gaussian posterior alone "
            f"has; got {_name(model.posterior)}. Use a diagonal Gaussian, or `FactorVAE`, which needs draws alone."
        )


def _prior_learns_from_draws(owner: str, model: VAE) -> None:
    in_force = model.prior_type is model.prior.distribution_type
    learns = in_force and any(p.requires_grad for p in model.prior.parameters())
    whole = all(part.learns_from_draws for part in drawn_parts(model.prior))
    if learns and not (whole and _draws_with_gradients(model.prior)):
        raise CombinationError(
            f"`{owner}` compares draws of posterior and prior, but those of {_name(model.prior)} carry no gradient "
            "to all of it, so the prior cannot learn. Use a Gaussian or a flow prior, or train with N(0, I) in its "
            "place (`Stage(standard_prior=True)`) and fit the prior in a second stage."
        )


def _likelihood_mean(owner: str, model: VAE) -> None:
    part = model.likelihood
    kind = getattr(part, "distribution_type", None)  # a class of the user's may leave it out
    degrees = part.degrees if isinstance(part, AmortizedStudentT) else "shared"
    missing = "in closed form" if kind is not None and kind.mean is Distribution.mean else None
    if not isinstance(degrees, str) and degrees <= 1:
        missing = f"at {degrees:g} degrees of freedom, only above 1"
    if missing is not None:
        raise CombinationError(
            f"`{owner}` with this penalty differentiates E[x|z], which {_name(part)} has not {missing}. Use "
            'decoder="weight_decay", or a likelihood with a mean, such as a Gaussian.'
        )


def _name(part: Conditional) -> str:
    if isinstance(part, Flow):
        return f"`{type(part).__name__}` through `{type(part.bijection).__name__}`"
    return f"`{type(part).__name__}`"


_CHECKS: dict[str, Callable[[str, VAE], None]] = {
    "posterior_density": _posterior_density,
    "prior_density": _prior_density,
    "weighable_prior": _weighable_prior,
    "fixed_posterior": _fixed_posterior,
    "diagonal_posterior": _diagonal_posterior,
    "prior_learns_from_draws": _prior_learns_from_draws,
    "likelihood_mean": _likelihood_mean,
}
