"""EM against a maintained implementation and against what it promises: it never goes down, and never collapses."""

import math

import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference

from latentflows.core import noise
from latentflows.core.errors import DataError
from latentflows.distributions import DiagonalNormal, FullNormal, Mixture
from latentflows.distributions import em as module
from latentflows.distributions.em import fit_mixture


def points(count: int = 600) -> torch.Tensor:
    """Three Gaussians of different size, place and slope, in no unit."""
    with noise.stream(3):
        like = torch.zeros(()).double()
        parts = [noise.standard_normal((count // 3, 2), like=like) for _ in range(3)]
        slopes = [[[1.0, 0.9], [0.0, 0.3]], [[0.4, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]]
        places = [[0.0, 0.0], [6.0, 3.0], [-5.0, 6.0]]
        made = [
            z @ torch.tensor(s).double() + torch.tensor(p)
            for z, s, p in zip(parts, slopes, places, strict=True)
        ]
    return torch.cat(made) * torch.tensor([100.0, 0.01]) + torch.tensor([7.0, 0.5])


def value(fitted) -> Mixture:
    parts = (
        FullNormal(fitted.means, fitted.scales)
        if fitted.scales.ndim == 3
        else DiagonalNormal(fitted.means, fitted.scales.log())
    )
    return Mixture(fitted.log_weights.flatten(), parts)


@pytest.mark.parametrize("full", [False, True])
def test_it_finds_what_a_maintained_implementation_finds(full):
    z = points()
    with noise.stream(1):
        fitted = fit_mixture(z, 3, full=full, tolerance=1e-8)
    scaled = (z - z.mean(0)) / z.std(0, correction=0)
    kind = "full" if full else "diag"
    expected = Reference(3, covariance_type=kind, n_init=5, tol=1e-8, reg_covar=0, random_state=0).fit(
        scaled.numpy()
    )
    best = expected.score(scaled.numpy()) - z.std(0, correction=0).log().sum().item()
    assert value(fitted).log_prob(z).mean().item() == pytest.approx(best, abs=1e-4)
    assert fitted.log_likelihoods[-1] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_the_likelihood_never_falls_also_at_the_floor(full):
    with noise.stream(2):
        z = torch.cat([points(90), points(90)[:1].expand(40, 2)])  # forty times the same point
        fitted = fit_mixture(z, 8, full=full, tolerance=-1, max_iterations=30)
    rises = torch.tensor(fitted.log_likelihoods).diff()
    assert len(rises) == 30
    assert rises.min() > -1e-9
    floor = 1e-3 * z.var(0, correction=0)
    if full:
        scaled = fitted.scales / z.std(0, correction=0).unsqueeze(-1)
        least = torch.linalg.eigvalsh(scaled @ scaled.mT).min()
    else:
        least = (fitted.scales.square() / (1e3 * floor)).min()
    assert least.item() == pytest.approx(1e-3, rel=1e-6)


def test_it_stops_when_the_rise_is_small():
    with noise.stream(1):
        fitted = fit_mixture(points(), 3, tolerance=0.05)
    rises = torch.tensor(fitted.log_likelihoods).diff()
    assert (rises[:-1] >= 0.05).all()
    assert rises[-1] < 0.05


def test_likelihoods_are_those_before_each_step():
    for number in (1, 2):
        with noise.stream(1):
            fitted = fit_mixture(points(), 3, tolerance=-1, max_iterations=number)
        assert len(fitted.log_likelihoods) == number + 1
        with noise.stream(1):
            longer = fit_mixture(points(), 3, tolerance=-1, max_iterations=number + 1)
        end = value(fitted).log_prob(points()).mean().item()
        assert end == pytest.approx(longer.log_likelihoods[-1], rel=1e-9)
        assert end > fitted.log_likelihoods[-1] + 1e-4


@pytest.mark.parametrize("full", [False, True])
def test_pieces_change_rounding_alone(full, monkeypatch):
    z = points(90)
    with noise.stream(1):
        whole = fit_mixture(z, 4, full=full)
    monkeypatch.setattr(module, "_BLOCK", 50)
    with noise.stream(1):
        pieces = fit_mixture(z, 4, full=full)
    torch.testing.assert_close(pieces.means, whole.means)
    torch.testing.assert_close(pieces.scales, whole.scales)


def test_labels_fit_each_class_by_itself():
    z, labels = points(), torch.eye(3).repeat_interleave(200, 0)
    with noise.stream(1):
        fitted = fit_mixture(z, 1, labels=labels, full=True)
    for k in range(3):
        own = z[200 * k : 200 * (k + 1)]
        torch.testing.assert_close(fitted.means[k], own.mean(0))
        covariance = fitted.scales[k] @ fitted.scales[k].T
        torch.testing.assert_close(covariance, own.T.cov(correction=0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fitted.log_weights, torch.zeros(3, 1).double())
    labels[::2] = 0  # half of the labels unknown: classes that lie apart are still found
    with noise.stream(1):
        half = fit_mixture(z, 1, labels=labels, full=True)
    torch.testing.assert_close(half.means, fitted.means, rtol=0.05, atol=0.5)


def test_a_constant_variable_and_fewer_points_than_components_are_survived():
    z = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    fitted = fit_mixture(z, 6)
    assert torch.isfinite(fitted.means).all()
    assert torch.isfinite(fitted.scales.log()).all()
    assert math.isclose(fitted.log_weights.exp().sum().item(), 1, rel_tol=1e-9)
    assert torch.isfinite(value(fit_mixture(torch.ones(3, 2), 2)).log_prob(torch.ones(3, 2))).all()


@pytest.mark.parametrize("bad", [torch.zeros(0, 2), torch.tensor([[math.nan, 0.0]]), torch.zeros(3)])
def test_points_that_are_none_are_refused(bad):
    with pytest.raises(DataError, match=r"EM needs finite points \(N, D\)"):
        fit_mixture(bad, 2)
