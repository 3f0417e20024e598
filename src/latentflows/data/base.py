"""What a data set is once it is in memory: three splits that give batches by index."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from latentflows.core.batches import Batch, DataSource, Values
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.core.noise import random_uint16
from latentflows.core.shapes import Shape

Drawing = Literal["dynamic_binary", "dequantized", "unit"]
VALUES: dict[Drawing, Values] = {"dynamic_binary": "binary", "dequantized": "continuous", "unit": "unit"}
CHUNK = 1 << 24  # values looked at together in a check: bounds its temporary memory


class ArraySplit:
    """Values given out as they are stored: vectors, images or sequences.

    Memory: 4 bytes per value for float32; 1 byte for uint8, which "binary" values may be stored as.

    Args:
        x: Data points (N, *event), float or, for "binary", also uint8 or bool.
        values: "binary" for {0, 1}, "unit" for [0, 1] without a density, "continuous" for real values.
        bits_offset: Constant of bits per dimension for "continuous" values. Leave it out where they have no
            natural unit, and bits per dimension stay undefined. Always 0 for "binary".
        labels: Integers (N,) from 0, given out as the context of a batch when `with_labels` is set.
        with_labels: Whether batches carry the labels, as one-hot float32 vectors (B, C).
        num_classes: C; None for the highest label plus 1.
        factors: Integers (N, F), what each data point was made from, where that is known; never in a batch.

    Raises:
        DataError: if a value is not finite or not in the range that `values` promises, or N is 0.
        ShapeError: if `x` has no event axis, or `labels` is not of shape (N,), or `factors` not (N, F).
    """

    def __init__(
        self,
        x: Tensor,
        *,
        values: Values,
        bits_offset: float | None = None,
        labels: Tensor | None = None,
        with_labels: bool = False,
        num_classes: int | None = None,
        factors: Tensor | None = None,
    ) -> None:
        if values not in ("binary", "unit", "continuous"):
            raise ConfigurationError(f'`values` must be "binary", "unit" or "continuous"; got {values!r}.')
        if x.ndim < 2 or not len(x) or not x[0].numel():
            raise ShapeError(f"`x` must have shape (N, *event), none of them 0; got {tuple(x.shape)}.")
        self.x = x if x.dtype == torch.uint8 and values == "binary" else x.to(torch.float32)
        _check_values(self.x, values)
        self.values: Values = values
        self.bits_offset = 0.0 if values == "binary" else bits_offset if values == "continuous" else None
        self.event_shape: Shape = tuple(x.shape[1:])
        self.labels = _checked_labels(labels, len(x), with_labels)
        self.with_labels = with_labels
        self.num_classes = _checked_classes(self.labels, num_classes, with_labels)
        self.factors = _checked_factors(factors, len(x))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        """Return the data points at `indices`, int64 of shape (B,), as float32 (B, *event)."""
        _check_indices(indices)
        context = _one_hot(self.labels, indices, self.num_classes) if self.with_labels else None
        return Batch(rows_of(self.x, indices).to(torch.float32), context)

    def to(self, device: torch.device | str) -> ArraySplit:
        """Return the same split with its memory on `device`."""
        return ArraySplit(
            self.x.to(device),
            values=self.values,
            bits_offset=self.bits_offset,
            labels=None if self.labels is None else self.labels.to(device),
            with_labels=self.with_labels,
            num_classes=self.num_classes,
            factors=None if self.factors is None else self.factors.to(device),
        )


class ImageSplit:
    r"""Images kept as uint8 and turned into float32 a batch at a time.

    With v a stored value in {0, ..., levels - 1}, and r and u drawn afresh for every batch:

    - "dynamic_binary": x = 1 with probability v / (levels - 1), as r < round(65536 v / (levels - 1)) with r
      uniform on {0, ..., 65535}: exact at 0 and at the highest level, within 2^-17 between.
    - "dequantized": x = (v + u) / levels in [0, 1), u uniform on the multiples of 2^-16 in [0, 1). With 256
      levels x then has 24 bits, all that float32 can tell apart below 1.
    - "unit": x = v / (levels - 1), gray values without a density.

    Noise comes from `latentflows.core.noise`: a batch is a pure function of its indices and the open stream.

    Memory: N * C * H * W bytes, or next to nothing when `pixels` is a memory map; a million 64 x 64 color
    images take 12.3 GB. Cost: 60,000 images of 784 pixels, binarized, take 0.2 s on one CPU thread.

    Args:
        pixels: uint8 (N, C, H, W).
        drawing: How a batch is made from the pixels, as above.
        levels: Number of values that a pixel can take, 2 to 256.
        labels: Integers (N,) from 0, given out as the context of a batch when `with_labels` is set.
        with_labels: Whether batches carry the labels, as one-hot float32 vectors (B, C).
        num_classes: C; None for the highest label plus 1.
        rows: int64 (M,); the split is `pixels[rows]`, and `labels` has M entries. Lets several splits share
            one memory map without copying it.
        factors: Integers (N, F), or (M, F) with `rows`: what each image was made from; never in a batch.

    Raises:
        DataError: if a pixel is not below `levels`, or there are no images.
        ShapeError: if `pixels` is not uint8 of shape (N, C, H, W), or `labels` does not match.
    """

    def __init__(
        self,
        pixels: Tensor,
        drawing: Drawing,
        *,
        levels: int = 256,
        labels: Tensor | None = None,
        with_labels: bool = False,
        num_classes: int | None = None,
        rows: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> None:
        if drawing not in VALUES:
            raise ConfigurationError(f"`drawing` must be one of {', '.join(VALUES)}; got {drawing!r}.")
        if not 2 <= levels <= 256:
            raise ConfigurationError(f"`levels` must be from 2 to 256; got {levels}.")
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or not pixels.numel():
            raise ShapeError(
                "`pixels` must be uint8 of shape (N, C, H, W), none of them 0; "
                f"got {pixels.dtype} of shape {tuple(pixels.shape)}."
            )
        if levels < 256 and (highest := int(pixels.max())) >= levels:
            raise DataError(
                f"`pixels` must be below `levels` = {levels}; got {highest}. State the right `levels`."
            )
        self.pixels, self.levels, self.rows = pixels, levels, rows
        self.drawing: Drawing = drawing
        self.values: Values = VALUES[drawing]
        self.bits_offset = {"binary": 0.0, "continuous": math.log2(levels), "unit": None}[self.values]
        self.event_shape: Shape = tuple(pixels.shape[1:])
        self.labels = _checked_labels(labels, len(self), with_labels)
        self.with_labels = with_labels
        self.num_classes = _checked_classes(self.labels, num_classes, with_labels)
        self.factors = _checked_factors(factors, len(self))

    def __len__(self) -> int:
        return len(self.pixels) if self.rows is None else len(self.rows)

    def batch(self, indices: Tensor) -> Batch:
        """Return the images at `indices`, int64 of shape (B,), as float32 (B, C, H, W)."""
        _check_indices(indices)
        context = _one_hot(self.labels, indices, self.num_classes) if self.with_labels else None
        pixels = rows_of(self.pixels, indices if self.rows is None else self.rows[indices])
        return Batch(self._draw(pixels.contiguous()), context)  # pixels may be stored channels last

    def _draw(self, pixels: Tensor) -> Tensor:
        if self.drawing == "unit":
            return _divided(pixels.to(torch.float32), self.levels - 1)
        noise = random_uint16(tuple(pixels.shape), pixels.device)
        if self.drawing == "dequantized":
            return _divided(pixels.to(torch.float32).add_(noise, alpha=1 / 65536), self.levels)
        # 65536 v is exact in float32 and no quotient is close to a half: rounded correctly for every level.
        threshold = pixels.to(torch.float32).mul_(65536).div_(self.levels - 1).round_().to(torch.int32)
        return torch.lt(noise, threshold).to(torch.float32)

    def to(self, device: torch.device | str) -> ImageSplit:
        """Return the same split with its memory on `device`; of shared pixels only its own rows move."""
        pixels = self.pixels if self.rows is None else self.pixels[self.rows]
        return ImageSplit(
            pixels.to(device),
            self.drawing,
            levels=self.levels,
            labels=None if self.labels is None else self.labels.to(device),
            with_labels=self.with_labels,
            num_classes=self.num_classes,
            factors=None if self.factors is None else self.factors.to(device),
        )


@dataclass(frozen=True)
class ImageData:
    """A data set with its three disjoint splits.

    Attributes:
        name: Short name, as `load` takes it.
        train: Data to fit.
        validation: Data to choose by.
        test: Data to report.
        description: How the values were made, and from which files, in words for a protocol.
        labels: Names of the classes: label k of a split means `labels[k]`. Empty where there are none.
        factors: Names of the columns of the splits' `factors`. Empty where there are none.
    """

    name: str
    train: DataSource
    validation: DataSource
    test: DataSource
    description: str
    labels: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data with the memory of every split on `device`."""
        return replace(
            self,
            train=_moved(self.train, device),
            validation=_moved(self.validation, device),
            test=_moved(self.test, device),
        )


def from_tensors(
    train: Tensor,
    validation: Tensor,
    test: Tensor,
    *,
    values: Values,
    name: str = "tensors",
    bits_offset: float | None = None,
) -> ImageData:
    """Make a data set from tensors in memory: vectors (N, D), images (N, C, H, W) or sequences (N, C, T).

    Args:
        train: Data to fit (N, *event).
        validation: Data to choose by, same event shape.
        test: Data to report, same event shape.
        values: "continuous" for real values, "binary" for {0, 1}, "unit" for [0, 1] without a density.
        name: What the data are called in reports.
        bits_offset: Constant of bits per dimension, where the values were dequantized (log2 of the levels).

    Raises:
        DataError: if a value is not finite or not in the range that `values` promises.
        ShapeError: if the event shapes differ.

    Example:
        >>> data = from_tensors(*torch.randn(3, 10, 2), values="continuous")
        >>> data.train.batch(torch.tensor([0, 3])).x.shape
        torch.Size([2, 2])
    """
    if not train.shape[1:] == validation.shape[1:] == test.shape[1:]:
        raise ShapeError(
            "The event shapes of train, validation and test must be equal; "
            f"got {tuple(train.shape[1:])}, {tuple(validation.shape[1:])} and {tuple(test.shape[1:])}."
        )
    splits = [ArraySplit(x, values=values, bits_offset=bits_offset) for x in (train, validation, test)]
    shape = "x".join(str(n) for n in train.shape[1:])
    sizes = f"{len(train)} / {len(validation)} / {len(test)} data points of {shape}"
    return ImageData(
        name, *splits, description=f"{name}: {sizes} (train, validation, test), {values} values as given"
    )


def _divided(x: Tensor, by: int) -> Tensor:
    """Divide in place: by a number, CUDA would multiply with its reciprocal, one bit off what a CPU gives."""
    return x.div_(torch.tensor(float(by), device=x.device))


def _moved(split: DataSource, device: torch.device | str) -> DataSource:
    if isinstance(split, ArraySplit | ImageSplit):
        return split.to(device)
    raise ConfigurationError(
        f"`to` moves ArraySplit and ImageSplit; got {type(split).__name__}. Move it yourself."
    )


def rows_of(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows at `indices`, from 0, on any device: several times as fast as `values[indices]` on a CPU."""
    return values.index_select(0, indices.to(values.device))


def _check_indices(indices: Tensor) -> None:
    if indices.ndim != 1 or indices.dtype != torch.int64:
        raise ShapeError(
            f"`indices` must be int64 of shape (B,); got {indices.dtype} of shape {tuple(indices.shape)}."
        )


def _checked_labels(labels: Tensor | None, count: int, with_labels: bool) -> Tensor | None:
    if labels is None:
        if with_labels:
            raise DataError("`with_labels` needs labels, and these data have none. Leave `with_labels` out.")
        return None
    if labels.shape != (count,) or labels.is_floating_point():
        raise ShapeError(
            f"`labels` must be integers of shape ({count},); "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    return labels.to(torch.int64)


def _checked_classes(labels: Tensor | None, num_classes: int | None, with_labels: bool) -> int | None:
    if labels is None or not with_labels:
        return num_classes
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        bound = "" if num_classes is None else f" and below `num_classes` = {num_classes}"
        raise DataError(
            f"`labels` must be at least 0{bound}; got {lowest} to {highest}. Renumber the classes."
        )
    return highest + 1 if num_classes is None else num_classes


def _one_hot(labels: Tensor | None, indices: Tensor, num_classes: int | None) -> Tensor:
    assert labels is not None
    assert num_classes is not None
    return functional.one_hot(labels[indices], num_classes).to(torch.float32)


def _checked_factors(factors: Tensor | None, count: int) -> Tensor | None:
    if factors is None:
        return None
    if factors.ndim != 2 or len(factors) != count or factors.is_floating_point():
        raise ShapeError(
            f"`factors` must be integers of shape ({count}, F); "
            f"got {factors.dtype} of shape {tuple(factors.shape)}."
        )
    return factors.to(torch.int64)


def _check_values(x: Tensor, values: Values) -> None:
    flat = x.reshape(len(x), -1)
    step = max(1, CHUNK // flat.shape[1])
    for part in flat.split(step):
        if values == "binary" and not part.sub(1).mul_(part).any():  # x (x - 1) is 0 for 0 and 1 alone
            continue
        if not torch.isfinite(part).all():
            raise DataError("Every value must be finite; got NaN or infinity. Remove those data points.")
        if values == "binary":
            raise DataError(
                '"binary" values must be 0 or 1; got others. Binarize first, or state other `values`.'
            )
        if values == "unit" and (part.min() < 0 or part.max() > 1):
            got = f"[{part.min():.4g}, {part.max():.4g}]"
            raise DataError(f'"unit" values must lie in [0, 1]; got {got}. Rescale, or state "continuous".')
