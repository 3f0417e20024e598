"""How a trained model is measured and shown: the settings of `evaluation`.

Every group of figures is asked for by one number, that of the data points it is measured on: 0 leaves the group out.
More than the split has is refused; a default number means all of a smaller split.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentflows.studies.settings.base import Integer, Number, Settings


class EvaluationSettings(Settings):
    """How the trained model is measured and shown."""

    split: Literal["test", "validation"] = Field(default="test", description="Data to evaluate on.")
    num_importance_samples: Integer = Field(
        default=1000, gt=0, description="K of the importance-weighted likelihood."
    )
    num_images: Integer | None = Field(
        default=None,
        gt=0,
        description="Data points for the bounds and the likelihood; null for all of the split.",
    )
    temperature: Number = Field(
        default=1.0, gt=0, description="Scale of the prior's base noise in the pictures."
    )
    seed: Integer = Field(
        default=0, ge=0, lt=2**32, description="Seed of the evaluation and of the pictures."
    )
    information: Integer | None = Field(
        default=None,
        ge=0,
        description="Data points for I(x; z), KL(q(z) || p(z)) and active units; 0 for none, null for 200, without "
        "I(x; z) where the posterior is slow to score other points.",
    )
    holes: Integer = Field(
        default=200, ge=0, description="Data points whose latents are told from the prior's; 0 for none."
    )
    gaps: Integer = Field(
        default=0,
        ge=0,
        description="Data points for the approximation and the amortization gap, seconds each; 0 for none.",
    )
    annealed: Integer = Field(
        default=0,
        ge=0,
        description="Data points for annealed importance sampling, a check on the NLL, seconds each; 0 for none.",
    )
    samples: Integer = Field(
        default=0, ge=0, description="Images, real and drawn, for FID, KID and the like; 0 for none."
    )
    sample_features: Literal["classifier", "pixels"] = Field(
        default="classifier",
        description="What samples are compared on: a small classifier trained on the labels, or values themselves.",
    )
    sample_classifier: str | None = Field(
        default=None,
        min_length=1,
        description="File of the classifier, trained and written where it is missing: share it between runs that are "
        "compared. null for one of the run's own.",
    )
    sample_temperature: Number = Field(
        default=1.0, gt=0, description="Scale of the prior's base noise in the samples that are compared."
    )
    sample_shown: Literal["sample", "mean"] = Field(
        default="sample",
        description="Compare draws of p(x|z), or its means, which are no samples of the model.",
    )
    neighbors: Integer = Field(
        default=0, ge=0, description="Samples whose nearest training images are looked up; 0 for none."
    )
    disentanglement: Integer = Field(
        default=0,
        ge=0,
        description="Data points for MIG, DCI and SAP, on data with known factors; 0 for none.",
    )
    segmentation: Integer | None = Field(
        default=None,
        ge=0,
        description="Pictures whose drawn masks are compared with the known ones; 0 for none, null for all where the "
        "data have masks.",
    )
    num_masks: Integer = Field(default=50, ge=2, description="Masks drawn for each of those pictures.")
    target: Integer | None = Field(
        default=None,
        ge=0,
        description="Points for the KL divergence from and to a known density, of a flow on data; 0 for none, null for "
        "all where the density of the data is known.",
    )
