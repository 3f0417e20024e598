"""The settings of priors; those of flows are in `studies/settings/flows.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from latentflows.studies.settings.base import Integer, Number, PriorSettings
from latentflows.studies.settings.flows import (
    BPF,
    CNF,
    MAF,
    NAF,
    NICE,
    SOSPF,
    UNAF,
    NSFAutoregressive,
    NSFCoupling,
    RadialFlow,
    RealNVP,
    TarFlow,
)
from latentflows.studies.settings.posteriors import FullGaussian, Gaussian


class Standard(PriorSettings):
    """N(0, I), without parameters."""

    takes_label = False
    kind: Literal["standard"] = "standard"


def _components(default: int) -> Any:
    return Field(default=default, gt=0, description="Number of components.")


class GaussianMixture(PriorSettings):
    """A mixture of Gaussians, learned by gradient, also from a start by EM (arXiv 1611.02648)."""

    draws_differentiable = False
    kind: Literal["mixture"] = "mixture"
    num_components: Integer = _components(10)
    covariance: Literal["diagonal", "full"] = Field(
        default="diagonal", description="Covariance of each component."
    )
    start: Literal["spread", "em"] = Field(
        default="spread", description="em fits the components to latents of the encoder before they train."
    )


class VampPrior(PriorSettings):
    """A mixture of the posteriors of learned pseudo-inputs (arXiv 1705.07120)."""

    takes_label = False
    draws_differentiable = False
    kind: Literal["vamp"] = "vamp"
    num_components: Integer = _components(500)
    start: Literal["random", "data"] = Field(
        default="data", description="Where the pseudo-inputs start: random gray, or training data."
    )
    learned_weights: bool = Field(default=False, description="Learn the weights of the components.")


class ExemplarPrior(PriorSettings):
    """A Gaussian around the latent of each of many training data (arXiv 2004.04795)."""

    takes_label = False
    draws_differentiable = False
    kind: Literal["exemplar"] = "exemplar"
    num_exemplars: Integer = Field(default=1000, gt=0, description="Training data kept in the model.")
    num_components: Integer = Field(default=500, gt=0, description="Of them, drawn in each training step.")


def _width(default: int) -> Any:
    return Field(default=default, gt=0, description="Units of each hidden layer of its networks.")


def _depth(default: int) -> Any:
    return Field(default=default, gt=0, description="Number of hidden layers of its networks.")


class ResampledPrior(PriorSettings):
    """Draws of N(0, I) that a network accepts or rejects (LARS, arXiv 1810.11428)."""

    takes_label = False
    draws_differentiable = False
    kind: Literal["resampled"] = "resampled"
    width: Integer = _width(100)
    depth: Integer = _depth(2)
    max_attempts: Integer = Field(default=100, ge=2, description="The last of so many draws is always taken.")
    num_normalizer_samples: Integer = Field(
        default=1024, ge=2, description="Draws that estimate the normalizer in each training step."
    )


class NoiseContrastivePrior(PriorSettings):
    """N(0, I) reweighted by a classifier between it and the latents (NCP, arXiv 2010.02917)."""

    takes_label = False
    draws_differentiable = False
    stage_of_its_own = True
    kind: Literal["noise_contrastive"] = "noise_contrastive"
    width: Integer = _width(256)
    depth: Integer = _depth(2)
    sampling: Literal["resampling", "langevin"] = Field(
        default="resampling", description="How it is drawn from."
    )
    num_proposals: Integer = Field(default=1000, ge=2, description="Proposals for a draw, with resampling.")
    num_steps: Integer = Field(default=100, gt=0, description="Steps of a draw, with langevin.")

    @property
    def normalized_by_draws(self) -> bool:
        return True


class AdversarialPrior(PriorSettings):
    """A Real NVP sampler trained against a critic in the latent space (EVaLP, arXiv 2510.00260)."""

    takes_label = False
    stage_of_its_own = True
    kind: Literal["adversarial"] = "adversarial"
    num_layers: Integer = Field(default=4, gt=0, description="Couplings of the sampler.")
    width: Integer = _width(128)
    depth: Integer = _depth(2)
    critic_steps: Integer = Field(default=5, gt=0, description="Steps of the critic for one of the sampler.")
    gradient_penalty: Number = Field(default=10.0, ge=0, description="Weight of the critic's penalty.")
    divergence_weight: Number = Field(
        default=0.1,
        ge=0,
        description="Weight of the sampler's divergence from N(0, I); the paper's 1e-8 is not stable at every size.",
    )
    num_proposals: Integer | None = Field(
        default=None, ge=2, description="Resample draws among so many by the critic; null for none."
    )

    def learns_from_draws(self, *, labels: bool) -> bool:
        return self.num_proposals is None

    @property
    def normalized_by_draws(self) -> bool:
        return self.num_proposals is not None


class FlowMatchingPrior(PriorSettings):
    """A continuous flow trained by regression; draws are cheap, each density is an ODE (arXiv 2210.02747)."""

    takes_embedding = True
    kind: Literal["flow_matching"] = "flow_matching"
    width: Integer = _width(256)
    num_blocks: Integer = Field(default=2, gt=0, description="Residual blocks of the velocity.")
    solver: Literal["euler", "midpoint", "rk4", "dopri5"] = Field(
        default="rk4", description="Solver of the ODE, for draws and densities."
    )
    num_steps: Integer = Field(default=20, gt=0, description="Steps of a solver with fixed steps.")
    tolerance: Number = Field(default=1e-5, gt=0, description="Tolerance of dopri5.")
    divergence: Literal["exact", "hutchinson"] = Field(
        default="exact",
        description="How the density is computed; hutchinson gives an estimate of its logarithm.",
    )
    num_probes: Integer = Field(default=4, gt=0, description="Probes of hutchinson.")


class SecondStagePrior(PriorSettings):
    """A second VAE over the latents of the first (arXiv 1903.05789)."""

    takes_label = False
    draws_differentiable = False
    kind: Literal["second_stage"] = "second_stage"
    inner_dim: Integer | None = Field(
        default=None, gt=0, description="Number of its latents; null for as many as it models."
    )
    width: Integer = _width(1024)
    depth: Integer = _depth(3)
    num_samples: Integer = Field(default=1, gt=0, description="Samples of the estimate of each density.")


LevelFlow = Literal["radial", "real_nvp", "nice", "nsf_coupling", "maf", "nsf_autoregressive"]


def _flow(where: str) -> Any:
    return Field(default=None, description=f"Flow of {where}, with its defaults; null for a Gaussian.")


class Levels(PriorSettings):
    """What a prior with several levels of latents has; their sizes are those of the posterior's levels."""

    width: Integer = Field(default=128, gt=0, description="Units of the hidden layer between two levels.")
    top_flow: LevelFlow | None = _flow("the top level")
    flow: LevelFlow | None = _flow("every level below the top")
    top_pseudo_inputs: Integer | None = Field(
        default=None,
        gt=0,
        description="Pseudo-inputs of a VampPrior at the top, which start at random; null for N(0, I) (arXiv "
        "1705.07120).",
    )

    def learns_from_draws(self, *, labels: bool) -> bool:
        return self.top_pseudo_inputs is None


class TwoLevelPrior(Levels):
    """N(0, I) and a Gaussian given it; together with posterior=two_level (arXiv 1705.07120)."""

    kind: Literal["two_level"] = "two_level"


class DeepGaussianPrior(Levels):
    """A deep latent Gaussian model, each level given the one above; together with posterior=dlgm (arXiv 1401.4082)."""

    kind: Literal["dlgm"] = "dlgm"


Prior = Annotated[
    Standard
    | Gaussian
    | FullGaussian
    | GaussianMixture
    | VampPrior
    | ExemplarPrior
    | ResampledPrior
    | NoiseContrastivePrior
    | AdversarialPrior
    | FlowMatchingPrior
    | SecondStagePrior
    | TwoLevelPrior
    | DeepGaussianPrior
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
