"""Arrays of one's own: a `.npy` file, a `.npz` file, or a folder with one `.npy` per split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data.readers.base import (
    RawData,
    RawSplit,
    Request,
    amount,
    npz_keys,
    read_npy,
    read_npz,
    root_of,
    shuffled_rows,
    sizes,
)

SPLITS = ("train", "validation", "test")
FRACTION = 0.1
CHANNELS = (1, 3, 4)
_ROWS = 4096  # checked at a time


def read(request: Request) -> RawData:
    """Read uint8 or bool images, or floats of any event shape, from the very file or folder of the root.

    | root | arrays | split |
    |---|---|---|
    | `x.npy` | one array | drawn with `seed`, 10 % validation and 10 % test unless asked otherwise |
    | `x.npz` | `x`, or the only array; `labels` if wanted | the same |
    | `x.npz` | `train`, `validation`, `test`; `train_labels` ... if wanted | as given |
    | folder | the same names as `.npy` files | as given |

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels. Nothing is ever unpickled.
    Memory: bytes of the file; with `memory_map`, which wants uint8 in `.npy`, next to nothing.

    Raises:
        ConfigurationError: if a setting does not apply, or is out of range.
        DataError: if a file is missing or damaged, or holds something else.
    """
    root = root_of(request)
    if root.is_dir():
        found = _from_folder(root, request.memory_map)
    elif root.suffix == ".npz":
        if request.memory_map:
            raise ConfigurationError(
                "`memory_map` needs a `.npy` file; a `.npz` cannot be mapped. Save as `.npy`."
            )
        keys = npz_keys(root)
        wanted = [key for key in keys if key in _names(keys)]
        found = dict(zip(wanted, read_npz(root, wanted), strict=True))
    else:
        found = {"x": read_npy(root, memory_map=request.memory_map)}
    if "train" in found:
        splits, words = _given(request, found, root), "split as given"
    else:
        splits, words = _drawn(request, found, root), f"split drawn with seed {request.seed}"
    if len({(split.values.shape[1:], split.values.dtype) for split in splits}) > 1:
        got = ", ".join(f"{split.values.shape[1:]} of {split.values.dtype}" for split in splits)
        raise DataError(
            f"{root}: train, validation and test must agree in shape and type; got {got}. Mend them."
        )
    levels = 2 if all(array.dtype == np.bool_ for key, array in found.items() if "labels" not in key) else 256
    return RawData(request.name, splits, f"arrays of {root.name}, {sizes(splits)}, {words}", levels=levels)


def _names(keys: tuple[str, ...]) -> tuple[str, ...]:
    if "train" in keys:
        return (*SPLITS, *(f"{split}_labels" for split in SPLITS))
    others = [key for key in keys if key != "labels"]
    return ("x", "labels") if "x" in keys else (others[0], "labels") if len(others) == 1 else ()


def _from_folder(folder: Path, memory_map: bool) -> dict[str, np.ndarray]:
    found = {}
    for name in _names(SPLITS):
        if (folder / f"{name}.npy").is_file():
            found[name] = read_npy(folder / f"{name}.npy", memory_map=memory_map and name in SPLITS)
    return found or {"train": np.empty(0)}


def _given(request: Request, found: dict[str, np.ndarray], root: Path) -> tuple[RawSplit, RawSplit, RawSplit]:
    if request.validation is not None or request.test is not None:
        raise ConfigurationError(
            "`validation` and `test` do not apply where the files give the splits. Leave them out."
        )
    if absent := [name for name in SPLITS if name not in found or not found[name].size]:
        raise DataError(
            f"{root}: expected arrays train, validation and test; no {', '.join(absent)}. Add them."
        )
    made = []
    for name in SPLITS:
        values = _values(found[name], _place(root, name), request.memory_map)
        labels = f"{name}_labels"
        made.append(RawSplit(values, _labels(found.get(labels), len(values), _place(root, labels))))
    return made[0], made[1], made[2]


def _place(root: Path, name: str) -> Path | str:
    """Return the file that an array is in, or the file and its name there."""
    return root / f"{name}.npy" if root.is_dir() else f"{root}, array {name}"


def _drawn(request: Request, found: dict[str, np.ndarray], root: Path) -> tuple[RawSplit, RawSplit, RawSplit]:
    arrays = [array for key, array in found.items() if key != "labels"]
    if len(arrays) != 1:
        raise DataError(
            f"{root}: expected arrays named train, validation and test, or one named x. Rename the arrays."
        )
    values = _values(arrays[0], root, request.memory_map)
    labels = _labels(found.get("labels"), len(values), root)
    counts = [
        amount(value, len(values), FRACTION, name, root)
        for name, value in (("validation", request.validation), ("test", request.test))
    ]
    made = []
    for rows in shuffled_rows(len(values), counts[0], counts[1], request.seed, root):
        own = None if labels is None else labels[rows]
        made.append(RawSplit(values, own, rows) if request.memory_map else RawSplit(values[rows], own))
    return made[0], made[1], made[2]


def _values(array: np.ndarray, place: Path | str, memory_map: bool) -> np.ndarray:
    if memory_map and array.dtype != np.uint8:
        raise ConfigurationError(
            f"`memory_map` needs uint8 images; {place} holds {array.dtype}. Leave it out."
        )
    if array.dtype in (np.uint8, np.bool_):
        return _channels_first(array.view(np.uint8) if array.dtype == np.bool_ else array, place)
    if array.dtype not in (np.float16, np.float32, np.float64) or array.ndim < 2:
        raise DataError(
            f"{place}: expected uint8 or bool images, or floats (N, *event); "
            f"got {array.dtype} of shape {array.shape}. Save images as uint8, and other data as float32."
        )
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused with the other infinities
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not all(np.isfinite(values[i : i + _ROWS]).all() for i in range(0, len(values), _ROWS)):
        raise DataError(
            f"{place}: every value must be finite in float32; got NaN or infinity. Remove those data points."
        )
    return values


def _channels_first(images: np.ndarray, place: Path | str) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    first, last = (images.ndim == 4 and images.shape[axis] in CHANNELS for axis in (1, 3))
    if first == last:
        kind = "ambiguous: channels could be first or last in" if first else "not images:"
        raise DataError(
            f"{place}: {kind} shape {images.shape}. "
            f"Expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C one of {CHANNELS}; reshape the array."
        )
    return images if first else images.transpose(0, 3, 1, 2)


def _labels(labels: np.ndarray | None, count: int, place: Path | str) -> np.ndarray | None:
    if labels is None:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        lowest = f", the lowest {labels.min()}" if labels.dtype.kind in "iu" else ""
        raise DataError(
            f"{place}: labels must be {count} integers from 0, one for each data point; "
            f"got {labels.dtype} of shape {labels.shape}{lowest}. Mend them."
        )
    return labels.astype(np.int64)
