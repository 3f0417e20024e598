"""Pictures that several masks explain, each with a known probability: a data set for stochastic segmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, Values
from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.core.shapes import Shape
from latentflows.data.base import ImageData

MASKS = ("empty", "small", "middle", "large")
SHAPES = ("disc", "square")
OFFSETS = (-1.5, 0.0, 1.5)  # of the edges of the small, the middle and the large mask, in widths of the blur
PROBABILITIES = ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1))  # of the masks of a disc, and of a square
_NOISE = 0.02  # standard deviation, added to pictures that span [0, 1]


class MaskSplit:
    """Pictures with K plausible masks each: a batch holds one mask of each picture, and the picture as its context.

    A batch draws mask k of picture i with its probability, from `latentflows.core.noise`. So x | c has the distribution
    sum_k p_k(c) [x = mask k of c], which is known exactly; its entropy, `entropy()`, is the least NLL of any model.

    Memory: 4 bytes per number of the pictures and K bytes per pixel.

    Args:
        pictures: c, (N, C, H, W), float.
        masks: uint8 of 0 and 1, (N, K, 1, H, W), no two of one picture alike.
        probabilities: (N, K); each row sums to 1.

    Raises:
        ShapeError: if the three do not fit.
        DataError: if a mask is not binary, two masks of a picture are alike, or a row is no distribution.
    """

    values: Values = "binary"
    bits_offset = 0.0

    def __init__(self, pictures: Tensor, masks: Tensor, probabilities: Tensor) -> None:
        _check(pictures, masks, probabilities)
        self.pictures = pictures.to(torch.float32)
        self.masks, self.probabilities = masks.to(torch.uint8), probabilities.to(torch.float64)
        self.event_shape: Shape = tuple(masks.shape[2:])

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor) -> Batch:
        """Return one mask (B, 1, H, W) of each picture at `indices` (B,), and the pictures (B, C, H, W)."""
        steps = self.probabilities[indices].cumsum(-1)
        draws = noise.uniform((len(indices), 1), like=steps)
        chosen = (draws >= steps[:, :-1]).sum(-1)  # the last mask takes what is left
        x = self.masks[indices, chosen].to(torch.float32)
        return Batch(x, self.pictures[indices])

    def entropy(self) -> Tensor:
        """Return the entropy of the masks given each picture, (N,), nats, float64."""
        return -torch.special.xlogy(self.probabilities, self.probabilities).sum(-1)

    def to(self, device: torch.device | str) -> MaskSplit:
        """Return the same split with its memory on `device`."""
        return MaskSplit(self.pictures.to(device), self.masks.to(device), self.probabilities.to(device))


def ambiguous_shapes(
    num_train: int = 2000, num_validation: int = 200, num_test: int = 200, *, size: int = 16, seed: int = 0
) -> ImageData:
    r"""Draw blurred discs and squares whose outline, and whose very presence, is uncertain.

    With d the distance of a pixel from the center (Euclidean for a disc, Chebyshev for a square), radius r and blur w,

    .. math:: c = \mathrm{sigmoid}((r - d) / w) + 0.02 \, \epsilon, \qquad
              \text{masks: } \emptyset, \; d \le r - 1.5 w, \; d \le r, \; d \le r + 1.5 w

    A disc has the masks with probabilities 0.1, 0.2, 0.3, 0.4, a square with 0.4, 0.3, 0.2, 0.1: a model must read the
    picture to know both where the outlines are and how likely each is. For S x S pixels w = S / 16, r is uniform on
    [S / 5, S / 4] and the center within S / 10 of the middle.

    Args:
        num_train: Pictures to fit.
        num_validation: Pictures to choose by.
        num_test: Pictures to report.
        size: S, at least 12.
        seed: Seed of the pictures.

    Returns:
        Three splits, each a `MaskSplit`.

    Raises:
        ConfigurationError: if a number is too small.

    References:
        In place of data with the masks of several experts (lung scans), where the distribution is unknown: Kohl et al.,
        A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018, arXiv 1806.05034, section 4.
    """
    counts = (num_train, num_validation, num_test)
    if not all(isinstance(n, int) and n > 0 for n in counts) or not isinstance(size, int) or size < 12:
        raise ConfigurationError(
            f"The numbers of pictures must be positive and `size` at least 12; got {counts} and {size!r}."
        )
    splits = []
    for place, count in enumerate(counts):
        with noise.stream(seed, noise.Purpose.DATA, 1, place):
            splits.append(_draw(count, size))
    numbers = " / ".join(map(str, counts))
    return ImageData(
        "ambiguous_shapes",
        *splits,
        description=f"blurred discs and squares of {size} x {size} with {len(MASKS)} masks of known probability each, "
        f"{numbers} (train, validation, test), drawn with seed {seed}",
    )


def _draw(count: int, size: int) -> MaskSplit:
    like = torch.zeros(())
    kind = (noise.uniform((count,), like=like) * len(SHAPES)).long()
    blur = size / 16
    radius = size * (0.2 + 0.05 * noise.uniform((count, 1, 1), like=like))
    center = size * (0.4 + 0.2 * noise.uniform((2, count, 1, 1), like=like))
    place = torch.arange(size) + 0.5
    across, down = place.view(1, 1, -1) - center[0], place.view(1, -1, 1) - center[1]
    round_, square = (across.square() + down.square()).sqrt(), torch.maximum(across.abs(), down.abs())
    distance = torch.where(kind.view(-1, 1, 1) == 0, round_, square)
    picture = ((radius - distance) / blur).sigmoid()
    picture = picture + _NOISE * noise.standard_normal(picture.shape, like=like)
    edges = [distance <= radius + offset * blur for offset in OFFSETS]
    masks = torch.stack([torch.zeros_like(edges[0]), *edges], 1)
    probabilities = torch.tensor(PROBABILITIES, dtype=torch.float64)[kind]
    return MaskSplit(picture.unsqueeze(1), masks.unsqueeze(2), probabilities)


def _check(pictures: Tensor, masks: Tensor, probabilities: Tensor) -> None:
    fits = pictures.ndim == 4 and masks.ndim == 5 and len(pictures) == len(masks) > 0
    if not fits or masks.shape[3:] != pictures.shape[2:] or probabilities.shape != masks.shape[:2]:
        raise ShapeError(
            "Expected pictures (N, C, H, W), masks (N, K, 1, H, W) and probabilities (N, K); got "
            f"{tuple(pictures.shape)}, {tuple(masks.shape)} and {tuple(probabilities.shape)}."
        )
    if not ((masks == 0) | (masks == 1)).all() or not torch.isfinite(pictures).all():
        raise DataError(
            "Masks must hold 0 and 1 alone, and pictures finite numbers. Threshold the masks first."
        )
    total = probabilities.double().sum(-1)
    if (probabilities < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-6):
        raise DataError("Each row of `probabilities` must be at least 0 and sum to 1. Normalize them.")
    flat = masks.flatten(2).to(torch.uint8)
    for first in range(masks.shape[1]):
        for second in range(first):
            if (flat[:, first] == flat[:, second]).all(-1).any():
                raise DataError(
                    f"Masks {second} and {first} of a picture are alike. Merge them and add their probabilities."
                )
