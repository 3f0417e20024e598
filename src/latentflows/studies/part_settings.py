"""The settings of posteriors and priors; those of flows are in `studies/flow_settings.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from latentflows.studies.flow_settings import (
    BPF,
    CNF,
    IAF,
    MAF,
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
from latentflows.studies.settings import Integer, Number, Settings


class Standard(Settings):
    """N(0, I), without parameters."""

    kind: Literal["standard"] = "standard"


class Gaussian(Settings):
    """A Gaussian with diagonal covariance."""

    kind: Literal["gaussian"] = "gaussian"


class FullGaussian(Settings):
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


def _components(default: int) -> Any:
    return Field(default=default, gt=0, description="Number of components.")


class GaussianMixture(Settings):
    """A mixture of Gaussians, learned by gradient, also from a start by EM (arXiv 1611.02648)."""

    kind: Literal["mixture"] = "mixture"
    num_components: Integer = _components(10)
    covariance: Literal["diagonal", "full"] = Field(
        default="diagonal", description="Covariance of each component."
    )
    start: Literal["spread", "em"] = Field(
        default="spread", description="em fits the components to latents of the encoder before they train."
    )


class VampPrior(Settings):
    """A mixture of the posteriors of learned pseudo-inputs (arXiv 1705.07120)."""

    kind: Literal["vamp"] = "vamp"
    num_components: Integer = _components(500)
    start: Literal["random", "data"] = Field(
        default="data", description="Where the pseudo-inputs start: random gray, or training data."
    )
    learned_weights: bool = Field(default=False, description="Learn the weights of the components.")


class ExemplarPrior(Settings):
    """A Gaussian around the latent of each of many training data (arXiv 2004.04795)."""

    kind: Literal["exemplar"] = "exemplar"
    num_exemplars: Integer = Field(default=1000, gt=0, description="Training data kept in the model.")
    num_components: Integer = Field(default=500, gt=0, description="Of them, drawn in each training step.")


Posterior = Annotated[
    Gaussian
    | FullGaussian
    | LowRankGaussian
    | Noisy
    | Delta
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
Prior = Annotated[
    Standard
    | Gaussian
    | FullGaussian
    | GaussianMixture
    | VampPrior
    | ExemplarPrior
    | RadialFlow
    | RealNVP
    | NICE
    | NSFCoupling
    | MAF
    | NSFAutoregressive
    | TarFlow
    | CNF
    | NAF
    | UNAF
    | SOSPF
    | BPF,
    Field(discriminator="kind"),
]
Base = Annotated[Standard | GaussianMixture, Field(discriminator="kind")]
