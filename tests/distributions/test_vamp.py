"""Priors made of the model's posterior: they share it, follow it, start from data, and never go stale."""

import copy
import math

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.distributions import (
    AmortizedDelta,
    Conditional,
    DiagonalNormal,
    ExemplarPrior,
    Flow,
    Mixture,
    StandardGaussian,
    VampPrior,
)
from latentflows.distributions import vamp as module
from latentflows.models import VAE, presets
from latentflows.objectives import ELBO
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, flow_posterior, gaussian, hierarchy_given, low_rank, network

SHAPE = (1, 2, 3)


def model(kind: str = "vamp", posterior: Conditional | None = None, **settings) -> VAE:
    posterior = posterior or gaussian((2,), SHAPE)
    randomize(posterior, 0.7)
    if kind == "vamp":
        prior = VampPrior(posterior, 4, **settings)
    else:
        prior = ExemplarPrior(posterior, 6, **{"num_components": 3} | settings)
        prior.initialize(torch.rand(9, *SHAPE))
    return VAE(posterior, prior, bernoulli(SHAPE, (2,)))


@pytest.mark.parametrize("value_range", ["hard", "soft", "free"])
@pytest.mark.parametrize("learned_weights", [False, True])
def test_the_density_is_the_average_of_the_posteriors_at_the_pseudo_inputs(value_range, learned_weights):
    vae = model(value_range=value_range, learned_weights=learned_weights, deviation=0.3)
    prior = vae.prior
    assert isinstance(prior, VampPrior)
    if prior.raw_weights is not None:
        randomize(prior, 1.0)
    inputs = prior.pseudo_inputs()
    weights = torch.full((4,), 0.25) if prior.raw_weights is None else prior.raw_weights.softmax(0)
    z = torch.randn(7, 2)
    each = torch.stack([vae.posterior(inputs[m]).log_prob(z) for m in range(4)])
    torch.testing.assert_close(prior().log_prob(z), (each.exp() * weights[:, None]).sum(0).log())


def test_the_average_of_a_hierarchical_posterior_is_drawn_as_it_is_scored():
    posterior = hierarchy_given((3,))
    randomize(posterior, 0.3)
    prior = VampPrior(posterior, 3, value_range="free", deviation=1.0).double()
    posterior.double()
    line = torch.linspace(-12, 12, 241, dtype=torch.float64)
    grid, cell = torch.cartesian_prod(line, line), 0.1**2
    with torch.no_grad():
        weights = prior().log_prob(grid).exp() * cell
        x = prior().sample((20_000,))
        assert prior().tempered(0.5).sample((4,)).shape == (4, 2)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-3)
    for statistic in (lambda v: v, lambda v: v * v, lambda v: v[:, :1] * v[:, 1:]):
        drawn, expected = statistic(x), (weights[:, None] * statistic(grid)).sum(0)
        assert ((drawn.mean(0) - expected).abs() < 5 * drawn.std(0) / len(x) ** 0.5).all()


def test_random_pseudo_inputs_lie_around_the_mean():
    prior = VampPrior(gaussian((2,), (30, 30)), 5, mean=0.3, deviation=0.05)
    inputs = prior.pseudo_inputs()
    assert inputs.mean().item() == pytest.approx(0.3, abs=0.01)
    assert inputs.std().item() == pytest.approx(0.05, rel=0.1)
    assert not prior.waits_for_data


@pytest.mark.parametrize(("value_range", "low"), [("hard", 0.01), ("soft", 0.01), ("free", 0.0)])
def test_pseudo_inputs_from_data_can_still_learn(value_range, low):
    posterior = gaussian((2,), SHAPE)
    prior = VampPrior(posterior, 4, start="data", value_range=value_range)
    assert prior.waits_for_data
    x = (torch.rand(6, *SHAPE) < 0.5).float()
    prior.initialize(x)
    assert not prior.waits_for_data
    torch.testing.assert_close(prior.pseudo_inputs(), x[:4].clamp(low, 1 - low))
    prior().log_prob(torch.randn(5, 2)).sum().backward()
    assert prior.raw_inputs.grad is not None
    assert (prior.raw_inputs.grad != 0).all()


def test_pseudo_inputs_in_a_range_stay_in_it():
    for value_range in ("hard", "soft"):
        prior = VampPrior(gaussian((2,), SHAPE), 4, value_range=value_range)
        randomize(prior, 30.0)
        assert ((prior.pseudo_inputs() >= 0) & (prior.pseudo_inputs() <= 1)).all()


@pytest.mark.parametrize("kind", ["vamp", "exemplar"])
def test_the_posterior_is_shared_not_owned(kind):
    vae = model(kind)
    own = {"raw_inputs"} if kind == "vamp" else {"raw_scale"}
    assert {name for name, _ in vae.prior.named_parameters()} == own
    assert not any("posterior" in name or "network" in name for name in vae.prior.state_dict())
    counts = vae.num_parameters()
    assert counts["total"] == counts["posterior"] + counts["prior"] + counts["likelihood"]


@pytest.mark.parametrize("kind", ["vamp", "exemplar"])
def test_a_copy_of_the_model_shares_its_own_posterior(kind):
    vae = model(kind)
    copied = copy.deepcopy(vae)
    assert copied.prior.posterior is copied.posterior
    assert copied.posterior is not vae.posterior
    z = torch.randn(5, 2)
    before = vae.eval().prior_at().log_prob(z)
    randomize(copied.posterior, 0.3)
    assert torch.equal(vae.prior_at().log_prob(z), before)
    assert not torch.equal(copied.eval().prior_at().log_prob(z), before)
    assert copied.to(torch.float64).prior_at().log_prob(z.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", ["vamp", "exemplar"])
def test_a_saved_model_comes_back(kind):
    vae, other = model(kind), model(kind)
    other.load_state_dict(vae.state_dict())
    z = torch.randn(5, 2)
    torch.testing.assert_close(other.eval().prior_at().log_prob(z), vae.eval().prior_at().log_prob(z))
    assert not other.prior.waits_for_data


def test_another_posterior_is_refused():
    one, other = gaussian((2,), SHAPE), gaussian((2,), SHAPE)
    with pytest.raises(CombinationError, match="`VampPrior` is made of another posterior than the model's"):
        VAE(one, VampPrior(other, 3), bernoulli(SHAPE, (2,)))
    hidden = Flow(VampPrior(other, 3), presets.real_nvp(2, num_layers=1, width=4))
    with pytest.raises(CombinationError, match="another posterior"):
        VAE(one, hidden, bernoulli(SHAPE, (2,)))
    with pytest.raises(CombinationError, match="another posterior"):
        VAE(copy.deepcopy(one), ExemplarPrior(one, 3), bernoulli(SHAPE, (2,)))


def test_the_posterior_learns_through_the_prior():
    vae = model()
    objective = ELBO()
    x = (torch.rand(8, *SHAPE) < 0.5).float()
    objective(objective.trace(vae, x)).loss.backward()
    assert isinstance(vae.prior, VampPrior)
    assert vae.prior.raw_inputs.grad is not None
    assert vae.prior.raw_inputs.grad.any()
    for parameter in vae.posterior.parameters():
        parameter.grad = None
    vae.prior_at().log_prob(torch.randn(5, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.posterior.parameters())


@pytest.mark.parametrize("kind", ["vamp", "exemplar"])
def test_what_is_kept_in_evaluation_follows_every_change(kind, monkeypatch):
    vae = model(kind).eval()
    passes = []
    vae.posterior.register_forward_hook(lambda *_: passes.append(1))
    z = torch.randn(5, 2)

    def scored():
        with torch.no_grad():
            return vae.prior_at().log_prob(z)

    first = scored()
    assert torch.equal(scored(), first)
    assert len(passes) == 1
    weight = next(vae.posterior.parameters())
    flat = weight.detach().clone()
    weight.data = flat  # as the learner does it: moved through a tensor whose version counter is another
    scored()
    flat.add_(1.0)
    assert not torch.equal(scored(), first)
    assert len(passes) == 2
    with torch.no_grad():
        (vae.prior.raw_inputs if kind == "vamp" else vae.prior.exemplars).add_(0.2)
    third = scored()
    assert len(passes) == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(scored(), third)
    assert torch.equal(scored(), third)
    assert vae.prior_at().log_prob(z).requires_grad


@pytest.mark.parametrize("kind", ["vamp", "exemplar"])
def test_priors_of_several_models_are_vectorized(kind):
    torch.manual_seed(0)
    models = [model(kind).eval() for _ in range(2)]
    stacked = {
        name: torch.stack([dict(each.state_dict())[name] for each in models])
        for name in models[0].state_dict()
    }

    def density(state: dict, z: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(models[0], state, (z,))

    z = torch.randn(5, *models[0].latent_shape)
    for each in models:
        each.forward = lambda z, each=each: each.prior_at(None).log_prob(z)
    with torch.no_grad():
        together = torch.func.vmap(density, in_dims=(0, None))(stacked, z)
        for row, each in zip(together, models, strict=True):
            torch.testing.assert_close(row, each.prior_at(None).log_prob(z))


@pytest.mark.parametrize(
    "posterior", [lambda: gaussian((2,), SHAPE, covariance="full"), lambda: low_rank(2, SHAPE)]
)
def test_exemplars_are_gaussians_of_one_scale_around_the_means(posterior, monkeypatch):
    vae = model("exemplar", posterior())
    prior = vae.prior.eval()
    assert isinstance(prior, ExemplarPrior)
    with torch.no_grad():
        prior.raw_scale.fill_(0.3)
        monkeypatch.setattr(module, "_ROWS", 4)
        p, means = prior(), vae.eval().posterior(prior.exemplars).mean
        z = torch.randn(7, 2)
        log_scale = torch.tensor(0.3 / (1 + 0.3 / 7)).expand(6, 2)
        expected = Mixture(torch.zeros(6), DiagonalNormal(means, log_scale))
        torch.testing.assert_close(p.log_prob(z), expected.log_prob(z))
    assert p.density == "exact"


def test_a_training_step_draws_its_exemplars_and_is_right_on_average():
    vae = model("exemplar")
    vae.train()
    z = torch.randn(3, 2)
    with noise.stream(1), torch.no_grad():
        estimates = torch.stack([vae.prior_at().log_prob(z).exp() for _ in range(600)])
        vae.train()
        p = vae.prior_at()
    assert p.density == "estimate"
    assert p.log_weights.shape == (3,)
    with torch.no_grad():
        exact = vae.eval().prior_at().log_prob(z).exp()
    error = estimates.std(0) / len(estimates) ** 0.5
    assert (error > 0).all()
    assert ((estimates.mean(0) - exact).abs() < 5 * error).all()


def test_exemplars_are_saved_and_must_be_enough():
    prior = ExemplarPrior(gaussian((2,), SHAPE), 6)
    assert prior.waits_for_data
    assert prior.num_components == 6
    with pytest.raises(DataError, match="needs 6 data points to start from; got 5"):
        prior.initialize(torch.rand(5, *SHAPE))
    assert prior.waits_for_data
    x = torch.rand(8, *SHAPE)
    prior.initialize(x)
    assert torch.equal(prior.state_dict()["exemplars"], x[:6])


def test_a_flow_posterior_needs_an_inverse_and_exemplars_a_mean():
    planar = Flow(gaussian((2,), (3,)), presets.planar(2, num_layers=1, context=3))
    with pytest.raises(CombinationError, match="no density at points that it did not draw"):
        VampPrior(planar, 3)
    with pytest.raises(CombinationError, match="no density at points that it did not draw"):
        VampPrior(AmortizedDelta(2, 3, network((3,), (2,))), 3)
    with pytest.raises(CombinationError, match="needs the mean of the posterior"):
        ExemplarPrior(flow_posterior(), 3)
    with pytest.raises(CombinationError, match="`StandardGaussian` reads no data"):
        VampPrior(StandardGaussian(2), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_components": 0}, "`num_components` must be a positive integer"),
        ({"start": "zeros"}, '"random" or "data"'),
        ({"value_range": "clip"}, '"hard", "soft" or "free"'),
        ({"mean": 1.0}, r"in \(0, 1\) with a hard range; got 1.0"),
        ({"deviation": 0.0}, "`deviation` must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        VampPrior(gaussian((2,), (3,)), **{"num_components": 3} | settings)
    with pytest.raises(ConfigurationError, match="`num_exemplars`"):
        ExemplarPrior(gaussian((2,), (3,)), 0)


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_data_outside_of_the_range_are_refused(bad):
    prior = VampPrior(gaussian((2,), (3,)), 2, start="data")
    with pytest.raises(DataError, match=r"lie in \[0, 1\], but the data do not"):
        prior.initialize(torch.full((2, 3), bad))
    assert prior.waits_for_data
