"""A folder of image files, split by a hash of the file names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data.readers.base import (
    Amount,
    RawData,
    RawSplit,
    Request,
    folder_fault,
    read_fitted,
    root_of,
    sizes,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FRACTION = 0.1


def read(request: Request) -> RawData:
    """Read every image file below the root, scaled to cover `size` and cropped at the center.

    Each file goes to test, validation or train by a hash of the seed and its path below the root, so it keeps
    its place when other files come or go; the fractions are met on average. Memory: N * C * H * W bytes.

    Raises:
        ConfigurationError: if `size` is missing, or a setting is out of range.
        DataError: if the folder is missing or has too few images, or a file is no readable 8-bit image.
    """
    height, width = _size(request)
    mode = request.mode or "rgb"
    if mode not in ("gray", "rgb"):
        raise ConfigurationError(f'`mode` must be "gray" or "rgb"; got {mode!r}.')
    groups = _assigned(request)
    splits = []
    for files in groups:
        values = np.empty((len(files), 1 if mode == "gray" else 3, height, width), np.uint8)
        for i, file in enumerate(files):
            values[i] = read_fitted(file, height, width, mode)
        splits.append(RawSplit(values))
    train, validation, test = splits
    words = (
        f"images of the folder {root_of(request).name} ({mode}, scaled and center-cropped), "
        f"{sizes(splits)}, split by a hash of the file names with seed {request.seed}"
    )
    return RawData(request.name, (train, validation, test), words)


def _size(request: Request) -> tuple[int, int]:
    size = request.size
    if size is None:
        raise ConfigurationError(
            "`folder` needs a `size` to give its images: an integer, or (height, width)."
        )
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ConfigurationError(f"`size` must be positive; got {size}.")
    return height, width


def _assigned(request: Request) -> tuple[list[Path], list[Path], list[Path]]:
    root = root_of(request)
    if fault := folder_fault(root):
        raise DataError(f"{root}: {fault}. Name the folder that holds the image files as `root`.")
    validation, test = _fraction(request.validation, "validation"), _fraction(request.test, "test")
    if validation + test >= 1:
        raise ConfigurationError(
            f"`validation` and `test` must sum to less than 1; got {validation} + {test}."
        )
    groups: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    for file in sorted(
        path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    ):
        digest = hashlib.sha256(f"{request.seed}/{file.relative_to(root).as_posix()}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        groups[2 if place < test else 1 if place < test + validation else 0].append(file)
    if not all(groups):
        counts = ", ".join(str(len(group)) for group in groups)
        raise DataError(
            f"{root}: each split needs an image; got {counts} (train, validation, test) of the kinds "
            f"{' '.join(SUFFIXES)}. Add images, or raise the fractions `validation` and `test`."
        )
    return groups


def _fraction(value: Amount | None, name: str) -> float:
    fraction = FRACTION if value is None else value
    if isinstance(fraction, int) or not 0 < fraction < 1:
        raise ConfigurationError(
            f"`{name}` must be a fraction between 0 and 1 for `folder`; got {fraction!r}."
        )
    return fraction
