"""Whether the parts of a configuration, each valid alone, can work together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.flows import FlowSettings, TarFlow
from latentflows.studies.settings.likelihoods import Likelihood
from latentflows.studies.settings.model_combinations import model_faults
from latentflows.studies.settings.models import FlowModel, SegmentationModel
from latentflows.studies.settings.options import tag_of
from latentflows.studies.settings.posteriors import Delta, FullGaussian, Gaussian, LowRankGaussian, Noisy
from latentflows.studies.settings.posteriors import Levels as PosteriorLevels
from latentflows.studies.settings.priors import (
    ExemplarPrior,
    FlowMatchingPrior,
    Levels,
    Standard,
    VampPrior,
)

_FLOWS = {tag_of(kind): kind for kind in FlowSettings.__subclasses__()}


def combination_faults(configuration: RunConfiguration) -> list[str]:
    """Return why the parts, each valid alone, cannot work together; empty if they can.

    Cost: none; no data are read. What depends on the data's shape is refused in `studies/building/build.py`.
    """
    c = configuration
    if c.model.kind != "vae":
        return _faults_of_whole(c)
    faults = [
        *_batch_faults(c),
        *model_faults(c),
        *likelihood_faults(c.likelihood, c.data.preparation),
        *_size_faults(c),
        *_level_faults(c),
        *_prior_faults(c),
        *_objective_faults(c),
    ]
    if c.training.plan != "one_stage" and isinstance(c.prior, Standard):
        faults.append(
            f"`training.plan`={c.training.plan} fits the prior in a stage of its own, but prior N(0, I) has no "
            "parameters. Choose prior=real_nvp (or another flow, gaussian, full_gaussian), or training.plan=one_stage."
        )
    return faults


def _faults_of_whole(c: RunConfiguration) -> list[str]:
    """Return what does not fit in a model that brings parts of its own."""
    faults = [*_batch_faults(c), *model_faults(c)]
    if not isinstance(c.model, FlowModel):
        faults += likelihood_faults(c.likelihood, c.data.preparation)
    if isinstance(c.model, SegmentationModel):
        faults += _size_faults(c)
    return faults


def _batch_faults(c: RunConfiguration) -> list[str]:
    """Return why a batch cannot be cut into the pieces that are asked for."""
    size, pieces = c.training.batch_size, c.training.accumulate
    if size % pieces == 0:
        return []
    return [
        f"`training.batch_size`={size} cannot be cut into training.accumulate={pieces} equal pieces. Use "
        f"training.batch_size={pieces * max(1, round(size / pieces))}, or another number of pieces."
    ]


def _objective_faults(c: RunConfiguration) -> list[str]:
    """Return what the objective needs of posterior and prior and does not get."""
    faults, kind = [], c.objective.kind
    if isinstance(c.posterior, Delta) and "posterior_density" in c.objective.needs:
        faults.append(
            f"`objective.kind`={kind} needs the density of the posterior, and posterior.kind=delta is a point "
            "without one. Use objective=autoencoder, regularized_autoencoder, sparse_autoencoder or wasserstein; or "
            "posterior=noisy."
        )
    learned = not isinstance(c.prior, Standard)
    if c.objective.without_prior and learned and c.training.plan != "two_stage":
        faults.append(
            f"`objective.kind`={kind} does not look at the prior, so prior.kind={tag_of(type(c.prior))} learns only "
            "in a stage of its own. Use training.plan=two_stage, or prior=standard."
        )
    without_mean = _without_mean(c.likelihood)
    if getattr(c.objective, "decoder", None) == "gradient_penalty" and without_mean is not None:
        faults.append(
            f"`objective.decoder`=gradient_penalty differentiates E[x|z], which likelihood.kind={without_mean}. Use "
            "objective.decoder=weight_decay, or a likelihood with a mean, such as gaussian."
        )
    faults += [*_closed_form_faults(c), *_gradient_faults(c)]
    if "diagonal_posterior" in c.objective.needs and not isinstance(c.posterior, Gaussian | Noisy):
        faults.append(
            f"`objective.kind`={kind} needs the density of every single latent, which posterior.kind=gaussian and "
            f"noisy give; got {tag_of(type(c.posterior))}. Use posterior=gaussian, or objective=factor."
        )
    return faults


def _without_mean(likelihood: Likelihood) -> str | None:
    """Return which likelihood has no E[x|z], and why; None for one that has it."""
    kind = likelihood.kind
    if kind == "flow":
        return f"{kind} has not in closed form"
    if getattr(likelihood, "coupled", False):
        return f"{kind} with likelihood.coupled has not in closed form"
    degrees = getattr(likelihood, "degrees", None)
    if degrees is not None and degrees <= 1:
        return f"{kind} with likelihood.degrees={degrees:g} has not, only above 1"
    return None


def _closed_form_faults(c: RunConfiguration) -> list[str]:
    """Return where the KL, or that of every single latent, is asked for in a closed form that it does not have."""
    faults, prior = [], "standard" if c.training.plan == "two_stage" else tag_of(type(c.prior))
    by_class = _labels_prior(c) and prior != "standard"
    got = f"{tag_of(type(c.posterior))} and {prior}{', one for each class' * by_class}"
    gaussian = isinstance(c.posterior, Gaussian | FullGaussian | LowRankGaussian | Noisy)
    gaussian = gaussian and prior in ("standard", "gaussian", "full_gaussian") and not by_class
    if getattr(c.objective, "kl", None) == "closed_form" and not gaussian:
        faults.append(
            f"`objective.kl`=closed_form needs a Gaussian posterior and a Gaussian prior; got {got}. Use "
            "objective.kl=monte_carlo (or auto): the estimate from the same samples."
        )
    diagonal = (
        isinstance(c.posterior, Gaussian | Noisy) and prior in ("standard", "gaussian") and not by_class
    )
    per = (
        getattr(c.objective, "free_bits_per", "latent") if getattr(c.objective, "free_bits", 0) else "latent"
    )
    if per != "latent" and not diagonal:
        faults.append(
            f"`objective.free_bits_per`={per} needs the KL of every single latent, which diagonal Gaussians alone "
            f"have; got {got}. Use objective.free_bits_per=latent: the whole KL as one group."
        )
    return faults


def _labels_prior(c: RunConfiguration) -> bool:
    """Whether the prior is given the label."""
    return c.condition.on == "labels" and "prior" in c.condition.parts


def _gradient_faults(c: RunConfiguration) -> list[str]:
    """Return where the objective needs a gradient that draws, or densities, do not carry."""
    faults, posterior, prior = [], tag_of(type(c.posterior)), tag_of(type(c.prior))
    gradient = getattr(c.objective, "gradient", None)
    if gradient in ("stick_the_landing", "doubly_reparameterized") and _one_way(c):
        faults.append(
            f"`objective.gradient`={gradient} differentiates log q(z|x) in z alone, and posterior.kind={posterior} has "
            "no inverse to do so. Leave `objective.gradient` out, or use posterior=gaussian, real_nvp or iaf."
        )
    labels, of_base = _labels_prior(c), c.prior_base.learns_from_draws(labels=False)
    mixed = not (of_base and c.prior.learns_from_draws(labels=labels))
    if "prior_learns_from_draws" in c.objective.needs and c.training.plan != "two_stage" and mixed:
        what = f"prior.kind={prior}{' with a label' * labels}"
        if not of_base:
            what = f"prior_base.kind={c.prior_base.kind}"
        faults.append(
            f"`objective.kind`={c.objective.kind} compares draws of posterior and prior, and those of {what} carry no "
            "gradient to all of it, so the prior cannot learn. Use training.plan=two_stage, which trains with N(0, I) "
            "first, or a flow prior, or prior=gaussian without a label."
        )
    return faults


def _one_way(c: RunConfiguration) -> bool:
    """Whether the posterior has no density at points that it did not draw, for want of an inverse."""
    if isinstance(c.posterior, PosteriorLevels):
        return any(flow and not _FLOWS[flow].has_inverse for flow in (c.posterior.top_flow, c.posterior.flow))
    return isinstance(c.posterior, FlowSettings) and not c.posterior.has_inverse


def _prior_faults(c: RunConfiguration) -> list[str]:
    faults = []
    if not isinstance(c.prior_base, Standard) and not isinstance(c.prior, FlowSettings):
        faults.append(
            f"`prior_base.kind`={c.prior_base.kind} is what a flow starts from, but prior.kind={c.prior.kind} is none. "
            "Use prior=real_nvp (or another flow), or leave `prior_base` out."
        )
    if _labels_prior(c) and not c.prior.takes_label:
        faults.append(
            f"`condition.parts` gives the prior the label, but prior.kind={c.prior.kind} takes none. Use a flow, "
            "flow_matching, gaussian, mixture, two_level or dlgm, or condition.parts=[posterior,likelihood]."
        )
    if c.condition.embed is not None and c.prior.takes_label and not c.prior.takes_embedding:
        faults.append(
            f"`condition.embed`={c.condition.embed} does not fit prior.kind={tag_of(type(c.prior))}, which has numbers "
            "of its own for each class. Use a flow or flow_matching, or leave it out."
        )
    if c.prior.stage_of_its_own and c.training.plan == "one_stage":
        faults.append(
            f"`prior.kind`={c.prior.kind} learns by comparing latents of a fixed encoder with its own draws. Use "
            f"training.plan=two_stage{'' if c.prior.normalized_by_draws else ' or two_stage_joint'}."
        )
    weighted = c.evaluation.num_importance_samples > 1 or "weighable_prior" in c.objective.needs
    if isinstance(c.prior, FlowMatchingPrior) and c.prior.divergence == "hutchinson" and weighted:
        faults.append(
            "`prior.divergence`=hutchinson estimates log p(z), whose exponential is then too large on average: "
            "importance weights could exceed p(x). Use prior.divergence=exact, or evaluation.num_importance_samples=1 "
            "and another objective than iwae."
        )
    pseudo_inputs = c.prior.top_pseudo_inputs if isinstance(c.prior, Levels) else None
    if pseudo_inputs is not None:
        return faults + _shared_posterior_faults(c, f"`prior.top_pseudo_inputs`={pseudo_inputs}")
    if isinstance(c.prior, VampPrior | ExemplarPrior):
        faults += _shared_posterior_faults(c, f"`prior.kind`={c.prior.kind}")
    return faults


def _shared_posterior_faults(c: RunConfiguration, what: str) -> list[str]:
    """Return why a prior made of the posterior, by this setting, cannot be."""
    faults, flow = [], getattr(c.posterior, "top_flow", None)
    if not isinstance(c.prior, ExemplarPrior) and c.data.preparation is None:
        faults.append(
            f"{what} keeps its inputs in the range of the data, and data.name={c.data.name} alone does not tell it. "
            "Use data.preparation=continuous for real values, or that of the pixels, such as dequantized."
        )
    if isinstance(c.prior, Levels) and flow is not None and not _FLOWS[flow].has_inverse:
        faults.append(
            f"{what} scores every z under every component, but posterior.top_flow={flow} has no density at points that "
            "it did not draw. Use posterior.top_flow=real_nvp, or leave it out."
        )
    if isinstance(c.prior, Levels) and _labels_prior(c):
        faults.append(
            f"{what} makes the top of the prior of the posterior's, which takes no label, and condition.parts gives "
            "the prior the label. Use condition.parts=[likelihood], or leave the pseudo-inputs out."
        )
    gaussians = (Gaussian, FullGaussian, LowRankGaussian, Noisy)
    if isinstance(c.prior, ExemplarPrior) and not isinstance(c.posterior, gaussians):
        faults.append(
            f"`prior.kind`=exemplar needs the mean of a Gaussian posterior; got "
            f"posterior.kind={tag_of(type(c.posterior))}. Use posterior=gaussian, or prior=vamp."
        )
    if isinstance(c.prior, VampPrior) and (_one_way(c) or isinstance(c.posterior, Delta)):
        faults.append(
            "`prior.kind`=vamp scores every z under every component, but "
            f"posterior.kind={tag_of(type(c.posterior))} has no density at points that it did not draw. "
            "Use posterior=gaussian or real_nvp."
        )
    if c.condition.on == "labels" and "posterior" in c.condition.parts:
        faults.append(
            f"{what} is made of the posterior, which `condition.parts` gives the label; its inputs have none. Use "
            "condition.parts=[likelihood], or another prior."
        )
    return faults


def likelihood_faults(likelihood: Likelihood, preparation: str | None) -> list[str]:
    """Return why the likelihood is none of data prepared in this way; empty if it is, or if nothing is said."""
    kind, variance = likelihood.kind, getattr(likelihood, "variance", None)
    if preparation is None:
        return []
    if preparation == "unit" and variance == "fixed":
        return []  # a squared or an absolute error, which cannot run away
    if preparation == "unit" and variance is not None and "unit" not in likelihood.preparations:
        return [
            f"`likelihood.variance`={variance} does not fit data.preparation=unit: on discrete gray values "
            "a learned variance can shrink without limit, and the NLL then falls without a lower bound and means "
            "nothing. Use data.preparation=dequantized, or likelihood.variance=fixed with likelihood.scale."
        ]
    if preparation in likelihood.preparations:
        return []
    fitting = " or ".join(likelihood.preparations)
    others = ", ".join(name for name, kinds in LIKELIHOODS_OF.items() if preparation in kinds)
    return [
        f"`likelihood.kind`={kind} is {_WHAT_IT_IS[likelihood.preparations[0]]}, but "
        f"data.preparation={preparation} gives {_WHAT_COMES[preparation]}. Use "
        f"data.preparation={fitting}, or likelihood={others}."
    ]


_WHAT_IT_IS = {
    "dynamic_binary": "a probability of binary data, and on other values the cross-entropy is no likelihood",
    "unit": "made for gray levels",
    "dequantized": "a density, which on discrete values has no upper bound",
}
_WHAT_COMES = {
    "dynamic_binary": "only 0 and 1",
    "fixed_binary": "only 0 and 1",
    "unit": "gray levels",
    "dequantized": "real values in [0, 1)",
    "continuous": "real values",
}
LIKELIHOODS_OF = {tag_of(kind): kind.preparations for kind in get_args(get_args(Likelihood)[0])}


def _level_faults(c: RunConfiguration) -> list[str]:
    """Return what does not fit between levels of latents."""
    levels = [part.kind for part in (c.posterior, c.prior) if isinstance(part, Levels | PosteriorLevels)]
    if not levels:
        return []
    if c.posterior.kind != c.prior.kind:
        return [
            f"`posterior.kind`={c.posterior.kind} and prior.kind={c.prior.kind} do not have the same levels of "
            f"latents. Use posterior={levels[0]} and prior={levels[0]}, or neither."
        ]
    assert isinstance(c.posterior, PosteriorLevels)
    dims = c.posterior.dims(c.latent_dim)
    if min(dims) < 1:
        return [
            f"`posterior.kind`={c.posterior.kind} needs a latent in every level; latent_dim={c.latent_dim} would give "
            f"{', '.join(map(str, dims))}. Use more latents, or fewer above."
        ]
    faults = []
    for place, part in (("posterior", c.posterior), ("prior", c.prior)):
        for key, sizes in (("top_flow", dims[:1]), ("flow", dims[1:])):
            faults += _level_flow_faults(f"{place}.{key}", getattr(part, key), sizes)
    return faults


def _level_flow_faults(key: str, name: str | None, sizes: Sequence[int]) -> list[str]:
    """Return why the flow of a level, with its defaults, cannot be one of so many latents."""
    if name is None:
        return []
    flow, smallest, largest = _FLOWS[name], min(sizes), max(sizes)
    if flow.needs_two and smallest < 2:
        return [
            f"`{key}`={name} lets parts of z decide on each other and needs levels of two latents or more; got "
            f"{smallest}. Use more latents, or another flow."
        ]
    width = flow.model_fields["width"].default if flow.masked else largest
    if width < largest:
        return [
            f"`{key}`={name} has width {width}, too narrow for a level of {largest} latents. Use fewer, or "
            "another flow."
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
    mask = getattr(part, "own_mask", None)
    if mask is not None and len(mask) != latents:
        faults.append(
            f"`{name}.own_mask` must hold a number for each of latent_dim={latents} latents; got {len(mask)}. Give as "
            "many, 0 or 1."
        )
    limits = {"rank": "directions", "num_householder": "reflections"}
    for key, what in limits.items():
        given = getattr(part, key, None)
        if given is not None and given > latents and key in part.model_fields_set:
            faults.append(
                f"`{name}.{key}` must be at most latent_dim={latents}, as there are no more {what}; got {given}."
            )
    return faults
