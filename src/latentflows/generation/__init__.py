"""Drawing from a trained model: tensors in `drawing`, files with captions in `pictures`."""

from latentflows.generation.drawing import Line, Space, interpolate, reconstruct, sample
from latentflows.generation.pictures import PictureEntry, save_grid, write_pictures

__all__ = [
    "Line",
    "PictureEntry",
    "Space",
    "interpolate",
    "reconstruct",
    "sample",
    "save_grid",
    "write_pictures",
]
