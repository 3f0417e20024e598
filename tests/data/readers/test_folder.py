import numpy as np
import pytest
import torch
from PIL import Image

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data import load
from latentflows.data.readers.base import Request
from latentflows.data.readers.folder import read

from ..damage import never_misread, sizes_of


def write(root, count=40, first=0):
    """Image i is all of gray i."""
    for i in range(first, first + count):
        folder = root / ("a" if i % 2 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (i, i, i)).save(folder / f"{i:03d}.{'PNG' if i % 3 else 'bmp'}")


def members(raw):
    return [set(split.values[:, 0, 0, 0].tolist()) for split in raw.splits]


@pytest.mark.parametrize(("mode", "channels"), [("gray", 1), ("rgb", 3), (None, 3)])
def test_every_image_is_in_one_split(tmp_path, mode, channels):
    write(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    raw = read(Request("folder", tmp_path, size=(4, 3), mode=mode))
    train, validation, test = members(raw)
    assert train | validation | test == set(range(40))
    assert sum(len(split) for split in raw.splits) == 40
    assert raw.train.values.shape[1:] == (channels, 4, 3)


def test_an_image_keeps_its_split_when_others_come(tmp_path):
    write(tmp_path)
    before = members(read(Request("folder", tmp_path, size=2)))
    write(tmp_path, count=30, first=40)
    after = members(read(Request("folder", tmp_path, size=2)))
    assert all(old <= new for old, new in zip(before, after, strict=True))


def test_split_depends_on_the_seed_and_not_on_the_place(tmp_path):
    for name in ("here", "there"):
        write(tmp_path / name)
    here, there = (members(read(Request("folder", tmp_path / name, size=2))) for name in ("here", "there"))
    assert here == there
    assert here != members(read(Request("folder", tmp_path / "here", size=2, seed=1)))


def test_fractions_are_met_on_average(tmp_path):
    write(tmp_path, count=200)
    sizes = [
        len(split) for split in read(Request("folder", tmp_path, size=1, validation=0.3, test=0.2)).splits
    ]
    for got, fraction in zip(sizes, (0.5, 0.3, 0.2), strict=True):
        assert abs(got - 200 * fraction) < 5 * (200 * fraction * (1 - fraction)) ** 0.5


def test_a_damaged_image_is_named(tmp_path):
    write(tmp_path, count=20)
    path = tmp_path / "a" / "001.PNG"
    refused = never_misread(
        path,
        lambda: sizes_of(load("folder", root=tmp_path, size=2, validation=0.3, test=0.3, preparation="unit")),
    )
    assert all(f"cut at {i}" in refused for i in range(33))  # up to the end of the header


def test_an_empty_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty.jpg: not readable as an 8-bit image"):
        read(Request("folder", tmp_path, size=2))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused(tmp_path, count):
    write(tmp_path, count)
    with pytest.raises(DataError, match="each split needs an image; got"):
        read(Request("folder", tmp_path, size=2))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read(Request("folder", tmp_path / "nowhere", size=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": None}, "needs a `size`"),
        ({"size": 0}, "`size` must be positive"),
        ({"mode": "RGB"}, '"gray" or "rgb"'),
        ({"validation": 10}, "`validation` must be a fraction"),
        ({"test": 1.0}, "`test` must be a fraction"),
        ({"validation": 0.5, "test": 0.5}, "sum to less than 1"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    write(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        read(Request("folder", tmp_path, **({"size": 2} | settings)))


def test_pixels_reach_the_split(tmp_path):
    write(tmp_path)
    data = load("folder", root=tmp_path, size=2, preparation="unit")
    assert np.isclose(data.train.batch(torch.arange(len(data.train))).x.max() * 255, 39)
