"""What a model that brings parts of its own needs, and which settings it does not look at: these are refused."""

from __future__ import annotations

from typing import Any

from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.flows import FlowSettings
from latentflows.studies.settings.models import CodesModel, FlowModel, SegmentationModel
from latentflows.studies.settings.options import tag_of
from latentflows.studies.settings.priors import GaussianMixture, Standard

_PRIOR_OF_CODES = "Its prior is set by model.prior_width, model.prior_depth and model.prior_heads."
_OF_DENSITY = "The flow of `prior` is the whole model."
# By model: keys that it does not look at, and what decides instead.
_UNUSED: dict[type, dict[str, str]] = {
    CodesModel: {
        "latent_dim": "Its latents are set by model.dim and model.halvings.",
        "network": "Its networks are set by model.width and model.num_blocks.",
        "posterior": "Its encoder gives one code for each place.",
        "prior": _PRIOR_OF_CODES,
        "prior_base": _PRIOR_OF_CODES,
        "objective": "What it minimizes is set by model.commitment.",
    },
    FlowModel: {
        "latent_dim": "A flow has as many dimensions as the data.",
        "network": _OF_DENSITY,
        "posterior": _OF_DENSITY,
        "likelihood": _OF_DENSITY,
        "objective": "What it minimizes is set by model.objective.",
    },
    SegmentationModel: {
        "network": "Its networks are set by model.width, model.decoder_width and model.num_blocks.",
        "posterior": "It has a Gaussian with bounded means and scales, see model.mean_bound and model.scale_bound.",
        "prior_base": "Its prior starts from a mixture, see model.num_components.",
        "likelihood": "Masks are binary.",
    },
}


def model_faults(c: RunConfiguration) -> list[str]:
    """Return what does not fit the model as a whole; empty for a VAE on data that are no masks."""
    kind, faults = c.model.kind, [*_data_faults(c), *_energy_faults(c)]
    for model, unused in _UNUSED.items():
        if isinstance(c.model, model):
            faults += _unused_faults(c, unused)
    if isinstance(c.model, CodesModel):
        faults += _codes_faults(c, c.model)
    if isinstance(c.model, FlowModel):
        faults += _flow_faults(c)
    if isinstance(c.model, SegmentationModel):
        faults += _segmentation_faults(c)
    if isinstance(c.model, FlowModel | SegmentationModel) and c.training.plan != "one_stage":
        faults.append(
            f"`training.plan`={c.training.plan} does not fit model.kind={kind}, which trains at once. Use "
            "training.plan=one_stage."
        )
    conditional = c.condition.on != "nothing" and c.condition.parts != ("prior",)
    if conditional and isinstance(c.model, CodesModel | FlowModel):
        faults.append(
            f"`condition.parts`={','.join(c.condition.parts)} does not fit model.kind={kind}, whose prior alone can be "
            "given a label. Use condition.parts=[prior]."
        )
    if c.condition.embed is not None and isinstance(c.model, CodesModel):
        faults.append(
            f"`condition.embed`={c.condition.embed} does not fit model.kind={kind}, whose prior has a vector of "
            "model.prior_width numbers for each class. Leave it out."
        )
    return faults


def _data_faults(c: RunConfiguration) -> list[str]:
    """Return what does not fit between the model and data of masks."""
    masks, kind = c.data.name == "ambiguous_shapes", c.model.kind
    if not masks:
        wanted = isinstance(c.model, SegmentationModel)
        return [f"`model.kind`={kind} needs masks with their pictures. Use data=ambiguous_shapes."] * wanted
    faults = []
    if not isinstance(c.model, SegmentationModel):
        faults.append(
            f"`data.name`=ambiguous_shapes has several masks of each picture, and model.kind={kind} would not look at "
            "the picture. Use model=segmentation_vae."
        )
    if c.data.preparation != "dynamic_binary":
        faults.append(
            f"`data.preparation`={c.data.preparation} does not apply to ambiguous_shapes, which draws one of the masks "
            "of each picture anew for every batch. Leave it out."
        )
    for key in ("root", "mode", "memory_map"):
        if getattr(c.data, key):
            faults.append(
                f"`data.{key}`={getattr(c.data, key)} does not apply to ambiguous_shapes. Leave it out."
            )
    return faults


def _energy_faults(c: RunConfiguration) -> list[str]:
    """Return what does not fit between the data, the model and a density that is known up to a constant."""
    faults, drawn = [], c.data.name == "energy"
    if c.data.energy is not None and not drawn:
        faults.append(
            f"`data.energy`={c.data.energy} does not apply to {c.data.name}. Use data=energy, or leave it out."
        )
    if isinstance(c.model, FlowModel) and c.model.objective != "maximum_likelihood" and not drawn:
        faults.append(
            f"`model.objective`={c.model.objective} needs the energy of the target, which data.name={c.data.name} does "
            "not have. Use data=energy, or model.objective=maximum_likelihood."
        )
    if (
        isinstance(c.model, FlowModel)
        and c.model.objective == "reverse_kl"
        and c.prior_base.kind != "standard"
    ):
        faults.append(
            f"`model.objective`=reverse_kl needs draws with gradients, and those of prior_base.kind="
            f"{c.prior_base.kind} carry none. Use prior_base=standard, or model.objective=forward_kl."
        )
    for key in ("root", "size", "mode", "memory_map") if drawn else ():
        if getattr(c.data, key):
            faults.append(f"`data.{key}`={getattr(c.data, key)} does not apply to energy. Leave it out.")
    if drawn and c.data.preparation != "continuous":
        faults.append(
            f"`data.preparation`={c.data.preparation} does not apply to energy, whose points are real numbers. Leave "
            "it out."
        )
    if drawn and c.condition.on == "labels":
        faults.append("`condition.on`=labels needs labels, and data.name=energy has none. Leave it out.")
    return faults


def _codes_faults(c: RunConfiguration, part: CodesModel) -> list[str]:
    faults, kind = [], c.model.kind
    if c.training.plan != "two_stage":
        faults.append(
            f"`training.plan`={c.training.plan} does not fit model.kind={kind}: its codes are learned first, then the "
            "prior over them. Use training.plan=two_stage, or leave it out."
        )
    if c.likelihood.kind == "flow":
        faults.append(
            f"`likelihood.kind`=flow hears a vector, and the latents of model.kind={kind} are a map. Use "
            "likelihood=gaussian with likelihood.variance=amortized, or model=vae."
        )
    if part.prior_width % (2 * part.prior_heads):
        faults.append(
            "`model.prior_width` must be an even multiple of `model.prior_heads`; got "
            f"{part.prior_width} and {part.prior_heads}. Use another width, or other heads."
        )
    return faults


def _flow_faults(c: RunConfiguration) -> list[str]:
    faults = []
    if not isinstance(c.prior, FlowSettings):
        faults.append(
            f"`prior.kind`={tag_of(type(c.prior))} is no flow, and model.kind=flow is the flow of `prior`. Use "
            "prior=real_nvp (or another flow)."
        )
    if isinstance(c.prior_base, GaussianMixture) and c.prior_base.start == "em":
        faults.append(
            "`prior_base.start`=em fits a mixture to latents, and model.kind=flow has none. Use "
            "prior_base.start=spread."
        )
    if c.data.preparation in ("dynamic_binary", "fixed_binary", "unit"):
        faults.append(
            f"`data.preparation`={c.data.preparation} gives values without a density, and model.kind=flow is one. Use "
            "data.preparation=dequantized."
        )
    return faults


def _segmentation_faults(c: RunConfiguration) -> list[str]:
    faults = []
    if not isinstance(c.prior, FlowSettings | Standard):
        faults.append(
            f"`prior.kind`={tag_of(type(c.prior))} is no flow, and model.kind=segmentation_vae takes from `prior` the "
            "flow after its mixture. Use prior=real_nvp (or another flow), or leave it out for none."
        )
    if c.condition.on != "nothing":
        faults.append(
            "`condition.on`=labels does not fit model.kind=segmentation_vae, all parts of which are given the picture. "
            "Leave it out."
        )
    if "prior_learns_from_draws" in c.objective.needs:
        faults.append(
            f"`objective.kind`={c.objective.kind} compares draws of posterior and prior, and those of the mixture of "
            "model.kind=segmentation_vae carry no gradient to all of it, so it cannot learn. Use objective=elbo."
        )
    if c.objective.without_prior:
        faults.append(
            f"`objective.kind`={c.objective.kind} does not look at the prior, so that of model.kind=segmentation_vae "
            "would not learn. Use objective=elbo."
        )
    if getattr(c.objective, "free_bits", 0) and getattr(c.objective, "free_bits_per", "latent") != "latent":
        faults.append(
            f"`objective.free_bits_per`={getattr(c.objective, 'free_bits_per', None)} needs the KL of every single "
            "latent, which a Gaussian and the mixture of model.kind=segmentation_vae do not have. Use "
            "objective.free_bits_per=latent: the whole KL as one group."
        )
    if getattr(c.objective, "kl", None) == "closed_form":
        faults.append(
            "`objective.kl`=closed_form does not exist between a Gaussian and the mixture of model.kind="
            "segmentation_vae. Use objective.kl=monte_carlo (or auto)."
        )
    return faults


def _unused_faults(c: RunConfiguration, unused: dict[str, str]) -> list[str]:
    """Return a fault for each key that is not at its default: the model would not look at it."""
    return [
        f"`{key}`={_shown(getattr(c, key))} is not looked at by model.kind={c.model.kind}. {instead} Leave it out, or "
        f"at its default ({key}={_shown(_default(key))}); or use model=vae."
        for key, instead in unused.items()
        if getattr(c, key) != _default(key)
    ]


def _default(key: str) -> Any:
    return RunConfiguration.model_fields[key].get_default()


def _shown(value: Any) -> str:
    """Write a part by its kind, and by what of it is not at its default."""
    kind = getattr(value, "kind", None)
    if kind is None:
        return str(value)
    changed = value.model_dump(exclude_defaults=True, exclude={"kind"})
    return kind + "".join(f" with {key}={given}" for key, given in changed.items())
