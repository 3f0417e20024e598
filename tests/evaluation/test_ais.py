import math

import pytest
import torch

from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError, ConfigurationError, LatentFlowsError, ShapeError
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, Flow, StandardGaussian
from latentflows.distributions.gaussian import StandardNormal
from latentflows.evaluation import (
    Annealing,
    draw_once,
    evaluate_annealed,
    evaluate_bidirectional,
    evaluate_bounds,
)
from latentflows.evaluation.annealing import Chains
from latentflows.evaluation.base import Block
from latentflows.models import VAE
from latentflows.models.presets import planar
from tests.evaluation.test_bounds import CoinFlips, Points, bernoulli_vae, binary, network
from tests.linear_gaussian import LinearGaussian

FEW = Annealing(num_temperatures=20, num_chains=8, num_leapfrog_steps=5, num_pilot_moves=20)


def stated_errors(result):
    return result.monte_carlo_variance.sum().sqrt() / len(result.log_evidence)


@pytest.mark.parametrize("temperatures", [1, 7])
@pytest.mark.parametrize("chains", [1, 5])
def test_from_the_exact_posterior_every_chain_gives_the_evidence(temperatures, chains):
    example = LinearGaussian()
    x = example.data(9)
    settings = Annealing(
        num_temperatures=temperatures,
        num_chains=chains,
        num_leapfrog_steps=3,
        start="posterior",
        num_pilot_moves=4,
    )
    result = evaluate_annealed(example.model, Points(x), settings)
    truth = example.log_evidence(x)
    torch.testing.assert_close(result.log_evidence, truth, rtol=0, atol=1e-11)
    bounds = evaluate_bounds(example.model, Points(x), num_importance_samples=3)
    torch.testing.assert_close(-bounds.nll, truth, rtol=0, atol=1e-11)
    torch.testing.assert_close(bounds.elbo, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_wrong_starts_reach_the_evidence_within_the_stated_error(start):
    example = LinearGaussian(exact=False)
    x = example.data(100)
    settings = Annealing(
        num_temperatures=60, num_chains=10, num_leapfrog_steps=5, start=start, num_pilot_moves=60
    )
    result = evaluate_annealed(example.model, Points(x), settings)
    error = stated_errors(result)
    assert error < 0.04
    off = (result.log_evidence - example.log_evidence(x)).mean()
    assert abs(float(off)) < 4 * float(error)


def test_the_mean_weight_is_unbiased_even_with_few_temperatures():
    """E[w] = p(x) for any number of temperatures: a biased move or a wrong weight shows here."""
    example = LinearGaussian(sigma=1.5)
    x = example.data(1).expand(60, 5)
    settings = Annealing(
        num_temperatures=4, num_chains=100, num_leapfrog_steps=2, num_pilot_chains=1, num_pilot_moves=30
    )
    result = evaluate_annealed(example.model, Points(x), settings)
    ratio = (result.log_evidence - example.log_evidence(x)).exp()
    error = float(ratio.std() / math.sqrt(60))
    assert error < 0.03
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_more_temperatures_are_tighter():
    example = LinearGaussian()
    source = Points(example.data(40))
    few, more = (
        evaluate_annealed(
            example.model,
            source,
            Annealing(num_temperatures=t, num_chains=2, num_leapfrog_steps=5, num_pilot_moves=40),
        ).log_evidence.mean()
        for t in (2, 20)
    )
    assert few + 0.1 < more


@torch.no_grad()
def test_moves_leave_the_target_as_it_is():
    """Exact draws of the posterior are still draws of it after moves at the temperature 1."""
    example = LinearGaussian(latent=1)
    x = example.data(1)
    settings = Annealing(
        num_temperatures=2, num_chains=4000, num_leapfrog_steps=3, start="posterior", num_pilot_moves=1
    )
    chains = Chains(example.model, Block(0, x, None), 1, settings, 0)
    posterior = example.posterior(x)
    z = posterior.mean + posterior.covariance_matrix.sqrt()[:, 0] * noise.standard_normal(
        (4000, 1, 1), like=x
    )
    start = z
    step = torch.full((1,), 1.2, dtype=torch.float64)  # coarse, so that rejections matter
    for i in range(4):
        log_f, _, gradient = chains._tempered(z, 1.0)
        z, acceptance = chains._move(z, 1.0, step, (log_f, gradient), 77, i)
    assert 0.3 < float(acceptance.mean()) < 0.99
    assert float((z - start).abs().mean()) > 0.1
    standardized = ((z - posterior.mean) / posterior.covariance_matrix.sqrt()[:, 0]).flatten()
    assert abs(float(standardized.mean())) < 4 / math.sqrt(4000)
    assert abs(float(standardized.var()) - 1) < 4 * math.sqrt(2 / 4000)


def test_step_sizes_give_the_acceptance_they_aim_at():
    example = LinearGaussian()
    settings = Annealing(num_temperatures=60, num_chains=8, num_leapfrog_steps=5)
    acceptance = evaluate_annealed(example.model, Points(example.data(20)), settings).acceptance
    assert 0.55 < float(acceptance.mean()) < 0.75


@torch.no_grad()
def test_bounds_from_both_sides_enclose_the_evidence():
    example = LinearGaussian()
    settings = Annealing(num_temperatures=40, num_chains=4, num_leapfrog_steps=5, num_pilot_moves=40)
    result = evaluate_bidirectional(example.model, settings, num_images=150)
    with noise.stream(0, noise.Purpose.EVALUATION, 9, 0, 0):
        z = example.model.sample_latents(settings.block_size)
        truth = example.log_evidence(example.model.decode(z).sample())[:150]
    assert float(result.lower.mean()) < float(truth.mean()) < float(result.upper.mean())
    gap = result.figures()["simulated_gap"]
    assert 0 < gap["mean"] < 0.5
    ratio = (truth - result.upper).exp()  # E[w'] = 1 / p(x)
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std() / math.sqrt(150))


def test_it_agrees_with_importance_sampling_on_a_model_of_images():
    with noise.stream(5):
        model, source = bernoulli_vae(), binary(30)
        for parameter in model.likelihood.parameters():
            parameter.data *= 3
    settings = Annealing(num_temperatures=30, num_chains=16, num_leapfrog_steps=5)
    annealed = evaluate_annealed(model, source, settings)
    bounds = evaluate_bounds(model, source, num_importance_samples=3000)
    error = math.hypot(float(stated_errors(annealed)), bounds.figures()["nll"]["monte_carlo_error"])
    assert error < 0.05
    assert abs(float((annealed.log_evidence + bounds.nll).mean())) < 4 * error


def test_first_images_do_not_depend_on_how_many_follow():
    model, source = bernoulli_vae(), CoinFlips(torch.rand(300, 6))
    settings = Annealing(num_temperatures=3, num_chains=8, num_leapfrog_steps=2, num_pilot_moves=4)
    assert settings.block_size == 128
    every = evaluate_annealed(model, source, settings, num_images=130)
    some = evaluate_annealed(model, source, settings, num_images=7)
    torch.testing.assert_close(some.log_evidence, every.log_evidence[:7])
    torch.testing.assert_close(some.acceptance, every.acceptance[:7])
    assert every.log_evidence.std() > 0
    other = evaluate_annealed(model, source, settings, num_images=7, seed=1)
    assert (other.log_evidence != some.log_evidence).any()


def test_memory_changes_rounding_only_and_bounds_what_is_decoded():
    example = LinearGaussian(exact=False)
    source = Points(example.data(7))
    sizes = {"num_temperatures": 4, "num_chains": 8, "num_leapfrog_steps": 3, "num_pilot_moves": 1}
    whole = evaluate_annealed(example.model, source, Annealing(**sizes))
    seen = []
    hook = example.model.likelihood.network.register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    pieces = evaluate_annealed(example.model, source, Annealing(**sizes, max_latents=24))
    hook.remove()
    assert max(seen) == 24
    torch.testing.assert_close(pieces.log_evidence, whole.log_evidence, rtol=0, atol=1e-9)


def test_parameters_get_no_gradient_and_generators_stay():
    model, source = bernoulli_vae(), binary(5)
    model.train()
    state = torch.get_rng_state()
    result = evaluate_annealed(model, source, FEW)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not result.log_evidence.requires_grad


def test_a_prior_with_a_context_is_annealed_per_context():
    prior = AmortizedGaussian(2, 3, network(3, 4))
    base = bernoulli_vae()
    model = VAE(base.posterior, prior, base.likelihood)
    x, context = binary(6).x, 9 * torch.rand(6, 3)

    class Labeled(Points):
        def batch(self, indices):
            return Batch(self.x[indices], context[indices])

    source = Labeled(x, values="binary")
    settings = Annealing(num_temperatures=20, num_chains=16, num_leapfrog_steps=5, num_pilot_moves=40)
    annealed = evaluate_annealed(model, source, settings)
    with torch.no_grad():  # by draws of the prior: few latents, so that they suffice
        z = model.prior_at(context).sample((50_000,))
        truth = model.decode(z, context).log_prob(x).double().logsumexp(0) - math.log(50_000)
        other = model.prior_at(context.flip(0)).sample((50_000,))
        wrong = model.decode(other).log_prob(x).double().logsumexp(0) - math.log(50_000)
    off = (annealed.log_evidence - truth).abs().mean()
    assert off < 0.06
    assert (wrong - truth).abs().mean() > 3 * off  # the context matters


def test_bounds_from_both_sides_enclose_the_evidence_given_each_context():
    base = bernoulli_vae()
    model = VAE(base.posterior, AmortizedGaussian(2, 3, network(3, 4)), base.likelihood)
    context = 9 * torch.rand(70, 3)
    settings = Annealing(num_temperatures=20, num_chains=16, num_leapfrog_steps=3, num_pilot_moves=40)
    both = evaluate_bidirectional(model, settings, num_images=70, context=context)
    gap = both.figures()["simulated_gap"]
    assert -4 * gap["standard_error"] < gap["mean"] < 0.1
    some = evaluate_bidirectional(model, settings, num_images=66, context=context[:66])
    torch.testing.assert_close(some.lower, both.lower[:66], rtol=0, atol=1e-4)
    torch.testing.assert_close(some.upper, both.upper[:66], rtol=0, atol=1e-4)
    other = evaluate_bidirectional(model, settings, num_images=2, context=context[68:])
    assert (other.lower != both.lower[:2]).all()
    for wrong, got in ((None, "none"), (context[:5], r"\(5, 3\)"), (torch.rand(6, 2), r"\(6, 2\)")):
        with pytest.raises(ShapeError, match=rf"one row per data point, \(6, 3\); got {got}"):
            evaluate_bidirectional(model, settings, num_images=6, context=wrong)
    with pytest.raises(ShapeError, match=r"the model takes none; got \(6, 3\)"):
        evaluate_bidirectional(base, settings, num_images=6, context=context[:6])


def test_figures_have_the_form_of_bounds():
    example = LinearGaussian()
    result = evaluate_annealed(example.model, Points(example.data(10)), FEW, num_images=6)
    figures = result.figures()
    assert figures["annealed_nll"]["mean"] == pytest.approx(-float(result.log_evidence.mean()))
    assert figures["annealed_nll"]["unit"] == "nats"
    assert figures["annealed_nll"]["monte_carlo_error"] == pytest.approx(float(stated_errors(result)))
    assert set(figures) == {"annealed_nll", "annealed_effective_sample_size", "acceptance"}
    assert result.protocol["num_images"] == 6
    assert result.protocol["prior_density"] == "exact"


class Broken(StandardGaussian):
    """A prior whose density is said to be another."""

    def __init__(self, event_shape, density):
        super().__init__(event_shape)
        self.distribution_type = type("Values", (StandardNormal,), {"density": density})

    def _condition(self, context):
        return self.distribution_type(self.event_shape, like=self.like)


@pytest.mark.parametrize("density", ["estimate", "unnormalized"])
def test_priors_without_a_density_are_refused(density):
    model = bernoulli_vae()
    model = VAE(model.posterior, Broken(2, density), model.likelihood)
    with pytest.raises(CombinationError, match=f"density of the prior, and that of this one is {density}"):
        evaluate_annealed(model, binary(3), FEW)


def test_an_approximate_density_is_named_in_the_protocol():
    model = bernoulli_vae()
    model = VAE(model.posterior, Broken(2, "approximate"), model.likelihood)
    assert evaluate_annealed(model, binary(3), FEW).protocol["prior_density"] == "approximate"


def test_a_posterior_without_a_density_cannot_start_the_chains():
    base = bernoulli_vae()
    posterior = Flow(
        AmortizedGaussian(2, 4, network(4, 4)),
        planar(2, num_layers=1, context=4),
        embed=network(6, 4),
        context_shape=6,
    )
    model = VAE(posterior, base.prior, base.likelihood)
    start = Annealing(num_temperatures=2, num_chains=2, start="posterior")
    with pytest.raises(CombinationError, match='Use start="prior"'):
        evaluate_annealed(model, binary(3), start)
    assert evaluate_annealed(model, binary(3), FEW).log_evidence.isfinite().all()


def test_nan_is_an_error_that_names_the_image():
    class OneBad(torch.nn.Module):
        def forward(self, z):
            out = torch.zeros(len(z), 6)
            return out + torch.nan

    base = bernoulli_vae()
    model = VAE(base.posterior, base.prior, AmortizedBernoulli(6, 2, OneBad()))
    with pytest.raises(LatentFlowsError, match="the first is image 0"):
        evaluate_annealed(model, binary(4), Annealing(num_temperatures=1, num_chains=2))


def test_data_that_do_not_fit_are_refused():
    example = LinearGaussian()
    with pytest.raises(CombinationError, match="is a density, but the data have binary values"):
        evaluate_annealed(example.model, Points(torch.zeros(3, 5), values="binary"), FEW)
    with pytest.raises(ShapeError, match=r"shape \(5,\); got \(4,\)"):
        evaluate_annealed(example.model, Points(torch.zeros(3, 4)), FEW)
    with pytest.raises(ConfigurationError, match="from 1 to the 3 data points"):
        evaluate_annealed(example.model, Points(torch.zeros(3, 5)), FEW, num_images=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_temperatures": 0}, "`num_temperatures` must be a positive integer; got 0"),
        ({"num_chains": 1.5}, "`num_chains`"),
        ({"num_leapfrog_steps": -1}, "`num_leapfrog_steps`"),
        ({"start": "encoder"}, '`start` must be "prior" or "posterior"'),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Annealing(**settings)


def test_data_drawn_once_are_the_same_for_every_reader():
    source = CoinFlips(torch.rand(600, 6))
    every, some = draw_once(source, seed=3), draw_once(source, 270, seed=3)
    assert torch.equal(every.x[:270], some.x)
    assert torch.equal(every.batch(torch.arange(5)).x, every.batch(torch.arange(5)).x)
    assert not torch.equal(draw_once(source, seed=4).x, every.x)
    assert not torch.equal(source.batch(torch.arange(600)).x, every.x)
