"""What the JSON files of run folders and comparison folders hold, checked as they are read."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Status = Literal["running", "finished", "interrupted", "diverged", "failed"]
Number = Annotated[
    float, BeforeValidator(lambda value: math.nan if value is None else value)
]  # null reads as NaN


class Record(BaseModel):
    """A checked JSON object; keys that are not listed are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Parameters(Record):
    """Number of parameters by part."""

    posterior: int
    prior: int
    likelihood: int
    total: int


class RunRecord(Record):
    """`run.json`."""

    format: Literal[1]
    name: str
    status: Status
    reason: str | None = None
    command: str
    seed: int
    parameters: Parameters
    seconds: float
    steps: int
    skipped_steps: int
    rollbacks: int
    versions: dict[str, Any]
    hardware: dict[str, Any]
    started: str


class Epoch(Record):
    """One line of `metrics.jsonl`; the counts run up over the whole run."""

    stage: str
    epoch: int
    step: int
    seconds: float
    learning_rate: Number
    skipped_steps: int = 0
    rollbacks: int = 0
    train: dict[str, Number]
    validation: dict[str, Number] | None = None
    diagnostics: dict[str, Number] = {}
    events: list[str] = []


class Quantity(Record):
    """One measured figure; `standard_error` is over images, `monte_carlo_error` from finite K.

    `p_value` is that of a test, `undecided` the number of units that may be on either side of a threshold.
    """

    mean: Number
    standard_error: float | None = None
    monte_carlo_error: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    undecided: float | None = None
    minimum: float | None = None
    unit: str = "nats"


class Protocol(Record):
    """How the figures of an evaluation were measured."""

    split: str
    num_images: int
    num_importance_samples: int
    seed: int
    data: str
    prior_density: str = "exact"
    normalizer_error: float | None = None
    without_bound: str | None = None
    given: str | None = None

    @property
    def conditions(self) -> str:
        """What must be equal for two figures to compare, as one line of text."""
        return (
            f"{self.split} split, {self.num_images:,} images,"
            f" K = {self.num_importance_samples:,} importance samples per image; {self.data}"
            + (f"; all figures are of p(x | {self.given})" if self.given else "")
        )

    @property
    def caution(self) -> str:
        """What a reader of the figures must know about their split and the prior; empty where all is plain."""
        notes = []
        if self.given is not None:
            notes.append(
                f"The model is given the {self.given} of every image: its figures are of p(x | {self.given}), not p(x)."
            )
        if self.without_bound is not None:
            notes.append(f"There is no bound on log p(x): {self.without_bound}.")
        if self.split == "validation":
            notes.append(
                "The weights were selected on the validation split, so figures on it flatter the model."
            )
        if self.prior_density != "exact":
            error = (
                ""
                if self.normalizer_error is None
                else f", with an error of {self.normalizer_error:.2g} nats"
            )
            notes.append(f"The prior's density is not exact but of the kind {self.prior_density!r}{error}.")
        return " ".join(notes)


class Group(Record):
    """A group of figures with its own protocol, or the reason why there are none; `model` is not compared."""

    protocol: dict[str, Any] = {}
    model: dict[str, Any] = {}
    figures: dict[str, Quantity | None] = {}
    seconds: float | None = None
    reason: str | None = None


class Evaluation(Record):
    """`evaluation.json`; an older one has no groups."""

    format: Literal[1]
    protocol: Protocol
    figures: dict[str, Quantity | None]
    seconds: float
    groups: dict[str, Group] = {}

    @property
    def all_seconds(self) -> float:
        """Wall time of the bounds and of all groups."""
        return self.seconds + sum(group.seconds or 0.0 for group in self.groups.values())


class PictureEntry(Record):
    """One entry of `samples/index.json`."""

    file: str
    title: str
    caption: str


class Arm(Record):
    """One arm of a comparison."""

    name: str
    label: str
    overrides: Any = None


class Study(Record):
    """`study.json`."""

    format: Literal[1]
    name: str
    command: str
    description: str
    arms: list[Arm]
    seeds: Annotated[list[int], Field(min_length=1)]
    baseline: str


class StudyRun(Record):
    """One line of `study.jsonl`."""

    arm: str
    seed: int
    run: str
    status: Status
    figures: dict[str, Quantity | None] | None = None
    protocol: Protocol | None = None
    parameters: Parameters | None = None
    seconds: float | None = None
