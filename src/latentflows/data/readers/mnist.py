"""MNIST and Fashion-MNIST: four files in IDX format, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from latentflows.core.errors import DataError
from latentflows.data.readers.base import RawData, Request, amount, need, root_of, sizes, take

NUM_VALIDATION = 10_000  # the last of the 60,000 training images, as is usual
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}


def read(request: Request) -> RawData:
    """Read the official files; the last 10,000 training images are validation unless asked otherwise.

    Raises:
        DataError: if a file is missing or damaged, or images and labels do not belong together.
    """
    classes = CLASSES[request.name]
    images, labels = _pair(request, "train", len(classes))
    test_images, test_labels = _pair(request, "t10k", len(classes))
    if test_images.shape[1:] != images.shape[1:]:
        raise DataError(
            f"`{request.name}`: train and test images must have one size; "
            f"got {images.shape[1:]} and {test_images.shape[1:]}. They belong to different data sets."
        )
    first = len(images) - amount(
        request.validation, len(images), NUM_VALIDATION, "validation", root_of(request)
    )
    splits = (
        take(images, labels, slice(None, first)),
        take(images, labels, slice(first, None)),
        take(test_images, test_labels, slice(None)),
    )
    return RawData(
        request.name,
        splits,
        f"{request.name} (IDX files), {sizes(splits)}, validation is the end of the training file",
        labels=classes,
    )


def _pair(request: Request, part: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
    image_file, label_file = (
        need(request, [f"{name}.gz", name, name.replace("-idx", ".idx")]) for name in names
    )
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{label_file}: expected one label for each of the {len(images)} images in {image_file.name}; "
            f"got {len(labels)}. The two files belong to different data sets; download both anew."
        )
    if labels.max() >= num_classes:
        raise DataError(
            f"{label_file}: labels must be below {num_classes}; got {labels.max()}. Download it anew."
        )
    return images[:, None], labels.astype(np.int64)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes with `ndim` axes.

    Format: 0, 0, 8 (unsigned byte), number of axes; one big-endian 32-bit length per axis; the values.

    Raises:
        DataError: if the file is not such a file, is cut short or too long, or is empty.
    """
    header_size = 4 + 4 * ndim
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_size)
            magic = bytes([0, 0, 8, ndim])
            if len(header) < header_size or header[:4] != magic:
                raise DataError(
                    f"{path}: expected an IDX header {magic.hex(' ')} with {ndim} lengths; "
                    f"got {header.hex(' ') or 'an empty file'}. It is another kind of file, or damaged; download it "
                    "anew."
                )
            shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, header_size, 4)]
            count = int(np.prod(shape, dtype=object))
            # One more than expected: sees a surplus, and makes gzip verify its checksum.
            content = file.read(count + 1)
    except (OSError, EOFError, zlib.error, OverflowError, MemoryError) as error:
        reason = str(error) or "its header announces more than fits into memory"
        raise DataError(
            f"{path}: cannot be read ({reason}). It is cut short or damaged; download it anew."
        ) from None
    if len(content) != count or not count:
        raise DataError(
            f"{path}: the header announces {' x '.join(map(str, shape))} bytes, and "
            f"{'more' if len(content) > count else len(content)} follow. It is damaged; download it anew."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
