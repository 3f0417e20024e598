"""Every prior of a configuration: its density, its draws, and both again after a file."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from latentflows.bijections import ActNorm, Chain
from latentflows.core import noise
from latentflows.data import ArraySplit
from latentflows.distributions import Flow, StandardGaussian
from latentflows.evaluation import evaluate_likelihood
from latentflows.models import VAE, DensityModel, presets, second_stage_vae
from latentflows.objectives import MaximumLikelihood
from latentflows.studies.building.build import build_model
from latentflows.training import Stage, fit
from latentflows.training.checkpoint import load_weights, save_weights
from tests.known_defects.parts import PRIORS, prior_model
from tests.studies.matrix import SHAPE

every = pytest.mark.parametrize("kind", PRIORS)
ROWS, CELL = 240, 16  # of the quadrature; points along a side of the cells in which draws are counted
DRAWS = {"unaf": 500}  # drawn by bisection
SIZE = 4000
pytestmark = pytest.mark.filterwarnings("ignore")


def draws(kind: str) -> tuple[VAE, Tensor]:
    _, model = prior_model(kind)
    with noise.stream(11):
        return model, model.sample_latents(DRAWS.get(kind, SIZE))


def masses(model: VAE, z: Tensor) -> tuple[Tensor, Tensor]:
    """The prior's mass in each square of a grid around the draws, and the share of the draws there."""
    low, high = z.amin(0), z.amax(0)
    low, high = low - 0.6 * (high - low), high + 0.6 * (high - low)
    step = (high - low) / ROWS
    line = (torch.arange(ROWS) + 0.5)[:, None] * step + low
    grid = torch.cartesian_prod(line[:, 0], line[:, 1])
    with torch.no_grad():
        density = torch.cat([model.prior_at().log_prob(part).exp() for part in grid.split(10_000)])
    count = ROWS // CELL
    mass = (density.double() * step.prod()).view(count, CELL, count, CELL).sum((1, 3)).flatten()
    cells = ((z - low) / step / CELL).long()
    return mass, torch.bincount(cells[:, 0] * count + cells[:, 1], minlength=count**2) / len(z)


@every
def test_a_density_integrates_to_one_and_its_draws_fall_where_it_says(kind):
    """Wrong: a log-determinant counted per latent, a product of marginals, exp(log variance) as a scale."""
    model, z = draws(kind)
    mass, share = masses(model, z)
    error = model.prior_at().log_normalizer_error
    tolerance = 0.03 if kind == "second_stage" else 0.005 + (0 if error is None else 5 * float(error))
    assert tolerance < 0.05
    assert abs(mass.sum() - 1) < tolerance
    usual = mass * len(z) > 8
    error = (share - mass) / (mass * (1 - mass) / len(z)).clamp(min=1e-12).sqrt()
    assert usual.sum() > 5
    assert error[usual].abs().max() < 5
    assert abs(share[~usual].sum() - mass[~usual].sum()) < 0.03


@every
def test_draws_keep_no_graph_and_are_new_each_time(kind):
    _, model = prior_model(kind)
    for drawn in (model.sample_latents(3), model.sample(3), model.reconstruct(torch.zeros(3, *SHAPE))):
        assert drawn.grad_fn is None
        assert not drawn.requires_grad
    assert not torch.equal(model.sample_latents(3), model.sample_latents(3))
    assert model.sample_latents(20).unique(dim=0).shape[0] > 1


@every
def test_a_saved_prior_comes_back_with_its_density_and_its_draws(kind, tmp_path):
    """Wrong: a part that is not saved, a statistic that loading does not bring back, a layer that starts anew."""
    c, model = prior_model(kind)
    save_weights(model, tmp_path / "model.safetensors")
    with noise.stream(1):
        other = build_model(c.model_copy(update={"seed": c.seed + 1}), SHAPE).eval()
    load_weights(other, tmp_path / "model.safetensors")
    results = []
    for one in (model, other):
        with noise.stream(2), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            z = one.sample_latents(50)
            results.append((z, one.prior_at().log_prob(z), one.sample(50)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert any(key.startswith("prior.") for key in model.state_dict()) or kind == "standard"


class Cloud(ArraySplit):
    """Points whose means and scales are 5, -2.5 and 2, 0.8."""

    def __init__(self) -> None:
        z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        super().__init__(z * torch.tensor([2.0, 0.8]) + torch.tensor([5.0, -2.5]), values="continuous")


def normalized(width: int = 8) -> DensityModel:
    chain = Chain([ActNorm(2), presets.maf(2, num_layers=2, width=width, depth=1), ActNorm(2)])
    return DensityModel(Flow(StandardGaussian(2), chain))


def test_a_flow_with_data_dependent_layers_draws_after_loading_what_it_drew_before(tmp_path):
    """Wrong: a reloaded layer takes the next batch, or the first draw, for the one that it waits for."""
    source, model = Cloud(), normalized()
    fit(model, [Stage("density", MaximumLikelihood(), max_epochs=2, learning_rate=1e-2)], source)
    save_weights(model, tmp_path / "model.safetensors")
    other = normalized().train()  # as a program that forgets to call eval
    load_weights(other, tmp_path / "model.safetensors")
    x = other.sample(4000)
    assert (x.mean(0) - source.x.mean(0)).abs().max() < 0.15
    assert (x.std(0) / source.x.std(0) - 1).abs().max() < 0.1
    before = evaluate_likelihood(model, source).nll
    assert torch.equal(evaluate_likelihood(other, source).nll, before)
    again = Stage("again", MaximumLikelihood(), max_epochs=1, learning_rate=1e-12)
    fit(other, [again], ArraySplit(source.x * 10, values="continuous"))
    torch.testing.assert_close(evaluate_likelihood(other, source).nll, before)


def test_a_second_stage_draws_what_it_was_fitted_to():
    """Wrong: the second decoder's noise has a scale in the draws that its loss has not, or the other way round."""
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    z = z @ torch.tensor([[1.0, 0.8], [0.0, 0.3]])
    prior = second_stage_vae(2, inner_dim=1, width=16, depth=1)
    stage = Stage("density", MaximumLikelihood(), max_epochs=25, batch_size=100, learning_rate=1e-2)
    fit(DensityModel(prior), [stage], ArraySplit(z, values="continuous"))
    with torch.no_grad():
        drawn = prior().sample((20_000,))
        kept = prior.inner.decode(torch.zeros(1, 1)).log_scale.exp().flatten()[0]
    torch.testing.assert_close(drawn.T.cov(), z.T.cov(), rtol=0.15, atol=0.08)
    assert kept < 0.6  # the noise was learned, and is not the 1 of a plain squared error
