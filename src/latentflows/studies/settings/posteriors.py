"""The settings of posteriors; those of flows are in `studies/settings/flows.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from latentflows.studies.settings.base import Integer, Number, PriorSettings, Settings
from latentflows.studies.settings.flows import (
    BPF,
    CNF,
    IAF,
    NAF,
    NICE,
    SOSPF,
    UNAF,
    NSFAutoregressive,
    NSFCoupling,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    SylvesterHouseholder,
    SylvesterOrthogonal,
    SylvesterTriangular,
    TarFlow,
)


class _OneGaussian(PriorSettings):
    def learns_from_draws(self, *, labels: bool) -> bool:
        return not labels  # one Gaussian for each class is a mixture


class Gaussian(_OneGaussian):
    """A Gaussian with diagonal covariance."""

    kind: Literal["gaussian"] = "gaussian"


class FullGaussian(_OneGaussian):
    """A Gaussian with full covariance."""

    kind: Literal["full_gaussian"] = "full_gaussian"


class LowRankGaussian(Settings):
    """A Gaussian whose covariance is a diagonal plus a matrix of low rank (arXiv 1701.03208)."""

    kind: Literal["low_rank_gaussian"] = "low_rank_gaussian"
    rank: Integer = Field(default=4, gt=0, description="Rank of what is added to the diagonal covariance.")


class Noisy(Settings):
    """A point with fixed Gaussian noise: an autoencoder with noise injected (arXiv 1903.12436)."""

    kind: Literal["noisy"] = "noisy"
    scale: Number = Field(default=0.1, gt=0, description="Standard deviation of the noise.")


class Delta(Settings):
    """A single point without noise: an autoencoder, with a prior in a second stage (arXiv 1903.12436)."""

    kind: Literal["delta"] = "delta"


LevelFlow = Literal[
    "planar",
    "radial",
    "sylvester_orthogonal",
    "sylvester_householder",
    "sylvester_triangular",
    "iaf",
    "real_nvp",
    "nice",
    "nsf_coupling",
    "nsf_autoregressive",
]


def _flow(where: str) -> Any:
    return Field(default=None, description=f"Flow of {where}, with its defaults; null for a Gaussian.")


class Levels(Settings):
    """What a posterior with several levels of latents has; latent_dim counts those of all levels."""

    width: Integer = Field(default=128, gt=0, description="Units of the hidden layer between two levels.")
    top_flow: LevelFlow | None = _flow("the top level")
    flow: LevelFlow | None = _flow("every level below the top")

    def dims(self, latent_dim: int) -> tuple[int, ...]:
        """Return the number of latents of each level, top first."""
        raise NotImplementedError


class TwoLevel(Levels):
    """Two levels, both decoded; together with prior=two_level (arXiv 1705.07120)."""

    kind: Literal["two_level"] = "two_level"
    top_dim: Integer | None = Field(
        default=None, gt=0, description="Latents of the top level; null for half of latent_dim."
    )

    def dims(self, latent_dim: int) -> tuple[int, ...]:
        top = latent_dim // 2 if self.top_dim is None else self.top_dim
        return (top, latent_dim - top)


class DeepGaussian(Levels):
    """A deep latent Gaussian model: the lowest level is decoded; together with prior=dlgm (arXiv 1401.4082)."""

    kind: Literal["dlgm"] = "dlgm"
    num_levels: Integer = Field(
        default=2, ge=2, description="Levels, which share latent_dim as equally as can be."
    )

    def dims(self, latent_dim: int) -> tuple[int, ...]:
        each, more = divmod(latent_dim, self.num_levels)
        return tuple(each + (level < more) for level in range(self.num_levels))


Posterior = Annotated[
    Gaussian
    | FullGaussian
    | LowRankGaussian
    | Noisy
    | Delta
    | TwoLevel
    | DeepGaussian
    | PlanarFlow
    | RadialFlow
    | SylvesterOrthogonal
    | SylvesterHouseholder
    | SylvesterTriangular
    | IAF
    | RealNVP
    | NICE
    | NSFCoupling
    | NSFAutoregressive
    | TarFlow
    | CNF
    | NAF
    | UNAF
    | SOSPF
    | BPF,
    Field(discriminator="kind"),
]
