import json

import pytest
import torch
from PIL import Image

from latentflows.core import noise
from latentflows.core.errors import DataError, ShapeError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedGaussian
from latentflows.generation import beside, class_means, interpolate, save_grid, write_pictures
from tests.generation.parts import flow_prior, images, network, small_vae

FILES = [
    "data.png",
    "samples.png",
    "sample_means.png",
    "reconstructions.png",
    "interpolations.png",
    "traversals.png",
]


def pixels(path):
    with Image.open(path) as image:
        image.load()
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
            image.height, image.width, -1
        )


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
    assert captions["interpolations.png"].endswith(
        "two data points, 2 rows a pair: straight, spherical; seed 3."
    )
    assert captions["traversals.png"].startswith(
        "Means of p(x|z) from the posterior mean of one of the data points"
    )
    assert pixels(folder / "traversals.png").shape[:2] == (2 + 3 * 58, 2 + 10 * 58)
    assert pixels(folder / "interpolations.png").shape[:2] == (2 + 8 * 58, 2 + 10 * 58)
    assert set(pixels(folder / "samples.png").unique().tolist()) == {0, 128, 255}
    assert len(pixels(folder / "sample_means.png").unique()) > 10


def test_captions_name_what_the_data_are(tmp_path):
    captions = [
        entry.caption for entry in write_pictures(small_vae(), images(64), tmp_path, what="test images")
    ]
    assert captions[0] == "64 test images, chosen with seed 0."
    assert captions[3].startswith("First, third, ... row: test images; below each")
    assert "between the latents of two test images, 2 rows a pair" in captions[4]


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
    assert "3 rows a pair: straight, spherical, spherical in the base noise of the" in captions[4]["caption"]


def test_rows_of_one_pair_are_its_lines_and_share_their_ends(tmp_path):
    model, source = small_vae(prior=flow_prior()), images(64)
    write_pictures(model, source, tmp_path, seed=2)
    grid = pixels(tmp_path / "interpolations.png")[..., 0]
    with noise.stream(2, noise.Purpose.DATA):
        x = source.batch(noise.permutation(64)).x
    for row, (line, space) in enumerate(
        [("straight", "latent"), ("spherical", "latent"), ("spherical", "base")] * 2
    ):
        walk = interpolate(model, x[:2], x.flip(0)[:2], 10, line=line, space=space, seed=2)[row // 3]
        top = 2 + 58 * row
        drawn = grid[top : top + 56 : 14, 2 : 2 + 58 * 10]
        shown = torch.stack([drawn[:, 58 * i : 58 * i + 56 : 14] for i in range(10)])
        assert torch.equal(shown, (walk[:, 0] * 255).round().to(shown.dtype))


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


def test_what_was_given_stands_before_what_was_drawn_for_it():
    given = torch.tensor([0.2, 0.4]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    drawn = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2) / 10
    rows = beside(given, drawn)
    assert rows.shape == (8, 3, 2, 2)
    torch.testing.assert_close(rows[:, 0, 0, 0], torch.tensor([0.2, 0.0, 0.1, 0.2, 0.4, 0.3, 0.4, 0.5]))
    assert beside(given - 1, drawn).min() == 0


def test_classes_that_the_data_have_are_shown_by_their_mean_latents(tmp_path):
    model, labels = small_vae(), torch.arange(70) % 3
    source = ArraySplit(images().x, values="binary", labels=labels)
    entries = {entry.file: entry.caption for entry in write_pictures(model, source, tmp_path, seed=2)}
    assert "at the mean latent of each class, 0, 1, 2, of 70 data points" in entries["class_means.png"]
    shown = class_means(model, source.x, labels, seed=2)
    with torch.no_grad():
        own = model.encode(source.x[1:2]).mean
        moved = model.decode_mean(own + shown.latents - shown.latents[1])  # the second point, of class 1
    expected = torch.cat([shown.images, moved])
    save_grid(expected, tmp_path / "expected.png", columns=3)
    found, wanted = pixels(tmp_path / "class_means.png"), pixels(tmp_path / "expected.png")
    assert found.shape[0] == 2 + 6 * 58
    assert torch.equal(found[:60], wanted[:60])
    assert torch.equal(found[2 + 2 * 58 : 2 + 3 * 58], wanted[60 : 60 + 58])


def test_classes_are_not_shown_where_there_are_none_or_many(tmp_path):
    for name, labels in (("none", None), ("one", torch.zeros(70).long()), ("many", torch.arange(70))):
        source = ArraySplit(images().x, values="binary", labels=labels)
        files = [entry.file for entry in write_pictures(small_vae(), source, tmp_path / name)]
        assert "class_means.png" not in files
