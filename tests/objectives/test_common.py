"""What holds for every objective: what it logs adds up, it differentiates, and a batch given twice changes nothing."""

import dataclasses
import itertools

import pytest
import torch

from latentflows.core.errors import CombinationError
from latentflows.core.noise import stream
from latentflows.distributions import StandardGaussian, kl
from latentflows.models import DensityModel, Trace
from latentflows.objectives import ELBO, IWAE, MaximumLikelihood, Objective
from tests.linear_gaussian import LinearGaussian
from tests.models.parts import POSTERIORS, PRIORS, vae
from tests.objectives.cases import DENSITIES, OBJECTIVES, OF_THE_BATCH, density_model, model_and_data

BOUNDS = [name for name, objective in OBJECTIVES.items() if "elbo" in objective.metrics]
SUMS = {  # the loss of each point, written out in its metrics
    "elbo": lambda m: m["kl"] - m["reconstruction"],
    "beta": lambda m: 0.5 * m["kl"] - m["reconstruction"],
    "closed_form": lambda m: m["kl"] - m["reconstruction"],
    "sticking": lambda m: m["kl"] - m["reconstruction"],
    "joint": lambda m: m["kl"] - m["reconstruction"],
    "cyclical": lambda m: m["kl"] - m["reconstruction"],
    "iwae": lambda m: -m["iwae"],
    "iwae_doubly": lambda m: -m["iwae"],
    "iwae_sticking": lambda m: -m["iwae"],
    "prior": lambda m: m["prior_nll"],
    "info": lambda m: 0.7 * m["kl"] - m["reconstruction"] + 4.3 * m["mmd"],
    "mmd_vae": lambda m: -m["reconstruction"] + 10 * m["mmd"],
    "wasserstein": lambda m: -m["reconstruction"] + 10 * m["mmd"],
    "beta_tc": lambda m: (
        m["mutual_information"] + 6 * m["total_correlation"] + m["dimension_wise_kl"] - m["reconstruction"]
    ),
    "beta_tc_weighted": lambda m: (
        0.5 * m["mutual_information"]
        + 6 * m["total_correlation"]
        + 2 * m["dimension_wise_kl"]
        - m["reconstruction"]
    ),
    "factor": lambda m: -m["elbo"] + 10 * m["total_correlation"] + m["discriminator_loss"],
    "geco": lambda m: m["kl"] + m["multiplier"] * 6 * m["constraint"],
    "autoencoder": lambda m: -m["reconstruction"],
    "regularized": lambda m: -m["reconstruction"] + 0.5 * m["latent_penalty"] + 0.2 * m["decoder_penalty"],
    "regularized_decay": lambda m: (
        -m["reconstruction"] + 0.01 * m["latent_penalty"] + 0.2 * m["decoder_penalty"]
    ),
    "sparse": lambda m: -m["reconstruction"] + 3 * m["sparsity_penalty"],
    "likelihood": lambda m: m["nll"],
    "forward": lambda m: m["nll"] - m["energy"],
    "reverse": lambda m: m["log_density"] + m["energy"],
}


def made(name: str):
    """The objective, a model that it trains, and five data points."""
    if name in DENSITIES:
        return DENSITIES[name], density_model(), torch.randn(5, 3).double()
    return OBJECTIVES[name], *model_and_data("gaussian", "diagonal", objective=OBJECTIVES[name])


@pytest.mark.parametrize("name", [*OBJECTIVES, *DENSITIES])
def test_every_objective_logs_what_it_declares_and_the_loss_of_each_point(name):
    objective, model, x = made(name)
    objective.check(model)
    value = objective(objective.trace(model, x))
    assert tuple(value.metrics) == objective.metrics
    assert all(metric.shape == (5,) and not metric.requires_grad for metric in value.metrics.values())
    assert all(metric.isfinite().all() for metric in value.metrics.values())
    torch.testing.assert_close(value.metrics["loss"].mean(), value.loss.detach())


@pytest.mark.parametrize("name", SUMS)
def test_the_loss_is_the_sum_of_what_is_logged(name):
    objective, model, x = made(name)
    metrics = objective(objective.trace(model, x)).metrics
    torch.testing.assert_close(metrics["loss"], SUMS[name](metrics))


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_called_elbo_is_the_bound_itself_whatever_is_minimized(name):
    objective, model, x = made(name)
    trace = objective.trace(model, x)
    for epoch in (0.3, torch.inf):
        metrics = objective(trace, epoch).metrics
        torch.testing.assert_close(metrics["elbo"], metrics["reconstruction"] - metrics["kl"])
        torch.testing.assert_close(metrics["reconstruction"], trace.log_likelihood.mean(0).detach())
        if getattr(objective, "kl", "monte_carlo") == "monte_carlo":
            torch.testing.assert_close(metrics["elbo"], trace.log_weight.mean(0).detach())


@pytest.mark.parametrize("name", [*OBJECTIVES, *DENSITIES])
def test_every_parameter_that_learns_has_a_finite_gradient(name):
    objective, model, x = made(name)
    objective(objective.trace(model, x)).loss.backward()
    for place, parameter in model.named_parameters():
        part = place.partition(".")[0]
        if (part == "prior" and objective.without_prior) or (part != "prior" and objective.prior_only):
            continue
        assert parameter.grad is not None, place
        assert parameter.grad.isfinite().all(), place
        # A shift of all latents, or of the decoder's, may be of no use to a loss; a weight is never.
        assert parameter.grad.any() or "bias" in place, place


def doubled(trace: Trace, model, x) -> Trace:
    """The same numbers for a batch that holds every point twice."""
    parts = (trace.log_likelihood, trace.log_prior, trace.log_posterior)
    levels = () if isinstance(model, DensityModel) else ((model.posterior(torch.cat([x, x])), model.prior()),)
    twice = Trace(torch.cat([x, x]), *(torch.cat([p, p], 1) for p in (trace.z, *parts)), levels=levels)
    penalties = {name: torch.cat([value, value]) for name, value in trace.penalties.items()}
    return dataclasses.replace(twice, penalties=penalties)


@pytest.mark.parametrize("name", [name for name in [*OBJECTIVES, *DENSITIES] if name not in OF_THE_BATCH])
def test_a_batch_given_twice_has_the_same_loss(name):
    objective, model, x = made(name)
    trace = objective.trace(model, x)
    twice = objective(doubled(trace, model, x))
    torch.testing.assert_close(twice.loss, objective(trace).loss)
    assert all(metric.shape == (10,) for metric in twice.metrics.values())


@pytest.mark.parametrize("name", [*OBJECTIVES, *DENSITIES])
def test_evaluation_needs_no_gradient_and_gives_the_same_numbers(name):
    objective, model, x = made(name)
    model.eval()
    with stream(3):
        trained = objective(objective.trace(model, x))
    with torch.no_grad(), stream(3):
        evaluated = objective(objective.trace(model, x))
    for key, metric in evaluated.metrics.items():
        torch.testing.assert_close(metric, trained.metrics[key])
    assert not evaluated.loss.requires_grad


@pytest.mark.parametrize("name", [*OBJECTIVES, *DENSITIES])
def test_the_score_that_selects_weights_rises_as_the_model_improves(name):
    objective, model, x = made(name)
    figures = {
        key: value.mean().item() for key, value in objective(objective.trace(model, x)).metrics.items()
    }
    worse = {key: value - 1 for key, value in figures.items()}
    higher_is_worse = ("loss", "kl", "prior_nll", "nll", "free_energy", "constraint")
    worse |= {key: figures[key] + 1 for key in higher_is_worse if key in figures}
    assert objective.score(worse) < objective.score(figures)


@pytest.mark.parametrize("name", [name for name in BOUNDS if name not in {"joint", "cyclical"}])
def test_logged_bounds_are_the_evidence_where_the_posterior_is_exact(name):
    objective = OBJECTIVES[name]
    if name in {"free_bits", "closed_form", "beta_tc", "beta_tc_weighted"}:
        pytest.skip(
            "the exact posterior has a full covariance, and the closed form of its KL is not that of a sample"
        )
    known = LinearGaussian()
    known.model.auxiliary = objective.auxiliary(known.model)
    known.model.double()
    x = known.data(6)
    metrics = objective(objective.trace(known.model, x)).metrics
    torch.testing.assert_close(metrics["elbo"], known.log_evidence(x), rtol=1e-9, atol=1e-9)


def named(parts, kind) -> str | None:
    """The name of a part of this suite whose distributions are of a class."""
    return next((name for name, make in parts.items() if make().distribution_type is kind), None)


@pytest.mark.parametrize(("q", "p"), list(kl._FORMULAS), ids=lambda kind: kind.__name__)
def test_closed_form_and_monte_carlo_kl_of_a_model_agree_for_every_registered_pair(q, p):
    """Pairs of parts that this suite has; `tests/distributions/test_kl.py` has the formulas of all."""
    names = named(POSTERIORS, q), named(PRIORS, p)
    if None in names:
        pytest.skip("no part of this suite makes it")
    model, x = model_and_data(*names)
    assert (model.posterior.distribution_type, model.prior_type) == (q, p)
    with torch.no_grad():
        trace = model.trace(x, 5_000)
        exact = ELBO(kl="closed_form")(trace).metrics["kl"]
        samples = trace.log_posterior - trace.log_prior
    assert ((samples.mean(0) - exact) / (samples.std(0) / 5_000**0.5)).abs().max() < 5


@pytest.mark.parametrize("names", list(itertools.product(["gaussian", "iaf"], ["standard", "maf"])))
def test_bounds_check_what_every_pair_of_densities_allows(names):
    for objective in (ELBO(), IWAE(), ELBO(free_bits=1.0, free_bits_per="latent")):
        objective.check(vae(*names))


def test_models_and_objectives_of_two_kinds_are_refused():
    density = DensityModel(StandardGaussian(3))
    for objective in OBJECTIVES.values():
        with pytest.raises(CombinationError, match="trains a `VAE`; got a `DensityModel`"):
            objective.check(density)
    for objective in DENSITIES.values():
        with pytest.raises(CombinationError, match="trains a `DensityModel`; got a `VAE`"):
            objective.check(vae())


def test_an_objective_that_overrides_nothing_checks_the_kind_of_model():
    class Mine(Objective):
        def __call__(self, trace, epoch=torch.inf):
            raise NotImplementedError

    Mine().check(vae())
    with pytest.raises(CombinationError, match="`Mine` trains a `VAE`"):
        Mine().check(DensityModel(StandardGaussian(3)))
    assert MaximumLikelihood().model_type is DensityModel
