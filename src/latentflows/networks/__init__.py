"""Plain modules; they know no probability."""

from latentflows.networks.base import LastLayer, NetworkMaker
from latentflows.networks.convolution import GatedConvolutionDecoder, GatedConvolutionEncoder
from latentflows.networks.coupling_convolution import CouplingConvolution, ResidualConvolution
from latentflows.networks.height_causal import HeightCausalWaveNet
from latentflows.networks.masked import MaskedMLP
from latentflows.networks.mlp import MLP, GatedMLP
from latentflows.networks.residual import ResidualMLP
from latentflows.networks.residual_convolution import (
    ResidualBlock,
    ResidualConvolutionDecoder,
    ResidualConvolutionEncoder,
    ResidualMapDecoder,
    ResidualMapEncoder,
)
from latentflows.networks.transformer import CausalTransformer, KeyValueCache
from latentflows.networks.wavenet import WaveNet

__all__ = [
    "MLP",
    "CausalTransformer",
    "CouplingConvolution",
    "GatedConvolutionDecoder",
    "GatedConvolutionEncoder",
    "GatedMLP",
    "HeightCausalWaveNet",
    "KeyValueCache",
    "LastLayer",
    "MaskedMLP",
    "NetworkMaker",
    "ResidualBlock",
    "ResidualConvolution",
    "ResidualConvolutionDecoder",
    "ResidualConvolutionEncoder",
    "ResidualMLP",
    "ResidualMapDecoder",
    "ResidualMapEncoder",
    "WaveNet",
]
