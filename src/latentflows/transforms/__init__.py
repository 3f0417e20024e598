"""Elementwise monotone maps, given raw parameters from wherever they come."""

from latentflows.transforms.affine import Additive, Affine
from latentflows.transforms.base import Transform
from latentflows.transforms.guidance import GuidanceRule, guided
from latentflows.transforms.leaky import Leaky
from latentflows.transforms.spline import CircularSpline, RationalQuadraticSpline

__all__ = [
    "Additive",
    "Affine",
    "CircularSpline",
    "GuidanceRule",
    "Leaky",
    "RationalQuadraticSpline",
    "Transform",
    "guided",
]
