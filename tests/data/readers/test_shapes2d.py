import itertools

import numpy as np
import pytest
import torch

from latentflows.core.errors import DataError
from latentflows.data import load
from latentflows.data.readers import shapes2d
from latentflows.data.readers.base import Request
from latentflows.data.readers.shapes2d import draw, read, read_file

from ..damage import never_misread

FEW = (3, 2, 2, 2, 2)


def write(root, change=None):
    pixels, factors = draw(FEW)
    arrays = {"packed": np.packbits(pixels[:, 0], axis=-1), "latents_classes": factors.astype(np.uint8)}
    root.mkdir(exist_ok=True)
    np.savez_compressed(root / shapes2d.FILE, **(arrays | (change or {})))
    return root / shapes2d.FILE


def picture(shape, scale, angle, x, y):
    """One picture, a pixel at a time, from the rule."""
    out = np.zeros((64, 64), np.uint8)
    for row, column in itertools.product(range(64), repeat=2):
        dx, dy, r = column + 0.5 - x, row + 0.5 - y, 11 * scale
        u, v = (np.cos(angle) * dx + np.sin(angle) * dy) / r, (np.cos(angle) * dy - np.sin(angle) * dx) / r
        p, q = 1.2 * u, 0.1 - 1.2 * v
        inside = {
            "square": max(abs(u), abs(v)) <= 0.8,
            "ellipse": u**2 + (v / 0.6) ** 2 <= 1,
            "heart": (p**2 + q**2 - 1) ** 3 <= p**2 * q**3,
        }
        out[row, column] = inside[shape]
    return out


@pytest.mark.parametrize("row", [0, 5, 20, 37, 47])
def test_pictures_follow_the_rule(row):
    pixels, factors = draw(FEW)
    assert pixels.shape == (48, 1, 64, 64)
    assert factors[row].tolist() == [row // 16, row // 8 % 2, row // 4 % 2, row // 2 % 2, row % 2]
    shape, scale, turn, x, y = factors[row]
    step = 32 / 15
    exact = picture(
        shapes2d.SHAPES[shape], 0.5 + 0.1 * scale, 2 * np.pi * turn / 20, 16 + step * x, 16 + step * y
    )
    assert (pixels[row, 0] != exact).sum() <= 1  # a border through a pixel's center, up to rounding
    assert pixels[row].sum() > 40


def test_a_square_repeats_every_quarter_turn_and_a_heart_does_not():
    pixels, factors = draw((3, 1, 6, 1, 1))
    same = [(pixels[6 * shape] != pixels[6 * shape + 5]).sum() for shape in range(3)]
    assert same[0] <= 4
    assert same[1] > 10
    assert same[2] > 10
    assert factors[:, 2].max() == 5


def test_a_file_and_the_rule_give_the_same(tmp_path):
    path = write(tmp_path)
    (pixels, factors), (drawn, drawn_factors) = read_file(path), draw(FEW)
    assert np.array_equal(pixels, drawn)
    assert np.array_equal(factors, drawn_factors)
    assert pixels.dtype == np.uint8


def test_factors_go_with_their_images_through_split_and_preparation(tmp_path):
    write(tmp_path / "shapes2d")
    data = load("shapes2d", root=tmp_path, validation=8, test=10, seed=3)
    assert data.factors == ("shape", "scale", "orientation", "pos_x", "pos_y")
    assert data.labels == ("square", "ellipse", "heart")
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 8, 10)
    pixels, factors = draw(FEW)
    place = {tuple(row): i for i, row in enumerate(factors.tolist())}
    seen = []
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.labels, split.factors[:, 0])
        rows = [place[tuple(row)] for row in split.factors.tolist()]
        x = split.batch(torch.arange(len(split))).x
        assert torch.equal(x, torch.from_numpy(pixels[rows]).float())
        assert split.to("cpu").factors is not None
        seen += rows
    assert sorted(seen) == list(range(48))
    assert data.train.values == "binary"
    assert "seed 3; not dSprites" in data.description


def test_without_a_root_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.delenv("LATENTFLOWS_DATA", raising=False)
    monkeypatch.setattr(shapes2d, "SIZES", (3, 6, 20, 16, 16))
    monkeypatch.setattr(shapes2d, "draw", lambda counts, real=draw: real((3, 2, 2, 2, 2)))
    raw = read(Request("shapes2d"))
    assert sum(len(split) for split in raw.splits) == 48
    assert "drawn by its rule" in raw.description
    monkeypatch.setenv("LATENTFLOWS_DATA", str(tmp_path))
    assert "drawn by its rule" in read(Request("shapes2d")).description
    write(tmp_path)
    assert shapes2d.FILE in read(Request("shapes2d")).description


def test_a_root_without_the_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="Leave `root` out, and the same pictures are drawn"):
        read(Request("shapes2d", tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"packed": np.zeros((48, 64, 4), np.uint8)},
        {"packed": np.zeros((47, 64, 8), np.uint8)},
        {"packed": np.zeros((48, 64, 8))},
        {"latents_classes": np.zeros((48, 4), np.uint8)},
        {"latents_classes": np.full((48, 5), 3, np.uint8)},
    ],
)
def test_other_arrays_are_refused(tmp_path, change):
    with pytest.raises(DataError, match="expected `packed`"):
        read_file(write(tmp_path, change))


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / shapes2d.FILE
    np.savez_compressed(
        path, packed=np.zeros((4, 64, 8), np.uint8), latents_classes=np.zeros((4, 5), np.uint8)
    )
    refused = never_misread(path, lambda: [array.shape for array in read_file(path)])
    assert all(f"cut at {i}" in refused for i in range(path.stat().st_size))
