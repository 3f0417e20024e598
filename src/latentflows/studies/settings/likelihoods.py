"""The settings of likelihoods."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from latentflows.studies.settings.base import Integer, Number, Settings


class LikelihoodSettings(Settings):
    """What every likelihood has.

    Attributes:
        preparations: What `data.preparation` may be.
    """

    preparations: ClassVar[tuple[str, ...]] = ("dequantized", "continuous")


class BernoulliLikelihood(LikelihoodSettings):
    """Independent binary entries, for binary data."""

    preparations = ("dynamic_binary", "fixed_binary")
    kind: Literal["bernoulli"] = "bernoulli"


class GrayBernoulliLikelihood(LikelihoodSettings):
    """The cross-entropy on gray values, which is no likelihood: for repeating others' work alone."""

    preparations = ("unit",)
    kind: Literal["gray_bernoulli"] = "gray_bernoulli"


class ContinuousBernoulliLikelihood(LikelihoodSettings):
    """A density on [0, 1] of the Bernoulli's form (arXiv 1907.06845)."""

    preparations = ("unit", "dequantized")
    kind: Literal["continuous_bernoulli"] = "continuous_bernoulli"


class _WithVariance(LikelihoodSettings):
    scale: Number | None = Field(
        default=None, gt=0, description="Standard deviation or width; with variance fixed only."
    )

    @model_validator(mode="after")
    def _scale_with_fixed(self) -> _WithVariance:
        if (getattr(self, "variance", None) == "fixed") != (self.scale is not None):
            raise ValueError("`scale` and variance=fixed go together: give both or neither")
        return self


def _variance() -> Any:
    return Field(
        default="shared", description="fixed by scale, one learned number, or a network's output per entry."
    )


class GaussianLikelihood(_WithVariance):
    """Independent normal entries, for real-valued data."""

    kind: Literal["gaussian"] = "gaussian"
    variance: Literal["fixed", "shared", "amortized", "batch_optimal"] = Field(
        default="shared",
        description="fixed at scale^2, one learned number, a network's output per entry, or the best for each batch "
        "(arXiv 2006.13202).",
    )


class LaplaceLikelihood(_WithVariance):
    """Independent Laplace entries: absolute errors, for real-valued data."""

    kind: Literal["laplace"] = "laplace"
    variance: Literal["fixed", "shared", "amortized"] = _variance()


class StudentTLikelihood(_WithVariance):
    """Independent Student t entries, which forgive outliers, for real-valued data."""

    kind: Literal["student_t"] = "student_t"
    variance: Literal["fixed", "shared", "amortized"] = _variance()
    degrees: Number | None = Field(
        default=None, gt=0, description="Degrees of freedom; null for one learned number."
    )


def _levels() -> Any:
    return Field(
        default=None, ge=2, le=256, description="Gray levels of the data; null for the data set's own."
    )


class CategoricalLikelihood(LikelihoodSettings):
    """An independent choice among the gray levels for every entry."""

    preparations = ("unit",)
    kind: Literal["categorical"] = "categorical"
    levels: Integer | None = _levels()


class LogisticLikelihood(LikelihoodSettings):
    """Mixtures of discretized logistics over the gray levels (arXiv 1606.04934, 1701.05517)."""

    preparations = ("unit",)
    kind: Literal["logistic"] = "logistic"
    num_components: Integer = Field(default=1, gt=0, description="Logistics mixed for every entry.")
    variance: Literal["shared", "amortized"] = Field(
        default="amortized", description="One learned width, or a network's output per entry."
    )
    coupled: bool = Field(
        default=False, description="Let the colors of a pixel decide on each other (arXiv 1701.05517)."
    )
    levels: Integer | None = _levels()


class FlowLikelihood(LikelihoodSettings):
    """A Real NVP flow given z: pixels need not be independent (arXiv 2004.05617)."""

    kind: Literal["flow"] = "flow"
    num_layers: Integer = Field(default=4, gt=0, description="Couplings, for vectors.")
    num_blocks: Integer = Field(default=2, gt=0, description="Residual blocks of each network, for images.")
    width: Integer = Field(default=32, gt=0, description="Units or channels of the flow's networks.")
    num_features: Integer = Field(
        default=64, gt=0, description="Numbers of z's features that the flow hears."
    )


Likelihood = Annotated[
    BernoulliLikelihood
    | GrayBernoulliLikelihood
    | ContinuousBernoulliLikelihood
    | GaussianLikelihood
    | LaplaceLikelihood
    | StudentTLikelihood
    | CategoricalLikelihood
    | LogisticLikelihood
    | FlowLikelihood,
    Field(discriminator="kind"),
]
