"""Laplace, Student t and the Gaussian of batch-optimal variance against torch, scipy and closed forms."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions import (
    AmortizedLaplace,
    AmortizedStudentT,
    BatchOptimalGaussian,
    DiagonalNormal,
    LaplaceValues,
    StudentTValues,
)


def student(degrees, location=0.3, log_scale=-0.4, dtype=torch.float64):
    made = (torch.tensor([v], dtype=dtype) for v in (location, log_scale))
    return StudentTValues(*made, torch.tensor(degrees, dtype=dtype), event_ndim=1)


def test_the_laplace_density_is_that_of_torch():
    mean, log_scale = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    x = torch.randn(4, 5, 3).double()
    expected = torch.distributions.Laplace(mean, log_scale.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(LaplaceValues(mean, log_scale, event_ndim=1).log_prob(x), expected)


@pytest.mark.parametrize("degrees", [0.7, 1.0, 3.5, 1000.0])
def test_the_student_t_density_is_that_of_scipy(degrees):
    x = torch.linspace(-50, 50, 41).double()
    expected = stats.t(degrees, loc=0.3, scale=math.exp(-0.4)).logpdf(x.numpy())
    torch.testing.assert_close(student(degrees).log_prob(x[:, None]), torch.from_numpy(expected))


@pytest.mark.parametrize("degrees", [0.05, 0.4, 0.9, 2.5, 1000.0])
def test_densities_and_gradients_in_float32_survive_what_float32_can_hold(degrees):
    """Squares of these leave float32, and underflow; the density and its derivative do not."""
    x = torch.tensor([0.0, 1e-30, 1e-8, 0.1, 1.0, 1e4, 1e15, 1e25, 3e37]).repeat(2)
    x[9:] *= -1
    single = StudentTValues(torch.zeros(18, 1), torch.zeros(18, 1), torch.tensor(degrees), event_ndim=1)
    point = x[:, None].clone().requires_grad_()
    log_p = single.log_prob(point)
    exact = torch.from_numpy(stats.t(degrees).logpdf(x.double().numpy()))
    torch.testing.assert_close(log_p.double(), exact, rtol=2e-6, atol=2e-6)
    (slope,) = torch.autograd.grad(log_p.sum(), point)
    y = x.double()
    torch.testing.assert_close(
        slope[:, 0].double(), -(degrees + 1) * y / (degrees + y * y), rtol=1e-5, atol=1e-37
    )


@pytest.mark.parametrize("degrees", [0.2, 0.3, 0.9])
def test_draws_of_few_degrees_of_freedom_are_those_of_float64(degrees, monkeypatch):
    """At the largest of the uniform numbers too."""
    u = torch.tensor([[0.0], [2.0**-24], [0.5], [1 - 2.0**-10], [1 - 2.0**-24]])
    drawn = {}
    for dtype in (torch.float32, torch.float64):
        numbers = iter([u.to(dtype), torch.full_like(u, 0.1, dtype=dtype)])
        monkeypatch.setattr(noise, "uniform", lambda shape, like, numbers=numbers: next(numbers))
        distribution = student(degrees, dtype=dtype)
        distribution.degrees.requires_grad_()
        x = distribution.sample((5,))
        (slope,) = torch.autograd.grad(x.sum(), distribution.degrees)
        assert slope.isfinite()
        drawn[dtype] = x.detach().double()
    torch.testing.assert_close(drawn[torch.float32], drawn[torch.float64], rtol=1e-4, atol=1e-6)


def test_many_degrees_of_freedom_are_exact_in_float32():
    """Summed over 784 entries, the difference of two logarithms of 2,500 would be a fifth of a nat off."""
    x = torch.zeros(784)
    single = StudentTValues(x, x, torch.tensor(1000.0), event_ndim=1).log_prob(x)
    expected = 784 * stats.t(1000.0).logpdf(0.0)
    assert single.item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("distribution", "reference"),
    [
        (LaplaceValues(torch.full((1,), 0.3), torch.full((1,), -0.4), event_ndim=1), "laplace"),
        (student(0.8, dtype=torch.float32), 0.8),
        (student(2.5, dtype=torch.float32), 2.5),
        (student(80.0, dtype=torch.float32), 80.0),
    ],
    ids=["laplace", "t0.8", "t2.5", "t80"],
)
def test_draws_have_the_distribution(distribution, reference):
    exact = stats.laplace if reference == "laplace" else stats.t(reference)
    with noise.stream(3):
        x = distribution.sample((20_000,))[:, 0]
    standardized = (x - 0.3) / math.exp(-0.4)
    assert torch.isfinite(x).all()
    assert stats.kstest(standardized.numpy(), exact.cdf).pvalue > 1e-3


def test_student_t_draws_are_reparameterized_in_all_parameters():
    """The derivative of E[tanh x] by draws is that by quadrature over the density."""
    location, log_scale, degrees = (torch.tensor([v]).double().requires_grad_() for v in (0.3, -0.4, 2.5))
    parameters = (location, log_scale, degrees)
    distribution = StudentTValues(location, log_scale, degrees, event_ndim=1)
    with noise.stream(4):
        x = distribution.sample((40_000,))[:, 0]
    drawn = torch.autograd.grad(torch.tanh(x - 1).mean(), parameters)
    grid = torch.linspace(-1, 1, 40_001).double()[1:-1]
    points = grid / (1 - grid * grid)
    density = distribution.log_prob(points[:, None]).exp() * (1 + grid * grid) / (1 - grid * grid) ** 2
    quadrature = torch.trapezoid(density * torch.tanh(points - 1), grid)
    expected = torch.autograd.grad(quadrature, parameters)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.01)
    assert expected[2].abs() > 0.012  # the derivative in the degrees of freedom is seen


def test_the_draw_at_the_mode_has_a_finite_gradient(monkeypatch):
    monkeypatch.setattr(noise, "uniform", lambda shape, like: torch.zeros(shape, dtype=like.dtype))
    degrees = torch.tensor(2.5, requires_grad=True)
    StudentTValues(torch.zeros(1), torch.zeros(1), degrees, event_ndim=1).sample().sum().backward()
    assert torch.isfinite(degrees.grad)


def test_a_student_t_has_a_mean_above_one_degree_of_freedom():
    assert student(1.5).mean.item() == 0.3
    with pytest.raises(CombinationError, match="has a mean for more than 1 degree of freedom; got 1"):
        _ = student(1.0).mean
    learned = AmortizedStudentT(3, 2, nn.Linear(2, 3))
    degrees = learned(torch.zeros(1, 2)).degrees
    assert degrees.item() == pytest.approx(5, rel=1e-5)
    for raw in (-1e6, 1e6):
        nn.init.constant_(learned.raw_degrees, raw)
        assert 1 < learned(torch.zeros(1, 2)).degrees.item() < 1098


def test_learned_degrees_of_freedom_find_those_of_the_data():
    with noise.stream(1):
        x = student(3.0, 0.0, 0.0).sample((4000,)).float()
    likelihood = AmortizedStudentT(1, 1, nn.Linear(1, 1))
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        (-likelihood(torch.ones(4000, 1)).log_prob(x).mean()).backward()
        optimizer.step()
    fitted = likelihood(torch.ones(1, 1))
    degrees, _, scale = stats.t.fit(x.numpy(), floc=0)
    assert fitted.degrees.item() == pytest.approx(degrees, rel=0.1)
    assert fitted.log_scale.exp().item() == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("likelihood", [AmortizedLaplace, AmortizedStudentT])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), "learned"])
def test_scales_out_of_range_are_refused(likelihood, scale):
    with pytest.raises(
        ConfigurationError, match='`scale` must be "amortized", "shared" or a positive number'
    ):
        likelihood(3, 2, nn.Linear(2, 3), scale=scale)


@pytest.mark.parametrize("degrees", [0.0, -2.0, float("inf"), float("nan"), "amortized"])
def test_degrees_of_freedom_out_of_range_are_refused(degrees):
    with pytest.raises(ConfigurationError, match='`degrees` must be "shared" or a positive number'):
        AmortizedStudentT(3, 2, nn.Linear(2, 3), degrees=degrees)


# -- the Gaussian of batch-optimal variance ----------------------------------------------------------------------


def optimal(**settings) -> BatchOptimalGaussian:
    with noise.stream(0):
        return BatchOptimalGaussian(4, 2, nn.Linear(2, 4), **settings).double()


def data(*batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    with noise.stream(5):
        return torch.randn(*batch, 2).double(), torch.randn(batch[-1], 4).double()


def step(likelihood: BatchOptimalGaussian, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Score a batch as a training step does."""
    likelihood.begin()
    log_p = likelihood(z).log_prob(x)
    likelihood.commit()
    return log_p


@pytest.mark.parametrize("batch", [(6,), (3, 6)], ids=["B", "KB"])
def test_in_training_no_other_scale_has_a_higher_likelihood(batch):
    likelihood = optimal()
    z, x = data(*batch)
    best = likelihood(z).log_prob(x).mean()
    scale = (x - likelihood(z).mean).square().mean().sqrt()
    for factor in (0.9, 1.0, 1.1):
        other = DiagonalNormal(likelihood(z).mean, (factor * scale).log()).log_prob(x).mean()
        assert other <= best + 1e-12
        assert (factor == 1) == (abs(other - best) < 1e-12)


def test_the_gradient_is_that_of_half_the_log_of_the_mean_squared_error():
    """The paper's loss, D/2 log sigma^2 with the gradient through sigma."""
    likelihood = optimal()
    z, x = data(3, 6)
    mine = torch.autograd.grad(-likelihood(z).log_prob(x).mean(), likelihood.network.weight)[0]
    loss = 2 * (x - likelihood(z).mean).square().mean().log()
    torch.testing.assert_close(mine, torch.autograd.grad(loss, likelihood.network.weight)[0])


def test_sigma_has_a_lower_bound_where_the_gradient_stays():
    likelihood = optimal(min_scale=0.1)
    z, _ = data(6)
    x = likelihood(z).mean.detach() + 1e-4
    log_p = likelihood(z).log_prob(x)
    expected = DiagonalNormal(likelihood(z).mean, torch.tensor(0.1).double().log()).log_prob(x)
    torch.testing.assert_close(log_p, expected)
    log_p.sum().backward()
    torch.testing.assert_close(likelihood.network.bias.grad, torch.full((4,), 6 * 1e-4 / 0.01).double())


def test_evaluation_uses_what_training_left_behind():
    likelihood = optimal(momentum=0.25)
    z, x = data(6)
    errors = []
    for shift in (0.0, 1.0, 2.0, 3.0, 5.0, 8.0):
        errors.append((x + shift - likelihood(z).mean).square().mean().item())
        step(likelihood, z, x + shift)
    average = sum(errors[:4]) / 4  # a plain average until its weights are below the momentum
    for error in errors[4:]:
        average += 0.25 * (error - average)
    assert likelihood.mean_square.item() == pytest.approx(average)
    likelihood.eval()
    expected = DiagonalNormal(likelihood(z).mean, torch.tensor(0.5 * math.log(average)).double())
    for _ in range(2):  # scoring in eval mode changes nothing
        torch.testing.assert_close(likelihood(z).log_prob(x), expected.log_prob(x))
    with noise.stream(1):
        drawn = likelihood(z).sample((3,))
    with noise.stream(1):
        torch.testing.assert_close(drawn, expected.sample((3,)))


def test_scoring_alone_moves_nothing():
    """Without gradients, or in eval mode; and what a step gathered is forgotten when the next one begins."""
    likelihood = optimal()
    z, x = data(6)
    step(likelihood, z, x)
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    scale = 0.5 * likelihood.mean_square.log()
    for mode in (True, False):
        likelihood.train(mode)
        with torch.no_grad():
            expected = DiagonalNormal(likelihood(z).mean, scale).log_prob(3 * x)
            torch.testing.assert_close(likelihood(z).log_prob(3 * x), expected)
    likelihood.train()
    likelihood.begin()
    likelihood(z).log_prob(3 * x)  # as in a step that is skipped
    likelihood.begin()
    likelihood.commit()
    assert all(torch.equal(value, before[name]) for name, value in likelihood.state_dict().items())


def test_a_plain_loop_has_the_variance_and_gathers_no_more_than_a_batch():
    """One that knows nothing of `begin` and `commit`."""
    likelihood, stepped = optimal(), optimal()
    z, x = data(6)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (likelihood, stepped)]
    for score, each, optimizer in (
        (lambda: likelihood(z).log_prob(x), likelihood, optimizers[0]),
        (lambda: step(stepped, z, x), stepped, optimizers[1]),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            (-score().mean()).backward()
            optimizer.step()
            assert not each._gathered
    assert likelihood.num_steps == 5
    assert 0 < likelihood.mean_square != 1
    assert torch.equal(likelihood.mean_square, stepped.mean_square)


def test_pieces_of_a_batch_count_once():
    likelihood, whole = optimal(), optimal()
    z, x = data(6)
    likelihood.begin()
    for piece in (slice(0, 3), slice(3, 6)):
        likelihood(z[piece]).log_prob(x[piece])
    likelihood.commit()
    step(whole, z, x)
    torch.testing.assert_close(likelihood.mean_square, whole.mean_square)
    assert likelihood.num_steps == 1


def test_the_state_is_saved_and_follows_the_module():
    likelihood = optimal()
    z, x = data(6)
    step(likelihood, z, x)
    other = optimal()
    other.load_state_dict(copy.deepcopy(likelihood.state_dict()))
    for _ in range(3):  # both go on alike
        step(likelihood, z, 2 * x)
        step(other, z, 2 * x)
    assert torch.equal(likelihood.mean_square, other.mean_square)
    assert likelihood.mean_square.dtype == torch.float64
    assert set(likelihood.state_dict()) >= {"mean_square", "num_steps"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_no_trace(bad):
    likelihood = optimal()
    z, x = data(6)
    step(likelihood, z, x)
    before = likelihood.mean_square.clone()
    assert not torch.isfinite(step(likelihood, z, x + bad)).any()
    assert torch.equal(likelihood.mean_square, before)
    assert likelihood.num_steps == 1


def test_settings_out_of_range_are_refused():
    for momentum in (0.0, 1.5):
        with pytest.raises(ConfigurationError, match="`momentum` must be above 0 and at most 1"):
            optimal(momentum=momentum)
    with pytest.raises(ConfigurationError, match="`min_scale` must be positive"):
        optimal(min_scale=0.0)
