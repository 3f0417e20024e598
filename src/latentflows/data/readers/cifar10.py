"""CIFAR-10: the official binary version, or lossless PNG strips; Python pickles are never opened."""

from __future__ import annotations

import tarfile
import zlib

import numpy as np

from latentflows.core.errors import DataError
from latentflows.data.readers.base import (
    RawData,
    RawSplit,
    Request,
    amount,
    find,
    folders,
    missing,
    read_image,
    read_npy,
    root_of,
    sizes,
    take,
)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3072  # a label, then red, green and blue planes
IMAGES_PER_FILE = 10_000
NUM_VALIDATION = 5_000  # the last of the 50,000 training images
ARCHIVE = "cifar-10-binary.tar.gz"
INNER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
STRIP_LABELS = "labels_first4000.npy"
STRIP_HELD_OUT = 500  # of 4,000 strip images: validation, and as many for test


def read(request: Request) -> RawData:
    """Read the binary files (loose, or in their archive) or, where there are none, the PNG strips.

    Split of the official files: the last 5,000 training images are validation unless asked otherwise. Split
    of the strips, which hold the first 4,000 training images: 3,000 / 500 / 500 in their order.

    Raises:
        DataError: if files are missing or damaged.
    """
    records = _loose_records(request)
    if records is None:
        records = _archived_records(request)
    if records is not None:
        return _official(request, records)
    if find(request, ["cifar10_batch_0.png"]) is not None:
        return _strips(request)
    error = missing(request, [f"{INNER}/{TRAIN_FILES[0]}", TRAIN_FILES[0], ARCHIVE, "cifar10_batch_0.png"])
    if find(request, ["data_batch_1", "cifar-10-batches-py/data_batch_1"]) is not None:
        raise DataError(
            f"{error} The Python version is there, but its pickles can run code and are not opened."
        )
    raise error


def _official(request: Request, records: dict[str, bytes]) -> RawData:
    *parts, test = [_decode(place, content) for place, content in records.items()]
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    first = len(images) - amount(
        request.validation, len(images), NUM_VALIDATION, "validation", root_of(request)
    )
    splits = (
        take(images, labels, slice(None, first)),
        take(images, labels, slice(first, None)),
        take(*test, slice(None)),
    )
    words = (
        f"CIFAR-10 (official binary version), {sizes(splits)}, validation is the end of the training files"
    )
    return RawData(request.name, splits, words, labels=CLASSES)


def _loose_records(request: Request) -> dict[str, bytes] | None:
    """Return the content of the five training files and the test file, by their places."""
    for folder in folders(request):
        for place in (folder / INNER, folder):
            if any((place / name).is_file() for name in TRAIN_FILES):
                try:
                    return {
                        str(place / name): (place / name).read_bytes() for name in (*TRAIN_FILES, TEST_FILE)
                    }
                except OSError as error:
                    raise DataError(
                        f"{place}: a file cannot be read ({error}). Get all six files anew."
                    ) from None
    return None


def _archived_records(request: Request) -> dict[str, bytes] | None:
    path = find(request, [ARCHIVE])
    if path is None:
        return None
    records = {}
    try:
        with tarfile.open(path) as archive:
            for name in (*TRAIN_FILES, TEST_FILE):
                member = archive.extractfile(f"{INNER}/{name}")
                records[f"{path}, {name}"] = member.read() if member else b""
    except (OSError, EOFError, KeyError, ValueError, zlib.error, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # tarfile tells of every compression that it has tried
        raise DataError(
            f"{path}: cannot be read ({reason}). It is cut short or damaged; download it anew."
        ) from None
    return records


def _decode(place: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != IMAGES_PER_FILE * RECORD:
        raise DataError(
            f"{place}: expected {IMAGES_PER_FILE} records of {RECORD} bytes; got {len(content)} bytes. "
            "The file is damaged; download it anew."
        )
    table = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_FILE, RECORD)
    if table[:, 0].max() >= len(CLASSES):
        raise DataError(
            f"{place}: labels must be below {len(CLASSES)}; got {table[:, 0].max()}. Download it anew."
        )
    return table[:, 1:].reshape(-1, *SHAPE), table[:, 0].astype(np.int64)


def _strips(request: Request) -> RawData:
    parts: list[np.ndarray] = []
    while (path := find(request, [f"cifar10_batch_{len(parts)}.png"])) is not None:
        pixels = read_image(path)
        if pixels.ndim != 3 or pixels.shape[1:] != (1024, 3):
            raise DataError(
                f"{path}: expected a strip (images, 1024, 3); got {pixels.shape}. Get the original file."
            )
        parts.append(pixels)
    images = np.concatenate(parts).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    labels = _strip_labels(request, len(images))
    total = len(images)
    if total <= STRIP_HELD_OUT:
        raise DataError(
            f"{root_of(request)}: the strips hold {total} images, and {STRIP_HELD_OUT} of them are for testing. Get "
            "all strips."
        )
    num_validation = amount(
        request.validation, total - STRIP_HELD_OUT, STRIP_HELD_OUT, "validation", root_of(request)
    )
    ends = [0, total - STRIP_HELD_OUT - num_validation, total - STRIP_HELD_OUT, total]
    splits = tuple(take(images, labels, slice(*ends[i : i + 2])) for i in range(3))
    train, validation, test = (RawSplit(np.ascontiguousarray(split.values), split.labels) for split in splits)
    words = (
        f"the first {total:,} training images of CIFAR-10 (lossless PNG strips), {sizes(splits)}, "
        "in their order; not the official test set"
    )
    return RawData(request.name, (train, validation, test), words, labels=CLASSES)


def _strip_labels(request: Request, count: int) -> np.ndarray | None:
    path = find(request, [STRIP_LABELS])
    if path is None:
        return None
    labels = read_npy(path)
    if labels.shape != (count,) or labels.dtype != np.uint8 or labels.max() >= len(CLASSES):
        raise DataError(
            f"{path}: expected {count} uint8 labels below {len(CLASSES)}, one for each image of the strips; "
            f"got {labels.dtype} of shape {labels.shape}. Get all strips and the labels that belong to them."
        )
    return labels.astype(np.int64)
