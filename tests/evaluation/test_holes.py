import math

import pytest
import torch
from scipy import stats

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.distributions import AmortizedGaussian, Flow, StandardGaussian
from latentflows.evaluation import classifier_test, evaluate_holes, kernel_test
from latentflows.evaluation import holes as holes_module
from latentflows.evaluation.holes import coin_tail
from latentflows.models import VAE
from latentflows.models.presets import planar
from tests.evaluation.test_bounds import CoinFlips, Points, bernoulli_vae, network
from tests.linear_gaussian import LinearGaussian


def draws(*shape, seed=0):
    with noise.stream(41, seed):
        return torch.randn(*shape)


def by_hand(x, y, kernel, bandwidth):
    def k(a, b):
        squares = torch.cdist(a, b).square() / bandwidth**2
        scales = (0.25, 0.5, 1, 2, 4)
        if kernel == "rbf":
            return sum(torch.exp(-squares / (2 * s**2)) for s in scales) / 5
        return sum(1 / (1 + squares / s**2) for s in scales) / 5

    n = len(x)
    within = [(k(a, a).sum() - k(a, a).diagonal().sum()) / (n * (n - 1)) for a in (x, y)]
    return float(within[0] + within[1] - 2 * k(x, y).mean())


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_the_estimate_is_the_formula_and_pieces_do_not_matter(kernel, monkeypatch):
    x, y = draws(40, 3).double(), 1.3 * draws(40, 3, seed=1).double() + 0.2
    result = kernel_test(x, y, kernel=kernel, num_permutations=19)
    pooled = torch.cat([x, y])
    assert result.bandwidth == pytest.approx(float(torch.nn.functional.pdist(pooled).median()))
    assert result.squared_mmd == pytest.approx(by_hand(x, y, kernel, result.bandwidth), abs=1e-12)
    monkeypatch.setattr(holes_module, "_PAIRS", 7 * 80)
    pieces = kernel_test(x, y, kernel=kernel, num_permutations=19)
    assert pieces.squared_mmd == pytest.approx(result.squared_mmd, abs=1e-12)
    assert pieces.standard_error == pytest.approx(result.standard_error)
    assert pieces.p_value == result.p_value


def test_relabelings_are_those_of_the_formula():
    """Each estimate under a relabeling is the formula on the relabeled samples."""
    x, y = draws(12, 2).double(), draws(12, 2, seed=1).double()
    result = kernel_test(x, y, num_permutations=50, seed=3)
    pooled = torch.cat([x, y])
    with noise.stream(3, noise.Purpose.EVALUATION, 5, 0, 0):
        noise.permutation(24)
        orders = [noise.permutation(24) for _ in range(50)]
    estimates = [by_hand(pooled[order[:12]], pooled[order[12:]], "rbf", result.bandwidth) for order in orders]
    expected = (1 + sum(value >= result.squared_mmd - 1e-12 for value in estimates)) / 51
    assert result.p_value == pytest.approx(expected)
    assert 1 / 51 < result.p_value < 1


def test_the_estimate_is_unbiased_where_nothing_differs():
    values = [
        kernel_test(draws(25, 2, seed=2 * i), draws(25, 2, seed=2 * i + 1), num_permutations=1).squared_mmd
        for i in range(300)
    ]
    mean, spread = sum(values) / 300, torch.tensor(values).std()
    assert min(values) < 0 < max(values)
    assert abs(mean) < 4 * float(spread) / math.sqrt(300)


def test_the_standard_error_is_the_spread_over_draws():
    results = [
        kernel_test(draws(100, 2, seed=2 * i), draws(100, 2, seed=2 * i + 1) + 1, num_permutations=1)
        for i in range(60)
    ]
    spread = float(torch.tensor([result.squared_mmd for result in results]).std())
    stated = sum(result.standard_error for result in results) / 60
    assert 0.75 < stated / spread < 1.35


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_p_values_of_the_kernel_test_are_uniform_where_nothing_differs(kernel):
    values = [
        kernel_test(
            draws(20, 3, seed=2 * i), draws(20, 3, seed=2 * i + 1), kernel=kernel, num_permutations=99, seed=i
        ).p_value
        for i in range(200)
    ]
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert sum(value <= 0.05 for value in values) <= 20


def test_p_values_of_the_classifier_test_are_uniform_where_nothing_differs():
    values = [
        classifier_test(
            draws(100, 3, seed=2 * i),
            draws(100, 3, seed=2 * i + 1),
            width=8,
            num_steps=40,
            batch_size=64,
            learning_rate=1e-2,
            seed=i,
        ).p_value
        for i in range(60)
    ]
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert sum(value <= 0.05 for value in values) <= 10


def test_both_tests_see_a_shift():
    x, y = draws(300, 4), draws(300, 4, seed=1)
    y[:, 0] += 1
    for kernel in ("rbf", "imq"):
        result = kernel_test(x, y, kernel=kernel, num_permutations=99)
        assert result.p_value == 0.01
        assert result.squared_mmd > 4 * result.standard_error
    told = classifier_test(x, y)
    assert told.p_value < 1e-4
    # The best classifier is right with probability Phi(1 / 2) = 0.69.
    assert 0.6 < told.accuracy < 0.78


def test_both_tests_see_a_hole():
    """Same mean and covariance, but nothing near the origin: what a moment comparison would miss."""
    x = draws(400, 2)
    ring = draws(400, 2, seed=1)
    ring = math.sqrt(2) * ring / ring.norm(dim=1, keepdim=True)
    assert kernel_test(x, ring, num_permutations=99).p_value == 0.01
    assert classifier_test(x, ring).p_value < 1e-6


def test_a_test_depends_on_its_seed_alone():
    x, y = draws(50, 2), draws(50, 2, seed=1)
    state = torch.get_rng_state()
    first, again = classifier_test(x, y, seed=2), classifier_test(x, y, seed=2)
    assert first == again
    assert kernel_test(x, y, seed=1).p_value == kernel_test(x, y, seed=1).p_value
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():  # callers evaluate without gradients
        assert classifier_test(x, y, seed=2) == first


def test_a_variable_that_never_varies_is_no_trouble():
    x, y = draws(50, 2), draws(50, 2, seed=1)
    x[:, 1] = y[:, 1] = 3
    assert math.isfinite(classifier_test(x, y).accuracy)


@pytest.mark.parametrize(("heads", "tosses"), [(0, 10), (7, 10), (10, 10), (560, 1000), (700, 1000)])
def test_tails_of_fair_coins(heads, tosses):
    expected = stats.binom.sf(heads - 1, tosses, 0.5)
    assert coin_tail(heads, tosses) == pytest.approx(float(expected), rel=1e-9)


def test_the_exact_posterior_has_no_holes_and_a_shifted_one_has():
    example = LinearGaussian()
    source = Points(example.data(400))
    fits = evaluate_holes(example.model, source, num_permutations=99)
    assert min(fits.rbf.p_value, fits.imq.p_value, fits.classifier.p_value) > 0.01
    example.model.posterior.network.bias.data[:2] += 0.7
    off = evaluate_holes(example.model, source, num_permutations=99)
    assert off.rbf.p_value == off.imq.p_value == 0.01
    assert off.classifier.p_value < 0.001
    figures = off.figures()
    assert set(figures) == {"mmd_rbf", "mmd_imq", "classifier_accuracy"}
    assert all({"mean", "standard_error", "unit", "p_value"} == set(figure) for figure in figures.values())
    assert off.protocol["prior_density"] == "exact"


def test_draws_are_fresh_and_as_many_as_images():
    seen = []
    base = bernoulli_vae()
    model = VAE(base.posterior, AmortizedGaussian(2, 3, network(3, 4)), base.likelihood)

    class Labeled(CoinFlips):
        def batch(self, indices):
            return super().batch(indices)._replace(context=torch.rand(len(indices), 3))

    model.prior.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    evaluate_holes(model, Labeled(torch.rand(300, 6)), num_images=290, num_permutations=3)
    assert sum(seen) == 290


def test_a_posterior_without_a_density_can_be_tested():
    base = bernoulli_vae()
    model = VAE(Flow(base.posterior, planar(2, num_layers=1)), StandardGaussian(2), base.likelihood)
    result = evaluate_holes(model, CoinFlips(torch.rand(40, 6)), num_permutations=9)
    assert 0 < result.rbf.p_value <= 1


def test_wrong_arguments_are_refused():
    x = draws(10, 2)
    with pytest.raises(ShapeError, match=r"got \(10, 2\) and \(9, 2\)"):
        kernel_test(x, x[:9])
    with pytest.raises(DataError, match="at least 4 points"):
        classifier_test(x[:3], x[:3])
    with pytest.raises(DataError, match="not finite"):
        kernel_test(x, x / 0)
    with pytest.raises(DataError, match="median distance is 0"):
        kernel_test(torch.zeros(8, 2), torch.zeros(8, 2))
    with pytest.raises(ConfigurationError, match='`kernel` must be "rbf" or "imq"'):
        kernel_test(x, x, kernel="linear")
    with pytest.raises(ConfigurationError, match="`num_permutations`"):
        kernel_test(x, x, num_permutations=0)
    with pytest.raises(ConfigurationError, match="`num_steps`"):
        classifier_test(x, x, num_steps=0)
