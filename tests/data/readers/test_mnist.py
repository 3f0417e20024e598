import gzip
import shutil

import numpy as np
import pytest

from latentflows.core.errors import DataError
from latentflows.data import load
from latentflows.data.readers.base import Request
from latentflows.data.readers.mnist import NUM_VALIDATION, read, read_idx

from ..conftest import idx_bytes, write_mnist
from ..damage import never_misread, sizes_of

FILES = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_validation_is_the_end_of_the_training_file(tmp_path, name, suffix):
    write_mnist(tmp_path / name, suffix=suffix)
    raw = read(Request(name, tmp_path, validation=2))
    assert [split.values[:, 0, 0, 0].tolist() for split in raw.splits] == [
        [0, 1, 2, 3, 4],
        [5, 6],
        [100, 101, 102],
    ]
    assert [split.labels.tolist() for split in raw.splits] == [[0, 1, 2, 3, 4], [5, 6], [0, 1, 2]]
    assert raw.train.values.shape == (5, 1, 2, 3)
    assert len(raw.labels) == 10


def test_usual_validation_is_ten_thousand(mnist_root):
    write_mnist(mnist_root / "mnist", num_train=NUM_VALIDATION + 3)
    assert [len(split) for split in read(Request("mnist", mnist_root)).splits] == [3, 10_000, 3]
    write_mnist(mnist_root / "mnist", num_train=7)
    with pytest.raises(DataError, match=r"7 data points are too few to split off the usual 10000"):
        read(Request("mnist", mnist_root))


def test_pixels_keep_their_place(tmp_path):
    image = np.arange(6).reshape(1, 2, 3)
    (tmp_path / "x").write_bytes(idx_bytes(image))
    assert np.array_equal(read_idx(tmp_path / "x", 3), image)


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_refused_or_of_the_same_size(tmp_path, file, suffix):
    path = write_mnist(tmp_path, num_train=4, num_test=2, suffix=suffix) / f"{file}-ubyte{suffix}"
    refused = never_misread(
        path, lambda: sizes_of(load("mnist", root=tmp_path, validation=1, preparation="unit"))
    )
    assert all(f"cut at {i}" in refused for i in range(path.stat().st_size))
    assert {"surplus", "twice"} <= refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(np.zeros((3, 2, 3))), "header 00 00 08 01"),
        (b"\0\0\x0d\x01" + idx_bytes(np.zeros(3))[4:], "got 00 00 0d 01"),
        (idx_bytes(np.zeros(8)), "expected one label for each of the 7 images.*got 8"),
        (idx_bytes(np.full(7, 10)), "below 10; got 10"),
        (idx_bytes(np.zeros(0)), "announces 0 bytes"),
        (b"", "expected an IDX header.*; got an empty file"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "announces 4294967295 bytes, and 0 follow"),
    ],
)
def test_unfit_label_files_are_refused(mnist_root, content, message):
    (mnist_root / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message) as caught:
        read(Request("mnist", mnist_root, validation=2))
    assert "train-labels" in str(caught.value)


def test_train_and_test_images_of_different_size_are_refused(mnist_root):
    path = mnist_root / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((3, 5, 5)))))
    with pytest.raises(DataError, match=r"one size; got \(1, 2, 3\) and \(1, 5, 5\)"):
        read(Request("mnist", mnist_root, validation=2))


def test_a_file_that_is_not_compressed_in_spite_of_its_name_is_refused(mnist_root):
    path = mnist_root / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(DataError, match="download it anew"):
        read(Request("mnist", mnist_root, validation=2))


def test_one_missing_file_is_named(mnist_root):
    (mnist_root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"needs t10k-labels-idx1-ubyte.gz or t10k-labels-idx1-ubyte or"):
        read(Request("mnist", mnist_root, validation=2))


def test_the_own_folder_comes_before_the_root(mnist_root):
    shutil.copytree(mnist_root / "mnist", mnist_root / "fashion_mnist")
    write_mnist(mnist_root, num_train=50)
    assert len(read(Request("mnist", mnist_root, validation=2)).train) == 5


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF])
def test_lengths_beyond_memory_are_named(tmp_path, length):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 3]) + 3 * length.to_bytes(4, "big"))
    with pytest.raises(DataError, match=r"cannot be read \(.+\)\. It is cut short"):
        read_idx(path, 3)
