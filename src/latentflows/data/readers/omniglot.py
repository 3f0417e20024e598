"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn once by 20 people."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data.readers.base import (
    RawData,
    Request,
    amount,
    find,
    missing,
    read_npz,
    root_of,
    shuffled_rows,
    sizes,
    take,
)

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWERS = 20
TRAIN_DRAWERS = 15
FULL_SIZE, SMALL_SIZE = 105, 28
NUM_VALIDATION = 1_345  # of 24,345 training images, the number used since Burda et al. (2015)
PARTS = ("images_background", "images_evaluation")
SMALL_FILE = "omniglot28.npz"
MEMBER = re.compile(r".*/(\d{4})_(\d\d)\.png")  # Alphabet/character05/0019_03.png: character 19, drawer 3


def read(request: Request) -> RawData:
    """Read ink (1 on 0), at 28 x 28 in 256 levels or, with `size=105`, the black and white originals.

    Split: drawers 1-15 of every character are train and validation, 16-20 are test; 1,345 of the former,
    drawn with `seed`, are validation. The `chardata.mat` of Burda et al. (2015) has as many training images,
    but other ones: likelihoods are close to, and not the same as, published ones.

    Files: `omniglot28.npz` (images (characters, 20, 28, 28) uint8 ink), or `images_background` and
    `images_evaluation` as the official `.zip` or as `.npz` (images (characters, 20, 105, 105), True = paper).

    Raises:
        ConfigurationError: if `size` is neither 28 nor 105.
        DataError: if files are missing or damaged.
    """
    size = SMALL_SIZE if request.size is None else request.size
    if size not in (SMALL_SIZE, FULL_SIZE):
        raise ConfigurationError(f"`size` must be {SMALL_SIZE} or {FULL_SIZE} for omniglot; got {size}.")
    ink, source = _ink(request, small=size == SMALL_SIZE)
    images, labels = _flat(ink[:, :TRAIN_DRAWERS])
    num_validation = amount(request.validation, len(images), NUM_VALIDATION, "validation", root_of(request))
    train_rows, validation_rows, _ = shuffled_rows(len(images), num_validation, 0, request.seed, request.name)
    splits = (
        take(images, labels, train_rows),
        take(images, labels, validation_rows),
        take(*_flat(ink[:, TRAIN_DRAWERS:]), slice(None)),
    )
    return RawData(
        request.name,
        splits,
        f"Omniglot ({source}), {sizes(splits)}, drawers 16-20 are test, validation drawn "
        f"with seed {request.seed} from drawers 1-15; not the chardata.mat of Burda et al.",
        levels=256 if size == SMALL_SIZE else 2,
        labels=tuple(f"character {number:04d}" for number in range(1, len(ink) + 1)),
    )


def _ink(request: Request, *, small: bool) -> tuple[np.ndarray, str]:
    path = find(request, [SMALL_FILE]) if small else None
    if path is not None:
        return _checked(read_npz(path, ["images"])[0], path, np.uint8, SMALL_SIZE), SMALL_FILE
    parts, names = [], []
    for part in PARTS:
        candidates = [f"{part}.zip", f"{part}.npz"]
        file = find(request, candidates)
        if file is None:
            raise missing(request, [*([SMALL_FILE] if small else []), *candidates])
        paper = read_zip(file) if file.suffix == ".zip" else read_npz(file, ["images"])[0]
        parts.append(~_checked(paper, file, np.bool_, FULL_SIZE))
        names.append(file.name)
    ink = np.concatenate(parts)
    return (shrink(ink) if small else ink.astype(np.uint8)), " and ".join(names)


def _checked(images: np.ndarray, path: Path, dtype: type, size: int) -> np.ndarray:
    if images.dtype != dtype or images.ndim != 4 or images.shape[1:] != (DRAWERS, size, size):
        raise DataError(
            f"{path}: expected images (characters, {DRAWERS}, {size}, {size}) of {np.dtype(dtype)}; "
            f"got {images.shape} of {images.dtype}. Get the original file."
        )
    return images


def _flat(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    characters, drawers, height, width = ink.shape
    labels = np.repeat(np.arange(characters, dtype=np.int64), drawers)
    return ink.reshape(-1, 1, height, width), labels


def shrink(ink: np.ndarray) -> np.ndarray:
    """Average ink (characters, 20, 105, 105) of {0, 1} exactly over 28 x 28 areas, in 256 levels.

    Each result is floor(255 a + 1/2) for the mean a over a square of 3.75 x 3.75 source pixels.
    """
    edges = np.arange(SMALL_SIZE + 1) * FULL_SIZE / SMALL_SIZE
    pixel = np.arange(FULL_SIZE)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)  # (28, 105)
    weights = overlap.clip(min=0) * SMALL_SIZE / FULL_SIZE
    small = np.empty((*ink.shape[:2], SMALL_SIZE, SMALL_SIZE), np.uint8)
    for source, target in zip(ink, small, strict=True):  # a character at a time bounds the memory
        target[:] = np.floor(255 * (weights @ source.astype(np.float64) @ weights.T) + 0.5)
    return small


def _drawing(image: Image) -> np.ndarray:
    if image.mode != "1" or image.size != (FULL_SIZE, FULL_SIZE):
        raise ValueError(
            f"a drawing is {image.size} of mode {image.mode}, not black and white {FULL_SIZE} x {FULL_SIZE}"
        )
    return np.asarray(image)


def read_zip(path: Path) -> np.ndarray:
    """Read an official zip as bool images (characters, 20, 105, 105), True = paper, by character number.

    Raises:
        DataError: if the zip or an image is damaged, or a drawing is missing.
    """
    from PIL import Image as images

    found: dict[tuple[int, int], np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if match := MEMBER.fullmatch(name):
                    with images.open(io.BytesIO(archive.read(name)), formats=["PNG"]) as image:
                        found[int(match[1]), int(match[2])] = _drawing(image)
    except Exception as error:  # zipfile, zlib and Pillow each raise many kinds on damaged input
        raise DataError(
            f"{path}: cannot be read ({error}). It is cut short or damaged; download it anew."
        ) from None
    numbers = sorted({number for number, _ in found})
    expected = {(number, drawer) for number in numbers for drawer in range(1, DRAWERS + 1)}
    if not found or set(found) != expected:
        raise DataError(
            f"{path}: expected {DRAWERS} drawings of each character; "
            f"got {len(found)} of {len(numbers)} characters. Download it anew."
        )
    return np.stack([np.stack([found[n, d] for d in range(1, DRAWERS + 1)]) for n in numbers])
