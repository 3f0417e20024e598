"""Data sets in memory, prepared a batch at a time: start with `load`, or `from_tensors` for your own."""

from latentflows.data.ambiguous_shapes import MaskSplit, ambiguous_shapes
from latentflows.data.base import ArraySplit, ImageData, ImageSplit, from_tensors
from latentflows.data.download import download
from latentflows.data.load import dataset_names, load

__all__ = [
    "ArraySplit",
    "ImageData",
    "ImageSplit",
    "MaskSplit",
    "ambiguous_shapes",
    "dataset_names",
    "download",
    "from_tensors",
    "load",
]
