import json

import pytest
import torch
from PIL import Image
from torch import nn

from latentflows.bijections import Permutation
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, DataError, ShapeError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, Flow, StandardGaussian
from latentflows.generation import drawing, interpolate, reconstruct, sample, save_grid, write_pictures
from latentflows.models import VAE
from latentflows.models.presets import real_nvp
from latentflows.networks import MLP

FILES = ["data.png", "samples.png", "sample_means.png", "reconstructions.png", "interpolations.png"]


def network(in_shape, out_shape):
    return MLP(in_shape, out_shape, width=8, depth=1)


def flow_prior(latent=3):
    flow = Flow(StandardGaussian(latent), real_nvp(latent, num_layers=4, width=8))
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.7)
    return flow


def small_vae(event=(1, 4, 4), *, latent=3, prior=None, likelihood="bernoulli"):
    first, *rest = event
    posterior = AmortizedGaussian(latent, event, network(event, 2 * latent))
    if likelihood == "bernoulli":
        decoder = AmortizedBernoulli(event, latent, network(latent, event))
    elif likelihood == "gaussian":
        decoder = AmortizedGaussian(event, latent, network(latent, event), scale=0.5)
    else:
        base = AmortizedGaussian(event, latent, network(latent, (2 * first, *rest)))
        decoder = Flow(base, Permutation.reversal(event))
    return VAE(posterior, prior or StandardGaussian(latent), decoder)


def images(count=70, event=(1, 4, 4), values="binary"):
    x = torch.rand(count, *event)
    return ArraySplit((x < 0.4).float() if values == "binary" else x, values=values)


def pixels(path):
    with Image.open(path) as image:
        image.load()
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
            image.height, image.width, -1
        )


def test_samples_and_their_means_share_the_latents():
    model = small_vae()
    drawn, means = sample(model, 5, seed=1), sample(model, 5, seed=1, mean=True)
    assert drawn.shape == means.shape == (5, 1, 4, 4)
    assert ((drawn == 0) | (drawn == 1)).all()
    many = torch.stack([sample(model, 2, seed=s) for s in range(300)]).mean((0, 1))
    exact = torch.stack([sample(model, 2, seed=s, mean=True) for s in range(300)]).mean((0, 1))
    assert (many - exact).abs().max() < 5 * 0.5 / 600**0.5


def test_temperature_scales_the_base_noise():
    model = small_vae(prior=StandardGaussian(3))
    model.likelihood.network = nn.Linear(3, 16)
    model.likelihood.event_shape = (16,)
    cold, warm = (sample(model, 4, temperature=t, mean=True).logit() for t in (0.5, 1.0))
    bias = model.likelihood.network.bias
    torch.testing.assert_close(cold - bias, 0.5 * (warm - bias), rtol=1e-3, atol=1e-4)


def test_samples_beyond_one_piece_differ():
    drawn = sample(small_vae(), 600, mean=True)
    assert len(drawn) == 600
    assert len(drawn.flatten(1).unique(dim=0)) == 600


def test_conditional_prior_takes_one_context_a_sample():
    model = small_vae(prior=AmortizedGaussian(3, 2, network(2, 6)))
    context = torch.randn(300, 2)
    assert sample(model, 300, context=context).shape == (300, 1, 4, 4)
    with pytest.raises(ShapeError, match="must have 300 rows"):
        sample(model, 300, context=context[:4])
    with pytest.raises(ShapeError, match="needs a context"):
        sample(model, 3)


def test_reconstruction_is_the_models_own():
    model = small_vae()
    x = images(5).x
    seen = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    mean = reconstruct(model, x, seed=4)
    torch.testing.assert_close(mean, model.decode_mean(seen[0]))
    assert torch.equal(mean, reconstruct(model, x, seed=4))
    assert not torch.equal(mean, reconstruct(model, x, seed=5))


def test_modes_and_generator_come_back_and_no_gradient_is_kept():
    model = small_vae().train()
    model.prior.eval()
    modes = [module.training for module in model.modules()]
    x = images(3).x
    used = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: used.append(module.training))
    before = torch.get_rng_state()
    outputs = [sample(model, 2), reconstruct(model, x), interpolate(model, x, x.flip(0), 3)]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert used == [False] * 3
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("line", ["straight", "spherical"])
@pytest.mark.parametrize("space", ["latent", "base"])
def test_interpolation_runs_from_end_to_end(line, space):
    model = small_vae(prior=flow_prior())
    x_a, x_b = images(6).x[:3], images(6).x[3:]
    seen = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    walk = interpolate(model, x_a, x_b, 5, line=line, space=space)
    assert walk.shape == (3, 5, 1, 4, 4)
    z = seen[0].view(3, 5, 3)
    with noise.stream(0, noise.Purpose.INTERPOLATE), torch.no_grad():
        ends = [model.posterior(x).sample() for x in (x_a, x_b)]
    torch.testing.assert_close(z[:, 0], ends[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z[:, -1], ends[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(walk, model.decode_mean(z))
    if space == "base":
        with torch.no_grad():
            z = model.prior.bijection.inverse(z)[0]
    middle = (z[:, 0] + z[:, -1]) / 2
    if line == "spherical":  # halfway the arc leaves the chord by 1 / cos(angle / 2)
        cosine = torch.cosine_similarity(z[:, 0], z[:, -1], dim=1)
        middle = middle / (cosine.acos() / 2).cos()[:, None]
    torch.testing.assert_close(z[:, 2], middle, rtol=1e-3, atol=1e-3)


def test_spherical_keeps_the_norm_and_falls_back_to_the_line():
    a, b = nn.functional.normalize(torch.randn(2, 4, 9), dim=-1)
    t = torch.linspace(0, 1, 7)
    assert torch.allclose(drawing._spherical(a, b, t).norm(dim=-1), torch.ones(7, 4), atol=1e-5)
    for other in (a, -a, torch.zeros_like(a)):
        arc = drawing._spherical(a, other, t)
        assert torch.isfinite(arc).all()
        torch.testing.assert_close(arc[0], a)


def test_interpolation_refuses_what_it_cannot_do():
    model, x = small_vae(), images(3).x
    with pytest.raises(CombinationError, match="needs a flow as the prior; got `StandardGaussian`"):
        interpolate(model, x, x, 3, space="base")
    with pytest.raises(ConfigurationError, match="`steps` must be an integer of at least 2; got 1"):
        interpolate(model, x, x, 1)
    with pytest.raises(ConfigurationError, match="got 'round'"):
        interpolate(model, x, x, 3, line="round")
    with pytest.raises(ShapeError, match="one shape"):
        interpolate(model, x, x[:2], 3)


def test_conditional_flow_prior_interpolates_in_its_base():
    prior = Flow(StandardGaussian(3), real_nvp(3, num_layers=2, width=8, context=2))
    model = small_vae(prior=prior)
    x, context = images(4).x, torch.randn(4, 2)
    walk = interpolate(model, x, x.flip(0), 6, space="base", context=context)
    assert walk.shape == (4, 6, 1, 4, 4)


def test_grid_places_and_enlarges_the_images(tmp_path):
    shown = torch.zeros(5, 1, 8, 8)
    shown[1, 0, 0, 7] = 1
    shown[4] = 0.25
    save_grid(shown, tmp_path / "grid.png", columns=3)
    grid = pixels(tmp_path / "grid.png")[..., 0]
    assert grid.shape == (2 + 2 * 58, 2 + 3 * 58)
    assert (grid[:2] == 128).all()
    first, second = grid[2:58, 2:58], grid[2:58, 60:116]
    assert (first == 0).all()
    assert (second[:7, 49:] == 255).all()
    assert second.float().sum() == 255 * 49
    assert (grid[60:116, 60:116] == 64).all()
    assert (grid[60:116, 118:] == 128).all()  # the place that is left over
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_grid_keeps_colors_and_large_images(tmp_path):
    shown = torch.rand(2, 3, 64, 60)
    save_grid(shown, tmp_path / "grid.png", columns=4)
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (68, 2 + 2 * 62, 3)
    torch.testing.assert_close(grid[2:66, 64:124].permute(2, 0, 1), (shown[1] * 255).round().byte())


@pytest.mark.parametrize(
    ("shown", "error", "message"),
    [
        (torch.rand(3, 4), ShapeError, r"got \(3, 4\)"),
        (torch.rand(3, 2, 4, 4), ShapeError, "C 1 or 3"),
        (torch.rand(0, 1, 4, 4), ShapeError, "N at least 1"),
        (torch.full((1, 1, 4, 4), 1.5), DataError, r"got \[1.5, 1.5\]"),
        (torch.full((1, 1, 4, 4), torch.nan), DataError, "nan"),
    ],
)
def test_grid_refuses_what_is_no_picture(tmp_path, shown, error, message):
    with pytest.raises(error, match=message):
        save_grid(shown, tmp_path / "grid.png", columns=3)
    assert not list(tmp_path.iterdir())


def test_pictures_and_their_index(tmp_path):
    entries = write_pictures(small_vae(), images(), tmp_path / "samples", seed=3, temperature=0.8)
    folder = tmp_path / "samples"
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, "index.json"])
    index = json.loads((folder / "index.json").read_text())
    assert [entry["file"] for entry in index] == FILES == [entry.file for entry in entries]
    captions = {entry["file"]: entry["caption"] for entry in index}
    assert "draws from p(x|z)" in captions["samples.png"]
    assert "Means of p(x|z)" in captions["sample_means.png"]
    for file in ("samples.png", "sample_means.png"):
        assert "temperature 0.8, seed 3" in captions[file]
        assert "clipped" not in captions[file]
    assert "spherical line in the latent space" in captions["interpolations.png"]
    assert pixels(folder / "interpolations.png").shape[:2] == (2 + 8 * 58, 2 + 10 * 58)
    assert set(pixels(folder / "samples.png").unique().tolist()) == {0, 128, 255}
    assert len(pixels(folder / "sample_means.png").unique()) > 10


def test_captions_name_what_the_data_are(tmp_path):
    captions = [
        entry.caption for entry in write_pictures(small_vae(), images(64), tmp_path, what="test images")
    ]
    assert captions[0] == "64 test images, chosen with seed 0."
    assert captions[3].startswith("First, third, ... row: test images; below each")
    assert "between the latents of two test images a row" in captions[4]


def test_reconstructions_stand_below_their_data(tmp_path):
    model = small_vae()
    write_pictures(model, images(64), tmp_path)
    grid = pixels(tmp_path / "reconstructions.png")[..., 0]
    assert grid.shape == (2 + 8 * 58, 2 + 10 * 58)
    data = pixels(tmp_path / "data.png")[..., 0]
    assert torch.equal(grid[2:58, 2:58], data[2:58, 2:58])
    assert torch.equal(grid[2 + 2 * 58 : 58 + 2 * 58, 2:58], data[60:116, 2 + 2 * 58 : 58 + 2 * 58])
    assert set(grid[2:58].unique().tolist()) == {0, 128, 255}
    assert len(grid[60:116].unique()) > 10


@pytest.mark.parametrize("count", [1, 7, 25])
def test_pictures_of_few_data(tmp_path, count):
    write_pictures(small_vae(prior=flow_prior()), images(count), tmp_path)
    assert all((tmp_path / file).exists() for file in FILES)
    captions = json.loads((tmp_path / "index.json").read_text())
    assert "spherical line in the base noise" in captions[-1]["caption"]


def test_conditional_prior_takes_its_contexts_from_the_data(tmp_path):
    model = small_vae(prior=AmortizedGaussian(3, 2, network(2, 6)))
    context = torch.randn(20, 2)

    class Conditioned(ArraySplit):
        def batch(self, indices):
            return super().batch(indices)._replace(context=context[indices])

    entries = write_pictures(model, Conditioned(images(20).x, values="binary"), tmp_path)
    assert not any("Not drawn" in entry.caption for entry in entries)


def test_gaussian_pictures_are_clipped_and_say_so(tmp_path):
    entries = write_pictures(small_vae(likelihood="gaussian"), images(12, values="unit"), tmp_path)
    assert all(("clipped" in entry.caption) == (entry.file != "data.png") for entry in entries)
    assert {0, 255} <= set(pixels(tmp_path / "samples.png").unique().tolist())


def test_a_picture_that_cannot_be_made_is_left_out_with_its_reason(tmp_path):
    (tmp_path / "sample_means.png").write_bytes(b"of an older model")
    entries = write_pictures(small_vae(likelihood="flow"), images(12, values="unit"), tmp_path)
    captions = {entry.file: entry.caption for entry in entries}
    assert captions["sample_means.png"].startswith("Not drawn: `Pushforward` has no mean in closed form")
    assert not (tmp_path / "sample_means.png").exists()
    assert (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("event", [(6,), (2, 4, 4)])
def test_data_that_are_no_images_get_an_index_of_reasons(tmp_path, event):
    entries = write_pictures(small_vae(event), images(12, event), tmp_path)
    assert [entry.file for entry in entries] == FILES
    assert all("no images" in entry.caption for entry in entries)
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"]


@pytest.mark.parametrize("settings", [{"num": 0}, {"num": 2, "temperature": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigurationError, match="must be"):
        sample(small_vae(), **settings)
