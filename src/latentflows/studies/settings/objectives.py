"""The settings of objectives; the fields of a class are the arguments of the objective of that kind.

`kl: auto` is the closed form where posterior and prior have one.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from latentflows.studies.settings.base import Integer, Number, Settings

KL = Literal["auto", "monte_carlo", "closed_form"]
DENSITIES = ("posterior_density", "prior_density")


class ObjectiveSettings(Settings):
    """What every objective says of the class that is built from it.

    Attributes:
        needs: What it needs of the model; as in the class, which says what each means.
        without_prior: It does not look at the prior.
    """

    needs: ClassVar[tuple[str, ...]] = DENSITIES
    without_prior: ClassVar[bool] = False


def _samples(default: int = 1) -> Any:
    return Field(default=default, gt=0, description="Posterior samples per data point and step.")


def _kl() -> Any:
    return Field(default="auto", description="auto takes the closed form where there is one.")


def _weight(default: float, what: str) -> Any:
    return Field(default=default, ge=0, description=f"Weight of {what}.")


class ELBOObjective(ObjectiveSettings):
    """The evidence lower bound."""

    kind: Literal["elbo"] = "elbo"
    num_samples: Integer = _samples()
    beta: Number = Field(
        default=1.0, ge=0, description="Weight of the KL after warm-up; 1 for the bound itself."
    )
    warmup_epochs: Number = Field(
        default=0.0, ge=0, description="Epochs over which the weight of the KL rises from 0."
    )
    kl: KL = _kl()
    anneal: Literal["kl", "joint"] = Field(
        default="kl", description="What the warm-up weighs: the KL, or log p(x, z) (arXiv 1505.05770)."
    )
    cycle_epochs: Number | None = Field(
        default=None, gt=0, description="Length of a cycle of repeated warm-ups (arXiv 1903.10145)."
    )
    num_cycles: Integer = Field(default=4, gt=0, description="How often the weight rises, with cycle_epochs.")
    free_bits: Number = Field(
        default=0.0, ge=0, description="Nats of each group of latents that cost nothing (arXiv 1606.04934)."
    )
    free_bits_per: Literal["dimension", "channel", "latent"] = Field(
        default="dimension", description="The groups; all but latent need kl=closed_form."
    )
    gradient: Literal["reparameterized", "stick_the_landing"] = Field(
        default="reparameterized", description="Estimator of the gradient (arXiv 1703.09194)."
    )

    @model_validator(mode="after")
    def _together(self) -> ELBOObjective:
        if self.anneal == "joint" and (self.kl == "closed_form" or self.beta != 1 or self.free_bits):
            raise ValueError("`anneal`=joint needs kl=monte_carlo (or auto), beta=1 and free_bits=0")
        if self.gradient != "reparameterized" and self.kl == "closed_form":
            raise ValueError("`gradient`=stick_the_landing needs kl=monte_carlo (or auto)")
        estimated = self.kl == "monte_carlo" or self.gradient != "reparameterized"
        if self.free_bits and self.free_bits_per != "latent" and estimated:
            raise ValueError(
                "`free_bits` per dimension or channel need kl=closed_form (or auto) and gradient=reparameterized"
            )
        if self.cycle_epochs is not None and not self.cycle_epochs >= self.warmup_epochs > 0:
            raise ValueError("`cycle_epochs` must be at least `warmup_epochs`, and that above 0")
        return self


class IWAEObjective(ObjectiveSettings):
    """The importance-weighted bound (arXiv 1509.00519)."""

    needs = (*DENSITIES, "weighable_prior")
    kind: Literal["iwae"] = "iwae"
    num_samples: Integer = _samples(5)
    gradient: Literal["standard", "doubly_reparameterized", "stick_the_landing"] = Field(
        default="standard", description="Estimator of the gradient (arXiv 1810.04152, 1703.09194)."
    )


class InfoVAEObjective(ObjectiveSettings):
    """The ELBO with a discrepancy of q(z) to p(z) in place of part of its KL (arXiv 1706.02262)."""

    needs = (*DENSITIES, "prior_learns_from_draws")
    kind: Literal["info_vae"] = "info_vae"
    num_samples: Integer = _samples()
    alpha: Number = Field(default=1.0, le=1, description="Share of the KL that is taken away; 1 is MMD-VAE.")
    scale: Number = _weight(1000.0, "the discrepancy, lambda of the paper")
    kernel: Literal["rbf", "inverse_multiquadratic"] = Field(
        default="rbf", description="Kernel of the discrepancy."
    )
    kernel_scale: Number = Field(default=1.0, gt=0, description="Its width, about that of the prior.")


class WassersteinObjective(ObjectiveSettings):
    """Reconstruction and a discrepancy of q(z) to p(z), without a KL (arXiv 1711.01558)."""

    needs = ("prior_learns_from_draws",)
    kind: Literal["wasserstein"] = "wasserstein"
    num_samples: Integer = _samples()
    weight: Number = _weight(10.0, "the discrepancy")
    kernel: Literal["rbf", "inverse_multiquadratic"] = Field(
        default="inverse_multiquadratic", description="Kernel of the discrepancy."
    )
    kernel_scale: Number = Field(default=1.0, gt=0, description="Its width, about that of the prior.")


class BetaTCObjective(ObjectiveSettings):
    """The KL in three parts, the total correlation weighted up (arXiv 1802.04942)."""

    needs = (*DENSITIES, "diagonal_posterior")
    kind: Literal["beta_tc"] = "beta_tc"
    num_samples: Integer = _samples()
    alpha: Number = _weight(1.0, "the mutual information")
    beta: Number = _weight(6.0, "the total correlation")
    gamma: Number = _weight(1.0, "the dimension-wise rest")
    sampling: Literal["stratified", "weighted"] = Field(
        default="stratified", description="How q(z) is estimated from a batch."
    )


class FactorObjective(ObjectiveSettings):
    """The ELBO less a total correlation that a discriminator estimates (arXiv 1802.05983)."""

    kind: Literal["factor"] = "factor"
    num_samples: Integer = _samples()
    gamma: Number = _weight(10.0, "the total correlation")
    width: Integer = Field(default=1000, gt=0, description="Units of each hidden layer of the discriminator.")
    depth: Integer = Field(default=6, gt=0, description="Number of its hidden layers.")


class GECOObjective(ObjectiveSettings):
    """The least KL at which reconstruction reaches a target (arXiv 1810.00597)."""

    kind: Literal["geco"] = "geco"
    target: Number = Field(
        default=0.1, description="Reconstruction error that is good enough, nats per dimension of the data."
    )
    num_samples: Integer = _samples()
    decay: Number = Field(default=0.9, ge=0, lt=1, description="Of the moving average of the constraint.")
    speed: Number = Field(
        default=1.0, gt=0, description="How much faster than the rest the multiplier moves."
    )
    kl: KL = _kl()


class CapacityObjective(ObjectiveSettings):
    """Reconstruction at a KL that is held at a rising number of nats (arXiv 1804.03599)."""

    kind: Literal["capacity"] = "capacity"
    capacity: Number = Field(default=25.0, ge=0, description="The KL in the end, nats.")
    num_samples: Integer = _samples()
    gamma: Number = _weight(1000.0, "the deviation")
    warmup_epochs: Number = Field(
        default=0.0, ge=0, description="Epochs over which the capacity rises from 0."
    )
    kl: KL = _kl()


class AutoencoderObjective(ObjectiveSettings):
    """Reconstruction alone."""

    needs = ()
    without_prior = True
    kind: Literal["autoencoder"] = "autoencoder"
    num_samples: Integer = _samples()


class RegularizedAutoencoderObjective(ObjectiveSettings):
    """Reconstruction with small latents and a smooth decoder (arXiv 1903.12436)."""

    needs = ()
    without_prior = True
    kind: Literal["regularized_autoencoder"] = "regularized_autoencoder"
    num_samples: Integer = _samples()
    latent_weight: Number = _weight(1e-2, "|z|^2 / 2")
    decoder: Literal["weight_decay", "gradient_penalty"] = Field(
        default="gradient_penalty", description="What keeps the decoder smooth."
    )
    decoder_weight: Number = _weight(1e-3, "the decoder's penalty")


class SparseAutoencoderObjective(ObjectiveSettings):
    """Reconstruction from latents that are seldom active, by a Bernoulli KL."""

    needs = ()
    without_prior = True
    kind: Literal["sparse_autoencoder"] = "sparse_autoencoder"
    num_samples: Integer = _samples()
    weight: Number = _weight(3.0, "the KL of the mean activation to the rate")
    rate: Number = Field(default=0.05, gt=0, lt=1, description="Mean activation that is aimed at.")


Objective = Annotated[
    ELBOObjective
    | IWAEObjective
    | InfoVAEObjective
    | WassersteinObjective
    | BetaTCObjective
    | FactorObjective
    | GECOObjective
    | CapacityObjective
    | AutoencoderObjective
    | RegularizedAutoencoderObjective
    | SparseAutoencoderObjective,
    Field(discriminator="kind"),
]
WITHOUT_DENSITIES = tuple(
    kind for kind in get_args(get_args(Objective)[0]) if "posterior_density" not in kind.needs
)
