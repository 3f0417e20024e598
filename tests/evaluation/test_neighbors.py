import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.distributions import Flow
from latentflows.evaluation import evaluate_neighbors
from latentflows.evaluation import neighbors as neighbors_module
from latentflows.evaluation.neighbors import nearest, posterior_means, principal_components
from latentflows.models import VAE
from latentflows.models.presets import real_nvp
from tests.evaluation.test_bounds import CoinFlips, Points, bernoulli_vae, binary
from tests.linear_gaussian import LinearGaussian


def test_nearest_are_those_of_all_pairs(monkeypatch):
    queries, references = torch.randn(23, 6), torch.randn(50, 6)
    monkeypatch.setattr(neighbors_module, "_PAIRS", 50 * 7)
    indices, distances = nearest(queries, references, 4)
    expected, order = torch.cdist(queries.double(), references.double()).sort(dim=1)
    assert torch.equal(indices, order[:, :4])
    torch.testing.assert_close(distances, expected[:, :4], rtol=1e-9, atol=1e-9)


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that anything returned."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.found = max(self.found, out.numel() * out.element_size())
        return out


def test_memory_is_bounded_for_few_references_of_many_dimensions(monkeypatch):
    monkeypatch.setattr(neighbors_module, "_PAIRS", 1000)
    queries, references = torch.rand(300, 100), torch.rand(4, 100)
    with Largest() as largest:
        indices, distances = nearest(queries, references, 2)
    assert largest.found <= 8 * 1000
    assert distances.shape == indices.shape == (300, 2)
    x = torch.rand(4000, 3)
    with Largest() as largest:
        principal_components(x, 2)
    assert largest.found <= 8 * 256 * 3


def test_the_distance_of_a_copy_is_zero():
    """In float32, |q|^2 + |r|^2 - 2 q r of a copy far from the origin is anything but 0."""
    references = 100 + torch.randn(30, 500)
    indices, distances = nearest(references[[4, 17]].clone(), references, 2)
    assert indices[:, 0].tolist() == [4, 17]
    assert distances[:, 0].tolist() == [0, 0]
    assert (distances[:, 1] > 20).all()


def test_principal_components_are_those_of_the_covariance():
    x = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    z = principal_components(x, 2)(x)
    assert z.mean(0).abs().max() < 1e-10
    variances = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)
    torch.testing.assert_close(torch.cov(z.T), variances[:2].diag(), rtol=1e-9, atol=1e-9)
    whole = principal_components(x, 50)(x)
    assert whole.shape == (300, 5)
    torch.testing.assert_close(torch.nn.functional.pdist(whole), torch.nn.functional.pdist(x))


def test_samples_like_test_images_have_the_shares_of_test_images():
    example = LinearGaussian()
    train, test = Points(example.data(500)), Points(example.data(800))
    result = evaluate_neighbors(example.data(900), train, test, model=example.model)
    assert set(result.spaces) == {"pixels", "pixels_pca", "latents_pca"}
    for space in result.spaces.values():
        for level, (share, error) in space.shares.items():
            assert abs(share - level) < 4 * error
            assert error < 0.03


def test_copies_are_found_in_every_space():
    example = LinearGaussian()
    train, test = Points(example.data(300)), Points(example.data(300))
    samples = example.data(100)
    samples[:50] = train.x[50:100] + 1e-3 * torch.randn(50, 5)
    result = evaluate_neighbors(samples, train, test, model=example.model)
    for space in result.spaces.values():
        share, error = space.shares[0.01]
        assert share - 0.01 > 5 * error
        assert (space.indices[:50, 0] == torch.arange(50, 100)).double().mean() > 0.9
    figures = result.figures()
    assert figures["pixels_nearer_than_5%_of_test"]["mean"] > 0.45
    assert figures["pixels_nearer_than_5%_of_test"]["unit"] == "share"
    distances = result.spaces["pixels"].distances[:, 0]
    assert figures["pixels_distance"]["mean"] == pytest.approx(float(distances.mean()))
    assert figures["pixels_baseline"]["mean"] > figures["pixels_distance"]["mean"]


def test_shares_are_counted_against_quantiles_of_the_baseline():
    train = Points(torch.zeros(1, 1))
    test = Points(torch.arange(1.0, 102.0)[:, None])  # distances 1 to 101
    samples = torch.tensor([[0.5], [20.0], [51.5], [99.0]])
    result = evaluate_neighbors(samples, train, test, num_neighbors=1, levels=(0.1, 0.5))
    space = result.spaces["pixels"]
    assert space.baseline.tolist() == list(range(1, 102))
    assert space.shares[0.1][0] == 0.25  # the quantile is 11
    share, error = space.shares[0.5]  # the quantile is 51
    assert share == 0.5
    assert error == pytest.approx(math.sqrt(0.25 / 4 + 0.25 / 101))


def test_latents_are_compared_by_their_means():
    example = LinearGaussian()
    x = example.data(300)
    torch.testing.assert_close(
        posterior_means(example.model, Points(x)), example.posterior(x).mean, rtol=0, atol=1e-10
    )
    base = bernoulli_vae()
    flow = Flow(base.posterior, real_nvp(2, num_layers=2, width=4))
    model, source = VAE(flow, base.prior, base.likelihood), binary(30)
    drawn, exact = posterior_means(model, source), posterior_means(base, source)
    shuffled = drawn[:, [1, 0]] if (drawn - exact).abs().max() > 1 else drawn
    scale = base.encode(source.x).log_scale.exp().detach()
    assert ((shuffled - exact).abs() < 5 * scale / 8).all()


def test_noise_of_the_data_is_drawn_once_from_the_seed():
    source = CoinFlips(torch.rand(60, 6))
    samples = binary(10).x
    first, again, other = (
        evaluate_neighbors(samples, source, source, num_neighbors=2, seed=seed).spaces["pixels"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.distances, again.distances)
    assert not torch.equal(first.distances, other.distances)
    assert first.baseline.max() == 0  # the same data points, drawn once, on both sides


def test_images_are_flattened():
    train = Points(torch.randn(20, 1, 2, 3))
    space = evaluate_neighbors(train.x[:4], train, train, num_components=3).spaces
    assert space["pixels"].num_dimensions == 6
    assert space["pixels_pca"].num_dimensions == 3
    assert space["pixels"].indices.shape == (4, 5)


def test_wrong_arguments_are_refused():
    train = Points(torch.randn(8, 3))
    with pytest.raises(ShapeError, match=r"got \(4, 2\), and events \(3,\) and \(3,\)"):
        evaluate_neighbors(torch.zeros(4, 2), train, train)
    with pytest.raises(DataError, match="Samples must be finite"):
        evaluate_neighbors(torch.full((4, 3), torch.nan), train, train)
    with pytest.raises(ConfigurationError, match="at most the 8 training data points; got 9"):
        evaluate_neighbors(torch.zeros(4, 3), train, train, num_neighbors=9)
    with pytest.raises(ConfigurationError, match="`levels` must lie between 0 and 1"):
        evaluate_neighbors(torch.zeros(4, 3), train, train, levels=(0.5, 1.0))
    with pytest.raises(ShapeError, match="the model's shape"):
        evaluate_neighbors(torch.zeros(4, 3), train, train, model=bernoulli_vae())
