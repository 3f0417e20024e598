"""The continuous flow prior and its solvers: analytic velocities, orders, quadrature, the divergence's estimate."""

import re

import pytest
import torch
from torch import distributions, nn

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.distributions import FlowMatchingPrior, OdeSolver
from latentflows.networks import ResidualConvolution, ResidualMLP
from tests.bijections.cases import randomize

METHODS = ["euler", "midpoint", "rk4", "dopri5"]


def residual(in_shape, out_shape, features):
    return ResidualMLP(
        in_shape, out_shape, width=8, num_blocks=1, activation_name="tanh", context=features, zero_last=True
    )


def made(event_shape=2, scale: float = 0.4, **settings) -> FlowMatchingPrior:
    prior = FlowMatchingPrior(event_shape, residual, num_frequencies=2, **settings).double()
    randomize(prior, scale)
    with torch.no_grad():
        prior.shift += 0.3
        prior.scale *= 1.4
    return prior


def with_velocity(field, dim: int, **settings) -> FlowMatchingPrior:
    """A prior whose velocity is the function field(x, time)."""

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x, features):
            return field(x, features[:, 0])

    return FlowMatchingPrior(dim, lambda *_: Given(), num_frequencies=1, **settings).double()


MATRIX = torch.tensor([[0.4, -1.1, 0.2], [0.7, -0.3, 0.0], [0.1, 0.5, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_field_moves_by_the_matrix_exponential(method):
    prior = with_velocity(lambda x, t: x @ MATRIX.T, 3, solver=method, num_steps=200, tolerance=1e-8)
    whole = torch.linalg.matrix_exp(MATRIX)
    expected = distributions.MultivariateNormal(torch.zeros(3).double(), whole @ whole.T)
    z = expected.sample((6,))
    tolerance = {"euler": 0.1, "midpoint": 1e-3}.get(method, 1e-6)
    torch.testing.assert_close(prior().log_prob(z), expected.log_prob(z), rtol=0, atol=tolerance)
    with noise.stream(1):
        x = prior().sample((4,))
    with noise.stream(1):
        u = noise.standard_normal((4, 3), like=z)
    torch.testing.assert_close(x, u @ whole.T, rtol=0, atol=tolerance)


MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.7, 0.3], [0.3, 0.4]], dtype=torch.float64)
EIGENVALUES, AXES = torch.linalg.eigh(COVARIANCE)


def gaussian_velocity(x, time):
    """The velocity of the path from N(0, I) to N(MEAN, COVARIANCE), independent ends."""
    t = time[:, None]
    gain = (t * EIGENVALUES - (1 - t)) / ((1 - t) ** 2 + t**2 * EIGENVALUES)
    return MEAN + (gain * ((x - t * MEAN) @ AXES)) @ AXES.T


def test_the_velocity_of_a_gaussian_gives_its_density():
    prior = with_velocity(gaussian_velocity, 2, num_steps=100)
    expected = distributions.MultivariateNormal(MEAN, COVARIANCE)
    z = expected.sample((20,))
    torch.testing.assert_close(prior().log_prob(z), expected.log_prob(z), rtol=0, atol=1e-5)
    assert prior().solver_error(z).max() < 1e-5


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_error_falls_with_the_order_of_the_method(method, order):
    expected = distributions.MultivariateNormal(MEAN, COVARIANCE)
    z = MEAN + torch.tensor([[0.4, 0.3], [-0.7, 0.2]]).double()
    errors = []
    for steps in (16, 32):
        prior = with_velocity(gaussian_velocity, 2, solver=method, num_steps=steps)
        errors.append((prior().log_prob(z) - expected.log_prob(z)).abs().max())
        halved = with_velocity(gaussian_velocity, 2, solver=method, num_steps=2 * steps)
        moved = (prior().log_prob(z) - halved().log_prob(z)).abs()
        torch.testing.assert_close(prior().solver_error(z), moved)
    assert float((errors[0] / errors[1]).log2()) == pytest.approx(order, abs=0.5)


def test_a_tolerance_bounds_the_error():
    expected = distributions.MultivariateNormal(MEAN, COVARIANCE)
    z = expected.sample((8,))
    for tolerance in (1e-4, 1e-6, 1e-8):
        prior = with_velocity(gaussian_velocity, 2, solver="dopri5", tolerance=tolerance)
        scored = prior().scored(z)
        assert (scored.log_prob - expected.log_prob(z)).abs().max() < 20 * tolerance
        assert prior().solver_error(z).max() < 20 * tolerance


def test_the_number_of_evaluations_is_counted():
    calls = []

    def field(x, time):
        calls.append(len(x))
        return -x * time[:, None]

    for method, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        prior = with_velocity(field, 2, solver=method, num_steps=7)
        calls.clear()
        scored = prior().scored(torch.zeros(3, 2).double())
        assert scored.num_evaluations.tolist() == [7 * stages] * 3
        assert calls == [3] * (7 * stages)
    prior = with_velocity(field, 2, solver="dopri5")
    calls.clear()
    scored = prior().scored(torch.randn(3, 2).double())
    assert sum(calls) == int(scored.num_evaluations.sum())


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_density_integrates_to_one_and_has_the_moments_of_the_draws(method):
    prior = made(solver=method, num_steps=12, tolerance=1e-3)
    line = torch.linspace(-9, 9, 64, dtype=torch.float64)
    grid, cell = torch.cartesian_prod(line, line), (line[1] - line[0]).item() ** 2
    with torch.no_grad():
        weights = prior().log_prob(grid).exp() * cell
        x = prior().sample((4000,))
    assert abs(float(weights.sum()) - 1) < 2e-3
    for statistic in (lambda v: v, lambda v: v * v, lambda v: v[:, :1] * v[:, 1:]):
        expected, drawn = (weights[:, None] * statistic(grid)).sum(0), statistic(x)
        assert ((drawn.mean(0) - expected).abs() < 5 * drawn.std(0) / 4000**0.5 + 5e-3).all()


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_a_draw_and_its_density_agree_with_the_way_back(method):
    prior = made(solver=method, num_steps=25, tolerance=1e-7)
    for distribution in (prior(), prior().tempered(0.6)):
        x, log_p = distribution.sample_and_log_prob((5,))
        torch.testing.assert_close(log_p, distribution.log_prob(x), rtol=0, atol=1e-4)
        with noise.stream(3):
            first = distribution.sample((2, 3))
        with noise.stream(3):
            torch.testing.assert_close(first, distribution.sample_and_log_prob((2, 3))[0])


def test_it_starts_as_the_gaussian_of_the_latents_it_is_shown():
    prior = FlowMatchingPrior(3, residual).double()
    assert prior.waits_for_data
    z = torch.randn(500, 3).double() * torch.tensor([0.1, 1.0, 5.0]) + 2
    prior.initialize(z)
    assert not prior.waits_for_data
    expected = distributions.Independent(distributions.Normal(z.mean(0), z.std(0)), 1)
    torch.testing.assert_close(prior().log_prob(z[:5]), expected.log_prob(z[:5]))
    torch.testing.assert_close(prior.standardized(z).std(0), torch.ones(3).double())
    other = FlowMatchingPrior(3, residual).double()
    other.load_state_dict(prior.state_dict())
    assert not other.waits_for_data
    torch.testing.assert_close(other().log_prob(z[:5]), prior().log_prob(z[:5]))


def test_latents_that_do_not_vary_are_refused():
    prior = FlowMatchingPrior(2, residual)
    for bad in (torch.zeros(10, 2), torch.full((10, 2), torch.nan)):
        with pytest.raises(DataError, match="Latents must vary in every entry to be standardized"):
            prior.initialize(bad)
    assert prior.waits_for_data


def test_maps_are_standardized_by_channel_and_count_every_entry():
    def network(in_shape, out_shape, features):
        return ResidualConvolution(in_shape, out_shape, width=4, num_blocks=1, context=features)

    prior = FlowMatchingPrior((2, 3, 2), network, num_frequencies=2, num_steps=4).double()
    z = torch.randn(50, 2, 3, 2).double() * torch.tensor([0.2, 3.0]).view(2, 1, 1) - 1
    prior.initialize(z)
    torch.testing.assert_close(prior.scale.flatten(), z.transpose(0, 1).flatten(1).std(1))
    randomize(prior.velocity, 0.2)
    log_p = prior().log_prob(z[:2])
    for i in range(2):  # against the Jacobian of the whole map, by the same solver

        def noise_of(point):
            flow = prior()
            rows, context, _ = flow._rows(point[None])
            return flow._carried(rows, context, flow._probes(rows), flow.solver, 1.0, 0.0)[0][0]

        with torch.enable_grad():
            jacobian = torch.autograd.functional.jacobian(noise_of, z[i]).view(12, 12)
        u = noise_of(z[i])
        exact = distributions.Normal(0.0, 1.0).log_prob(u).sum() + torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_p[i], exact, rtol=0, atol=0.02)
    assert prior().sample((2,)).shape == (2, 2, 3, 2)


def test_hutchinson_is_unbiased_for_log_p_with_the_stated_error_and_biased_for_its_exponential():
    settings = {"num_steps": 6, "scale": 0.7}
    exact = made(3, **settings)
    x = torch.randn(6, 3).double()
    truth = exact().log_prob(x)
    errors = {}
    for probes in (8, 128):
        prior = made(3, divergence="hutchinson", num_probes=probes, **settings)
        prior.load_state_dict(exact.state_dict())
        distribution = prior()
        assert distribution.density == "approximate"
        assert not distribution.weighable
        scored = distribution.scored(x)
        assert ((scored.log_prob - truth).abs() < 4 * scored.standard_error + 1e-9).all()
        assert (scored.standard_error > 0).all()
        errors[probes] = scored.standard_error.mean()
        with noise.stream(2):
            first = distribution.log_prob(x)
        with noise.stream(2):
            assert torch.equal(first, distribution.log_prob(x))
        assert not torch.equal(first, distribution.log_prob(x))
    assert 2 < errors[8] / errors[128] < 8  # sqrt(16)
    one = made(3, divergence="hutchinson", num_probes=1, **settings)
    one.load_state_dict(exact.state_dict())
    scored = one().scored(x)
    assert scored.standard_error.isnan().all()
    assert exact().weighable
    assert (exact().scored(x).standard_error == 0).all()
    with torch.no_grad():
        ratio = (one().log_prob(x[:1].expand(4000, 3)) - truth[0]).exp()
    assert float(ratio.mean()) > 1 + 5 * float(ratio.std()) / 4000**0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_point_alone_and_in_a_batch_has_one_density(method):
    prior = made(solver=method, num_steps=8, tolerance=1e-6, context_shape=3, scale=0.7)
    x, context = torch.randn(7, 2).double() * torch.logspace(-1, 1, 7)[:, None], torch.randn(7, 3).double()
    together = prior(context).scored(x)
    for i in range(7):
        alone = prior(context[i : i + 1]).scored(x[i : i + 1])
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[i], rtol=1e-10, atol=1e-10)
        assert alone.num_evaluations[0] == together.num_evaluations[i]
    if method == "dopri5":
        assert len(together.num_evaluations.unique()) > 1


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_pieces_of_a_large_batch_give_the_same(divergence, monkeypatch):
    prior = made(divergence=divergence, num_probes=3, num_steps=2)
    x = torch.randn(11, 2).double()
    with noise.stream(1):
        expected = prior().log_prob(x)
    monkeypatch.setattr("latentflows.distributions.flow_matching._TOGETHER", 6)
    with noise.stream(1), torch.no_grad():
        torch.testing.assert_close(prior().log_prob(x), expected)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_training_through_the_density_has_the_right_gradient(method):
    prior = made(solver=method, num_steps=3, tolerance=1e-3, context_shape=2)
    x, context = torch.randn(4, 2).double(), torch.randn(4, 2).double()
    prior(context).log_prob(x).sum().backward()
    for name, p in prior.named_parameters():
        assert p.grad.any(), name
        direction = torch.randn_like(p)
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                p += step * direction
                values.append(float(prior(context).log_prob(x).sum()))
        with torch.no_grad():
            p += 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        assert float((p.grad * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4), name


def test_contexts_and_shapes():
    prior = made(context_shape=3, num_steps=2)
    context = torch.randn(2, 5, 3).double()
    distribution = prior(context)
    assert distribution.batch_shape == (2, 5)
    x, log_p = distribution.sample_and_log_prob((4,))
    assert x.shape == (4, 2, 5, 2)
    assert log_p.shape == distribution.log_prob(x).shape == (4, 2, 5)
    assert distribution.log_prob(x[0, 0, 0]).shape == (2, 5)
    one = prior(context[1, 3]).log_prob(x[2, 1, 3])
    torch.testing.assert_close(one, distribution.log_prob(x)[2, 1, 3])
    assert (prior(context.roll(1, 0)).log_prob(x) != distribution.log_prob(x)).all()
    with pytest.raises(ShapeError, match=re.escape("`x` must end in (2,); got shape (3,)")):
        distribution.log_prob(torch.zeros(3).double())


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_nan(method):
    prior = made(solver=method, num_steps=2)
    x = torch.zeros(3, 2).double()
    x[1, 0] = torch.nan
    log_p = prior().log_prob(x)
    assert log_p.isnan().tolist() == [False, True, False]
    with torch.no_grad():
        prior.velocity.network.last.linear.bias.fill_(torch.nan)
    assert prior().log_prob(x).isnan().all()
    assert prior().sample((2,)).isnan().all()


def test_float32_under_autocast():
    prior = made(num_steps=4).float()
    x = torch.randn(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_p = prior().log_prob(x)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, prior().log_prob(x), rtol=1e-4, atol=1e-4)


def test_times_run_towards_the_end_and_backward():
    solver = OdeSolver("dopri5", tolerance=1e-9)
    y, _ = solver.solve(lambda t, y, rows: t[:, None].expand_as(y), torch.ones(1, 1).double(), 2.0, 0.5)
    assert float(y) == pytest.approx(1 + 0.5 * (0.25 - 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(solver="heun"), "`method` must be one of"),
        (lambda: made(num_steps=0), "`num_steps` must be a positive integer; got 0"),
        (lambda: made(tolerance=0.0), "`tolerance` must be positive and finite; got 0.0"),
        (lambda: made(divergence="one"), "`divergence` must be one of"),
        (lambda: made(num_probes=0), "`num_probes` must be a positive integer; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "steps", "stated"), [("euler", 100, 0.032), ("midpoint", 50, 0.0018), ("rk4", 10, 0.0020)]
)
def test_the_error_of_a_narrow_gaussian(method, steps, stated):
    """One variable of std 0.1, exact velocity, at z = 0.1: figures computed apart from this code."""
    s = 0.1

    def field(x, time):
        t = time[:, None]
        return x * (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2)

    z = torch.tensor([[s]]).double()
    prior = with_velocity(field, 1, solver=method, num_steps=steps)
    with torch.no_grad():
        error = (prior().log_prob(z) - distributions.Normal(0.0, s).log_prob(z[:, 0])).abs()
    assert float(error) == pytest.approx(stated, rel=0.1)
    assert 0.4 * float(error) < float(prior().solver_error(z)) < 1.3 * float(error)


def test_features_of_a_context_are_what_the_network_hears():
    table = torch.nn.Linear(4, 3, bias=False).double()
    embedded = made(context_shape=4, embed=table, features=3)
    plain = made(context_shape=3)
    plain.velocity.network.load_state_dict(embedded.velocity.network.state_dict())
    z, context = torch.randn(5, 2).double(), torch.randn(5, 4).double()
    with torch.no_grad():
        torch.testing.assert_close(embedded(context).log_prob(z), plain(table(context)).log_prob(z))
    assert embedded.context_shape == (4,)


@pytest.mark.parametrize(
    "wrong",
    [{"embed": nn.Identity()}, {"context_shape": 4, "features": 4}, {"embed": nn.Identity(), "features": 4}],
)
def test_an_embedding_says_what_it_reads_and_gives(wrong):
    with pytest.raises(ConfigurationError, match="come together, with a `context_shape`"):
        FlowMatchingPrior(2, residual, **wrong)
