import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data.readers.base import (
    amount,
    npz_keys,
    read_fitted,
    read_image,
    read_npy,
    read_npz,
    shuffled_rows,
)

from ..damage import never_misread, outcome


@pytest.mark.parametrize(("value", "expected"), [(None, 3), (1, 1), (9, 9), (0.25, 2), (0.001, 1), (0.9, 9)])
def test_amount_takes_numbers_and_fractions(value, expected):
    assert amount(value, 10, 3, "validation", "x.npy") == expected


@pytest.mark.parametrize("value", [0, 10, -1, 0.0, 1.0, 1.5, -0.5, True, "3", float("nan")])
def test_amount_out_of_range_is_refused(value):
    with pytest.raises(ConfigurationError, match="`validation` must be a number"):
        amount(value, 10, 3, "validation", "x.npy")


def test_one_data_point_cannot_be_split():
    with pytest.raises(DataError, match=r"x\.npy: at least two data points .*got 1\."):
        amount(None, 1, 0.1, "test", "x.npy")


def test_too_few_for_the_usual_number_are_told_from_a_number_that_was_asked_for():
    with pytest.raises(DataError, match=r"x\.npy: 14 data points are too few .* the usual 20 as `test`"):
        amount(None, 14, 20, "test", "x.npy")
    with pytest.raises(ConfigurationError, match=r"from 1 to 13, as x\.npy holds 14 data points.*got 20\."):
        amount(20, 14, 20, "test", "x.npy")


@settings(deadline=None)  # a busy machine is no fault
@given(st.integers(3, 60), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_rows_are_a_partition_that_the_seed_decides(total, num_validation, num_test, seed):
    if num_validation + num_test >= total:
        with pytest.raises(ConfigurationError, match=r"x\.npy: .*leave data to train on"):
            shuffled_rows(total, num_validation, num_test, seed, "x.npy")
        return
    rows = shuffled_rows(total, num_validation, num_test, seed, "x.npy")
    assert [len(part) for part in rows] == [total - num_validation - num_test, num_validation, num_test]
    assert sorted(np.concatenate(rows)) == list(range(total))
    again = shuffled_rows(total, num_validation, num_test, seed, "x.npy")
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))


def test_rows_depend_on_the_seed():
    assert not np.array_equal(shuffled_rows(50, 5, 5, 0, "x")[0], shuffled_rows(50, 5, 5, 1, "x")[0])


@pytest.mark.parametrize("memory_map", [False, True])
def test_npy_comes_back_and_only_a_map_stays_on_disk(tmp_path, memory_map):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", array)
    got = read_npy(tmp_path / "x.npy", memory_map=memory_map)
    assert np.array_equal(got, array)
    assert isinstance(got, np.memmap) == memory_map


def test_damaged_npy_is_refused_or_the_same(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(12, dtype=np.uint8).reshape(3, 4))
    refused = never_misread(path, lambda: len(read_npy(path)))
    assert all(f"cut at {i}" in refused for i in range(path.stat().st_size))
    assert {"surplus", "twice"} <= refused


def test_npy_with_fewer_rows_in_its_header_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((9, 4), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(9, 4)", b"(5, 4)"))
    with pytest.raises(DataError, match="16 bytes more than the header says"):
        read_npy(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz_is_refused_or_the_same(tmp_path, save):
    path = tmp_path / "x.npz"
    save(path, x=np.arange(12, dtype=np.uint8).reshape(3, 4), y=np.arange(3))
    refused = never_misread(path, lambda: [array.tolist() for array in read_npz(path, ["x", "y"])])
    assert all(f"cut at {i}" in refused for i in range(path.stat().st_size))


@settings(deadline=None)  # a busy machine is no fault
@given(hnp.arrays(st.sampled_from([np.uint8, np.float32, np.int64]), hnp.array_shapes(max_side=4)), st.data())
def test_npz_never_loses_data_silently(tmp_path_factory, array, data):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    np.savez(path, x=array)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    got, message = outcome(lambda: read_npz(path, ["x"])[0])
    if message is None:
        np.testing.assert_array_equal(got, array)
    else:
        assert str(path) in message


def test_npz_member_with_fewer_rows_than_bytes_is_refused(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros((9, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue().replace(b"(9, 4)", b"(5, 4)"))
    with pytest.raises(DataError, match="16 bytes too many"):
        read_npz(tmp_path / "x.npz", ["x"])


class Trap:
    """Unpickling it would be seen."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_never_opened(tmp_path):
    objects = np.array([Trap()], dtype=object)
    np.save(tmp_path / "x.npy", objects)
    np.savez(tmp_path / "x.npz", x=objects)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Trap()))
    for read in (
        lambda: read_npy(tmp_path / "x.npy"),
        lambda: read_npz(tmp_path / "x.npz", ["x"]),
    ):
        with pytest.raises(DataError, match=r"pickled Python objects.*numpy.save"):
            read()
    with pytest.raises(DataError, match="not readable as an array"):
        read_npy(tmp_path / "bare.npy")


def test_other_array_files_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(DataError, match="magic string is not correct"):
        read_npy(tmp_path / "x.npy")
    with pytest.raises(DataError, match="no such file"):
        read_npy(tmp_path / "absent.npy")
    with pytest.raises(DataError, match="no such file"):
        npz_keys(tmp_path / "absent.npz")
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    with pytest.raises(DataError, match="empty"):
        read_npy(tmp_path / "empty.npy")
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3)))
    with pytest.raises(DataError, match="empty"):
        read_npz(tmp_path / "empty.npz", ["x"])
    with pytest.raises(DataError, match=r"no y\. It has"):
        read_npz(tmp_path / "empty.npz", ["y"])


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp", "ppm"])
def test_damaged_images_are_refused_or_of_the_same_shape(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (3, 4, 3), dtype=np.uint8)).save(path)
    refused = never_misread(path, lambda: read_fitted(path, 3, 4, "rgb").shape)
    assert {f"cut at {i}" for i in range(12)} <= refused


def test_fitted_image_is_cropped_not_stretched(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_fitted(tmp_path / "wide.png", 4, 4, "rgb") == np.array([200, 100, 50])[:, None, None]).all()
    assert read_fitted(tmp_path / "wide.png", 2, 5, "gray").shape == (1, 2, 5)


def test_fitted_image_is_upright_and_black_where_transparent(tmp_path):
    image = Image.new("RGB", (2, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_fitted(tmp_path / "turned.png", 2, 2, "gray")[0].tolist() == [[0, 0], [0, 255]]
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert read_fitted(tmp_path / "clear.png", 2, 2, "rgb").max() == 0


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "deep.png")


def test_images_too_large_to_be_meant_are_refused(tmp_path, monkeypatch):
    Image.new("L", (20, 20)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DataError, match="exceeds limit"):
        read_image(tmp_path / "huge.png")
