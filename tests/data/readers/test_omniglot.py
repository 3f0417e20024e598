import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data import load
from latentflows.data.readers.base import Request
from latentflows.data.readers.omniglot import read, read_zip, shrink

from ..damage import never_misread, sizes_of

PAPER = np.random.RandomState(0).rand(3, 20, 105, 105) > 0.2
PARTS = {"images_background": PAPER[:2], "images_evaluation": PAPER[2:]}


def write_npz(root):
    for name, paper in PARTS.items():
        np.savez_compressed(root / f"{name}.npz", images=paper)


def write_zip(root, skip=None, mode="1"):
    first = 1
    for name, paper in PARTS.items():
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/", b"")
            for i in reversed(range(len(paper))):
                for drawer in range(20):
                    member = f"{name}/Latin/character{i:02d}/{first + i:04d}_{drawer + 1:02d}.png"
                    if member.endswith(f"{skip}.png"):
                        continue
                    stream = io.BytesIO()
                    Image.fromarray(paper[i, drawer]).convert(mode).save(stream, "PNG")
                    archive.writestr(member, stream.getvalue())
        first += len(paper)


def write_small(root, shape=(3, 20, 28, 28), dtype=np.uint8):
    size = int(np.prod(shape))
    np.savez(root / "omniglot28.npz", images=(np.arange(size) // (28 * 28)).reshape(shape).astype(dtype))


@pytest.mark.parametrize("write", [write_npz, write_zip])
@pytest.mark.parametrize("size", [None, 105])
def test_drawers_sixteen_to_twenty_are_test_and_ink_is_one(tmp_path, write, size):
    write(tmp_path)
    raw = read(Request("omniglot", tmp_path, validation=5, size=size))
    ink = (~PAPER).astype(np.uint8) if size else shrink(~PAPER)
    train, validation, test = raw.splits
    assert np.array_equal(test.values[:, 0], ink[:, 15:].reshape(15, *ink.shape[2:]))
    assert test.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    together = np.concatenate([train.values, validation.values])[:, 0]
    assert sorted(image.tobytes() for image in together) == sorted(
        ink[i, j].tobytes() for i in range(3) for j in range(15)
    )
    assert (len(train), len(validation), len(raw.labels), raw.levels) == (40, 5, 3, 2 if size else 256)


def test_small_file_comes_first(tmp_path):
    write_small(tmp_path)
    write_npz(tmp_path)
    raw = read(Request("omniglot", tmp_path, validation=5))
    assert raw.splits[2].values[:, 0, 0, 0].tolist() == [*range(15, 20), *range(35, 40), *range(55, 60)]
    assert "omniglot28.npz" in raw.description


def test_validation_depends_on_the_seed(tmp_path):
    write_small(tmp_path)
    a, b = (read(Request("omniglot", tmp_path, validation=5, seed=seed)).splits[1].values for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_shrink_is_an_exact_area_mean():
    ink = PAPER[:1]
    fine = ink[0, 3].repeat(4, 0).repeat(4, 1).astype(np.int64)  # 420 = 28 x 15 pixels
    sums = fine.reshape(28, 15, 28, 15).sum((1, 3))
    assert np.array_equal(shrink(ink)[0, 3], (2 * 255 * sums + 225) // 450)


def test_damaged_small_file_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "omniglot28.npz", images=np.zeros((1, 20, 28, 28), np.uint8))
    path = tmp_path / "omniglot28.npz"
    refused = never_misread(
        path, lambda: sizes_of(load("omniglot", root=tmp_path, validation=5, preparation="unit"))
    )
    assert all(f"cut at {i}" in refused for i in range(path.stat().st_size))


@pytest.mark.parametrize("place", [0, 10, 500, -500, -30, -1])
def test_truncated_zip_is_refused(tmp_path, place):
    write_zip(tmp_path)
    path = tmp_path / "images_background.zip"
    path.write_bytes(path.read_bytes()[:place])
    with pytest.raises(DataError, match=r"images_background.zip.*download it anew"):
        read_zip(path)


def test_a_missing_drawing_is_refused(tmp_path):
    write_zip(tmp_path, skip="0002_07")
    with pytest.raises(DataError, match="20 drawings of each character; got 39 of 2 characters"):
        read_zip(tmp_path / "images_background.zip")


def test_drawings_that_are_not_black_and_white_are_refused(tmp_path):
    write_zip(tmp_path, mode="L")
    with pytest.raises(DataError, match="mode L, not black and white"):
        read_zip(tmp_path / "images_background.zip")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 19, 28, 28), np.uint8), ((3, 20, 28, 27), np.uint8), ((3, 20, 28, 28), np.float32)],
)
def test_other_arrays_are_refused(tmp_path, shape, dtype):
    write_small(tmp_path, shape, dtype)
    with pytest.raises(DataError, match=r"expected images \(characters, 20, 28, 28\) of uint8; got"):
        read(Request("omniglot", tmp_path, validation=5))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"omniglot28.npz or images_background.zip or images_background.npz"):
        read(Request("omniglot", tmp_path))


def test_other_sizes_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="28 or 105 for omniglot; got 32"):
        read(Request("omniglot", tmp_path, size=32))
