"""LARS and energy-based priors: densities by quadrature, draws against densities, normalizers and what is refused."""

import math
import re

import pytest
import torch
from torch import nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, NonFiniteError, ShapeError
from latentflows.distributions import (
    AdversarialPrior,
    EnergyPrior,
    Flow,
    GaussianMixture,
    ImportanceResampling,
    Langevin,
    LearnedGaussian,
    ResampledPrior,
    StandardGaussian,
)
from latentflows.models import presets
from latentflows.networks import MLP
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, gaussian

LINE = torch.linspace(-9, 9, 451, dtype=torch.float64)
GRID, CELL = torch.cartesian_prod(LINE, LINE), (LINE[1] - LINE[0]).item() ** 2


def scalar_network(dim: int = 2, out: int = 1) -> nn.Module:
    return MLP((dim,), (out,), width=8, depth=1, activation_name="tanh")


def flow() -> Flow:
    return Flow(StandardGaussian(2), presets.real_nvp(2, num_layers=2, width=6, depth=1, activation="tanh"))


def mixture() -> GaussianMixture:
    return GaussianMixture(2, 3)


def flow_over_a_mixture() -> Flow:
    return Flow(mixture(), presets.real_nvp(2, num_layers=2, width=6, depth=1, activation="tanh"))


def lars(max_attempts: int = 5, base=lambda: StandardGaussian(2), scale: float = 1.5) -> ResampledPrior:
    prior = ResampledPrior(base(), scalar_network(), max_attempts=max_attempts).double()
    randomize(prior.network, scale)
    randomize(prior.proposal, 0.15)
    return prior.eval()


def energy(base=lambda: StandardGaussian(2), scale: float = 0.8, **settings) -> EnergyPrior:
    prior = EnergyPrior(base(), scalar_network(), **settings).double()
    randomize(prior.energy, scale)
    randomize(prior.base, 0.15)
    return prior.eval()


def adversarial(**settings) -> AdversarialPrior:
    prior = AdversarialPrior(flow(), scalar_network(), **settings).double()
    randomize(prior.critic, 0.8)
    randomize(prior.sampler, 0.15)
    return prior.eval()


def exact_acceptance(prior: ResampledPrior) -> float:
    with torch.no_grad():
        return float(
            (prior.network(GRID)[:, 0].sigmoid() * prior.proposal().log_prob(GRID).exp()).sum() * CELL
        )


def mass(distribution) -> float:
    with torch.no_grad():
        return float(distribution.log_prob(GRID).exp().sum()) * CELL


def check_draws(distribution, x: torch.Tensor) -> None:
    with torch.no_grad():
        weights = distribution.log_prob(GRID).exp() * CELL
    for statistic in (lambda v: v, lambda v: v * v, lambda v: v[:, :1] * v[:, 1:], torch.sin):
        expected, drawn = (weights[:, None] * statistic(GRID)).sum(0), statistic(x)
        error = (drawn.mean(0) - expected) / (drawn.std(0) / len(x) ** 0.5)
        assert error.abs().max() < 5


@pytest.mark.parametrize("max_attempts", [2, 5, 60])
def test_density_of_the_truncated_sampler_with_the_exact_acceptance(max_attempts):
    prior = lars(max_attempts)
    z = exact_acceptance(prior)
    prior.normalizer.log_mean.fill_(math.log1p(-z))
    with torch.no_grad():
        log_p = prior().log_prob(GRID)
        a, log_pi = prior.network(GRID)[:, 0].sigmoid(), prior.proposal().log_prob(GRID)
        rest = (1 - z) ** (max_attempts - 1)
        expected = (log_pi.exp() * (a * (1 - rest) / z + rest)).log()
    torch.testing.assert_close(log_p, expected, rtol=1e-6, atol=1e-6)
    assert abs(float(log_p.exp().sum()) * CELL - 1) < 1e-6


@pytest.mark.parametrize("max_attempts", [2, 5, 60])
def test_truncated_rejection_draws_from_its_density(max_attempts):
    prior = lars(max_attempts)
    prior.normalizer.log_mean.fill_(math.log1p(-exact_acceptance(prior)))
    distribution = prior()
    x = distribution.sample((20_000,))
    assert not x.requires_grad
    check_draws(distribution, x)


def test_acceptance_is_estimated_with_its_error():
    prior = lars(20)
    exact = exact_acceptance(prior)
    found = prior.estimate_normalizer(1 << 15, seed=3)
    log_rejection = math.log1p(-exact)
    assert found.log_mean != log_rejection
    # The error of log p(z), averaged over draws, is the slope times that of log(1 - Z); both are first order.
    missing = abs(mass(prior()) - 1)
    assert found.error / 100 < missing < 5 * found.error
    assert float(prior.normalizer.error) == pytest.approx(found.error)
    assert float(prior().log_normalizer_error) == pytest.approx(found.error)
    again = prior.estimate_normalizer(1 << 15, seed=3)
    assert again == found
    errors = [prior.estimate_normalizer(1 << 12, seed=s) for s in range(40)]
    spread = torch.tensor([e.log_mean for e in errors]).std()
    assert 0.6 < float(spread / torch.tensor([e.error for e in errors]).mean()) * slope(prior) < 1.6


def test_an_error_of_the_acceptance_moves_each_point_by_another_amount():
    """Least where a(z) is 1 and most where it is 0; the stated error is the average over draws."""
    prior = ResampledPrior(StandardGaussian(1), nn.Identity(), max_attempts=100).double().eval()
    z = torch.tensor([[40.0], [math.log(0.01 / 0.99)], [-40.0]], dtype=torch.float64)  # logits of a

    def log_p(log_acceptance: float) -> torch.Tensor:
        prior.normalizer.log_mean.fill_(math.log1p(-math.exp(log_acceptance)))
        return prior().log_prob(z)

    center, step = math.log(0.02), 1e-5
    moved = (log_p(center + step) - log_p(center - step)) / (2 * step)
    t, chance = 100, 0.02
    ends = (
        1 - t * chance * (1 - chance) ** (t - 1) / (1 - (1 - chance) ** t),
        (t - 1) * chance / (1 - chance),
    )
    torch.testing.assert_close(-moved, torch.tensor([ends[0], 1.0024, ends[1]]).double(), atol=1e-4, rtol=0)
    prior.normalizer.log_mean.fill_(math.log1p(-chance))
    average = float(prior._slope(prior.normalizer.log_mean)) * chance / (1 - chance)  # d log(1 - Z) / d log Z
    assert average == pytest.approx(0.8647, abs=1e-4)


def slope(prior: ResampledPrior) -> float:
    """Return d log(mass) / d log(1 - Z) by a difference of quadratures."""
    masses, center = [], prior.normalizer.log_mean.clone()
    for step in (-1e-4, 1e-4):
        prior.normalizer.log_mean.copy_(center + step)
        masses.append(mass(prior()))
    prior.normalizer.log_mean.copy_(center)
    return (masses[1] - masses[0]) / 2e-4


LEARNED = {
    "gaussian": lambda: LearnedGaussian(2),
    "flow": flow,
    "mixture": mixture,  # its draws carry no gradient
    "flow over a mixture": flow_over_a_mixture,
}


def check_gradient(prior, exact, z) -> None:
    """The mean of independent estimates is the exact gradient of the mean log p(z), within their small error."""
    prior.train()
    prior.num_normalizer_samples = 20_000
    parameters = list(prior.parameters())
    estimates = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(prior().log_prob(z).mean(), parameters)])
            for _ in range(16)
        ]
    )
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact(z).mean(), parameters)])
    error = estimates.std(0) / 4
    assert all(part.any() for part in torch.autograd.grad(prior().log_prob(z).mean(), parameters))
    assert (
        (estimates.mean(0) - expected).abs() / (error + 1e-6)
    ).max() < 5.5  # of t with 15 degrees, 60 entries
    assert error.max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("base", LEARNED.values(), ids=LEARNED)
def test_training_of_lars_has_the_gradient_of_the_exact_normalizer(base):
    prior = lars(10, base, scale=0.7)

    def exact(z):
        proposal = prior.proposal().log_prob(GRID).exp() * CELL
        rejection = (proposal * torch.sigmoid(-prior.network(GRID)[:, 0])).sum()
        a, powers = prior.network(z)[:, 0].sigmoid(), rejection ** torch.arange(9)
        return prior.proposal().log_prob(z) + (a * powers.sum() + rejection**9).log()

    check_gradient(prior, exact, torch.randn(50, 2).double())


def test_a_small_or_full_acceptance_keeps_density_and_gradient_finite():
    for bias in (-200.0, -30.0, 30.0, 200.0):
        prior = ResampledPrior(StandardGaussian(2), scalar_network())
        randomize(prior, 0.1)
        with torch.no_grad():
            prior.network.last.linear.bias.fill_(bias)
        log_p = prior().log_prob(torch.randn(5, 2))
        log_p.sum().backward()
        assert torch.isfinite(log_p).all()
        assert all(torch.isfinite(p.grad).all() for p in prior.network.parameters())


def test_the_moving_average_follows_training_and_leaves_bad_steps_out():
    prior = lars().train()
    prior.estimate_normalizer(1000)
    before, fresh = prior.normalizer.log_mean.clone(), []
    prior.normalizer.begin()
    for _ in range(2):  # the pieces of one batch
        fresh.append(prior().log_rejection.detach())
    assert prior.normalizer.log_mean == before
    prior.normalizer.commit()
    after = prior.normalizer.log_mean.clone()
    piece = torch.stack(fresh).exp().mean()
    torch.testing.assert_close(after.exp(), 0.99 * before.exp() + 0.01 * piece.to(after))
    assert torch.isinf(prior.normalizer.error)
    with torch.no_grad():
        prior.network.last.linear.bias.fill_(torch.nan)
    for in_step in (True, False):
        if in_step:
            prior.normalizer.begin()
        assert torch.isnan(prior().log_prob(torch.zeros(1, 2).double())).all()
        prior.normalizer.commit()
        assert prior.normalizer.log_mean == after
    prior.eval()
    with pytest.raises(NonFiniteError, match="acceptance network gives NaN"):
        prior().sample((3,))
    with pytest.raises(NonFiniteError, match="weights of a normalizer must be finite"):
        prior.estimate_normalizer(10)


def test_a_tempered_resampled_prior_draws_but_has_no_density():
    cold = lars()().tempered(0.5)
    assert cold.sample((4,)).shape == (4, 2)
    with pytest.raises(CombinationError, match="normalizer of a `ResampledPrior` is not known"):
        cold.log_prob(torch.zeros(1, 2).double())


SAMPLERS = {
    "resampling": ImportanceResampling(200),
    "langevin": Langevin(60, 0.9),
}


@pytest.mark.parametrize("base", [lambda: StandardGaussian(2), flow], ids=["gaussian", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_energy_priors_integrate_to_one_and_are_drawn_from(name, base):
    prior = energy(base, sampler=SAMPLERS[name])
    assert prior().density == "unnormalized"
    assert not prior().normalized
    found = prior.estimate_normalizer(1 << 15)
    distribution = prior()
    assert distribution.density == "approximate"
    assert distribution.normalized
    assert abs(mass(distribution) - 1) < 5 * found.error
    assert 1e-4 < found.error < 0.02
    check_draws(distribution, distribution.sample((5000,)))


def test_the_normalizer_of_a_gaussian_tilt_is_known():
    """N(0, I) exp(-a.z) is N(-a, I) times exp(a^2 / 2)."""

    class Tilt(nn.Module):
        def forward(self, z):
            return z @ z.new_tensor([[0.7], [-0.4]])

    prior = EnergyPrior(StandardGaussian(2), Tilt()).double().eval()
    found = prior.estimate_normalizer(1 << 16)
    assert abs(found.log_mean - 0.5 * (0.49 + 0.16)) < 4 * found.error
    # ESS / S = E[w]^2 / E[w^2] = exp(-a^2)
    assert found.effective_sample_size / found.num_draws == pytest.approx(math.exp(-0.65), rel=0.05)
    x = prior().sample((4000,))
    target = torch.tensor([-0.7, 0.4]).double()
    assert ((x.mean(0) - target).abs() < 5 / 4000**0.5).all()


@pytest.mark.parametrize("base", LEARNED.values(), ids=LEARNED)
def test_training_of_an_energy_through_its_density_has_the_gradient_of_the_exact_normalizer(base):
    prior = energy(base, scale=0.5)

    def exact(z):
        log_tilt = prior.base().log_prob(GRID) - prior.energy(GRID)[:, 0] + math.log(CELL)
        return prior.base().log_prob(z) - prior.energy(z)[:, 0] - log_tilt.logsumexp(0)

    prior.normalizer.begin()
    check_gradient(prior, exact, torch.randn(50, 2).double())
    assert prior.eval()().density == "unnormalized"
    prior.normalizer.commit()
    assert prior().density == "approximate"  # by the moving average, of unknown error
    assert torch.isinf(prior().log_normalizer_error)


def test_a_resampled_flow_follows_the_energy_and_its_normalizer_is_found_by_the_flow():
    prior = adversarial(resampling=ImportanceResampling(300))
    assert prior().density == "unnormalized"
    found = prior.estimate_normalizer(1 << 15)
    distribution = prior()
    assert abs(mass(distribution) - 1) < 5 * found.error
    assert found.error < 0.03
    check_draws(distribution, distribution.sample((4000,)))
    with torch.no_grad():
        expected = prior.standard().log_prob(GRID) - prior.critic(GRID)[:, 0]
    difference = distribution.log_prob(GRID) - expected
    torch.testing.assert_close(difference, difference[0].expand_as(difference))


def test_without_resampling_an_adversarial_prior_is_its_flow():
    prior = adversarial()
    distribution = prior()
    assert distribution.density == "exact"
    torch.testing.assert_close(distribution.log_prob(GRID), prior.sampler().log_prob(GRID))
    with pytest.raises(CombinationError, match="exact density of its flow"):
        prior.estimate_normalizer(10)


@pytest.mark.parametrize("name", ["lars", *SAMPLERS, "adversarial"])
def test_state_round_trip_keeps_normalizer_density_and_draws(name):
    makers = {
        "lars": lars,
        "adversarial": lambda: adversarial(resampling=ImportanceResampling(20)),
        **{key: (lambda key=key: energy(flow, sampler=SAMPLERS[key])) for key in SAMPLERS},
    }
    one, other = makers[name](), makers[name]()
    randomize(other, 0.1)
    one.estimate_normalizer(2000)
    other.load_state_dict(one.state_dict())
    x = torch.randn(5, 2).double()
    assert one().density == other().density == "approximate"
    assert torch.equal(one().log_prob(x), other().log_prob(x))
    assert one().log_normalizer_error == other().log_normalizer_error
    for made in (lambda p: p().sample((3, 4)), lambda p: p().tempered(0.5).sample((2,))):
        with noise.stream(5):
            first = made(one)
        with noise.stream(5):
            assert torch.equal(first, made(other))
        assert not first.requires_grad


def test_colder_noise_under_the_same_energy():
    prior = energy(sampler=ImportanceResampling(300))
    prior.estimate_normalizer(100)
    cold = prior().tempered(0.5)
    assert cold.density == "unnormalized"
    x = torch.randn(4, 2).double()
    expected = prior.base().tempered(0.5).log_prob(x) - prior().energy(x)
    torch.testing.assert_close(cold.log_prob(x), expected)
    assert (cold.sample((2000,)).std(0) < 0.8 * prior().sample((2000,)).std(0)).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_energy_that_is_nan_is_an_error_and_never_a_draw(name):
    prior = energy(sampler=SAMPLERS[name])
    with torch.no_grad():
        prior.energy.last.linear.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"must be finite and not all zero|is NaN on the way"):
        prior().sample((3,))
    with pytest.raises(NonFiniteError, match="weights of a normalizer"):
        prior.estimate_normalizer(10)
    assert torch.isnan(prior().log_prob(torch.zeros(1, 2).double())).all()
    prior.train()
    assert torch.isnan(prior().log_prob(torch.zeros(1, 2).double())).all()
    assert not prior.normalizer.known


def test_langevin_says_that_it_hardly_moves():
    prior = energy(sampler=Langevin(5, 30.0))
    with pytest.warns(RuntimeWarning, match=r"accepted .* of its moves"):
        prior().sample((50,))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ResampledPrior(gaussian((2,), (3,)), scalar_network()),
            CombinationError,
            "The proposal of `ResampledPrior` must be a continuous distribution without a context",
        ),
        (
            lambda: EnergyPrior(bernoulli((2,), (3,)), scalar_network()),
            CombinationError,
            "The base of `EnergyPrior` must be",
        ),
        (
            lambda: AdversarialPrior(Flow(StandardGaussian(2), presets.planar(2)), scalar_network()),
            CombinationError,
            "The sampler of `AdversarialPrior` must be",
        ),
        (
            lambda: ResampledPrior(StandardGaussian(2), scalar_network(), max_attempts=1),
            ConfigurationError,
            "`max_attempts` must be an integer of at least 2; got 1",
        ),
        (
            lambda: EnergyPrior(StandardGaussian(2), scalar_network(), num_normalizer_samples=1),
            ConfigurationError,
            "`num_normalizer_samples` must be an integer of at least 2; got 1",
        ),
        (
            lambda: ResampledPrior(StandardGaussian(2), scalar_network(out=2)),
            ShapeError,
            "must give one number per point, (N, 1); got (2,) per point",
        ),
        (
            lambda: ImportanceResampling(1),
            ConfigurationError,
            "`num_proposals` must be an integer of at least 2",
        ),
        (lambda: Langevin(0), ConfigurationError, "`num_steps` must be a positive integer; got 0"),
        (lambda: Langevin(5, -1.0), ConfigurationError, "`step_size` must be positive and finite; got -1.0"),
        (
            lambda: energy().estimate_normalizer(1),
            ConfigurationError,
            "`num` must be an integer of at least 2; got 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_built(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
