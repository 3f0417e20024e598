"""The typed configuration of a run: every setting with its range, its default and what it means.

A part that comes in several kinds is a union told apart by `kind` (by `plan` for training). To add a kind, write its
class in the file of its part beside this one (a flow's in `flows`), add it to the union there, and build it in the
file of the same name in `studies/building` (a flow, posterior or network in `parts`). A model that brings parts of its
own is built in `codes` or `models` there, and `model_combinations` says what it does not look at. What a kind says of
itself (`PriorSettings`, `FlowSettings`, `ObjectiveSettings`) is what `combinations` refuses by; tests hold it against
the object that is built.

Nothing here imports torch, so that a mistake in a configuration is reported at once.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from latentflows.studies.settings.base import Integer, Number, Settings
from latentflows.studies.settings.evaluation import EvaluationSettings
from latentflows.studies.settings.likelihoods import BernoulliLikelihood, Likelihood
from latentflows.studies.settings.models import Model, VAEModel
from latentflows.studies.settings.networks import MLPNetwork, Network
from latentflows.studies.settings.objectives import ELBOObjective, Objective
from latentflows.studies.settings.posteriors import Gaussian, Posterior
from latentflows.studies.settings.priors import Base, Prior, Standard

USUAL_PREPARATION = {
    "digits": "dynamic_binary",
    "mnist": "dynamic_binary",
    "fashion_mnist": "dynamic_binary",
    "omniglot": "dynamic_binary",
    "cifar10": "dequantized",
    "shapes2d": "dynamic_binary",
    "ambiguous_shapes": "dynamic_binary",
    "folder": "dequantized",
    "energy": "continuous",
}


LEVELS = {"digits": 17}  # gray levels of a data set, where they are not 256
Preparation = Literal["dynamic_binary", "fixed_binary", "dequantized", "unit", "continuous"]


def items_of(text: str) -> list[str]:
    """Split an override that lists items by commas or spaces; between two commas stands an empty one, a fault later."""
    inside = text.strip().removeprefix("[").removesuffix("]").strip().removesuffix(",").rstrip()
    return re.split(r"\s*,\s*|\s+", inside) if inside else []


def _listed(value: Any) -> Any:
    return items_of(value) if isinstance(value, str) else value


Parts = Annotated[
    tuple[Literal["posterior", "prior", "likelihood"], ...], Field(min_length=1), BeforeValidator(_listed)
]
Trackers = Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(_listed)]


class DataSettings(Settings):
    """Which data, and how values are made from them."""

    name: Literal[
        "digits",
        "mnist",
        "fashion_mnist",
        "omniglot",
        "cifar10",
        "shapes2d",
        "folder",
        "arrays",
        "ambiguous_shapes",
        "energy",
    ] = Field(
        default="digits",
        description="Data set; digits ships inside scikit-learn, shapes2d, ambiguous_shapes and energy are drawn, the "
        "others are read from `root`.",
    )
    root: str | None = Field(
        default=None,
        description="Folder of the data files; null takes the environment variable LATENTFLOWS_DATA.",
    )
    preparation: Preparation | None = Field(
        default=None, description="How values are made from pixels; null takes the usual one of the data set."
    )
    validation: Number | None = Field(
        default=None, gt=0, description="Number (or fraction below 1) of validation data; null for the usual."
    )
    test: Number | None = Field(
        default=None,
        gt=0,
        description="Number (or fraction below 1) of test data, where it is not given by the files.",
    )
    seed: Integer = Field(
        default=0, ge=0, lt=2**32, description="Seed of the split, where the split is drawn."
    )
    size: Integer | None = Field(
        default=None,
        gt=0,
        description="Height and width to resize to, of folder and omniglot; or to draw, of ambiguous_shapes.",
    )
    mode: Literal["gray", "rgb"] | None = Field(
        default=None, description="Colors of the images; folder only."
    )
    memory_map: bool = Field(
        default=False, description="Leave the array on disk and read each batch; arrays only."
    )
    energy: Literal["ring", "wave", "parting_wave", "forked_wave"] | None = Field(
        default=None,
        description="Density in the plane, known up to a constant; null for ring; energy only (arXiv 1505.05770).",
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_preparation(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("preparation") is None:
            name = raw.get("name", "digits")
            usual = USUAL_PREPARATION.get(name) if isinstance(name, str) else None
            return raw | {"preparation": usual}
        return raw

    @field_validator("validation", "test")
    @classmethod
    def _whole_or_fraction(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("must be a fraction below 1 or a whole number")
        return value


class _TrainingSettings(Settings):
    tag: ClassVar[str] = "plan"
    epochs: Integer = Field(default=100, gt=0, description="Largest number of epochs of the first stage.")
    batch_size: Integer = Field(default=128, gt=0, description="Data points per step.")
    optimizer: Literal["adam", "adamax", "adamw"] = Field(default="adam", description="Optimizer.")
    learning_rate: Number = Field(default=1e-3, gt=0, description="Learning rate after its warm-up.")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="Learning rate over a stage; cosine and linear end at 0."
    )
    warmup_steps: Integer = Field(
        default=0, ge=0, description="Steps over which the learning rate rises from 0."
    )
    weight_decay: Number = Field(default=0.0, ge=0, description="Weight decay of the optimizer.")
    gradient_clip: Number | None = Field(
        default=None, gt=0, description="Largest global norm of the gradient."
    )
    accumulate: Integer = Field(
        default=1,
        gt=0,
        description="Pieces that a batch is cut into, whose gradients are averaged: saves memory, and is the same step "
        "for losses that are means over data points.",
    )
    ema_decay: Number | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, which is then evaluated and kept.",
    )
    patience: Integer | None = Field(
        default=None,
        gt=0,
        description="Stop a stage after so many epochs without a better validation figure.",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device; auto takes CUDA if it is there."
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        default="32-true", description="Precision of the networks; flow mathematics stays in float32."
    )
    compile: bool = Field(
        default=False, description="Compile the step; pays after about a minute of training."
    )
    checkpoint_every: Integer | None = Field(
        default=None, gt=0, description="Steps; null for the end of each epoch."
    )
    max_bad_steps: Integer = Field(
        default=5, gt=0, description="Steps in a row without a finite loss before rolling back."
    )
    trackers: Trackers | None = Field(
        default=None,
        description="Where figures go besides the run folder; null for TensorBoard files where it is installed, [] "
        "for none.",
    )


class ConditionSettings(Settings):
    """What the model is given besides a data point: a conditional VAE."""

    on: Literal["nothing", "labels"] = Field(
        default="nothing", description="labels gives every part named below the class, one-hot."
    )
    parts: Parts = Field(default=("posterior", "prior", "likelihood"), description="Parts that are given it.")
    unlabeled: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of training points whose label is left out, drawn anew in each batch, so that draws can be "
        "guided; 0.1 is usual (arXiv 2207.12598).",
    )

    embed: Integer | None = Field(
        default=None,
        gt=0,
        description="Numbers of the vector that is learned for each class, and that a flow or flow_matching as prior "
        "is given in place of the one-hot label; null for the label itself.",
    )

    @model_validator(mode="after")
    def _of_labels(self) -> ConditionSettings:
        if self.unlabeled and self.on != "labels":
            raise ValueError("`unlabeled` leaves out labels, and needs on=labels")
        if self.embed is not None and (self.on != "labels" or "prior" not in self.parts):
            raise ValueError(
                "`embed` gives the prior a vector for each label, and needs on=labels with prior in parts"
            )
        return self


class OneStage(_TrainingSettings):
    """Posterior, prior and likelihood train together."""

    plan: Literal["one_stage"] = "one_stage"


class TwoStage(_TrainingSettings):
    """First a VAE with prior N(0, I), then the prior alone on the frozen posterior."""

    plan: Literal["two_stage"] = "two_stage"
    prior_epochs: Integer = Field(
        default=100, gt=0, description="Largest number of epochs of the stage that fits the prior."
    )


class TwoStageJoint(_TrainingSettings):
    """Two stages, then all parts together."""

    plan: Literal["two_stage_joint"] = "two_stage_joint"
    prior_epochs: Integer = Field(
        default=100, gt=0, description="Largest number of epochs of the stage that fits the prior."
    )
    joint_epochs: Integer = Field(
        default=50, gt=0, description="Largest number of epochs of the stage that trains all parts."
    )


Training = Annotated[OneStage | TwoStage | TwoStageJoint, Field(discriminator="plan")]


class RunConfiguration(Settings):
    """Everything that decides a run."""

    name: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the run; null makes it of data, posterior and prior, or model, and other kinds chosen.",
    )
    seed: Integer = Field(
        default=0, ge=0, lt=2**32, description="Seed of the weights, the order of the data and the noise."
    )
    model: Model = Field(default=VAEModel(), description="What is trained.")
    latent_dim: Integer = Field(default=40, gt=0, description="Number of latent variables.")
    data: DataSettings = Field(default=DataSettings(), description="The data.")
    condition: ConditionSettings = Field(
        default=ConditionSettings(), description="What the model is given besides a data point."
    )
    network: Network = Field(default=MLPNetwork(), description="Encoder and decoder.")
    posterior: Posterior = Field(default=Gaussian(), description="q(z|x).")
    prior: Prior = Field(default=Standard(), description="p(z).")
    prior_base: Base = Field(default=Standard(), description="What the prior's flow starts from.")
    likelihood: Likelihood = Field(default=BernoulliLikelihood(), description="p(x|z).")
    objective: Objective = Field(default=ELBOObjective(), description="What training maximizes.")
    training: Training = Field(default=OneStage(), description="Stages, optimizer and device.")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="Evaluation.")
