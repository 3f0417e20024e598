"""The settings of every flow: the fields of a class are the arguments of the preset of the same name.

To add a flow, write its class here, add it to the unions in `studies/settings/configuration.py` and its preset to the
table in `studies/building/parts.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from latentflows.studies.settings.base import Integer, Number, PriorSettings


def _layers(default: int, what: str = "layers") -> Any:
    return Field(default=default, gt=0, description=f"Number of {what}.")


def _width(default: int) -> Any:
    return Field(default=default, gt=0, description="Units of each hidden layer of the flow's networks.")


def _depth() -> Any:
    return Field(default=2, gt=0, description="Number of hidden layers of the flow's networks.")


def _mask() -> Any:
    return Field(
        default="half", description="Which entries stay together: the first ones, or every second one."
    )


def _bits(value: Any) -> Any:
    """Read what an override gives, `[1,0,1]`, as numbers."""
    if not isinstance(value, str):
        return value
    return [int(bit) if bit in ("0", "1") else bit for bit in value.strip("[] ").replace(",", " ").split()]


Bits = Annotated[tuple[Literal[0, 1], ...], BeforeValidator(_bits)]


def _own_mask() -> Any:
    return Field(
        default=None,
        description="A mask of one's own in place of `mask`: for each variable 1 where the first coupling lets it "
        "stay, 0 where it moves it; the second does the opposite. After every two the variables are permuted.",
    )


def _one_mask(part: Any) -> Any:
    """Refuse two masks, and one that leaves a coupling nothing to read or to move."""
    if part.own_mask is None:
        return part
    if part.mask != "half":
        raise ValueError("`own_mask` takes the place of `mask`: give one of them")
    if len(set(part.own_mask)) < 2:
        raise ValueError("`own_mask` must hold 0 and 1, each at least once")
    return part


def _bins() -> Any:
    return Field(default=8, ge=2, le=128, description="Pieces of each spline.")


def _bound() -> Any:
    return Field(default=3.0, gt=0, description="The splines move what lies within plus and minus this.")


class FlowSettings(PriorSettings):
    """What every flow has.

    Attributes:
        needs_two: It couples two groups of variables.
        masked: Its `width` must carry every dependency among the variables.
        has_inverse: It can score points that it did not draw.
    """

    takes_embedding = True
    needs_two: ClassVar[bool] = False
    masked: ClassVar[bool] = False
    has_inverse: ClassVar[bool] = True


class PlanarFlow(FlowSettings):
    """Planar layers; no inverse, so for posteriors only (arXiv 1505.05770)."""

    has_inverse = False
    kind: Literal["planar"] = "planar"
    num_layers: Integer = _layers(8, "planar layers")


class RadialFlow(FlowSettings):
    """Radial layers; cheap both ways (arXiv 1505.05770)."""

    kind: Literal["radial"] = "radial"
    num_layers: Integer = _layers(8, "radial layers")


class SylvesterOrthogonal(FlowSettings):
    """Sylvester layers along learned directions; no inverse, so for posteriors only (arXiv 1803.05649)."""

    has_inverse = False
    kind: Literal["sylvester_orthogonal"] = "sylvester_orthogonal"
    num_layers: Integer = _layers(4, "Sylvester layers")
    rank: Integer | None = Field(
        default=None,
        gt=0,
        description="Directions that a layer bends; null for 8, or all if there are fewer.",
    )


class SylvesterHouseholder(FlowSettings):
    """Sylvester layers rotated by reflections; no inverse, so for posteriors only (arXiv 1803.05649)."""

    has_inverse = False
    kind: Literal["sylvester_householder"] = "sylvester_householder"
    num_layers: Integer = _layers(4, "Sylvester layers")
    num_householder: Integer | None = Field(
        default=None,
        gt=0,
        description="Reflections of each layer; null for 8, or latent_dim if that is less.",
    )


class SylvesterTriangular(FlowSettings):
    """Sylvester layers over alternating orders; no inverse, so for posteriors only (arXiv 1803.05649)."""

    has_inverse = False
    kind: Literal["sylvester_triangular"] = "sylvester_triangular"
    num_layers: Integer = _layers(4, "Sylvester layers")


class IAF(FlowSettings):
    """Inverse autoregressive flow; cheap to sample, for posteriors (arXiv 1606.04934)."""

    masked = True
    kind: Literal["iaf"] = "iaf"
    num_layers: Integer = _layers(4, "autoregressive layers")
    width: Integer = _width(128)
    depth: Integer = _depth()


class MAF(FlowSettings):
    """Masked autoregressive flow; cheap to score, for priors (arXiv 1705.07057)."""

    masked = True
    kind: Literal["maf"] = "maf"
    num_layers: Integer = _layers(4, "autoregressive layers")
    width: Integer = _width(128)
    depth: Integer = _depth()


class NSFAutoregressive(FlowSettings):
    """Autoregressive splines; a prior scores in one pass per layer, a posterior draws so (arXiv 1906.04032)."""

    masked = True
    kind: Literal["nsf_autoregressive"] = "nsf_autoregressive"
    num_layers: Integer = _layers(5, "autoregressive layers")
    width: Integer = _width(128)
    depth: Integer = _depth()
    num_bins: Integer = _bins()
    bound: Number = _bound()


class RealNVP(FlowSettings):
    """Affine coupling flow; cheap both ways (arXiv 1605.08803)."""

    needs_two = True
    kind: Literal["real_nvp"] = "real_nvp"
    num_layers: Integer = _layers(8, "couplings")
    width: Integer = _width(128)
    depth: Integer = _depth()
    mask: Literal["half", "alternating"] = _mask()
    own_mask: Bits | None = _own_mask()
    _masks = model_validator(mode="after")(_one_mask)


class NICE(FlowSettings):
    """Additive coupling flow, volume-preserving; cheap both ways (arXiv 1410.8516)."""

    needs_two = True
    kind: Literal["nice"] = "nice"
    num_layers: Integer = _layers(8, "couplings")
    width: Integer = _width(128)
    depth: Integer = _depth()
    mask: Literal["half", "alternating"] = _mask()
    own_mask: Bits | None = _own_mask()
    _masks = model_validator(mode="after")(_one_mask)


class NSFCoupling(FlowSettings):
    """Spline coupling flow with residual networks; cheap both ways (arXiv 1906.04032)."""

    needs_two = True
    kind: Literal["nsf_coupling"] = "nsf_coupling"
    num_layers: Integer = _layers(5, "couplings")
    width: Integer = _width(128)
    num_blocks: Integer = Field(default=2, gt=0, description="Residual blocks of each network.")
    num_bins: Integer = _bins()
    bound: Number = _bound()


class TarFlow(FlowSettings):
    """Transformer flow; a prior scores in one pass per layer, a posterior draws so (arXiv 2412.06329)."""

    needs_two = True
    kind: Literal["tarflow"] = "tarflow"
    num_blocks: Integer = _layers(4, "Transformers, in alternating order")
    width: Integer = Field(default=128, gt=0, description="Width of each Transformer.")
    depth: Integer = Field(default=2, gt=0, description="Attention layers of each Transformer.")
    heads: Integer = Field(default=4, gt=0, description="Attention heads; width / heads must be even.")
    patch: Integer = Field(
        default=1, gt=0, description="Latents of a token; must divide latent_dim, into two tokens or more."
    )


class CNF(FlowSettings):
    """Continuous flow by an ODE; needs the package zuko (arXiv 1810.01367)."""

    kind: Literal["cnf"] = "cnf"
    width: Integer = _width(64)
    depth: Integer = Field(default=3, gt=0, description="Number of hidden layers of the velocity.")


class NAF(FlowSettings):
    """Neural autoregressive flow; needs the package zuko (arXiv 1804.00779)."""

    needs_two = True
    kind: Literal["naf"] = "naf"
    num_layers: Integer = _layers(3, "autoregressive layers")
    width: Integer = _width(64)
    depth: Integer = _depth()


class UNAF(FlowSettings):
    """Unconstrained neural autoregressive flow; needs the package zuko (arXiv 1908.05164)."""

    needs_two = True
    kind: Literal["unaf"] = "unaf"
    num_layers: Integer = _layers(3, "autoregressive layers")
    width: Integer = _width(64)
    depth: Integer = _depth()


class SOSPF(FlowSettings):
    """Sum-of-squares polynomial flow; needs the package zuko (arXiv 1905.02325)."""

    needs_two = True
    kind: Literal["sospf"] = "sospf"
    num_layers: Integer = _layers(3, "autoregressive layers")
    width: Integer = _width(64)
    depth: Integer = _depth()
    degree: Integer = Field(default=4, gt=0, description="Degree of each polynomial before squaring.")


class BPF(FlowSettings):
    """Bernstein polynomial flow; needs the package zuko (arXiv 2004.00464)."""

    needs_two = True
    kind: Literal["bpf"] = "bpf"
    num_layers: Integer = _layers(3, "autoregressive layers")
    width: Integer = _width(64)
    depth: Integer = _depth()
    degree: Integer = Field(
        default=16,
        gt=0,
        description="Degree of the polynomials minus 4, as the ends are fixed: 16 gives degree 20.",
    )
