"""What evaluation says, and refuses, of priors whose density is not a closed form."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.distributions import (
    EnergyPrior,
    FlowMatchingPrior,
    ResampledPrior,
    StandardGaussian,
)
from latentflows.evaluation import (
    Annealing,
    evaluate_annealed,
    evaluate_bounds,
    evaluate_gaps,
    evaluate_information,
)
from latentflows.evaluation.base import ImpossibleDivergenceError, check_divergence
from latentflows.models import VAE, second_stage_vae
from latentflows.networks import MLP, ResidualMLP
from latentflows.objectives import IWAE
from tests.evaluation.test_bounds import Points
from tests.linear_gaussian import LinearGaussian

EXAMPLE = LinearGaussian(latent=2)
X = Points(EXAMPLE.data(4))


def with_prior(prior) -> VAE:
    return VAE(EXAMPLE.model.posterior, prior.double(), EXAMPLE.model.likelihood)


def scalar():
    return MLP((2,), (1,), width=6, depth=1, activation_name="tanh")


def test_an_unnormalized_prior_is_refused_until_its_normalizer_is_estimated():
    model = with_prior(EnergyPrior(StandardGaussian(2), scalar()))
    with pytest.raises(CombinationError, match="`EnergyPrior` knows its density up to a constant only"):
        evaluate_bounds(model, X, num_importance_samples=1)
    found = model.prior.estimate_normalizer(5000)
    result = evaluate_bounds(model, X, num_importance_samples=20)
    protocol = result.protocol()
    assert protocol["prior_density"] == "approximate"
    assert protocol["normalizer_error"] == pytest.approx(found.error)


def test_a_divergence_may_lie_below_zero_by_what_its_density_states():
    prior = EnergyPrior(StandardGaussian(2), scalar()).eval()
    prior.estimate_normalizer(5000)
    kl = torch.full((4,), -1.0)
    with pytest.raises(ImpossibleDivergenceError, match="its normalizer misses mass there"):
        check_divergence(kl, prior())
    check_divergence(kl, prior(), solver_error=0.3)
    check_divergence(kl, StandardGaussian(2)())
    prior.normalizer.error.fill_(0.3)
    check_divergence(kl, prior())


class Slope(nn.Module):
    """E(z) = -s z_1, so that log Z is s^2 / 2 under N(0, I)."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, z: Tensor) -> Tensor:
        return -self.slope * z[:, :1]


def test_a_normalizer_that_a_few_draws_carry_stays_unknown():
    prior = EnergyPrior(StandardGaussian(2), Slope(1.0)).eval()
    found = prior.estimate_normalizer(1 << 14)
    assert found.log_mean == pytest.approx(0.5, abs=5 * found.error)
    assert found.error < 0.02
    assert prior().density == "approximate"
    with torch.no_grad():
        prior.energy.slope.fill_(20.0)
    found = prior.estimate_normalizer(1 << 14)
    assert found.log_mean < 100  # 200 in truth
    assert found.effective_sample_size < 100
    assert math.isinf(found.error)
    assert prior().density == "unnormalized"
    with pytest.raises(
        CombinationError, match="where a few draws carry all weight, the constant stays unknown"
    ):
        evaluate_bounds(with_prior(prior), X, num_importance_samples=1)


def test_a_divergence_below_zero_is_no_likelihood():
    model = with_prior(EnergyPrior(StandardGaussian(2), scalar()))
    model.prior.estimate_normalizer(5000)
    kl = float(evaluate_bounds(model, X, num_importance_samples=20).kl.mean())
    assert kl > 0
    model.prior.normalizer.log_mean.sub_(kl + 20)
    with pytest.raises(
        ImpossibleDivergenceError, match=r"is -20\.?\d* nats on average over 4 images, and no density"
    ):
        evaluate_bounds(model, X, num_importance_samples=20)


def test_a_constant_in_the_energy_changes_no_bound():
    """E + 3 is the same prior, once its normalizer is estimated; and it is then the base's density, for constant E."""
    prior = EnergyPrior(StandardGaussian(2), scalar())
    with torch.no_grad():
        for p in prior.energy.parameters():
            p.zero_()
        prior.energy.last.linear.bias.fill_(3.0)
    model = with_prior(prior)
    assert model.prior.estimate_normalizer(1000).log_mean == pytest.approx(-3)
    result = evaluate_bounds(model, X, num_importance_samples=1)
    torch.testing.assert_close(-result.nll, EXAMPLE.log_evidence(X.x))


def test_a_normalizer_that_was_never_measured_has_an_unknown_error():
    result = evaluate_bounds(
        with_prior(ResampledPrior(StandardGaussian(2), scalar())), X, num_importance_samples=2
    )
    assert result.prior_density == "approximate"
    assert math.isinf(result.normalizer_error)
    assert result.protocol()["normalizer_error"] is None
    exact = evaluate_bounds(EXAMPLE.model, X, num_importance_samples=2)
    assert exact.prior_density == "exact"
    assert exact.normalizer_error is None


def test_a_biased_weight_is_refused_where_weights_are_averaged():
    def network(in_shape, out_shape, features):
        return ResidualMLP(in_shape, out_shape, width=4, num_blocks=1, context=features)

    exact = with_prior(FlowMatchingPrior(2, network, num_steps=2))
    IWAE().check(exact)
    assert evaluate_bounds(exact, X, num_importance_samples=2).prior_density == "approximate"
    model = with_prior(FlowMatchingPrior(2, network, num_steps=2, divergence="hutchinson"))
    assert evaluate_bounds(model, X, num_importance_samples=1).prior_density == "approximate"
    with pytest.raises(
        CombinationError, match=r"exp\(log p\) of the prior \(`FlowMatchingPrior`\) is biased upward"
    ):
        evaluate_bounds(model, X, num_importance_samples=2)
    with pytest.raises(CombinationError, match="`IWAE` averages importance weights"):
        IWAE().check(model)
    with model.standard_prior():
        IWAE().check(model)


def check_weighed_nowhere(model, data, part):
    """See a model whose part has an estimated logarithm refused by whatever averages weights."""
    annealing = Annealing(num_chains=1, num_temperatures=1, start="posterior")
    for weigh in (
        lambda: evaluate_bounds(model, data, num_importance_samples=3),
        lambda: evaluate_gaps(model, data, num_steps=1, num_samples=2),
        lambda: evaluate_annealed(model, data, annealing),
    ):
        with pytest.raises(CombinationError, match=f"the {part} .*biased upward"):
            weigh()


@pytest.mark.parametrize("part", ["posterior", "likelihood"])
def test_whatever_part_has_an_estimated_logarithm_is_weighed_nowhere(part, monkeypatch):
    model = with_prior(StandardGaussian(2))
    monkeypatch.setattr(getattr(model, part), "weighable", False)
    check_weighed_nowhere(model, X, part)
    evaluate_bounds(model, X, num_importance_samples=1)
    if part == "posterior":  # which no chain is weighed by
        chains = Annealing(num_chains=1, num_temperatures=1, start="prior", num_pilot_moves=1)
        evaluate_annealed(model, X, chains, num_images=1)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_an_integrated_density_comes_with_its_solver_and_its_error(method):
    def network(in_shape, out_shape, features):
        return ResidualMLP(in_shape, out_shape, width=4, num_blocks=1, context=features)

    def solved(**settings):
        torch.manual_seed(3)
        model = with_prior(FlowMatchingPrior(2, network, solver=method, **settings))
        return evaluate_bounds(model, X, num_importance_samples=1)

    coarse, fine = solved(num_steps=1, tolerance=1e-2), solved(num_steps=10, tolerance=1e-5)
    for found, words in ((coarse, ("1 steps", "0.01")), (fine, ("10 steps", "1e-05"))):
        protocol = found.protocol()
        assert (
            protocol["prior_solver"]
            == {
                "rk4": f"rk4 with {words[0]}",
                "dopri5": f"dopri5 at tolerance {words[1]}",
            }[method]
        )
        assert protocol["probe_error"] is None
    assert coarse.integration.evaluations < fine.integration.evaluations
    if method == "rk4":
        assert (coarse.integration.evaluations, fine.integration.evaluations) == (4, 40)
    assert 0 < fine.integration.error < coarse.integration.error
    guessed = solved(num_steps=2, divergence="hutchinson", num_probes=3)
    assert guessed.integration.solver.endswith("divergence estimated from 3 probes")
    assert guessed.integration.probe_error > 0
    assert "prior_solver" not in evaluate_bounds(EXAMPLE.model, X, num_importance_samples=1).protocol()


def test_the_draws_of_an_estimated_density_come_from_the_seed_and_disturb_no_other():
    model = with_prior(second_stage_vae(2, width=6, depth=1))
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = evaluate_information(model, X, seed=1).kl
    evaluate_bounds(model, X, num_importance_samples=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    torch.testing.assert_close(evaluate_information(model, X, seed=1).kl, first, rtol=0, atol=0)
    assert not torch.equal(evaluate_information(model, X, seed=2).kl, first)


def test_annealing_says_why_it_refuses_an_estimated_logarithm():
    network = partial(ResidualMLP, width=6, num_blocks=1, activation_name="silu")
    prior = FlowMatchingPrior(
        2, lambda i, o, c: network(i, o, context=c, zero_last=True), num_steps=2, divergence="hutchinson"
    )
    with pytest.raises(CombinationError, match=r"the prior .*biased upward, since its log p is an estimate"):
        evaluate_annealed(with_prior(prior), X)
