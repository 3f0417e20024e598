"""Valid parts that cannot work together are refused with what to use instead, and no others."""

import pytest

from latentflows.core.errors import CombinationError
from latentflows.studies.settings.overrides import configuration_from

DO_NOT_FIT = {
    "a mixture that must learn from its draws": (
        ["objective=info_vae", "prior=mixture"],
        "`objective.kind`=info_vae compares .* of prior.kind=mixture carry no gradient .* training.plan=two_stage",
    ),
    "a flow over a mixture that must learn from its draws": (
        ["objective=wasserstein", "prior=real_nvp", "prior_base=mixture", "training.plan=two_stage_joint"],
        "those of prior_base.kind=mixture carry no gradient",
    ),
    "Gaussians of classes that must learn from their draws": (
        ["objective=wasserstein", "prior=full_gaussian", "condition.on=labels"],
        "those of prior.kind=full_gaussian with a label carry no gradient",
    ),
    "resampled draws that must be learned from": (
        ["objective=info_vae", "prior=adversarial", "prior.num_proposals=9", "training.plan=two_stage_joint"],
        "those of prior.kind=adversarial carry no gradient",
    ),
    "contrast from the start": (
        ["prior=noise_contrastive", "training.plan=one_stage"],
        r"Use training.plan=two_stage\.$",
    ),
    "a gradient penalty without a mean": (
        ["objective=regularized_autoencoder", "likelihood=flow"],
        "`objective.decoder`=gradient_penalty differentiates .* Use objective.decoder=weight_decay",
    ),
    "a gradient penalty without a mean of coupled channels": (
        ["objective=regularized_autoencoder", "likelihood=logistic", "likelihood.coupled=true"],
        "likelihood.kind=logistic with likelihood.coupled has not in closed form",
    ),
    "a gradient penalty of tails without a mean": (
        ["objective=regularized_autoencoder", "likelihood=student_t", "likelihood.degrees=1"],
        "likelihood.kind=student_t with likelihood.degrees=1 has not, only above 1. Use objective.decoder=",
    ),
    "pieces of different sizes": (
        ["training.batch_size=256", "training.accumulate=3"],
        "`training.batch_size`=256 cannot be cut into training.accumulate=3 equal pieces. .*batch_size=255, or",
    ),
    "pieces of different sizes of another model": (
        ["model=vq_vae", "training.batch_size=2", "training.accumulate=8"],
        "Use training.batch_size=8, or another number of pieces",
    ),
    "free bits of single latents with a flow": (
        ["posterior=iaf", "objective.free_bits=1"],
        "`objective.free_bits_per`=dimension needs .* got iaf and standard. Use objective.free_bits_per=latent",
    ),
    "free bits of single latents with Gaussians of classes": (
        ["prior=gaussian", "condition.on=labels", "objective.free_bits=1", "objective.free_bits_per=channel"],
        "got gaussian and gaussian, one for each class.",
    ),
    "closed form with Gaussians of classes": (
        ["prior=gaussian", "condition.on=labels", "objective.kl=closed_form"],
        "closed_form needs .* got gaussian and gaussian, one for each class. Use objective.kl=monte_carlo",
    ),
    "a gradient without an inverse": (
        ["posterior=planar", "objective=iwae", "objective.gradient=doubly_reparameterized"],
        "`objective.gradient`=doubly_reparameterized .* posterior.kind=planar has no inverse",
    ),
    "weights by an estimated density": (
        ["prior=flow_matching", "prior.divergence=hutchinson"],
        "`prior.divergence`=hutchinson .* or evaluation.num_importance_samples=1",
    ),
    "Bernoulli on gray": (["data.preparation=unit"], "bernoulli is a probability of binary data"),
    "Gaussian on binary": (["likelihood=gaussian"], "which on discrete values has no upper bound"),
    "a learned variance on gray": (
        ["data.preparation=unit", "likelihood=gaussian"],
        "variance`=shared does not fit .*without a lower bound.*data.preparation=dequantized, or .*=fixed",
    ),
    "a variance per pixel on gray": (
        ["data.preparation=unit", "likelihood=gaussian", "likelihood.variance=amortized"],
        "variance`=amortized does not fit",
    ),
    "nothing to fit": (["training.plan=two_stage"], r"prior N\(0, I\) has no parameters"),
    "closed form with a flow": (
        ["posterior=iaf", "objective.kl=closed_form"],
        "closed_form needs a Gaussian posterior.*got iaf and standard",
    ),
    "nothing to couple": (
        ["prior=nice", "latent_dim=1"],
        "needs two or more; got latent_dim=1. Use prior=maf",
    ),
    "tokens that do not fit": (
        ["prior=tarflow", "latent_dim=4", "prior.patch=3"],
        "`prior.patch` must divide latent_dim=4 into two tokens or more; got 3. Use one of 1, 2.",
    ),
    "heads that do not fit": (
        ["prior=tarflow", "prior.heads=3"],
        "`prior.width` must be an even multiple of `prior.heads`; got 128 and 3. Use prior.width=126",
    ),
    "too many directions": (
        ["posterior=sylvester_orthogonal", "latent_dim=4", "posterior.rank=9"],
        "`posterior.rank` must be at most latent_dim=4, as there are no more directions; got 9.",
    ),
    "too many reflections": (
        ["posterior=sylvester_householder", "latent_dim=4", "posterior.num_householder=9"],
        "`posterior.num_householder` must be at most latent_dim=4, as there are no more reflections; got 9.",
    ),
    "a mask of another length": (
        ["posterior=real_nvp", "posterior.own_mask=[1,0,0]", "latent_dim=4"],
        "`posterior.own_mask` must hold a number for each of latent_dim=4 latents; got 3.",
    ),
    "a narrow IAF": (["posterior=iaf", "posterior.width=39"], "`posterior.width` must be at least 40"),
    "a narrow MAF": (["prior=maf", "prior.width=38"], "`prior.width` must be at least 39"),
}


@pytest.mark.parametrize("name", DO_NOT_FIT)
def test_parts_that_do_not_fit_are_refused_with_the_reason(name):
    overrides, message = DO_NOT_FIT[name]
    with pytest.raises(CombinationError, match=message):
        configuration_from({}, overrides)


def test_parts_that_just_fit_are_accepted():
    configuration_from({}, ["posterior=iaf", "posterior.width=40", "prior=maf", "prior.width=39"])
    configuration_from({}, ["prior=nice", "latent_dim=2"])
    configuration_from({}, ["posterior=full_gaussian", "prior=gaussian", "objective.kl=closed_form"])
    two_stage = ["prior=real_nvp", "training.plan=two_stage"]  # the objective meets N(0, I) alone
    configuration_from({}, [*two_stage, "objective.kl=closed_form", "objective.free_bits=1"])
    configuration_from({}, ["posterior=iaf", "objective.free_bits=1", "objective.free_bits_per=latent"])
    configuration_from({}, ["prior=gaussian", "objective=info_vae"])
    configuration_from({}, ["training.batch_size=255", "training.accumulate=3"])
    tails = ["objective=regularized_autoencoder", "data.preparation=dequantized", "likelihood=student_t"]
    configuration_from({}, tails)  # learned degrees of freedom stay above 1
    configuration_from({}, [*tails, "likelihood.degrees=1.5"])
    configuration_from({}, [*tails, "likelihood.degrees=1", "objective.decoder=weight_decay"])
