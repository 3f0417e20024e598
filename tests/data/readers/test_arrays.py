import numpy as np
import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.data import load
from latentflows.data.readers.arrays import read
from latentflows.data.readers.base import Request

from ..damage import never_misread, sizes_of

COUNT = 20


def images(*shape, dtype=np.uint8):
    """Image i is all of value i."""
    return (np.arange(COUNT).reshape(COUNT, *[1] * len(shape)) * np.ones((COUNT, *shape))).astype(dtype)


def everything(split):
    return split.batch(torch.arange(len(split))).x


@pytest.mark.parametrize("event", [(6, 5), (6, 5, 3), (3, 6, 5), (6, 5, 1), (1, 6, 5)])
@pytest.mark.parametrize("memory_map", [False, True])
def test_images_become_channels_first(tmp_path, event, memory_map):
    np.save(tmp_path / "x.npy", images(*event))
    data = load("arrays", root=tmp_path / "x.npy", preparation="unit", memory_map=memory_map)
    parts = [everything(split) * 255 for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert parts[0].shape[1:] == (3 if 3 in event else 1, 6, 5)
    assert sorted(torch.cat(parts)[:, 0, 0, 0].round().tolist()) == list(range(COUNT))


def test_channels_keep_their_values(tmp_path):
    x = np.random.RandomState(0).randint(0, 256, (COUNT, 6, 5, 3)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", train=x, validation=x[:2], test=x[2:4])
    data = load("arrays", root=tmp_path / "x.npz", preparation="unit")
    assert np.array_equal((everything(data.train) * 255).round().numpy(), x.transpose(0, 3, 1, 2))


def test_a_memory_map_is_not_read_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", images(4, 5))
    raw = read(Request("arrays", tmp_path / "x.npy", memory_map=True))
    assert all(isinstance(split.values, np.memmap) for split in raw.splits)
    assert all(split.values is raw.train.values for split in raw.splits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("event", [(2,), (2, 7), (1, 4, 4)])
def test_floats_are_continuous_as_they_are(tmp_path, dtype, event):
    np.save(tmp_path / "x.npy", images(*event, dtype=dtype) - 10)
    data = load("arrays", root=tmp_path / "x.npy", test=4)
    assert (data.train.values, data.train.bits_offset, data.train.event_shape) == ("continuous", None, event)
    assert (len(data.train), len(data.test)) == (14, 4)
    assert everything(data.train).min() < 0


def test_bool_images_have_two_levels(tmp_path):
    x = images(4, 5) % 2 == 1
    np.save(tmp_path / "x.npy", x)
    data = load("arrays", root=tmp_path / "x.npy", preparation="dynamic_binary")
    parts = [everything(split)[:, 0] for split in (data.train, data.validation, data.test)]
    assert sum(part.sum() for part in parts) == x.sum()


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_given_splits_and_labels_are_kept(tmp_path, kind):
    arrays = {"train": images(2, 2), "validation": images(2, 2)[:3], "test": images(2, 2)[3:7]}
    arrays |= {f"{name}_labels": array[:, 0, 0].astype(np.int16) for name, array in arrays.items()}
    if kind == "npz":
        np.savez(tmp_path / "x.npz", **arrays, unrelated=np.zeros(3))
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = load(
        "arrays", root=tmp_path / "x.npz" if kind == "npz" else tmp_path, preparation="unit", with_labels=True
    )
    x, context = data.test.batch(torch.arange(4))
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [3, 4, 5, 6]
    assert context.argmax(1).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("key", ["x", "anything"])
def test_labels_follow_a_drawn_split(tmp_path, key):
    np.savez(tmp_path / "x.npz", **{key: images(2, 2)}, labels=np.arange(COUNT))
    data = load("arrays", root=tmp_path / "x.npz", preparation="unit", with_labels=True)
    x, context = data.train.batch(torch.arange(16))
    assert (x[:, 0, 0, 0] * 255).round().tolist() == context.argmax(1).tolist()


def test_usual_preparation_follows_the_values(tmp_path):
    np.save(tmp_path / "x.npy", images(4, 5))
    data = load("arrays", root=tmp_path / "x.npy")
    assert (data.train.values, data.train.bits_offset) == ("continuous", 8.0)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_damaged_files_are_refused_or_of_the_same_size(tmp_path, name):
    path = tmp_path / name
    (np.save if name == "x.npy" else np.savez)(path, images(2, 2)[:9])
    refused = never_misread(path, lambda: sizes_of(load("arrays", root=path, preparation="unit")))
    assert all(f"cut at {i}" in refused for i in range(path.stat().st_size))


BAD_ARRAYS = {
    "int64": (images(4, 4, dtype=np.int64), "expected uint8 or bool images, or floats"),
    "text": (np.array(["a", "b"]), "got <U1"),
    "complex": (images(4, dtype=np.complex64), "got complex64"),
    "float vector": (np.zeros(5), "expected uint8"),
    "uint8 vectors": (images(6), r"not images: shape \(20, 6\)"),
    "five channels": (images(5, 8, 8), r"not images: shape \(20, 5, 8, 8\)"),
    "ambiguous": (images(3, 8, 3), r"ambiguous: channels could be first or last in shape \(20, 3, 8, 3\)"),
    "scalar": (np.array(1.0), "expected uint8"),
    "not a number": (np.full((9, 2), np.nan), r"x\.npy: every value must be finite"),
    "too large for float32": (np.full((9, 2), 1e300), r"x\.npy: every value must be finite"),
    "one": (np.zeros((1, 2)), r"x\.npy: at least two"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_unfit_arrays_are_refused(tmp_path, case):
    array, message = BAD_ARRAYS[case]
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=message):
        load("arrays", root=tmp_path / "x.npy")


def test_damaged_bools_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", (images(2, 2) % 2).astype(bool))
    path = tmp_path / "x.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    for preparation in ("dynamic_binary", "fixed_binary", "unit"):
        with pytest.raises(DataError, match="values below 2; got 7"):
            load("arrays", root=path, preparation=preparation)


def test_floats_outside_the_unit_interval_are_refused_where_it_is_expected(tmp_path):
    np.save(tmp_path / "x.npy", images(2, dtype=np.float32))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        load("arrays", root=tmp_path / "x.npy", preparation="unit")


def test_floats_are_not_binarized(tmp_path):
    np.save(tmp_path / "x.npy", images(2, dtype=np.float32))
    with pytest.raises(CombinationError, match="save the images as uint8"):
        load("arrays", root=tmp_path / "x.npy", preparation="dynamic_binary")


GOOD = {"train": images(2, 2), "validation": images(2, 2), "test": images(2, 2)}
BAD_SETS = {
    "one absent": ({"train": images(2, 2), "test": images(2, 2)}, "no validation"),
    "two anonymous": ({"a": images(2, 2), "b": images(2, 2)}, "Rename the arrays"),
    "other shapes": (GOOD | {"test": images(2, 3)}, "must agree"),
    "other kinds": (GOOD | {"test": images(2, 2, dtype=np.float32)}, "must agree"),
    "labels too few": (GOOD | {"test_labels": np.arange(COUNT - 1)}, "labels must be 20 integers"),
    "labels not whole": (GOOD | {"test_labels": np.zeros(COUNT)}, "labels must be 20 integers"),
    "labels negative": (GOOD | {"test_labels": -np.ones(COUNT, np.int64)}, "labels must be 20 integers"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_unfit_sets_of_arrays_are_refused(tmp_path, case):
    arrays, message = BAD_SETS[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load("arrays", root=tmp_path / "x.npz")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no train, validation, test"):
        load("arrays", root=tmp_path)


def test_empty_archive_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz")
    with pytest.raises(DataError, match="Rename the arrays"):
        load("arrays", root=tmp_path / "x.npz")


def test_settings_that_do_not_apply_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **GOOD)
    np.save(tmp_path / "x.npy", images(2, dtype=np.float32))
    with pytest.raises(ConfigurationError, match="cannot be mapped"):
        load("arrays", root=tmp_path / "x.npz", memory_map=True)
    with pytest.raises(ConfigurationError, match="needs uint8 images"):
        load("arrays", root=tmp_path / "x.npy", memory_map=True)
    with pytest.raises(ConfigurationError, match="where the files give the splits"):
        load("arrays", root=tmp_path / "x.npz", validation=3)
