"""Invertible maps. Forward is sampling (u -> x), inverse is density (x -> u)."""

from latentflows.bijections.autoregressive import InverseAutoregressive
from latentflows.bijections.base import Bijection, Chain, Inverse
from latentflows.bijections.coupling import AdditiveCoupling, AffineCoupling, alternating_mask, half_mask
from latentflows.bijections.linear import ActNorm, Permutation
from latentflows.bijections.low_rank import Planar

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Bijection",
    "Chain",
    "Inverse",
    "InverseAutoregressive",
    "Permutation",
    "Planar",
    "alternating_mask",
    "half_mask",
]
