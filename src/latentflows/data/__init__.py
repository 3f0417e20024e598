"""Data sets in memory, prepared a batch at a time: start with `load`, or `from_tensors` for your own."""

from latentflows.data.ambiguous_shapes import MaskSplit, ambiguous_shapes
from latentflows.data.base import ArraySplit, ImageData, ImageSplit, from_tensors
from latentflows.data.download import download
from latentflows.data.energies import EnergySplit, PlaneEnergy, energy_points
from latentflows.data.load import dataset_names, load
from latentflows.data.unlabeled import SomeUnlabeled

__all__ = [
    "ArraySplit",
    "EnergySplit",
    "ImageData",
    "ImageSplit",
    "MaskSplit",
    "PlaneEnergy",
    "SomeUnlabeled",
    "ambiguous_shapes",
    "dataset_names",
    "download",
    "energy_points",
    "from_tensors",
    "load",
]
