import math

import pytest
import torch
from torch import nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.distributions import (
    AmortizedGaussian,
    AmortizedLowRankGaussian,
    DiagonalNormal,
    Distribution,
    Flow,
    FullNormal,
    StandardGaussian,
    StandardNormal,
    kl_divergence,
)
from latentflows.evaluation import Annealing, evaluate_gaps
from latentflows.evaluation.gaps import free_posterior
from latentflows.models import VAE
from latentflows.models.presets import real_nvp, sylvester_householder
from tests.evaluation.test_bounds import CoinFlips, Points, bernoulli_vae, binary, network
from tests.linear_gaussian import Affine, LinearGaussian

FAST = {"num_steps": 150, "num_samples": 500, "num_gradient_samples": 8, "learning_rate": 0.1}


class DiagonalEncoder:
    """The linear-Gaussian model with a diagonal posterior that is off in mean and scale by known amounts.

    The true posterior has precision P and mean m(x). The best diagonal Gaussian has mean m(x) and variances 1 / P_ii,
    and log p(x) minus its ELBO is (sum log P_ii - log det P) / 2.
    """

    def __init__(self, shift=0.3, stretch=0.4, scale=None):
        self.example = example = LinearGaussian()
        precision = example.covariance.inverse()
        self.gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
        gain = example.covariance @ example.weight.T / example.sigma**2
        log_scale = -0.5 * precision.diagonal().log()
        self.best = DiagonalNormal(torch.zeros(2, dtype=torch.float64), log_scale)
        given = DiagonalNormal(shift * torch.ones(2, dtype=torch.float64), log_scale + stretch)
        truth = torch.distributions.MultivariateNormal(torch.zeros(2).double(), example.covariance)
        full = FullNormal(truth.loc, truth.scale_tril)
        self.amortization = float(kl_divergence(given, full)) - self.gap
        target = given.log_scale
        raw = target / (1 - target.abs() / 7)
        bias = torch.cat([-gain @ example.bias + shift, raw])
        weight = torch.cat([gain, torch.zeros_like(gain)])
        self.posterior = AmortizedGaussian(2, 5, Affine(weight, bias, (4,)))
        self.model = VAE(self.posterior, example.model.prior, example.model.likelihood).double()


def within(figure, truth, times=4):
    error = math.hypot(figure["standard_error"], figure["monte_carlo_error"])
    return abs(figure["mean"] - truth) < times * error


def test_gaps_of_a_diagonal_family_under_a_correlated_posterior():
    known = DiagonalEncoder()
    assert known.gap > 0.05
    result = evaluate_gaps(known.model, Points(known.example.data(60)), **FAST)
    figures = result.figures()
    assert within(figures["approximation_gap"], known.gap)
    assert within(figures["amortization_gap"], known.amortization)
    assert figures["approximation_gap"]["mean"] == pytest.approx(known.gap, abs=0.02)
    assert figures["amortization_gap"]["mean"] == pytest.approx(known.amortization, abs=0.02)
    assert abs(figures["unfinished"]["mean"]) < 0.02
    total = figures["approximation_gap"]["mean"] + figures["amortization_gap"]["mean"]
    assert figures["inference_gap"]["mean"] == pytest.approx(total)


def test_the_error_of_the_approximation_gap_is_its_spread_over_draws():
    """All images have one gap here, and noise of their own; evidence and ELBO share their samples."""
    known = DiagonalEncoder(shift=0.0, stretch=0.2)  # wide enough for weights of finite variance
    settings = {"num_steps": 1, "num_gradient_samples": 1, "learning_rate": 1e-12, "num_samples": 200}
    result = evaluate_gaps(known.model, Points(known.example.data(1000)), **settings)
    spread, stated = result.approximation_gap.var(), result.approximation_variance.mean()
    assert float(stated / spread) == pytest.approx(1, abs=0.15)
    start = Annealing(1, num_chains=50, num_pilot_moves=1, start="posterior")
    result = evaluate_gaps(known.model, Points(known.example.data(300)), evidence=start, **settings)
    spread, stated = result.approximation_gap.var(), result.approximation_variance.mean()
    assert float(stated / spread) == pytest.approx(1, abs=0.3)


def test_a_prior_of_many_components_is_asked_once_per_block(monkeypatch):
    """Its components are encoded images: once for all steps and draws, and without their gradients."""
    model, asked = bernoulli_vae(), []
    prior_at = model.prior_at

    def counted(context=None):
        asked.append(torch.is_grad_enabled())
        return prior_at(context)

    monkeypatch.setattr(model, "prior_at", counted)
    evaluate_gaps(model, CoinFlips(torch.rand(3, 6)), **FAST | {"num_steps": 5})
    assert asked == [False]


def test_the_full_family_has_no_approximation_gap():
    example = LinearGaussian(exact=False)
    x = example.data(20)
    result = evaluate_gaps(example.model, Points(x), **FAST | {"num_steps": 300})
    truth = example.log_evidence(x)
    assert result.approximation_gap.abs().max() < 0.02
    torch.testing.assert_close(result.best_elbo, truth, rtol=0, atol=0.03)
    q, p = example.model.encode(x), example.posterior(x)
    kl = kl_divergence(q, FullNormal(p.loc, p.scale_tril)).detach()
    torch.testing.assert_close(result.amortization_gap, kl, rtol=0, atol=0.15)
    assert abs(float((result.amortization_gap - kl).mean())) < 0.04


def test_the_exact_posterior_has_no_gap_at_all():
    example = LinearGaussian()
    x = example.data(8)
    steps = FAST | {"num_steps": 1, "learning_rate": 1e-12}
    result = evaluate_gaps(example.model, Points(x), **steps)
    truth = example.log_evidence(x)
    for value in (result.log_evidence, result.best_elbo, result.amortized_elbo):
        torch.testing.assert_close(value, truth, rtol=0, atol=1e-9)


def test_annealing_gives_the_evidence_instead():
    known = DiagonalEncoder()
    x = known.example.data(20)
    annealing = Annealing(num_temperatures=40, num_chains=16, num_leapfrog_steps=5, start="posterior")
    result = evaluate_gaps(known.model, Points(x), evidence=annealing, **FAST)
    off = (result.log_evidence - known.example.log_evidence(x)).mean()
    assert abs(float(off)) < 0.1
    assert within(result.figures()["approximation_gap"], known.gap)
    assert "annealing from the posterior" in result.protocol["evidence"]


def test_a_scale_that_the_encoder_does_not_compute_stays():
    known = DiagonalEncoder()
    posterior = AmortizedGaussian(2, 5, nn.Linear(5, 2).double(), scale=0.5)
    q = posterior(known.example.data(4))
    parameters, build = free_posterior(posterior, q)
    assert len(parameters) == 1
    parameters[0] += 2.0
    torch.testing.assert_close(build().log_scale, q.log_scale)
    torch.testing.assert_close(build().mean, q.mean + 2 * 0.5)


@pytest.mark.parametrize("kind", ["diagonal", "full", "low_rank", "flow", "features"])
def test_free_parameters_start_at_the_encoder_and_reach_every_draw(kind):
    posterior = {
        "diagonal": lambda: AmortizedGaussian(3, 6, network(6, 6)),
        "full": lambda: AmortizedGaussian(3, 6, network(6, 9), covariance="full"),
        "low_rank": lambda: AmortizedLowRankGaussian(3, 6, network(6, 9), rank=1),
        "flow": lambda: flow_posterior(AmortizedGaussian(3, 5, network(5, 6))),
        "features": lambda: flow_posterior(StandardGaussian(3)),
    }[kind]()
    for parameter in posterior.parameters():
        parameter.data.normal_(std=0.3)
    with torch.no_grad():
        q = posterior(torch.rand(4, 6))
    parameters, build = free_posterior(posterior, q)
    assert [len(parameter) for parameter in parameters] == [4] * len(parameters)
    assert len(parameters) == {"diagonal": 2, "full": 2, "low_rank": 3, "flow": 3, "features": 1}[kind]
    with noise.stream(1), torch.no_grad():
        z, log_q = q.sample_and_log_prob((2,))
    for parameter in parameters:
        parameter.requires_grad_()
    with noise.stream(1):
        same, same_log_q = build().sample_and_log_prob((2,))
    torch.testing.assert_close(same, z)
    torch.testing.assert_close(same_log_q, log_q)
    (same.square().sum() + same_log_q.sum()).backward()
    assert all(bool((parameter.grad.flatten(1) != 0).any(1).all()) for parameter in parameters)


def flow_posterior(base):
    return Flow(base, sylvester_householder(3, context=5), embed=network(6, 5), context_shape=6)


def test_a_flow_posterior_is_optimized_with_its_bijection_fixed():
    with_flow = Flow(
        AmortizedGaussian(2, 5, network(5, 4)),
        real_nvp(2, num_layers=2, width=8, context=5),
        embed=network(6, 5),
        context_shape=6,
    )
    base = bernoulli_vae()
    model = VAE(with_flow, base.prior, base.likelihood)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.7)
    before = [parameter.clone() for parameter in model.parameters()]
    result = evaluate_gaps(model, binary(12), **FAST)
    assert float(result.amortization_gap.mean()) > 0.3
    assert float(result.approximation_gap.mean()) > -0.02
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert "context features free" in result.protocol["family"]


def test_first_block_does_not_depend_on_what_follows():
    model, source = bernoulli_vae(), CoinFlips(torch.rand(40, 6))
    settings = FAST | {"num_steps": 5, "num_gradient_samples": 64}  # blocks of 16
    every = evaluate_gaps(model, source, num_images=40, **settings)
    some = evaluate_gaps(model, source, num_images=16, **settings)
    torch.testing.assert_close(some.best_elbo, every.best_elbo[:16])
    torch.testing.assert_close(some.amortized_elbo, every.amortized_elbo[:16])
    state = torch.get_rng_state()
    evaluate_gaps(model, source, num_images=2, **settings)
    assert torch.equal(torch.get_rng_state(), state)


class Unknown(Distribution):
    """A posterior whose parameters nobody knows."""


@pytest.mark.parametrize(
    ("said", "message"),
    [({"density": "unnormalized"}, "off by a constant"), ({"weighable": False}, "could exceed p")],
)
def test_priors_without_weights_are_refused(said, message, monkeypatch):
    for name, value in said.items():
        monkeypatch.setattr(StandardNormal, name, value)
    with pytest.raises(CombinationError, match=message):
        evaluate_gaps(bernoulli_vae(), binary(3), **FAST)


def test_what_cannot_be_optimized_is_refused():
    posterior = AmortizedGaussian(2, 6, network(6, 4))
    with pytest.raises(CombinationError, match=r"of this kind \(`Unknown`\) cannot be optimized per image"):
        free_posterior(posterior, object.__new__(type("Unknown", (Unknown,), {"log_prob": 0, "sample": 0})))
    fixed = Flow(StandardGaussian(2), real_nvp(2, num_layers=2, width=4))
    with pytest.raises(CombinationError, match="nothing can be optimized per image"):
        free_posterior(fixed, fixed())
    example = LinearGaussian()
    with pytest.raises(CombinationError, match="is a density, but the data have binary"):
        evaluate_gaps(example.model, Points(torch.zeros(3, 5), values="binary"), num_images=3)
    with pytest.raises(ShapeError, match="the model's shape"):
        evaluate_gaps(example.model, Points(torch.zeros(3, 4)), num_images=3)
    with pytest.raises(ConfigurationError, match="`num_steps` must be a positive integer"):
        evaluate_gaps(example.model, Points(torch.zeros(3, 5)), num_images=3, num_steps=0)
    with pytest.raises(ConfigurationError, match="`learning_rate` must be positive"):
        evaluate_gaps(example.model, Points(torch.zeros(3, 5)), num_images=3, learning_rate=0.0)
