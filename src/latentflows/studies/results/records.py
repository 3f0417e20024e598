"""What the JSON files of run folders and study folders hold, checked as they are read."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from latentflows.studies.results.cautions import cautions

NO_LIKELIHOOD = "no likelihood"
Status = Literal["running", "finished", "interrupted", "diverged", "failed"]
Number = Annotated[
    float, BeforeValidator(lambda value: math.nan if value is None else value)
]  # null reads as NaN

_DETAILS = re.compile(
    r": |, (?!\d+[\])])"
)  # where a description of data goes on from its name; [0, 1] is no such place


class Record(BaseModel):
    """A checked JSON object; keys that are not listed are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Parameters(Record):
    """Number of parameters by part, whichever parts the model has, and in total."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, int] = Field(init=False)
    total: int

    @property
    def shown(self) -> dict[str, int]:
        """The parts in the order of the model, then the total."""
        return {**self.__pydantic_extra__, "total": self.total}


class Together(Record):
    """How runs that were started together trained in a stage."""

    stage: str = ""
    runs: int = 1
    together: bool


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
    together: tuple[Together, ...] = ()

    @property
    def trained_with(self) -> tuple[tuple[str, int], ...]:
        """Each stage with how many runs were one program in it, all sessions; empty for a run by itself throughout."""
        if not any(part.together for part in self.together):
            return ()
        parts = ((part.stage, part.runs if part.together else 1) for part in self.together)
        return tuple(dict.fromkeys(parts))


class Epoch(Record):
    """One line of `metrics.jsonl`; the counts run up over the whole run."""

    stage: str
    epoch: int
    max_epochs: int | None = None
    step: int
    samples: int | None = None
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

    @property
    def errors(self) -> dict[str, float]:
        """The standard error, the Monte Carlo error and the p-value, those that there are."""
        found = {
            "standard_error": self.standard_error,
            "monte_carlo_error": self.monte_carlo_error,
            "p_value": self.p_value,
        }
        return {name: value for name, value in found.items() if value is not None}


class Protocol(Record):
    """How the figures of an evaluation were measured.

    `likelihood` is what log p(x) is: a probability mass, a density on which data, or no likelihood; None where an
    earlier version did not say it.
    """

    split: str
    num_images: int
    num_importance_samples: int | None
    seed: int
    data: str
    data_hash: str | None = None
    likelihood: str | None = None
    posterior: str | None = None
    prior_density: str = "exact"
    normalizer_error: float | None = None
    prior_solver: str | None = None
    solver_evaluations: float | None = None
    solver_error: float | None = None
    probe_error: float | None = None
    without_bound: str | None = None
    given: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Name the one kind that an earlier version said in other words."""
        if isinstance(value, dict) and "no likelihood" in str(value.get("without_bound")):
            return {"likelihood": NO_LIKELIHOOD, **value}
        return value

    @property
    def compared(self) -> dict[str, Any]:
        """The fields that must be equal for two figures to compare."""
        fields = {"split", "num_images", "num_importance_samples", "data", "data_hash", "likelihood", "given"}
        return self.model_dump(include=fields)

    @property
    def conditions(self) -> str:
        """What must be equal for two figures to compare, as one line of text."""
        return self._in_words(self.data)

    @property
    def brief(self) -> str:
        """The same with the data and their preparation by name alone."""
        names = (_DETAILS.split(part, maxsplit=1)[0] for part in self.data.split("; "))
        return self._in_words(", ".join(names))

    def _in_words(self, data: str) -> str:
        k = self.num_importance_samples
        if k is None or self.without_bound is not None:
            weights = "no importance samples"
        else:
            weights = f"K = {k:,} importance sample{'' if k == 1 else 's'} per data point"
        kind = f"; log p(x): {self.likelihood}" if self.likelihood else ""
        given = f"; all figures are of p(x | {self.given})" if self.given else ""
        return f"{self.split} split, {self.num_images:,} data points, {weights}; {data}{kind}{given}"

    @property
    def caution(self) -> str:
        """What a reader of the figures must know about their split and the prior; empty where all is plain."""
        return " ".join(cautions([self]))


class Group(Record):
    """A group of figures with its own protocol, or the reason why there are none; `model` is not compared."""

    protocol: dict[str, Any] = {}
    model: dict[str, Any] = {}
    figures: dict[str, Quantity | None] = {}
    seconds: float | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _without_false_bound(self) -> "Group":
        """Leave out a lower bound that an earlier version took from an estimate of log p(z), which is none."""
        if self.density == "estimate":
            self.figures.pop("marginal_kl_lower", None)
        return self

    @model_validator(mode="after")
    def _with_blocks(self) -> "Group":
        """Add to the protocol of sample quality what an earlier version left out: 10 blocks of the kernel distance."""
        if "num_neighbors" in self.protocol and "dimension" in self.protocol:
            self.protocol.setdefault("num_blocks", 10)
        return self

    @property
    def density(self) -> str:
        """What the density is that figures of the group may rest on."""
        return self.model.get("prior_density", "exact")


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
    """One arm of a study."""

    name: str
    label: str
    overrides: Any = None


class Published(Record):
    """What the literature reports for arms of a study."""

    source: str
    epochs: float
    figures: dict[str, str]


class Interaction(Record):
    """Four arms that cross two changes, and the names of the changes to show."""

    both: str
    first: str
    second: str
    neither: str
    labels: tuple[str, str]

    @property
    def name(self) -> str:
        """What it is called."""
        return f"Interaction of “{self.labels[0]}” and “{self.labels[1]}”"


class Study(Record):
    """`study.json`."""

    format: Literal[1]
    name: str
    command: str
    description: str
    arms: list[Arm]
    seeds: Annotated[list[int], Field(min_length=1)]
    baseline: str
    comparisons: list[tuple[str, str]] = []
    interaction: Interaction | None = None
    smallest_difference: float | None = None
    published: Published | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons, arm and the other; every arm with the baseline where none are listed."""
        return self.comparisons or [
            (arm.name, self.baseline) for arm in self.arms if arm.name != self.baseline
        ]

    @property
    def num_comparisons(self) -> int:
        """Comparisons by one figure, for which tests are corrected."""
        return len(self.pairs) + (self.interaction is not None)

    @property
    def labels(self) -> dict[str, str]:
        """Name to show of every arm."""
        return {arm.name: arm.label for arm in self.arms}


class StudyRun(Record):
    """One line of `study.jsonl`."""

    arm: str
    seed: int
    run: str
    status: Status
    figures: dict[str, Quantity | None] | None = None
    protocol: Protocol | None = None
    parameters: Annotated[Parameters | None, BeforeValidator(lambda known: known or None)] = None
    seconds: float | None = None
    reason: str | None = None

    @property
    def likelihood(self) -> str | None:
        """What log p(x) is: a mass, a density on which data, or no likelihood; None where it is not known."""
        return None if self.protocol is None else self.protocol.likelihood


class HeldEqual(Record):
    """The budget of `plan.json`; `target` is None where every arm meets the amount of another one."""

    hold: str
    target: float | None = None
    tolerance: float | None = None
    like: Any = None


class PlannedArm(Record):
    """An arm of `plan.json`; FLOPs are of one data point, those of training by stage and for all of it.

    `borrowed` are parameters of the posterior that the prior draws through; `measure` is whether others are to spend as
    much as it does, None in a plan of an earlier version.
    """

    name: str
    label: str = ""
    parameters: dict[str, int] = {}
    solved: dict[str, Any] = {}
    stage_flops: dict[str, float | None] = {}
    training_flops: float | None = None
    sampling_flops: float | None = None
    borrowed: int = 0
    target: float | None = None
    amount: float | None = None
    measure: bool | None = None


class Plan(Record):
    """`plan.json`."""

    format: Literal[1]
    budget: HeldEqual | None = None
    arms: list[PlannedArm] = []
