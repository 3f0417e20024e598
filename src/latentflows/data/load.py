"""One call from the name of a data set to its three prepared splits."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latentflows.core.errors import ConfigurationError
from latentflows.data.base import ImageData
from latentflows.data.prepare import Preparation, prepare
from latentflows.data.readers import arrays, cifar10, digits, folder, mnist, omniglot, shapes2d
from latentflows.data.readers.base import Amount, RawData, Request


@dataclass(frozen=True)
class Entry:
    """A reader, its usual preparation (None: decided by the values), and the settings that it heeds."""

    read: Callable[[Request], RawData]
    preparation: Preparation | None
    settings: frozenset[str]


DATASETS: dict[str, Entry] = {
    "digits": Entry(digits.read, "dynamic_binary", frozenset({"validation", "test"})),
    "mnist": Entry(mnist.read, "dynamic_binary", frozenset({"root", "validation"})),
    "fashion_mnist": Entry(mnist.read, "dynamic_binary", frozenset({"root", "validation"})),
    "omniglot": Entry(omniglot.read, "dynamic_binary", frozenset({"root", "validation", "size"})),
    "cifar10": Entry(cifar10.read, "dequantized", frozenset({"root", "validation"})),
    "shapes2d": Entry(shapes2d.read, "dynamic_binary", frozenset({"root", "validation", "test"})),
    "folder": Entry(folder.read, "dequantized", frozenset({"root", "validation", "test", "size", "mode"})),
    "arrays": Entry(arrays.read, None, frozenset({"root", "validation", "test", "memory_map"})),
}


def dataset_names() -> tuple[str, ...]:
    """Return the names that `load` knows."""
    return tuple(DATASETS)


def is_read_from_files(name: str) -> bool:
    """Whether a data set is looked for in a folder, the `root`."""
    return name in DATASETS and "root" in DATASETS[name].settings


def load(
    name: str,
    *,
    root: str | Path | None = None,
    preparation: Preparation | None = None,
    validation: Amount | None = None,
    test: Amount | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    mode: Literal["gray", "rgb"] | None = None,
    memory_map: bool = False,
    with_labels: bool = False,
) -> ImageData:
    """Load a data set by name.

    | name | what | usual preparation | train / validation / test |
    |---|---|---|---|
    | digits | 8 x 8 digits inside scikit-learn | dynamic_binary | 1,197 / 200 / 400, drawn with `seed` |
    | mnist, fashion_mnist | official IDX files | dynamic_binary | first 50,000 / last 10,000 / 10,000 |
    | omniglot | official zips, or npz | dynamic_binary | 23,000 / 1,345 drawn with `seed` / 8,115 |
    | cifar10 | official binary files, or PNG strips | dequantized | 45,000 / last 5,000 / 10,000 |
    | shapes2d | 64 x 64 shapes of 5 known factors | dynamic_binary | 73,728 / 9,216 / 9,216, drawn with `seed` |
    | folder | every image file below `root` | dequantized | about 80 / 10 / 10 %, by a hash of each name |
    | arrays | `.npy`, `.npz`, folder of `.npy` | dequantized, or continuous | 80 / 10 / 10 %, or given |

    Args:
        name: One of the names above.
        root: Folder of the data; files are looked for in <root>/<name>/ and <root>/. For "folder" and
            "arrays" the very folder or file. None takes the environment variable LATENTFLOWS_DATA.
        preparation: How values are made from pixels, see `prepare`; None takes the usual one.
        validation: Number (an integer) or fraction (a float below 1) of validation data.
        test: Number or fraction of test data, where the data set has no test set of its own.
        seed: Seed of the split, where the split is drawn; fixed splits do not depend on it.
        size: Height and width of images: 28 or 105 for omniglot; needed for "folder".
        mode: "rgb" (the default) or "gray", for "folder".
        memory_map: For "arrays": leave a uint8 `.npy` on disk and read the rows of each batch.
        with_labels: Whether batches carry the labels as their context, as one-hot float32 vectors (B, C).

    Returns:
        The three splits, with a description for protocols.

    Raises:
        ConfigurationError: if the name is unknown, or a setting is out of range or not for this data set.
        DataError: if files are missing or damaged, with the way to get them.

    Example:
        >>> data = load("digits")
        >>> len(data.train), data.train.event_shape, data.train.values
        (1197, (1, 8, 8), 'binary')
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(f"Unknown data set {name!r}; expected one of {', '.join(DATASETS)}.{hint}")
    entry = DATASETS[name]
    given = {
        "root": root,
        "validation": validation,
        "test": test,
        "size": size,
        "mode": mode,
        "memory_map": memory_map or None,
    }
    for setting, value in given.items():
        if value is not None and setting not in entry.settings:
            option = " (--data-root)" if setting == "root" else ""
            raise ConfigurationError(
                f"`{setting}`{option} does not apply to `{name}`; got {value}. "
                f"It takes {', '.join(sorted(entry.settings))}; leave the others out."
            )
    if not 0 <= seed < 2**32:
        raise ConfigurationError(f"`seed` must be from 0 to 2^32 - 1; got {seed}.")
    path = None if root is None else Path(root)
    raw = entry.read(Request(name, path, validation, test, seed, size, mode, memory_map))
    usual = entry.preparation or ("dequantized" if raw.train.values.dtype == "uint8" else "continuous")
    return prepare(raw, preparation or usual, with_labels=with_labels)
