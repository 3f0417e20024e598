"""Whatever draws from a model does so in eval mode, and gives every module its own mode back."""

from collections.abc import Callable

import pytest
import torch

from latentflows.generation import (
    apply_attribute,
    attribute_vector,
    class_means,
    guided_draws,
    interpolate,
    reconstruct,
    sample,
    sample_classes,
    traverse,
    write_pictures,
)
from latentflows.generation.plane import data_plane, latent_plane
from latentflows.models import VAE
from tests.generation.parts import conditional_vae, flow_prior, images, small_vae
from tests.generation.test_steering import LABELS, guided_vae, label_prior
from tests.models.parts import check_modes

DATA = images(6)
X = DATA.x
LABEL = torch.arange(6) % 4
CASES: dict[str, tuple[Callable[[], VAE], Callable[[VAE], object]]] = {
    "sample": (small_vae, lambda model: sample(model, 3)),
    "means of samples": (small_vae, lambda model: sample(model, 3, mean=True)),
    "classes": (conditional_vae, lambda model: sample_classes(model, [0, 1], 2)),
    "guided draws": (
        lambda: guided_vae(label_prior(heads=2, num_blocks=2)),
        lambda model: guided_draws(model, 5, LABELS, weight=1.0),
    ),
    "reconstructions": (small_vae, lambda model: reconstruct(model, X)),
    "line": (small_vae, lambda model: interpolate(model, X[:2], X[2:4], 3)),
    "line along the flow": (
        lambda: small_vae(prior=flow_prior()),
        lambda model: interpolate(model, X[:2], X[2:4], 3, space="base"),
    ),
    "traversal": (small_vae, lambda model: traverse(model, X[0], steps=2)),
    "traversal within data": (small_vae, lambda model: traverse(model, X[0], x=X, steps=2)),
    "attribute": (small_vae, lambda model: attribute_vector(model, X, LABEL > 1)),
    "with an attribute": (small_vae, lambda model: apply_attribute(model, X, torch.zeros(3), [1.0])),
    "class means": (small_vae, lambda model: class_means(model, X, LABEL)),
    "latent plane": (lambda: small_vae(latent=2), lambda model: latent_plane(model, DATA)),
    "data plane": (
        lambda: small_vae((2,), likelihood="gaussian"),
        lambda model: data_plane(model, images(6, (2,), "continuous")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_are_in_eval_mode_and_modes_come_back(name):
    make, use = CASES[name]
    check_modes(make(), use)


def test_pictures_are_in_eval_mode(tmp_path):
    check_modes(small_vae(), lambda model: write_pictures(model, DATA, tmp_path, seed=0))
