"""Whatever measures a model does so in eval mode, and gives every module its own mode back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from latentflows import DensityModel, StandardGaussian
from latentflows.data import ArraySplit
from latentflows.distributions import Flow
from latentflows.evaluation import (
    Annealing,
    Pixels,
    evaluate_annealed,
    evaluate_bidirectional,
    evaluate_bounds,
    evaluate_codes,
    evaluate_disentanglement,
    evaluate_gaps,
    evaluate_holes,
    evaluate_information,
    evaluate_likelihood,
    evaluate_neighbors,
    evaluate_samples,
    evaluate_segmentation,
    evaluate_target,
    evaluate_units,
)
from latentflows.models.presets import real_nvp
from tests.evaluation.test_bounds import bernoulli_vae, binary
from tests.evaluation.test_disentanglement import vae as factors_vae
from tests.evaluation.test_samples import dots, small_vae
from tests.evaluation.test_segmentation import SPLIT
from tests.evaluation.test_segmentation import model as mask_model
from tests.evaluation.test_target import LOG_Z, wide, wide_points
from tests.models.codes import tiny
from tests.models.parts import check_modes

SHORT = Annealing(num_chains=2, num_temperatures=3, num_pilot_moves=2)
X = binary(40)
BITS = ArraySplit((torch.rand(4, 5) < 0.5).double(), values="binary")
ONE_HOT = torch.eye(15)[torch.arange(60) % 15]
FACTORS = torch.stack([torch.arange(60) % 4, torch.arange(60) % 5], 1)


def density() -> DensityModel:
    return DensityModel(Flow(StandardGaussian(2), real_nvp(2, num_layers=2, width=4)))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], object]]] = {
    "annealed": (bernoulli_vae, lambda model: evaluate_annealed(model, X, SHORT, num_images=2)),
    "bidirectional": (bernoulli_vae, lambda model: evaluate_bidirectional(model, SHORT, num_images=2)),
    "bounds": (bernoulli_vae, lambda model: evaluate_bounds(model, X, num_importance_samples=2)),
    "codes": (tiny, lambda model: evaluate_codes(model, BITS)),
    "disentanglement": (
        lambda: factors_vae(torch.randn(3, 15)),
        lambda model: evaluate_disentanglement(
            model, ArraySplit(ONE_HOT, values="binary"), FACTORS, num_blocks=2
        ),
    ),
    "gaps": (
        bernoulli_vae,
        lambda model: evaluate_gaps(model, X, num_images=2, num_steps=2, num_samples=4),
    ),
    "holes": (bernoulli_vae, lambda model: evaluate_holes(model, X, num_permutations=3)),
    "information": (bernoulli_vae, lambda model: evaluate_information(model, X, num_images=5)),
    "likelihood": (density, lambda model: evaluate_likelihood(model, wide_points(5))),
    "neighbors": (bernoulli_vae, lambda model: evaluate_neighbors(X.x[:3], X, X, model=model)),
    "samples": (
        small_vae,
        lambda model: evaluate_samples(
            model, dots(30), Pixels(), data="dots", split="test", num_blocks=2, num_groups=2
        ),
    ),
    "segmentation": (
        mask_model,
        lambda model: evaluate_segmentation(model, SPLIT, num_samples=4, num_pictures=2),
    ),
    "target": (density, lambda model: evaluate_target(model, wide_points(5), wide, LOG_Z)),
    "units": (bernoulli_vae, lambda model: evaluate_units(model, X)),
}


@pytest.mark.parametrize("name", CASES)
def test_figures_are_taken_in_eval_mode_and_modes_come_back(name):
    make, use = CASES[name]
    check_modes(make(), use)
