"""Whether the parts of a configuration, each valid alone, can work together."""

from __future__ import annotations

from latentflows.studies.configuration import (
    ELBOObjective,
    FullGaussian,
    Gaussian,
    GaussianLikelihood,
    Likelihood,
    RunConfiguration,
    Standard,
)
from latentflows.studies.flow_settings import FlowSettings, TarFlow
from latentflows.studies.options import tag_of


def combination_faults(configuration: RunConfiguration) -> list[str]:
    """Return why the parts, each valid alone, cannot work together; empty if they can.

    Cost: none; no data are read. What depends on the data's shape is refused by `studies.build`.
    """
    c = configuration
    faults = [*_likelihood_faults(c.likelihood, c.data.preparation), *_size_faults(c)]
    if c.training.plan != "one_stage" and isinstance(c.prior, Standard):
        faults.append(
            f"`training.plan`={c.training.plan} fits the prior in a stage of its own, but prior N(0, I) has no "
            "parameters. Choose prior=real_nvp (or another flow, gaussian, full_gaussian), or training.plan=one_stage."
        )
    gaussians = isinstance(c.posterior, Gaussian | FullGaussian) and isinstance(
        c.prior, Standard | Gaussian | FullGaussian
    )
    if isinstance(c.objective, ELBOObjective) and c.objective.kl == "closed_form" and not gaussians:
        faults.append(
            f"`objective.kl`=closed_form needs a Gaussian posterior and a Gaussian prior; got {c.posterior.kind} and "
            f"{c.prior.kind}. Use objective.kl=monte_carlo (or auto): the estimate from the same samples."
        )
    return faults


def _likelihood_faults(likelihood: Likelihood, preparation: str | None) -> list[str]:
    kind = likelihood.kind
    binary = preparation in ("dynamic_binary", "fixed_binary")
    if kind == "bernoulli" and preparation is not None and not binary:
        return [
            f"`likelihood.kind`=bernoulli needs binary data; data.preparation={preparation} gives gray or real values, "
            "on which the cross-entropy is no likelihood. Use data.preparation=dynamic_binary, or likelihood=gaussian."
        ]
    if kind == "gaussian" and binary:
        return [
            f"`likelihood.kind`=gaussian is a density, but data.preparation={preparation} gives only 0 and 1, where a "
            "density has no upper bound. Use likelihood=bernoulli, or data.preparation=dequantized."
        ]
    if (
        isinstance(likelihood, GaussianLikelihood)
        and likelihood.variance != "fixed"
        and preparation == "unit"
    ):
        return [
            f"`likelihood.variance`={likelihood.variance} does not fit data.preparation=unit: on discrete gray values "
            "a learned variance can shrink without limit, and the NLL then falls without a lower bound and means "
            "nothing. Use data.preparation=dequantized, or likelihood.variance=fixed with likelihood.scale."
        ]
    return []


def _size_faults(c: RunConfiguration) -> list[str]:
    faults = []
    for name, part in (("posterior", c.posterior), ("prior", c.prior)):
        if not isinstance(part, FlowSettings):
            continue
        if part.needs_two and c.latent_dim < 2:
            other = "iaf" if name == "posterior" else "maf"
            faults.append(
                f"`{name}.kind`={tag_of(type(part))} lets parts of z decide on each other and needs two or more; got "
                f"latent_dim={c.latent_dim}. Use {name}={other}, or more latents."
            )
        faults += _shape_faults(name, part, c.latent_dim)
        # With a context every variable needs a degree of its own; without, the first one has none.
        needed = c.latent_dim - (name == "prior")
        width = getattr(part, "width", needed)
        if part.masked and width < needed:
            faults.append(
                f"`{name}.width` must be at least {needed} to carry every dependency among {c.latent_dim} latents; "
                f"got {width}. Widen it, or lower latent_dim."
            )
    return faults


def _shape_faults(name: str, part: FlowSettings, latents: int) -> list[str]:
    """Return what of a flow's own sizes does not fit the number of latents, or each other."""
    faults = []
    if isinstance(part, TarFlow) and latents >= 2:
        fitting = [n for n in range(1, latents) if latents % n == 0]
        if part.patch not in fitting:
            faults.append(
                f"`{name}.patch` must divide latent_dim={latents} into two tokens or more; got {part.patch}. "
                f"Use one of {', '.join(map(str, fitting))}."
            )
    if isinstance(part, TarFlow) and part.width % (2 * part.heads):
        faults.append(
            f"`{name}.width` must be an even multiple of `{name}.heads`; got {part.width} and {part.heads}. "
            f"Use {name}.width={2 * part.heads * max(1, round(part.width / (2 * part.heads)))}, or other heads."
        )
    limits = {"rank": "directions", "num_householder": "reflections"}
    for key, what in limits.items():
        given = getattr(part, key, None)
        if given is not None and given > latents and key in part.model_fields_set:
            faults.append(
                f"`{name}.{key}` must be at most latent_dim={latents}, as there are no more {what}; got {given}."
            )
    return faults
