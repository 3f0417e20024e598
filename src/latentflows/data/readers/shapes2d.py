"""Binary 64 x 64 pictures of one shape each, every combination of five factors once: for disentanglement."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from latentflows.core.errors import DataError
from latentflows.data.readers.base import (
    ROOT_VARIABLE,
    RawData,
    RawSplit,
    Request,
    amount,
    find,
    folder_fault,
    read_npz,
    shuffled_rows,
    sizes,
)

FILE = "shapes2d_92160.npz"
FACTORS = ("shape", "scale", "orientation", "pos_x", "pos_y")
SIZES = (3, 6, 20, 16, 16)  # the last factor runs fastest
SHAPES = ("square", "ellipse", "heart")
SIDE = 64
RADIUS = 11.0  # pixels, at scale 1


def read(request: Request) -> RawData:
    """Read the 92,160 pictures from their file where it is found, or draw the same by their rule in some seconds.

    Not dSprites, which it stands in for: scores on it are not dSprites scores. The square repeats every quarter turn
    and the ellipse every half turn, so that 53,756 pictures are distinct and no score that counts the orientation can
    be perfect. Label and first factor are the shape. Split: a shuffle with `seed`, 10 % validation, 10 % test.

    File: `shapes2d_92160.npz` with `packed` (N, 64, 8), bits of each row, and `latents_classes` (N, 5), uint8.

    Memory: 377 MB, shared by the splits.

    Raises:
        DataError: if the file is damaged, or not where `root` says.
    """
    path = _path(request)
    pixels, factors = read_file(path) if path is not None else draw(SIZES)
    total = len(pixels)
    num_validation = amount(request.validation, total, 0.1, "validation", request.name)
    num_test = amount(request.test, total, 0.1, "test", request.name)
    splits = tuple(
        RawSplit(pixels, factors[rows, 0], rows, factors[rows])
        for rows in shuffled_rows(total, num_validation, num_test, request.seed, request.name)
    )
    source = "drawn by its rule" if path is None else path.name
    return RawData(
        request.name,
        (splits[0], splits[1], splits[2]),
        f"shapes2d ({source}), {sizes(splits)}, split by a shuffle with seed {request.seed}; not dSprites",
        levels=2,
        labels=SHAPES,
        factors=FACTORS,
    )


def _path(request: Request) -> Path | None:
    if request.root is None and not os.environ.get(ROOT_VARIABLE):
        return None
    path = find(request, [FILE])
    if path is None and request.root is not None:
        fault = folder_fault(request.root) or "not there"
        raise DataError(
            f"`{request.name}` needs {FILE} in the folder {request.root}: {fault}. Leave `root` out, and the same "
            "pictures are drawn by their rule."
        )
    return path


def read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, 1, 64, 64) of {0, 1}, uint8, and factors (N, 5), int64.

    Raises:
        DataError: if an array is missing, damaged, or of another shape.
    """
    packed, classes = read_npz(path, ["packed", "latents_classes"])
    right = packed.shape == (len(classes), SIDE, SIDE // 8) and classes.shape == (len(classes), len(FACTORS))
    if not right or packed.dtype != np.uint8 or classes.dtype != np.uint8 or (classes >= SIZES).any():
        raise DataError(
            f"{path}: expected `packed` (N, {SIDE}, {SIDE // 8}) and `latents_classes` (N, 5) below {SIZES}, both "
            f"uint8; got {packed.shape} of {packed.dtype} and {classes.shape} of {classes.dtype}. Get the original "
            "file, or take it away to have the pictures drawn."
        )
    return np.unpackbits(packed, axis=-1)[:, None], classes.astype(np.int64)


def draw(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures of the first `counts` values of each factor, as `read_file` does.

    A pixel with center (x, y) is white where, with r = 11 scale, (dx, dy) its place from the shape's center, and
    u = (cos t dx + sin t dy) / r, v = (-sin t dx + cos t dy) / r, the square has max(|u|, |v|) <= 0.8, the ellipse
    u^2 + (v / 0.6)^2 <= 1, and the heart (p^2 + q^2 - 1)^3 <= p^2 q^3 with p = 1.2 u, q = 0.1 - 1.2 v. Scales are
    0.5, 0.6 ... 1, orientations t = 2 pi k / 20, centers 16 to 48 pixels in 16 equal steps.
    """
    scales = np.linspace(0.5, 1, SIZES[1])
    positions = np.linspace(16, 48, SIZES[3])
    factors = np.indices(counts, dtype=np.int64).reshape(len(counts), -1).T
    pixels = np.empty((*counts[:3], counts[3] * counts[4], 1, SIDE, SIDE), np.uint8)
    across = np.arange(SIDE) + 0.5 - positions[: counts[3], None]  # (pos_x, column)
    down = np.arange(SIDE) + 0.5 - positions[: counts[4], None]  # (pos_y, row)
    for scale, turn in np.ndindex(counts[1:3]):
        angle = 2 * np.pi * turn / SIZES[2]
        radius = RADIUS * scales[scale]
        cosine, sine = np.cos(angle), np.sin(angle)
        dx, dy = across[:, None, None, :], down[None, :, :, None]
        u, v = (cosine * dx + sine * dy) / radius, (-sine * dx + cosine * dy) / radius
        for shape in range(counts[0]):
            pixels[shape, scale, turn] = _inside(SHAPES[shape], u, v).reshape(-1, 1, SIDE, SIDE)
    return pixels.reshape(-1, 1, SIDE, SIDE), factors


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.8
    if shape == "ellipse":
        return u**2 + (v / 0.6) ** 2 <= 1
    p, q = 1.2 * u, -1.2 * v + 0.1
    return (p**2 + q**2 - 1) ** 3 - p**2 * q**3 <= 0
