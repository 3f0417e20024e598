"""Plain modules; they know no probability."""

from latentflows.networks.base import LastLayer, NetworkMaker
from latentflows.networks.convolution import GatedConvolutionDecoder, GatedConvolutionEncoder
from latentflows.networks.masked import MaskedMLP
from latentflows.networks.mlp import MLP, GatedMLP

__all__ = [
    "MLP",
    "GatedConvolutionDecoder",
    "GatedConvolutionEncoder",
    "GatedMLP",
    "LastLayer",
    "MaskedMLP",
    "NetworkMaker",
]
