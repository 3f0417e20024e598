import math

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch
from torchmetrics.image.kid import poly_mmd

from latentflows.core.errors import ConfigurationError, NonFiniteError, ShapeError
from latentflows.evaluation import distances
from latentflows.evaluation.distances import (
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    manifold_figures,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_sets(n=120, m=150, dim=6):
    mixing = normal(dim, dim, seed=1)
    return normal(n, dim, seed=2) @ mixing + 0.3, normal(m, dim, seed=3) @ mixing.T * 0.8


def by_matrix_square_root(real, generated):
    """The formula as it is written, with scipy's square root of a product."""
    a, b = np.cov(real.numpy().T), np.cov(generated.numpy().T)
    shift = real.mean(0).numpy() - generated.mean(0).numpy()
    root = scipy.linalg.sqrtm(a @ b)
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(root).real)


def test_frechet_distance_is_the_formula():
    real, generated = two_sets()
    ours = frechet_distance(real, generated)
    assert ours.value == pytest.approx(by_matrix_square_root(real, generated), rel=1e-10)
    assert math.isnan(ours.standard_error)
    assert ours.value == pytest.approx(frechet_distance(generated, real).value, rel=1e-12)


def test_frechet_distance_agrees_with_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    real, generated = two_sets(n=90)
    theirs = _compute_fid(real.mean(0), real.T.cov(), generated.mean(0), generated.T.cov())
    assert frechet_distance(real, generated).value == pytest.approx(float(theirs), rel=1e-8)


def test_frechet_distance_of_commuting_covariances_is_in_closed_form():
    x = normal(500, 3)
    x = (x - x.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(x.T.cov())
    ).T  # covariance exactly the identity
    scale, shift = torch.tensor([2.0, 0.5, 3.0]).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    exact = float((shift**2).sum() + ((scale - 1) ** 2).sum())
    assert frechet_distance(x, x * scale + shift).value == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("count", [5, 40])
def test_frechet_distance_survives_singular_covariances(count):
    real, generated = normal(count, 12), normal(count, 12, seed=5) * 2 + 1
    real[:, 3] = generated[:, 3] = 0.0  # a dead feature
    generated[:, 4] = generated[:, 5]
    a, b = (torch.linalg.eigh(x.T.cov()) for x in (real, generated))
    root = (a.eigenvectors * a.eigenvalues.clamp(min=0).sqrt()) @ a.eigenvectors.T
    shared = torch.linalg.eigvalsh(root @ generated.T.cov() @ root).clamp(min=0).sqrt().sum()
    exact = (real.mean(0) - generated.mean(0)).square().sum() + a.eigenvalues.sum() + b.eigenvalues.sum()
    assert frechet_distance(real, generated).value == pytest.approx(float(exact - 2 * shared), rel=1e-6)
    assert 0 <= frechet_distance(real, real).value < 1e-11
    ill = torch.logspace(0, -9, 12, dtype=torch.float64)  # S of condition 1e18: sqrtm gives up here
    assert frechet_distance(real * ill, real * ill * 3).value == pytest.approx(
        float(4 * (real * ill).T.cov().trace() + 4 * (real * ill).mean(0).square().sum()), rel=1e-9
    )


def test_jackknife_error_is_the_spread_over_repeated_data():
    values, errors = [], []
    for seed in range(60):
        real, generated = normal(200, 4, seed=2 * seed), normal(150, 4, seed=2 * seed + 1) * 1.4 + 0.5
        estimate = frechet_distance(real, generated, num_groups=20)
        values.append(estimate.value)
        errors.append(estimate.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.25)
    low, high = estimate.interval
    assert (low + high) / 2 == pytest.approx(estimate.value)
    assert high - low == pytest.approx(4 * estimate.standard_error)


def test_extrapolation_takes_the_bias_away():
    dim, seeds = 6, range(20)
    real = normal(20_000, dim, seed=100)
    generated = [normal(300, dim, seed=200 + seed) * 1.3 for seed in seeds]
    exact = dim * 0.3**2
    plain = np.array([frechet_distance(real, x).value for x in generated])
    beyond = np.array([frechet_distance_infinity(real, x, num_points=8).value for x in generated])
    error = beyond.std(ddof=1) / math.sqrt(len(seeds))
    bias = plain.mean() - exact
    assert bias > 4 * plain.std(ddof=1) / math.sqrt(len(seeds))
    assert abs(beyond.mean() - exact) < 3 * error + 0.05 * bias
    assert abs(beyond.mean() - exact) < bias / 3


def test_extrapolation_has_an_error_of_the_right_size():
    real = normal(2000, 3, seed=100)
    found = [
        frechet_distance_infinity(real, normal(200, 3, seed=300 + i) * 1.5, num_points=4, num_groups=10)
        for i in range(25)
    ]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    assert np.mean([estimate.standard_error for estimate in found]) == pytest.approx(spread, rel=0.5)


@pytest.mark.parametrize("dim", [1, 6])
def test_kernel_distance_agrees_with_torchmetrics(dim):
    real, generated = two_sets(100, 100, dim)
    kernels = [
        ((a @ b.T) / dim + 1) ** 3 for a, b in ((real, real), (real, generated), (generated, generated))
    ]
    ours = kernel_distance(real, generated, num_blocks=1)
    assert ours.value == pytest.approx(float(poly_mmd(real, generated)), rel=1e-10)
    off = [(k.sum() - k.diagonal().sum()) / (100 * 99) for k in (kernels[0], kernels[2])]
    assert ours.value == pytest.approx(float(off[0] + off[1] - 2 * kernels[1].mean()), rel=1e-10)
    assert math.isnan(ours.standard_error)


def test_kernel_distance_is_unbiased_for_one_law_and_its_error_is_right():
    found = [
        kernel_distance(normal(60, 3, seed=2 * i), normal(80, 3, seed=2 * i + 1), num_blocks=5)
        for i in range(80)
    ]
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(len(values))
    assert np.mean([estimate.standard_error for estimate in found]) == pytest.approx(values.std(), rel=0.3)
    assert (values < 0).any()


def test_blocks_of_unequal_sets_use_every_point_once(monkeypatch):
    real, generated = two_sets(50, 73)
    seen = []
    monkeypatch.setattr(
        distances, "_squared_mmd", lambda a, b, memory: seen.append((a, b)) or float(len(seen))
    )
    estimate = kernel_distance(real, generated, num_blocks=7)
    for given, blocks in ((real, [a for a, _ in seen]), (generated, [b for _, b in seen])):
        assert torch.equal(torch.cat(blocks).sort(0).values, given.sort(0).values)
        assert {len(block) for block in blocks} <= {len(given) // 7, len(given) // 7 + 1}
        assert not torch.equal(torch.cat(blocks), given)
    assert estimate.value == 4
    assert estimate.standard_error == pytest.approx(np.std(range(7), ddof=1) / math.sqrt(7))


@pytest.mark.parametrize("neighbors", [1, 3])
def test_manifold_figures_agree_with_prdc(neighbors, capsys):
    real, generated = two_sets()
    ours = manifold_figures(real, generated, num_neighbors=neighbors)
    theirs = prdc.compute_prdc(real.numpy(), generated.numpy(), neighbors)
    capsys.readouterr()
    assert set(theirs) == set(ours._fields)
    for name, value in theirs.items():
        assert getattr(ours, name).value == pytest.approx(value, abs=1e-12), name
        assert value > 0


@pytest.mark.parametrize(("real", "generated"), [(100, 100), (150, 30)])
def test_one_law_has_the_known_density_and_coverage(real, generated):
    k = 4
    exact = 1 - math.prod((real - 1 - i) / (real + generated - 1 - i) for i in range(k))
    found = [
        manifold_figures(normal(real, 2, seed=2 * i), normal(generated, 2, seed=2 * i + 1), num_neighbors=k)
        for i in range(60)
    ]
    coverage = np.array([figures.coverage.value for figures in found])
    density = np.array([figures.density.value for figures in found])
    assert abs(coverage.mean() - exact) < 3.5 * coverage.std() / math.sqrt(60)
    assert abs(density.mean() - 1) < 3.5 * density.std() / math.sqrt(60)


def test_manifolds_tell_lost_modes_from_bad_samples():
    real = torch.cat([normal(200, 3), normal(200, 3, seed=1) + 20])
    one_mode = manifold_figures(real, normal(400, 3, seed=2))
    noisy = manifold_figures(real, torch.cat([real + 0.01, normal(400, 3, seed=3) * 100]))
    assert one_mode.precision.value > 0.9
    assert one_mode.recall.value < 0.55
    assert one_mode.coverage.value < 0.55
    assert noisy.precision.value < 0.6
    assert noisy.coverage.value > 0.95


def test_copies_are_inside_and_points_on_the_border_too():
    real = normal(30, 5) * 1e-3 + 1e3  # far from 0: distances by products lose much
    real[1] = real[0]  # radius 0 at k = 1
    figures = manifold_figures(real, real.clone(), num_neighbors=1)
    assert figures.precision == figures.coverage == figures.recall
    assert figures.precision.value == 1
    line = torch.tensor([[0.0], [1.0], [3.0], [4.0]])  # radii 1
    outside = manifold_figures(line, torch.tensor([[-1.0], [-1.5], [5.0]]), num_neighbors=1)
    assert outside.precision.value == pytest.approx(2 / 3)
    assert outside.density.value == pytest.approx(2 / 3)
    assert outside.coverage.value == 0.5
    assert outside.density.standard_error == pytest.approx(1 / 3)


def test_chunks_change_nothing(monkeypatch):
    real, generated = two_sets()
    whole = [manifold_figures(real, generated), kernel_distance(real, generated)]
    asked = []
    monkeypatch.setattr(distances, "_rows", lambda columns, num_bytes, memory: asked.append(columns) or 7)
    parts = [manifold_figures(real, generated), kernel_distance(real, generated)]
    assert asked
    for a, b in zip([*whole[0], whole[1]], [*parts[0], parts[1]], strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-12)
        assert a.standard_error == pytest.approx(b.standard_error, rel=1e-9)


def test_memory_bounds_the_rows():
    assert distances._rows(columns=1024, num_bytes=16, memory_mib=1) == 64
    assert distances._rows(columns=1 << 30, num_bytes=16, memory_mib=1) == 1
    with pytest.raises(ConfigurationError, match="`memory_mib` must be a positive integer; got 0"):
        kernel_distance(*two_sets(), memory_mib=0)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, manifold_figures])
def test_what_is_no_feature_matrix_is_refused(measure):
    real, generated = two_sets()
    for wrong in (generated[:, :2], generated[0], generated[:1]):
        with pytest.raises(ShapeError, match="two matrices"):
            measure(real, wrong)
    generated[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="generated images must be finite"):
        measure(real, generated)


def test_settings_out_of_range_are_refused():
    real, generated = two_sets()
    for groups in (1, -1, 61):
        with pytest.raises(ConfigurationError, match=r"from 2 to half of the points \(60\)"):
            frechet_distance(real, generated, num_groups=groups)
    for blocks in (0, 61):
        with pytest.raises(ConfigurationError, match="from 1 to 60"):
            kernel_distance(real, generated, num_blocks=blocks)
    for neighbors in (0, 120):
        with pytest.raises(ConfigurationError, match="from 1 to 119"):
            manifold_figures(real, generated, num_neighbors=neighbors)
    with pytest.raises(ConfigurationError, match="with 6 features needs 24 generated images"):
        frechet_distance_infinity(real, generated[:23])
    with pytest.raises(ConfigurationError, match="2 points; got 150 and 1"):
        frechet_distance_infinity(real, generated, num_points=1)


def test_the_same_seed_gives_the_same_figures_and_the_generator_comes_back():
    real, generated = two_sets()
    before = torch.get_rng_state()
    found = [
        (frechet_distance(real, generated, num_groups=5, seed=s), kernel_distance(real, generated, seed=s))
        for s in (3, 3, 4)
    ]
    assert found[0] == found[1]
    assert found[0][0].standard_error != found[2][0].standard_error
    assert torch.equal(torch.get_rng_state(), before)
