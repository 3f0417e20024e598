"""Preparations: from raw pixels, or floats, to the values that a model sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch

from latentflows.core.batches import DataSource, Values
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.data.base import CHUNK, ArraySplit, Drawing, ImageData, ImageSplit
from latentflows.data.readers.base import RawData, RawSplit

Preparation = Literal["dynamic_binary", "fixed_binary", "dequantized", "unit", "continuous"]
Draw = Callable[[np.ndarray, int], np.ndarray]  # pixels and levels to values
EVALUATION_SEED = 777  # the validation and test draws of Tomczak & Welling (2018), arXiv 1705.07120
FIXED_SEED = 0  # "fixed_binary" is the same data for everybody
WORDS: dict[Preparation, str] = {
    "dynamic_binary": (
        "dynamic binarization, P(x = 1) = value / highest value: training images drawn per batch, "
        f"validation then test drawn once with numpy RandomState({EVALUATION_SEED}).binomial"
    ),
    "fixed_binary": (
        "fixed binarization: train, validation, then test drawn once with "
        f"numpy RandomState({FIXED_SEED}).random_sample (not the files of Larochelle and Murray)"
    ),
    "dequantized": (
        "uniformly dequantized to [0, 1): x = (value + u) / levels, u drawn afresh for every training batch, "
        f"and once for validation then test with numpy RandomState({EVALUATION_SEED})"
    ),
    "unit": "gray values in [0, 1], value / highest value; no density is defined on them",
    "continuous": "real values as they are in the file",
}


def prepare(raw: RawData, preparation: Preparation, *, with_labels: bool = False) -> ImageData:
    """Turn what a reader found into a data set.

    | preparation | train | validation, test | values | bits_offset |
    |---|---|---|---|---|
    | dynamic_binary | drawn per batch | drawn once, seed 777 | binary | 0 |
    | fixed_binary | drawn once, seed 0 | drawn once, same generator | binary | 0 |
    | dequantized | drawn per batch | drawn once, seed 777 | continuous | log2(levels) |
    | unit | value / (levels - 1) | the same | unit | undefined |
    | continuous | floats as they are | the same | continuous | undefined |

    Draws that are made once use numpy's `RandomState`, whose sequence is frozen, so that test data stay the
    same for all time. On MNIST, "fixed_binary" gives images whose `numpy.packbits(rows, axis=1)` have SHA-256
    64ae24af85b9f4f718d9cac915298d13ca590a0ac86e2af84ba65b9896f9f782 (60,000: train, then validation) and
    24d940a7f1971047bca2850cd0c4cb49e61e6ef6a93d3cdc1a100e8bf7fad4c6 (test).

    Memory: one byte per value; four for validation and test under "dequantized", and for floats.

    Raises:
        CombinationError: if pixels are asked to be "continuous", or floats to be drawn.
        ConfigurationError: if the preparation is unknown.
        DataError: if the values do not fit, or labels are asked for and there are none.
    """
    if preparation not in get_args(Preparation):
        raise ConfigurationError(f"`preparation` must be one of {', '.join(WORDS)}; got {preparation!r}.")
    if raw.train.values.dtype == np.uint8:
        splits = _from_pixels(raw, preparation, with_labels)
    else:
        splits = _from_floats(raw, preparation, with_labels)
    return ImageData(
        raw.name,
        *splits,
        description=f"{raw.description}; {WORDS[preparation]}",
        labels=raw.labels,
        factors=raw.factors,
    )


def _from_floats(raw: RawData, preparation: Preparation, with_labels: bool) -> list[DataSource]:
    if preparation != "continuous" and preparation != "unit":
        raise CombinationError(
            f'`{raw.name}` holds floats, which "{preparation}" cannot be made of. '
            'Use "continuous" or "unit", or save the images as uint8.'
        )
    return [
        ArraySplit(
            torch.from_numpy(split.values),
            values=preparation,
            labels=_labels(split),
            with_labels=with_labels,
            num_classes=_num_classes(raw),
        )
        for split in raw.splits
    ]


def _from_pixels(raw: RawData, preparation: Preparation, with_labels: bool) -> list[DataSource]:
    classes = _num_classes(raw)

    def stored(split: RawSplit, drawing: Drawing) -> ImageSplit:
        rows = None if split.rows is None else torch.from_numpy(split.rows)
        pixels = _tensor(split.values)
        return ImageSplit(
            pixels,
            drawing,
            levels=raw.levels,
            labels=_labels(split),
            with_labels=with_labels,
            num_classes=classes,
            rows=rows,
            factors=_factors(split),
        )

    def drawn(split: RawSplit, draw: Draw, values: Values) -> ArraySplit:
        x = torch.from_numpy(np.concatenate([draw(pixels, raw.levels) for pixels in _chunks(split)]))
        offset = math.log2(raw.levels) if values == "continuous" else None
        return ArraySplit(
            x,
            values=values,
            bits_offset=offset,
            labels=_labels(split),
            with_labels=with_labels,
            num_classes=classes,
            factors=_factors(split),
        )

    if preparation == "continuous":
        raise CombinationError(
            f'`{raw.name}` holds 8-bit images, which have no density as they are. Use "dequantized".'
        )
    if raw.levels < 256 and (highest := max(int(split.values.max()) for split in raw.splits)) >= raw.levels:
        raise DataError(
            f"`{raw.name}` must have values below {raw.levels}; got {highest}. The file is damaged."
        )
    if preparation == "unit":
        return [stored(split, "unit") for split in raw.splits]
    if preparation == "fixed_binary":
        compare = partial(_compare, np.random.RandomState(FIXED_SEED))
        return [drawn(split, compare, "binary") for split in raw.splits]
    random = np.random.RandomState(EVALUATION_SEED)
    if preparation == "dynamic_binary":
        once = [drawn(split, partial(_binomial, random), "binary") for split in raw.splits[1:]]
    else:
        once = [drawn(split, partial(_dequantize, random), "continuous") for split in raw.splits[1:]]
    return [stored(raw.train, preparation), *once]


def _chunks(split: RawSplit) -> Iterator[np.ndarray]:
    step = max(1, CHUNK // split.values[0].size)
    for start in range(0, len(split), step):
        part = slice(start, start + step)
        yield split.values[part] if split.rows is None else split.values[split.rows[part]]


def _compare(random: np.random.RandomState, pixels: np.ndarray, levels: int) -> np.ndarray:
    return (random.random_sample(pixels.shape) < pixels / (levels - 1)).astype(np.uint8)


def _binomial(random: np.random.RandomState, pixels: np.ndarray, levels: int) -> np.ndarray:
    # Single precision, because the published protocol divides in single precision: the same bits come out.
    return random.binomial(1, pixels.astype(np.float32) / np.float32(levels - 1)).astype(np.uint8)


def _dequantize(random: np.random.RandomState, pixels: np.ndarray, levels: int) -> np.ndarray:
    # 16 bits, for the reason given in `ImageSplit`.
    noise = random.randint(0, 65536, pixels.shape, dtype=np.uint16)
    return (pixels + noise.astype(np.float32) / 65536) / np.float32(levels)


def _tensor(array: np.ndarray) -> torch.Tensor:
    # torch warns about memory that cannot be written.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _labels(split: RawSplit) -> torch.Tensor | None:
    return None if split.labels is None else _tensor(split.labels)


def _num_classes(raw: RawData) -> int | None:
    """Count the classes over all splits: as many as names, or the highest label plus 1, if that is more."""
    found = [
        int(split.labels.max()) for split in raw.splits if split.labels is not None and len(split.labels)
    ]
    return max(max(found) + 1, len(raw.labels)) if found else None


def _factors(split: RawSplit) -> torch.Tensor | None:
    return None if split.factors is None else _tensor(split.factors)
