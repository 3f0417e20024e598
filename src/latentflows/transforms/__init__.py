"""Elementwise monotone maps, given raw parameters from wherever they come."""

from latentflows.transforms.affine import Additive, Affine
from latentflows.transforms.base import Transform

__all__ = ["Additive", "Affine", "Transform"]
