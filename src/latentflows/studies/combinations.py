"""Whether the parts of a configuration, each valid alone, can work together."""

from __future__ import annotations

from latentflows.studies.configuration import (
    IAF,
    MAF,
    NICE,
    ELBOObjective,
    FullGaussian,
    Gaussian,
    GaussianLikelihood,
    Likelihood,
    RealNVP,
    RunConfiguration,
    Standard,
)


def combination_faults(configuration: RunConfiguration) -> list[str]:
    """Return why the parts, each valid alone, cannot work together; empty if they can.

    Cost: none; no data are read. What depends on the data's shape is refused by `studies.build`.
    """
    c = configuration
    faults = [*_likelihood_faults(c.likelihood, c.data.preparation), *_size_faults(c)]
    if c.training.plan != "one_stage" and isinstance(c.prior, Standard):
        faults.append(
            f"`training.plan`={c.training.plan} fits the prior in a stage of its own, but prior N(0, I) has no "
            "parameters. Choose prior=real_nvp (or nice, maf, gaussian, full_gaussian), or training.plan=one_stage."
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
    return []


def _size_faults(c: RunConfiguration) -> list[str]:
    faults = []
    for name, part in (("posterior", c.posterior), ("prior", c.prior)):
        if isinstance(part, RealNVP | NICE) and c.latent_dim < 2:
            other = "iaf" if name == "posterior" else "maf"
            faults.append(
                f"`{name}.kind`={part.kind} couples two halves of z and needs latent_dim of at least 2; "
                f"got {c.latent_dim}. Use {name}={other}, or more latents."
            )
        # With a context every variable needs a degree of its own; without, the first one has none.
        needed = c.latent_dim - (name == "prior")
        if isinstance(part, IAF | MAF) and part.width < needed:
            faults.append(
                f"`{name}.width` must be at least {needed} to carry every dependency among {c.latent_dim} latents; "
                f"got {part.width}. Widen it, or lower latent_dim."
            )
    return faults
