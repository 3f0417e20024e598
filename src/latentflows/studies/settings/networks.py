"""The settings of encoders and decoders."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from latentflows.studies.settings.base import Integer, Settings


def _decoder_width(what: str) -> Any:
    return Field(default=None, gt=0, description=f"{what} of the decoder; null for those of the encoder.")


class MLPNetwork(Settings):
    """Fully connected encoder and decoder."""

    kind: Literal["mlp"] = "mlp"
    width: Integer = Field(default=300, gt=0, description="Units of each hidden layer.")
    decoder_width: Integer | None = _decoder_width("Units")
    depth: Integer = Field(default=2, gt=0, description="Number of hidden layers.")
    activation: Literal["relu", "elu", "silu", "tanh", "gelu"] = Field(
        default="relu", description="Nonlinearity."
    )


class GatedMLPNetwork(Settings):
    """Fully connected encoder and decoder of gated linear layers (arXiv 1705.07120)."""

    kind: Literal["gated_mlp"] = "gated_mlp"
    width: Integer = Field(default=300, gt=0, description="Units of each hidden layer.")
    decoder_width: Integer | None = _decoder_width("Units")
    depth: Integer = Field(default=2, gt=0, description="Number of hidden layers.")


class GatedConvolutionNetwork(Settings):
    """Gated convolutions for images (arXiv 1803.05649)."""

    kind: Literal["gated_convolution"] = "gated_convolution"
    width: Integer = Field(
        default=32, gt=0, description="Channels of the first block; the second has twice as many."
    )
    decoder_width: Integer | None = _decoder_width("Channels")


class ResidualConvolutionNetwork(Settings):
    """Residual convolutions for images, halved stage by stage (arXiv 1603.05027)."""

    kind: Literal["residual_convolution"] = "residual_convolution"
    width: Integer = Field(
        default=32, gt=0, description="Channels of the first stage; later ones have 2 and 4 times as many."
    )
    decoder_width: Integer | None = _decoder_width("Channels")
    num_blocks: Integer = Field(default=2, gt=0, description="Residual blocks of each stage.")


Network = Annotated[
    MLPNetwork | GatedMLPNetwork | GatedConvolutionNetwork | ResidualConvolutionNetwork,
    Field(discriminator="kind"),
]
