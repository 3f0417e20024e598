"""What every reader shares: the request, the result, finding files, reading arrays and images safely."""

from __future__ import annotations

import io
import os
import shlex
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from latentflows.core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ROOT_VARIABLE = "LATENTFLOWS_DATA"
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
Amount = int | float  # a number of images, or a fraction of them below 1


@dataclass(frozen=True)
class Request:
    """What a reader is asked for; None means what is usual for the data set.

    Attributes:
        name: Name of the data set.
        root: Where to look; a reader of one's own files reads exactly this file or folder.
        validation: Number, or fraction, of validation data.
        test: Number, or fraction, of test data, where the data set has no test set of its own.
        seed: Seed of the split, where the split is drawn.
        size: Height and width to give images, where they are resized.
        mode: Colors to give images, where they are converted.
        memory_map: Whether to leave an array on disk and read only the rows that are asked for.
    """

    name: str
    root: Path | None = None
    validation: Amount | None = None
    test: Amount | None = None
    seed: int = 0
    size: int | tuple[int, int] | None = None
    mode: Literal["gray", "rgb"] | None = None
    memory_map: bool = False


@dataclass(frozen=True)
class RawSplit:
    """One split as it is in the files.

    Attributes:
        values: uint8 images (N, C, H, W), or float32 (N, *event).
        labels: int64 (M,), or None.
        rows: int64 (M,) where the split is `values[rows]`; None where it is all of `values`.
        factors: int64 (M, F), what each image was made from, or None.
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    rows: np.ndarray | None = None
    factors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values) if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class RawData:
    """What a reader returns: the three splits and what a protocol must say about them."""

    name: str
    splits: tuple[RawSplit, RawSplit, RawSplit]
    description: str
    levels: int = 256
    labels: tuple[str, ...] = field(default=())
    factors: tuple[str, ...] = ()

    @property
    def train(self) -> RawSplit:
        """The first of the three splits."""
        return self.splits[0]


def find(request: Request, candidates: Sequence[str]) -> Path | None:
    """Return the first file that exists among `candidates` in <root>/<name>/ and <root>/, or None."""
    for folder in folders(request):
        for candidate in candidates:
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def need(request: Request, candidates: Sequence[str]) -> Path:
    """Return the first file that exists among `candidates`, as `find` does.

    Raises:
        DataError: if none exists, naming the files, the folders, and the way to get them.
    """
    path = find(request, candidates)
    if path is None:
        raise missing(request, candidates)
    return path


def missing(request: Request, candidates: Sequence[str]) -> DataError:
    """Return the error for files that are nowhere."""
    places = " and ".join(str(folder) for folder in folders(request))
    root = str(root_of(request))
    fault = folder_fault(Path(root))
    if Path(root).is_file():
        return DataError(
            f"{root}: {fault}. `{request.name}` is read from a folder that holds {' or '.join(candidates)}; name it as "
            f"`root` (--data-root or {ROOT_VARIABLE})."
        )
    return DataError(
        f"`{request.name}` needs {' or '.join(candidates)}; found none in {places}"
        f"{f' ({fault})' if fault else ''}. Download the data with "
        f"`latentflows download {request.name} --root {shlex.quote(root)}`, in Python "
        f"`latentflows.data.download({request.name!r}, {root!r})`, or name another `root` (--data-root)."
    )


def root_of(request: Request) -> Path:
    """Return the root from the request or from the environment.

    Raises:
        DataError: if neither names one.
    """
    root = request.root or os.environ.get(ROOT_VARIABLE)
    if not root:
        raise DataError(
            f"`{request.name}` is read from files, and no place was given. "
            f"Give `root` (--data-root FOLDER on the command line), or set the environment variable {ROOT_VARIABLE}."
        )
    return Path(root)


def folder_fault(root: Path) -> str:
    """Say why a place is no folder; empty where it is one."""
    if root.is_dir():
        return ""
    return "a file, where a folder was expected" if root.exists() else "no such folder"


def folders(request: Request) -> tuple[Path, Path]:
    """Return the two folders that are looked in."""
    root = root_of(request)
    return root / request.name, root


def amount(value: Amount | None, total: int, default: Amount, name: str, source: Path | str) -> int:
    """Return a number of data points from a number, a fraction, or None for the default.

    Raises:
        ConfigurationError: if it is not positive, or leaves no data for anything else.
        DataError: if there are too few data for the default.
    """
    if total < 2:
        raise DataError(
            f"{source}: at least two data points are needed to split off `{name}`; got {total}. Add some."
        )
    if value is None and default >= total:
        raise DataError(
            f"{source}: {total} data points are too few to split off the usual {default} as `{name}`. Get the whole "
            f"data set, or say how many by `{name}`."
        )
    given = default if value is None else value
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ConfigurationError(f"`{name}` must be a number of data points or a fraction; got {given!r}.")
    count = given if isinstance(given, int) else max(1, round(given * total)) if 0 < given < 1 else 0
    if not 0 < count < total:
        raise ConfigurationError(
            f"`{name}` must be a number from 1 to {total - 1}, as {source} holds {total} data points, or a fraction "
            f"between 0 and 1; got {given}."
        )
    return count


def shuffled_rows(
    total: int, num_validation: int, num_test: int, seed: int, source: Path | str
) -> tuple[np.ndarray, ...]:
    """Draw disjoint rows of train, validation and test.

    numpy's `RandomState`, because its sequence is frozen: a split must not change with a library version.

    Raises:
        ConfigurationError: if nothing is left for training.
    """
    num_train = total - num_validation - num_test
    if num_train < 1:
        raise ConfigurationError(
            f"{source}: `validation` and `test` must leave data to train on; got {num_validation} + {num_test} of "
            f"{total}. Ask for less, or add data."
        )
    order = np.random.RandomState(seed).permutation(total).astype(np.int64)
    return (
        order[:num_train],
        order[num_train : num_train + num_validation],
        order[num_train + num_validation :],
    )


def take(values: np.ndarray, labels: np.ndarray | None, rows: np.ndarray | slice) -> RawSplit:
    """Return the given rows as a split of their own (a copy, unless `rows` is a slice)."""
    return RawSplit(values[rows], None if labels is None else labels[rows])


def sizes(splits: Sequence[RawSplit]) -> str:
    """Return the sizes of the three splits and the shape of one item, in words."""
    counts = " / ".join(f"{len(split):,}" for split in splits)
    return f"{counts} (train / validation / test) of {'x'.join(str(n) for n in splits[0].values.shape[1:])}"


def read_npy(path: Path, *, memory_map: bool = False) -> np.ndarray:
    """Read a `.npy` file, never unpickling; with `memory_map` the data stay on disk until they are indexed.

    Raises:
        DataError: if the file is missing, damaged, empty, longer than its header says, or holds objects.
    """
    try:
        # Copy on write: torch warns about memory that cannot be written.
        mapped = np.lib.format.open_memmap(path, mode="c")
    except (
        Exception
    ) as error:  # numpy's parser raises whatever a damaged header trips: SyntaxError, MemoryError ...
        raise _unreadable(path, error) from None
    if not mapped.size:
        raise DataError(f"{path}: an array of shape {mapped.shape} is empty. Write one that holds data.")
    surplus = path.stat().st_size - mapped.offset - mapped.nbytes
    if surplus:
        raise DataError(
            f"{path}: {surplus} bytes more than the header says. The file is damaged; write it anew."
        )
    return mapped if memory_map else np.array(mapped)


def npz_keys(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in a `.npz` file.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
    except Exception as error:  # zipfile raises several kinds on a damaged directory
        raise _unreadable(path, error) from None


def read_npz(path: Path, keys: Sequence[str]) -> list[np.ndarray]:
    """Read arrays from a `.npz` file, never unpickling.

    Whole members are read, so that their checksums are verified; `numpy.load` stops where the header says.

    Raises:
        DataError: if the file or an array is missing, damaged, empty, or holds objects.
    """
    present = npz_keys(path)
    if absent := [key for key in keys if key not in present]:
        raise DataError(
            f"{path}: expected the arrays {', '.join(keys)}; no {', '.join(absent)}. It has {present}."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return [_parse_npy(key, archive.read(f"{key}.npy")) for key in keys]
    except Exception as error:  # as in `read_npy`, and zlib's and zipfile's own kinds
        raise _unreadable(path, error) from None


def _parse_npy(key: str, content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    array: Any = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.tell() != len(content):
        raise ValueError(f"the array {key} is followed by {len(content) - stream.tell()} bytes too many")
    if not array.size:
        raise ValueError(f"the array {key} of shape {array.shape} is empty")
    return array


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file. Check the path.")
    reason = str(error) or type(error).__name__
    if "Python objects" in reason or "allow_pickle" in reason:
        return DataError(
            f"{path}: holds pickled Python objects; reading it could run code, so it is not read. "
            "Save plain numbers with `numpy.save(path, array)`."
        )
    return DataError(
        f"{path}: not readable as an array ({reason}). The file is damaged or cut short; write it anew."
    )


def read_image(path: Path) -> np.ndarray:
    """Return an image as it is stored: uint8 (height, width) or (height, width, channels).

    Raises:
        DataError: if the file is no readable 8-bit image.
    """
    return _decoded(path, lambda image: image)


def read_fitted(path: Path, height: int, width: int, mode: Literal["gray", "rgb"]) -> np.ndarray:
    """Return an image scaled to cover and center-cropped: uint8 (C, height, width).

    It is turned upright as its EXIF tag says, and put on black where it is transparent.

    Raises:
        DataError: if the file is no readable 8-bit image.
    """

    def fit(image: Image) -> Image:
        from PIL import Image, ImageOps

        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            paint = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", paint.size, "black"), paint)
        colors = upright.convert("L" if mode == "gray" else "RGB")
        return ImageOps.fit(colors, (width, height), Image.Resampling.BICUBIC)

    pixels = _decoded(path, fit)
    return pixels[None] if mode == "gray" else pixels.transpose(2, 0, 1)


def _decoded(path: Path, convert: Callable[[Image], Image]) -> np.ndarray:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; what matters is raised
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.mode not in EIGHT_BIT_MODES:  # Pillow would cut brighter values off, silently
                    raise ValueError(f"mode {image.mode}, more than 8 bits per channel")
                return np.asarray(convert(image), np.uint8)
    except Exception as error:  # Pillow's parsers raise almost every kind on damaged files
        raise DataError(
            f"{path}: not readable as an 8-bit image ({error or type(error).__name__}). "
            "Convert it to 8-bit PNG, or take it out of the folder."
        ) from None
