"""Drawing from a trained model: samples and lines, what latents stand for, and files with captions."""

from latentflows.generation.drawing import (
    Line,
    Space,
    draws_discrete,
    interpolate,
    reconstruct,
    sample,
    sample_classes,
)
from latentflows.generation.latents import (
    ClassMeans,
    Decoded,
    apply_attribute,
    attribute_vector,
    class_means,
    traverse,
)
from latentflows.generation.pictures import PictureEntry, beside, save_grid, write_pictures
from latentflows.generation.steering import guided_draws, steps_of_draws

__all__ = [
    "ClassMeans",
    "Decoded",
    "Line",
    "PictureEntry",
    "Space",
    "apply_attribute",
    "attribute_vector",
    "beside",
    "class_means",
    "draws_discrete",
    "guided_draws",
    "interpolate",
    "reconstruct",
    "sample",
    "sample_classes",
    "save_grid",
    "steps_of_draws",
    "traverse",
    "write_pictures",
]
