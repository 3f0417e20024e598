"""The settings of every flow: the fields of a class are the arguments of the preset of the same name.

To add a flow, write its class here, add it to the unions in `studies/configuration.py` and its preset to the table in
`studies/build.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentflows.studies.settings import Integer, Settings


class PlanarFlow(Settings):
    """Planar layers; no inverse, so for posteriors only (arXiv 1505.05770)."""

    kind: Literal["planar"] = "planar"
    num_layers: Integer = Field(default=8, gt=0, description="Number of planar layers.")


class _FlowSettings(Settings):
    width: Integer = Field(
        default=128, gt=0, description="Units of each hidden layer of the flow's networks."
    )
    depth: Integer = Field(default=2, gt=0, description="Number of hidden layers of the flow's networks.")


class IAF(_FlowSettings):
    """Inverse autoregressive flow; cheap to sample, for posteriors (arXiv 1606.04934)."""

    kind: Literal["iaf"] = "iaf"
    num_layers: Integer = Field(default=4, gt=0, description="Number of autoregressive layers.")


class MAF(_FlowSettings):
    """Masked autoregressive flow; cheap to score, for priors (arXiv 1705.07057)."""

    kind: Literal["maf"] = "maf"
    num_layers: Integer = Field(default=4, gt=0, description="Number of autoregressive layers.")


class RealNVP(_FlowSettings):
    """Affine coupling flow; cheap both ways (arXiv 1605.08803)."""

    kind: Literal["real_nvp"] = "real_nvp"
    num_layers: Integer = Field(default=8, gt=0, description="Number of couplings.")


class NICE(_FlowSettings):
    """Additive coupling flow, volume-preserving; cheap both ways (arXiv 1410.8516)."""

    kind: Literal["nice"] = "nice"
    num_layers: Integer = Field(default=8, gt=0, description="Number of couplings.")
