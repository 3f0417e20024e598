"""Feature extractors: what sample quality is measured on. Each has a name, and a hash that says which one it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.models.inference import evaluation_mode, to_model

PixelRange = tuple[float, float]


class FeatureExtractor(Protocol):
    """From images (N, C, H, W) to features (N, D), and what a protocol must say about it.

    Attributes:
        name: As it stands beside every figure: FD[name].
        weights: SHA-256 of what decides the features.
        resize: "none", or size and filter.
        pixel_range: Range that images are clipped to first; None where they are taken as they are.
    """

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str: ...

    @property
    def resize(self) -> str: ...

    @property
    def pixel_range(self) -> PixelRange | None: ...

    def __call__(self, images: Tensor) -> Tensor: ...


class Pixels:
    """The values themselves, flattened: for data without labels, and for vectors.

    Distances in pixels see position and brightness before content: a digit moved by two pixels is far away.

    Args:
        pixel_range: Range to clip to; None for data that have none.
    """

    name = "pixels"
    weights = "none"
    resize = "none"

    def __init__(self, pixel_range: PixelRange | None = (0.0, 1.0)) -> None:
        self.pixel_range = _checked_range(pixel_range)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (N, C H W)."""
        return clipped(images, self.pixel_range).flatten(1)


class ModuleFeatures:
    r"""A module of your own, in eval mode, after the usual preparation: clip, resize, gray to color, normalize.

    An ImageNet network is such a module. None is included or downloaded: build it with the code of the library that
    it comes from, load its weights as that library says, cut its last layer off, and give it here. Figures become
    comparable with published ones only with their very network, weights and resizing, and at their n.

    `weights` is the SHA-256 of all that can be known without running the module: for each module in it the class and
    its attributes (an `nn.Threshold` at 0.1 is another one than at 0.9, a sum another function than a mean), its
    parameters and buffers, and the preparation. It is taken here, so give the module as it will be used. **The code of
    `forward` and of functions is known by name alone**: two lambdas are alike. Give what you change there another
    `name`.

        inception = ...  # an nn.Module from (N, 3, 299, 299) to (N, 2048)
        features = ModuleFeatures(inception, "inception-v3", size=299, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)

    Args:
        module: From images (N, C, H, W) to (N, D) or (N, D, 1, 1); a function without weights does as well.
        name: What figures call it.
        size: Height and width that images are resized to, bilinear with antialiasing; None for as they are.
        channels: 3 makes color of gray images by repetition; None for as they are.
        mean: Subtracted from each channel after clipping; the default is none.
        std: Divided by, for each channel.
        pixel_range: Range to clip to; None for data that have none.

    Raises:
        ConfigurationError: if `name` is empty, or a number out of range.
    """

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        name: str,
        *,
        size: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        pixel_range: PixelRange | None = (0.0, 1.0),
    ) -> None:
        positive = all(value is None or value > 0 for value in (size, channels))
        if not name or not positive or len(mean) != len(std) or any(scale <= 0 for scale in std):
            raise ConfigurationError(
                "`name` must not be empty, `size` and `channels` positive, and `mean` and `std` of one length with "
                f"std above 0; got {name!r}, {size}, {channels}, {tuple(mean)} and {tuple(std)}."
            )
        self.module, self.name, self.size, self.channels = module, name, size, channels
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.pixel_range = _checked_range(pixel_range)
        self.resize = "none" if size is None else f"{size} x {size}, bilinear, antialiased"
        module = getattr(module, "_orig_mod", module)  # out of what `torch.compile` wraps around it
        if not isinstance(module, nn.Module):
            module = _Function(module)
        self.weights = weights_hash(module, f"{_structure(module)} {channels} {self.mean} {self.std}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return (N, D).

        Raises:
            ShapeError: if these are no images, or the module gives no feature vectors.
        """
        if images.ndim != 4:
            raise ShapeError(f"`images` must have shape (N, C, H, W); got {tuple(images.shape)}.")
        x = clipped(images, self.pixel_range)
        if self.size is not None:
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if self.channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        if self.mean:
            x = (x - x.new_tensor(self.mean).view(-1, 1, 1)) / x.new_tensor(self.std).view(-1, 1, 1)
        if isinstance(self.module, nn.Module):
            with evaluation_mode(self.module):
                features = self.module(to_model(self.module, x))
        else:
            features = self.module(x)
        if features.ndim < 2 or len(features) != len(images) or features[0].numel() != features.shape[1]:
            raise ShapeError(
                f"`{self.name}` must return features (N, D) for {len(images)} images; got {tuple(features.shape)}. "
                "Pool over space, or take an earlier or later layer."
            )
        return features.flatten(1)


class _Function(nn.Module):
    """Holds a function where a module is looked at."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _structure(module: nn.Module) -> str:
    """Write down class, attributes and buffers of every module in it, also of one that is used twice."""
    lines = []
    for name, part in module.named_modules(remove_duplicate=False):
        own = {
            key: value
            for key, value in vars(part).items()
            if key not in _OF_EVERY_MODULE and not key.startswith("_torchdynamo")
        }
        own |= dict(part.named_buffers(recurse=False))  # also those that no state holds
        lines.append(f"{name}: {type(part).__module__}.{type(part).__qualname__}")
        for key in sorted(own):
            try:
                lines.append(f"  {key} = {_written(own[key])}")
            except (RuntimeError, RecursionError):  # a sparse tensor, a list that holds itself
                lines.append(f"  {key}: {type(own[key]).__qualname__}")
    return "\n".join(lines)


def _written(value: object) -> str:
    """Write a value the same way in every process: a tensor by its bytes, all else by its `repr` without addresses."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_written(each)}' for key, each in value.items())}}}"
    if isinstance(value, set | frozenset):  # their order is another one in every process
        return f"{{{', '.join(sorted(map(_written, value)))}}}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def weights_hash(module: nn.Module, preparation: str = "") -> str:
    """Return the SHA-256 of a module's state, names, types and shapes with it, and of what is done to images before."""
    digest = hashlib.sha256(preparation.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def clipped(images: Tensor, pixel_range: PixelRange | None) -> Tensor:
    """Return images with values outside the range moved to its ends."""
    return images if pixel_range is None else images.clamp(*pixel_range)


def _checked_range(pixel_range: PixelRange | None) -> PixelRange | None:
    if pixel_range is not None and not pixel_range[0] < pixel_range[1]:
        raise ConfigurationError(f"`pixel_range` must be (low, high) with low < high; got {pixel_range}.")
    return pixel_range
