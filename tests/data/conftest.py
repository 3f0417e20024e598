"""Tiny files in the formats of the real ones."""

import gzip

import numpy as np
import pytest


def idx_bytes(array):
    """An array of unsigned bytes in IDX format."""
    lengths = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def write_mnist(folder, *, num_train=7, num_test=3, suffix=".gz"):
    """The four files of MNIST with 2 x 3 images; pixel values tell which image they are of."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", num_train), ("t10k", num_test)):
        images = np.arange(count)[:, None, None] * np.ones((1, 2, 3)) + (100 if part == "t10k" else 0)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            content = idx_bytes(array)
            path = folder / f"{part}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content, mtime=0) if suffix == ".gz" else content)
    return folder


@pytest.fixture
def mnist_root(tmp_path):
    """A root with a tiny MNIST."""
    write_mnist(tmp_path / "mnist")
    return tmp_path
