"""What each objective asks of a model is listed, and refused where it is missing, each with its message."""

import re
from typing import get_args

import pytest
import torch
from torch import nn

from latentflows.core.errors import CombinationError
from latentflows.distributions import (
    AmortizedGaussian,
    Conditional,
    DiagonalNormal,
    Flow,
    LearnedGaussian,
    ResampledPrior,
    StandardGaussian,
)
from latentflows.distributions.delta import AmortizedDelta
from latentflows.models import VAE, presets, second_stage_vae
from latentflows.objectives import InfoVAE, Need, WassersteinAutoencoder, density_of
from latentflows.objectives.requirements import _CHECKS, require
from latentflows.training import Stage
from tests.distributions.cases import network
from tests.models.parts import DATA, LATENT, LIKELIHOODS, POSTERIORS, vae
from tests.objectives.cases import DENSITIES, OBJECTIVES, point_model


class Unknown(DiagonalNormal):
    """A density up to its constant."""

    density = "unnormalized"


class Choosing(DiagonalNormal):
    """Draws that carry no gradient, as those of a mixture."""

    reparameterized = False


class Prior(LearnedGaussian):
    def __init__(self, kind) -> None:
        super().__init__(LATENT)
        self.distribution_type = kind

    def _condition(self, context):
        return self.distribution_type(self.mean, self.raw_scale)


def model_with(prior: Conditional) -> VAE:
    return VAE(POSTERIORS["gaussian"](), prior, LIKELIHOODS["fixed"]())


def flow_over(base: Conditional) -> Flow:
    return Flow(base, presets.real_nvp(LATENT, num_layers=1, width=4))


ALL = {**OBJECTIVES, **DENSITIES}
SCORING = [name for name, objective in OBJECTIVES.items() if "prior_density" in objective.needs]


def test_every_need_has_its_check_and_every_objective_names_known_ones():
    assert set(get_args(Need)) == set(_CHECKS)
    assert all(set(objective.needs) <= set(_CHECKS) for objective in ALL.values())


def test_a_density_is_that_of_the_base_of_a_flow():
    assert density_of(StandardGaussian(2)) == "exact"
    assert density_of(Prior(Unknown)) == "unnormalized"
    assert density_of(flow_over(flow_over(Prior(Unknown)))) == "unnormalized"
    solved = flow_over(StandardGaussian(LATENT))
    assert density_of(solved) == "exact"
    solved.solved = True
    assert density_of(solved) == density_of(flow_over(solved)) == "approximate"
    assert density_of(AmortizedDelta(LATENT, DATA, network(DATA, LATENT))) == "unnormalized"


@pytest.mark.parametrize("wrap", [lambda prior: prior, flow_over], ids=["itself", "under a flow"])
@pytest.mark.parametrize("name", SCORING)
def test_a_prior_without_its_constant_is_refused_by_every_bound(name, wrap):
    objective = OBJECTIVES[name]
    if name in {"closed_form", "free_bits"}:
        pytest.skip("refused for having no closed form, or for this")
    model = model_with(wrap(Prior(Unknown)))
    with pytest.raises(
        CombinationError, match=r"needs log p\(z\), but .* knows it up to a constant only, which would be"
    ):
        objective.check(model)


def test_in_the_stage_that_leaves_such_a_prior_out_all_is_well():
    model = model_with(Prior(Unknown))
    for name in SCORING:
        objective = OBJECTIVES[name]
        if objective.prior_only or objective.has_auxiliary:
            continue
        Stage("first", objective, ("posterior", "likelihood"), standard_prior=True).check(model)


def test_posteriors_without_a_density_are_refused_by_name():
    wanted = re.escape(
        "`ELBO` needs log q(z|x), but `AmortizedDelta` has no density. Use a Gaussian or a flow posterior"
    )
    with pytest.raises(CombinationError, match=wanted):
        require("ELBO", point_model(), ("posterior_density",))


@pytest.mark.parametrize("wrap", [lambda prior: prior, flow_over], ids=["itself", "under a flow"])
def test_a_prior_whose_draws_carry_no_gradient_cannot_learn_from_them(wrap):
    model = model_with(wrap(Prior(Choosing)))
    objective = WassersteinAutoencoder()
    with pytest.raises(CombinationError, match="carry no gradient to all of it, so the prior cannot learn"):
        objective.check(model)
    Stage("first", objective, ("posterior", "likelihood"), standard_prior=True).check(model)
    model.prior.requires_grad_(False)
    objective.check(model)


def test_asking_for_a_weighable_prior_leaves_the_prior_and_the_random_numbers_alone():
    model = model_with(
        ResampledPrior(StandardGaussian(LATENT), network((LATENT,), (1,)), num_normalizer_samples=8)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    require("IWAE", model, ("weighable_prior",))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_plainest_model_satisfies_all(name):
    model = vae("gaussian", "diagonal")
    model.auxiliary = torch.nn.Identity()
    OBJECTIVES[name].check(model)


def test_a_prior_whose_encoder_has_no_part_in_its_draws_is_refused_by_what_reads_draws_alone():
    posterior = AmortizedGaussian(2, 2, nn.Linear(2, 4))
    likelihood = AmortizedGaussian(2, 2, nn.Linear(2, 2), scale=1.0)
    model = VAE(posterior, second_stage_vae(2, width=4, depth=1), likelihood)
    with pytest.raises(CombinationError, match="carry no gradient to all of it"):
        InfoVAE().check(model)
    with model.standard_prior():
        InfoVAE().check(model)
