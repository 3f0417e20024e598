"""Two latents as pictures: ink where the draws lie, on one scale."""

import json

import pytest
import torch
from torch import nn

from latentflows.core.batches import Batch
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, StandardGaussian
from latentflows.generation import write_pictures
from latentflows.generation.plane import data_plane, latent_plane
from latentflows.models import VAE, DensityModel


class Source:
    """100 points of 4 pixels."""

    def __len__(self):
        return 100

    def batch(self, indices):
        return Batch(torch.zeros(len(indices), 1, 2, 2))


def model(prior=None, latents=2):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2 * latents))
    with torch.no_grad():
        encoder[1].weight.zero_()
        encoder[1].bias.copy_(torch.tensor([3.0, 1.0, *[0.0] * (2 * latents - 2)]))
    posterior = AmortizedGaussian(latents, (1, 2, 2), encoder)
    decoder = nn.Sequential(nn.Linear(latents, 4), nn.Unflatten(1, (1, 2, 2)))
    return VAE(posterior, prior or StandardGaussian(latents), AmortizedBernoulli((1, 2, 2), latents, decoder))


def center(image, square):
    """Mean place of the ink squared, which is the density."""
    density = (1 - image[0]) ** 2
    steps = ((torch.arange(128) + 0.5) / 128 * 2 - 1) * square[2]
    across = (density.sum(0) * steps).sum() / density.sum() + square[0]
    up = (density.sum(1) * steps.flip(0)).sum() / density.sum() + square[1]
    return float(across), float(up)


def test_the_ink_lies_where_the_draws_lie():
    images, square, draws = latent_plane(model(), Source(), seed=1)
    assert images.shape == (2, 1, 128, 128)
    assert draws == 4000  # 40 for each of 100 points
    assert center(images[0], square) == pytest.approx((3.0, 1.0), abs=0.1)
    assert center(images[1], square) == pytest.approx((0.0, 0.0), abs=0.15)
    assert float(images.min()) == 0.0


def test_both_pictures_share_one_scale_of_ink():
    images, _, _ = latent_plane(model(), Source(), temperature=0.2)
    darkest = (1 - images).flatten(1).amax(1)
    assert darkest[1] == 1.0  # the narrow prior is the densest
    assert darkest[0] < 0.6


def test_the_caller_keeps_its_generator_and_its_mode():
    vae = model().train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = latent_plane(vae, Source(), seed=3)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert vae.training
    assert torch.equal(latent_plane(vae, Source(), seed=3)[0], first)


@pytest.mark.parametrize("latents", [2, 3])
def test_runs_of_two_latents_have_the_picture(tmp_path, latents):
    write_pictures(model(latents=latents), Source(), tmp_path)
    entries = {entry["file"]: entry for entry in json.loads((tmp_path / "index.json").read_text())}
    assert ("latents.png" in entries) == (latents == 2)
    assert (tmp_path / "latents.png").is_file() == (latents == 2)
    if latents == 2:
        assert "Left q(z)" in entries["latents.png"]["caption"]


def points(count=3000):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)) * 0.5
    return ArraySplit(x + torch.tensor([2.0, -1.0]), values="continuous")


def test_data_in_the_plane_lie_beside_draws_of_the_model():
    images, square, count = data_plane(DensityModel(StandardGaussian(2)), points(), seed=1)
    assert count == 3000
    assert center(images[0], square) == pytest.approx((2.0, -1.0), abs=0.1)
    assert center(images[1], square) == pytest.approx((0.0, 0.0), abs=0.15)


def test_runs_on_points_in_the_plane_have_their_picture(tmp_path):
    write_pictures(DensityModel(StandardGaussian(2)), points(200), tmp_path, what="test data points")
    entries = {entry["file"]: entry for entry in json.loads((tmp_path / "index.json").read_text())}
    assert (tmp_path / "plane.png").is_file()
    assert (
        "Left test data points, right draws of the model at temperature 1" in entries["plane.png"]["caption"]
    )
    assert entries["samples.png"]["caption"].startswith("Not drawn: the data are no images")
    write_pictures(model(), Source(), tmp_path / "pictures")
    assert not (tmp_path / "pictures" / "plane.png").exists()
