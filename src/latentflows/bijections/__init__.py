"""Invertible maps. Forward is sampling (u -> x), inverse is density (x -> u)."""

from latentflows.bijections.adapters import FromNormflows, FromZuko
from latentflows.bijections.autoregressive import InverseAutoregressive
from latentflows.bijections.base import Bijection, Chain, DataDependent, Inverse
from latentflows.bijections.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    SplineCoupling,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
    half_mask,
)
from latentflows.bijections.elementwise import Elementwise, LeakyReLU, Sigmoid
from latentflows.bijections.height_autoregressive import HeightAutoregressive
from latentflows.bijections.linear import ActNorm, Permutation
from latentflows.bijections.low_rank import Planar, Radial
from latentflows.bijections.matrix import LULinear, OrthogonalLinear, TriangularLinear
from latentflows.bijections.multiscale import Rescale, Reshape, Split, Squeeze
from latentflows.bijections.sylvester import Sylvester
from latentflows.bijections.transformer import JacobiReport, TransformerAutoregressive

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Bijection",
    "Chain",
    "Coupling",
    "DataDependent",
    "Elementwise",
    "FromNormflows",
    "FromZuko",
    "HeightAutoregressive",
    "Inverse",
    "InverseAutoregressive",
    "JacobiReport",
    "LULinear",
    "LeakyReLU",
    "OrthogonalLinear",
    "Permutation",
    "Planar",
    "Radial",
    "Rescale",
    "Reshape",
    "Sigmoid",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Sylvester",
    "TransformerAutoregressive",
    "TriangularLinear",
    "alternating_mask",
    "channel_mask",
    "checkerboard_mask",
    "half_mask",
]
