import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from latentflows.core.errors import DataError
from latentflows.data import load
from latentflows.data.readers import cifar10
from latentflows.data.readers.base import Request

from ..damage import outcome, sizes_of

NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
PER_FILE = 4


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", PER_FILE)
    monkeypatch.setattr(cifar10, "STRIP_HELD_OUT", 2)


def contents():
    """Image i has red i, green i + 50 and, down its rows, blue from 100 on; its label is i mod 10."""
    found = {}
    for k, name in enumerate(NAMES):
        records = []
        for i in range(k * PER_FILE, (k + 1) * PER_FILE):
            blue = np.arange(100, 132, dtype=np.uint8).repeat(32)
            planes = np.concatenate([np.full(1024, i, np.uint8), np.full(1024, i + 50, np.uint8), blue])
            records.append(bytes([i % 10]) + planes.tobytes())
        found[name] = b"".join(records)
    return found


def write_loose(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / name).write_bytes(content)


def write_archive(folder, records=None):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, content in (records or contents()).items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_strips(folder, counts=(6, 4), labels=10):
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for k, count in enumerate(counts):
        strip = np.zeros((count, 1024, 3), np.uint8)
        strip[..., 0] = np.arange(start, start + count)[:, None]
        strip[..., 2] = np.arange(100, 132).repeat(32)
        Image.fromarray(strip).save(folder / f"cifar10_batch_{k}.png")
        start += count
    np.save(folder / "labels_first4000.npy", np.arange(labels, dtype=np.uint8))


@pytest.mark.parametrize(
    ("write", "place"),
    [(write_loose, "cifar10/cifar-10-batches-bin"), (write_loose, "."), (write_archive, "cifar10")],
)
def test_binary_version_is_read_in_order(tmp_path, write, place):
    write(tmp_path / place)
    raw = cifar10.read(Request("cifar10", tmp_path, validation=3))
    assert [split.values[:, 0, 7, 7].tolist() for split in raw.splits] == [
        list(range(17)),
        [17, 18, 19],
        [20, 21, 22, 23],
    ]
    assert (raw.train.values[:, 1] == raw.train.values[:, 0] + 50).all()
    assert raw.train.values[0, 2, :, 3].tolist() == list(range(100, 132))
    assert raw.splits[2].labels.tolist() == [0, 1, 2, 3]
    assert "official binary" in raw.description


def test_strips_are_read_in_order_and_said_to_be_no_test_set(tmp_path):
    write_strips(tmp_path)
    raw = cifar10.read(Request("cifar10", tmp_path))
    assert [split.values[:, 0, 7, 7].tolist() for split in raw.splits] == [list(range(6)), [6, 7], [8, 9]]
    assert raw.train.values[0, 2, :, 3].tolist() == list(range(100, 132))
    assert raw.splits[2].labels.tolist() == [8, 9]
    assert "not the official test set" in raw.description


def test_official_files_come_before_strips(tmp_path):
    write_strips(tmp_path)
    write_archive(tmp_path)
    assert len(cifar10.read(Request("cifar10", tmp_path, validation=3)).train) == 17


@pytest.mark.parametrize("size", [0, 1, 3072, 3073, 3 * 3073, 4 * 3073 - 1, 4 * 3073 + 1, 5 * 3073])
@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_other_lengths_are_refused_even_whole_records(tmp_path, name, size):
    write_loose(tmp_path)
    (tmp_path / name).write_bytes((contents()[name] * 2)[:size])
    with pytest.raises(
        DataError, match=rf"^{tmp_path}.*{name}: expected 4 records of 3073 bytes; got {size} bytes"
    ):
        cifar10.read(Request("cifar10", tmp_path, validation=3))


def test_labels_out_of_range_are_refused(tmp_path):
    write_loose(tmp_path)
    (tmp_path / NAMES[2]).write_bytes(b"\x0a" + contents()[NAMES[2]][1:])
    with pytest.raises(DataError, match=rf"^{tmp_path}.*data_batch_3.bin: labels must be below 10; got 10"):
        cifar10.read(Request("cifar10", tmp_path, validation=3))


def test_a_missing_batch_is_named(tmp_path):
    write_loose(tmp_path)
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(DataError, match=rf"{NAMES[3]}.*Get all six files"):
        cifar10.read(Request("cifar10", tmp_path))


def test_truncated_archive_is_refused_or_complete(tmp_path):
    write_archive(tmp_path)
    path = tmp_path / "cifar-10-binary.tar.gz"
    content = path.read_bytes()
    expected = sizes_of(load("cifar10", root=tmp_path, validation=3))
    refused = 0
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        got, message = outcome(lambda: sizes_of(load("cifar10", root=tmp_path, validation=3)))
        if message is None:
            assert got == expected
        else:
            assert "cifar-10-binary.tar.gz" in message or ".bin" in message
            refused += 1
    assert refused > 0.8 * len(content) / 7


def test_archive_without_the_files_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"data_batch_1.bin"):
        cifar10.read(Request("cifar10", tmp_path))


def test_pickles_are_pointed_out_and_not_opened(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"cbuiltins\nexit\n(tR.")
    with pytest.raises(DataError, match="pickles can run code and are not opened"):
        cifar10.read(Request("cifar10", tmp_path))


def test_truncated_strip_is_refused(tmp_path):
    write_strips(tmp_path)
    path = tmp_path / "cifar10_batch_0.png"
    content = path.read_bytes()
    for cut in range(1, len(content) - 40, 11):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cifar10_batch_0.png"):
            cifar10.read(Request("cifar10", tmp_path))


def test_other_images_are_no_strips(tmp_path):
    write_strips(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "cifar10_batch_1.png")
    with pytest.raises(DataError, match=r"expected a strip \(images, 1024, 3\); got \(32, 32, 3\)"):
        cifar10.read(Request("cifar10", tmp_path))


@pytest.mark.parametrize(("counts", "labels"), [((6, 4), 9), ((6,), 10), ((6, 4), 11)])
def test_strips_and_labels_must_belong_together(tmp_path, counts, labels):
    write_strips(tmp_path, counts, labels)
    with pytest.raises(DataError, match=f"expected {sum(counts)} uint8 labels"):
        cifar10.read(Request("cifar10", tmp_path))


def test_an_archive_is_named_with_the_file_in_it(tmp_path):
    write_archive(tmp_path, {name: content[:-1] for name, content in contents().items()})
    with pytest.raises(DataError, match=rf"^{tmp_path}/cifar-10-binary.tar.gz, data_batch_1.bin: expected 4"):
        cifar10.read(Request("cifar10", tmp_path, validation=3))


def test_an_archive_that_is_none_is_told_in_one_line(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        cifar10.read(Request("cifar10", tmp_path))
    assert "\n" not in str(caught.value)


def test_too_few_strips_are_refused(tmp_path):
    write_strips(tmp_path, (2,), 2)
    with pytest.raises(DataError, match=r"the strips hold 2 images, and 2 of them are for testing"):
        cifar10.read(Request("cifar10", tmp_path))


def test_nothing_found_names_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"data_batch_1.bin or cifar-10-binary.tar.gz or cifar10_batch_0.png"):
        cifar10.read(Request("cifar10", tmp_path))
