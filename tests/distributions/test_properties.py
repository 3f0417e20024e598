"""What every conditional and the distribution it returns must do, over all cases; float64 unless said."""

import copy
import re

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError, ShapeError
from latentflows.distributions import Pushforward
from tests.distributions.cases import CASES, CONDITIONED, PLANE, SCORED, build, context_of

every = pytest.mark.parametrize("name", CASES)
scored = pytest.mark.parametrize("name", SCORED)
SIZE, COUNT = 20.0, 1001  # of the quadrature grid


@pytest.mark.parametrize("sample", [(), (4,), (3, 4)], ids=["one", "K", "SK"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)], ids=["point", "B", "AB"])
@every
def test_shapes(name, batch, sample):
    conditional = build(name)
    distribution = conditional(context_of(conditional, *batch))
    rows = batch if conditional.context_shape else ()
    assert distribution.batch_shape == rows
    assert distribution.event_shape == conditional.event_shape
    shape = (*sample, *rows, *conditional.event_shape)
    x, log_p = distribution.sample_and_log_prob(sample)
    assert x.shape == distribution.sample(sample).shape == shape
    assert log_p.shape == (*sample, *rows)
    if conditional.has_density:
        assert distribution.log_prob(x).shape == (*sample, *rows)


@scored
def test_one_point_is_scored_under_every_distribution_of_a_batch(name):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 5))
    x = distribution.sample().reshape(-1, *conditional.event_shape)[0]
    expected = distribution.log_prob(x.expand(*distribution.batch_shape, *x.shape))
    torch.testing.assert_close(distribution.log_prob(x), expected)


@scored
def test_the_log_prob_of_a_draw_is_that_of_its_value(name):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 5))
    x, log_p = distribution.sample_and_log_prob((7,))
    torch.testing.assert_close(log_p, distribution.log_prob(x), rtol=1e-9, atol=1e-9)


@every
def test_sample_and_sample_and_log_prob_draw_the_same(name):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 5))
    with noise.stream(1):
        x = distribution.sample((3,))
    with noise.stream(1):
        y, _ = distribution.sample_and_log_prob((3,))
    torch.testing.assert_close(x, y)


@scored
def test_an_event_of_the_wrong_shape_is_refused(name):
    conditional = build(name)
    shape = conditional.event_shape
    wrong = (2, *shape[:-1], shape[-1] + 1)
    with pytest.raises(ShapeError, match=re.escape(f"must end in {shape}; got shape {wrong}")):
        conditional(context_of(conditional, 2)).log_prob(torch.zeros(wrong).double())


@pytest.mark.parametrize("name", CONDITIONED)
def test_a_missing_or_wrong_context_is_refused(name):
    conditional = build(name)
    kind, shape = type(conditional).__name__, conditional.context_shape
    with pytest.raises(ShapeError, match=re.escape(f"`{kind}` needs a context ending in {shape}; got none")):
        conditional()
    wrong = (5, *shape[:-1], shape[-1] + 1)
    with pytest.raises(ShapeError, match=re.escape(f"must end in {shape}; got shape {wrong}")):
        conditional(torch.zeros(wrong).double())


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONDITIONED])
def test_an_unwanted_context_is_refused(name):
    with pytest.raises(ShapeError, match=r"takes no context; got one of shape \(5, 3\)"):
        build(name)(torch.zeros(5, 3).double())


@pytest.mark.parametrize("name", CONDITIONED)
def test_each_row_answers_to_its_own_context(name):
    conditional = build(name)
    context = context_of(conditional, 5)
    with noise.stream(1):
        x, log_p = conditional(context).sample_and_log_prob()
    with noise.stream(1):
        y, other = conditional(context.roll(1, 0)).sample_and_log_prob()
    if not CASES[name].reparameterized:
        x, y = (
            d.mean if CASES[name].mean else d.sample((2000,)).mean(0)
            for d in (conditional(context), conditional(context.roll(1, 0)))
        )
    moved = x - y
    assert (moved.flatten(1).abs().amax(1) > 1e-4).all()
    if "fixed" not in name and "shared" not in name:
        assert (log_p != other).all()


@every
def test_draws_carry_finite_gradients_to_every_parameter(name):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 5))
    assert distribution.reparameterized == CASES[name].reparameterized
    x, log_p = distribution.sample_and_log_prob((3,))
    loss = (x * torch.randn_like(x)).sum() + log_p.sum()
    if not list(conditional.parameters()):
        assert not loss.requires_grad
        return
    loss.backward()
    for key, parameter in conditional.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every
def test_dtype_is_kept(name, dtype):
    conditional = build(name, dtype=dtype)
    x, log_p = conditional(context_of(conditional, 5, dtype=dtype)).sample_and_log_prob((2,))
    assert x.dtype == log_p.dtype == dtype


@scored
def test_autocast_keeps_log_probs_in_float32(name):
    conditional = build(name, dtype=torch.float32)
    context = context_of(conditional, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distribution = conditional(context)
        x, log_p = distribution.sample_and_log_prob((3,))
        again = distribution.log_prob(x)
    assert x.dtype == log_p.dtype == again.dtype == torch.float32
    torch.testing.assert_close(log_p, again, rtol=1e-2, atol=1e-2)


@every
def test_copies_draw_the_same(name):
    conditional, other = build(name), build(name, scale=0.1)
    other.load_state_dict(conditional.state_dict())
    context = context_of(conditional, 5)
    with noise.stream(1):
        expected = conditional(context).sample_and_log_prob((2,))
    for copied in (other, copy.deepcopy(conditional)):
        with noise.stream(1):
            torch.testing.assert_close(copied(context).sample_and_log_prob((2,)), expected, rtol=0, atol=0)


@every
def test_a_mean_in_closed_form_is_that_of_the_draws_or_refused(name):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 2))
    if not CASES[name].mean:
        with pytest.raises(CombinationError, match=r"`\w+` has no mean in closed form"):
            _ = distribution.mean
        return
    x = distribution.sample((4000,))
    error = (x.mean(0) - distribution.mean) / (x.std(0) / 4000**0.5)
    assert distribution.mean.shape == x.shape[1:]
    assert error.abs().max() < 5


@every
def test_temperature_scales_the_noise(name):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 5))
    if not CASES[name].temperature:
        kind = type(distribution).__name__
        with pytest.raises(CombinationError, match=rf"`{kind}` has no temperature\. Use temperature 1"):
            distribution.tempered(0.5)
        return
    cold = distribution.tempered(0.5)
    with noise.stream(1):
        x, log_p = cold.sample_and_log_prob((3,))
    with noise.stream(1):
        warm = distribution.sample((3,))
    if CASES[name].mean and distribution.reparameterized:
        torch.testing.assert_close(x - distribution.mean, 0.5 * (warm - distribution.mean))
    elif isinstance(distribution, Pushforward):
        with noise.stream(1):
            u = distribution.base.tempered(0.5).sample(distribution._base_shape((3,)))
        torch.testing.assert_close(x, distribution.bijection(u, distribution.context)[0])
    assert (x != warm).any()
    if conditional.has_density:
        torch.testing.assert_close(log_p, cold.log_prob(x))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.temperature])
def test_temperatures_are_positive_and_finite(name, temperature):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 2))
    with pytest.raises(
        ConfigurationError, match=f"`temperature` must be positive and finite; got {temperature}"
    ):
        distribution.tempered(temperature)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@every
def test_data_that_is_not_finite_is_refused(name, bad):
    conditional = build(name)
    distribution = conditional(context_of(conditional, 2))
    x = torch.zeros(2, *conditional.event_shape).double()
    distribution.check_support(x)
    x.view(-1)[0] = bad
    with pytest.raises(DataError, match=r"must be finite|needs (binary data|values|gray levels)"):
        distribution.check_support(x)


def grid() -> tuple[torch.Tensor, float]:
    line = torch.linspace(-SIZE, SIZE, COUNT).double()
    return torch.cartesian_prod(line, line), (line[1] - line[0]).item() ** 2


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", [name for name in PLANE if name in SCORED])
def test_density_integrates_to_one_and_has_the_moments_of_the_draws(name, temperature):
    conditional = build(name, scale=0.3)
    with torch.no_grad():
        distribution = conditional(context_of(conditional)).tempered(temperature)
        points, cell = grid()
        weights = distribution.log_prob(points).exp() * cell
        x = distribution.sample((20_000,))
    assert abs(weights.sum() - 1) < 1e-4
    for statistic in (lambda v: v, lambda v: v * v, lambda v: (v[:, :1] * v[:, 1:])):
        expected = (weights[:, None] * statistic(points)).sum(0)
        drawn = statistic(x)
        error = (drawn.mean(0) - expected) / (drawn.std(0) / len(x) ** 0.5)
        assert error.abs().max() < 5


@pytest.mark.parametrize("name", [name for name in PLANE if name.startswith("flow")])
def test_log_probs_of_draws_integrate_any_density_to_one(name):
    """E_q[g(x) / q(x)] = 1 for a density g inside the support: needs no inverse, so it holds for planar flows too."""
    conditional = build(name, scale=0.4)
    with torch.no_grad():
        distribution = conditional(context_of(conditional))
        x, log_q = distribution.sample_and_log_prob((20_000,))
        center, width = x.mean(0), 0.5 * x.std(0)
        log_g = torch.distributions.Normal(center, width).log_prob(x).sum(-1)
        ratio = (log_g - log_q).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(x) ** 0.5
    assert ratio.std() / len(x) ** 0.5 < 0.05
