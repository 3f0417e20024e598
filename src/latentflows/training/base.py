"""What a run is told, and what it tells: stages, options, history and callbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from latentflows.core.batches import DataSource
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.core.precision import check_positive
from latentflows.models.density import DensityModel, Model
from latentflows.models.vae import VAE
from latentflows.models.vqvae import VQVAE
from latentflows.objectives import Objective

PARTS = VAE.parts


@dataclass(frozen=True)
class Stage:
    """One phase of training: which parts learn, from which objective, for how long.

    Args:
        name: Shown in logs; unique within a run.
        objective: What is minimized.
        train: Parts that learn, None for all of the model; the others are frozen. The auxiliary module of the
            objective always learns.
        standard_prior: Whether N(0, I) stands in the prior's place: the first of two stages.
        max_epochs: Passes over the training data at most.
        max_steps: Optimizer steps at most, if given.
        batch_size: Data points per optimizer step, over all devices together.
        optimizer: "adam", "adamax" or "adamw".
        learning_rate: Its peak.
        schedule: "constant", or down to 0 at the end of the stage along a "cosine" or a "linear" line.
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        weight_decay: L2 penalty of "adam" and "adamax", decoupled decay of "adamw".
        gradient_clip_val: Largest global gradient norm, if given.
        accumulate_grad_batches: Pieces in which a device runs its batch, to save memory.
        ema_decay: If given, an exponential moving average of the weights is validated, kept and saved.
        patience: If given, stop after so many epochs without a better validation figure; counted after the
            objective's warm-up. The best weights are kept in any case where there is validation data.

    Raises:
        ConfigurationError: for a setting out of range.
    """

    name: str
    objective: Objective
    train: tuple[str, ...] | None = None
    standard_prior: bool = False
    max_epochs: int = 100
    max_steps: int | None = None
    batch_size: int = 128
    optimizer: Literal["adam", "adamax", "adamw"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    ema_decay: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.train is not None:
            unknown = [part for part in self.train if part not in (*PARTS, *DensityModel.parts, *VQVAE.parts)]
            if unknown or not self.train or len(set(self.train)) < len(self.train):
                raise ConfigurationError(f"`train` must name some of {PARTS}, each once; got {self.train}.")
        if self.standard_prior and "prior" in (self.train or PARTS):
            raise ConfigurationError(
                "With `standard_prior` the model's own prior is not looked at, so it cannot learn: leave it out of "
                "`train`."
            )
        if self.objective.prior_only and tuple(self.train or PARTS) != ("prior",):
            raise ConfigurationError(
                f'`{type(self.objective).__name__}` says nothing about the other parts: give `train=("prior",)`; '
                f"got {self.train or PARTS}."
            )
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, Integral) or isinstance(value, bool) or value < lowest
            ):
                raise ConfigurationError(f"`{name}` must be an integer of at least {lowest}; got {value!r}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigurationError(f"`{name}` must be one of {choices}; got {getattr(self, name)!r}.")
        check_positive("learning_rate", self.learning_rate)
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigurationError(
                f"`weight_decay` must be finite and at least 0; got {self.weight_decay!r}."
            )
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ConfigurationError(f"`gradient_clip_val` must be positive; got {self.gradient_clip_val!r}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigurationError(f"`ema_decay` must be in [0, 1); got {self.ema_decay!r}.")

    def parts(self, model: Model) -> tuple[str, ...]:
        """Name the parts of this model that learn."""
        return model.parts if self.train is None else self.train

    def check(self, model: Model) -> None:
        """Refuse a model that this stage cannot train.

        Raises:
            ConfigurationError: if `train` names a part that the model does not have.
            CombinationError: if nothing would learn, or the objective does not fit.
        """
        parts = self.parts(model)
        if not set(parts) <= set(model.parts):
            raise ConfigurationError(f"`train` must name some of {model.parts}, each once; got {parts}.")
        if not any(p.requires_grad for part in parts for p in getattr(model, part).parameters()):
            raise CombinationError(
                f"Stage {self.name!r} trains {parts}, which has no trainable parameters. Train another part."
            )
        with self.prior_in_force(model):
            self.objective.check(model)
        self._check_prior_learns(model, parts)
        if model.auxiliary is None and self.objective.has_auxiliary:
            raise CombinationError(
                f"`{type(self.objective).__name__}` needs a module besides the model's parts. Before `fit`, set "
                "`model.auxiliary = objective.auxiliary(model)`."
            )

    def prior_in_force(self, model: Model) -> AbstractContextManager[object]:
        """Put N(0, I) in the prior's place for a while, where the stage says so."""
        return model.standard_prior() if self.standard_prior and isinstance(model, VAE) else nullcontext()

    def _check_prior_learns(self, model: Model, parts: tuple[str, ...]) -> None:
        """Refuse a prior that is said to learn from an objective that does not look at it."""
        if not self.objective.without_prior or "prior" not in parts or not isinstance(model, VAE | VQVAE):
            return
        if any(p.requires_grad for p in model.prior.parameters()):
            others = tuple(part for part in model.parts if part != "prior")
            second = "PriorLikelihood" if isinstance(model, VAE) else "CodeLikelihood"
            raise CombinationError(
                f"`{type(self.objective).__name__}` says nothing about the prior, so it cannot learn in stage "
                f"{self.name!r}: give `train={others}`, and fit the prior in a second stage with `{second}`."
            )


_LOWEST = {
    "max_epochs": 1,
    "max_steps": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "accumulate_grad_batches": 1,
    "patience": 1,
}
_CHOICES = {"optimizer": ("adam", "adamax", "adamw"), "schedule": ("constant", "cosine", "linear")}


@dataclass(frozen=True)
class Options:
    """How a run is carried out; none of this changes what is learned, beyond rounding.

    Args:
        accelerator: "auto" takes a GPU if there is one.
        precision: "bf16-mixed" runs networks in bfloat16, and everything that enters a density in float32.
        compile: Pass the step through `torch.compile`.
        checkpoint_every: Steps between checkpoints; None for one at the ends of epochs, at most every 10 seconds.
        diagnose: Validation points (training points where there are none) that are looked at after every epoch, see
            `training.diagnostics`; 0 for none. None for a sixteenth as many as there are training points, between 50
            and 200, so that the look is a small part of an epoch.
        max_bad_steps: Non-finite steps in a row after which the last good state is restored.
        max_rollbacks: Restorations in one stage after which it ends, with the last good weights.

    Raises:
        ConfigurationError: for a setting out of range.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False
    checkpoint_every: int | None = None
    diagnose: int | None = None
    max_bad_steps: int = 5
    max_rollbacks: int = 10

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise ConfigurationError(
                f'`accelerator` must be "auto", "cpu" or "cuda"; got {self.accelerator!r}.'
            )
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ConfigurationError(
                f'`precision` must be "32-true" or "bf16-mixed"; got {self.precision!r}.'
            )
        if self.diagnose is not None and self.diagnose < 0:
            raise ConfigurationError(f"`diagnose` must be at least 0; got {self.diagnose!r}.")
        for name in ("checkpoint_every", "max_bad_steps", "max_rollbacks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"`{name}` must be at least 1; got {value!r}.")

    def points_to_diagnose(self, num_training: int) -> int:
        """Return how many points are looked at after every epoch over so many."""
        return min(max(num_training // 16, 50), 200) if self.diagnose is None else self.diagnose


@dataclass(frozen=True)
class Job:
    """One run: what is trained, on what, as `fit` is given it.

    Args:
        model: Trained in place.
        stages: At least one, of different names.
        train: Training data.
        validation: Held-out data.
        out: Folder for what it leaves behind, if anything.
        seed: Of order and noise.
        callbacks: Watch the run.
    """

    model: Model
    stages: Sequence[Stage]
    train: DataSource
    validation: DataSource | None = None
    out: Path | None = None
    seed: int = 0
    callbacks: Sequence[Callback] = ()


@dataclass
class History:
    """What happened in a run.

    Attributes:
        status: "finished", "interrupted" (resumable) or "diverged" (stopped with its last good weights).
        reason: Why, where it did not finish.
        epochs: The lines of `metrics.jsonl`.
        steps: Optimizer steps, skipped ones included.
        skipped_steps: Steps left out for a non-finite loss or gradient.
        rollbacks: Times the last good state was restored.
        seconds: Wall time of training and validation, over all sessions of a resumed run; without imports.
        together: How runs that were started together trained, stage by stage; see `fit_together`.
    """

    status: Literal["finished", "interrupted", "diverged"] = "finished"
    reason: str | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0
    seconds: float = 0.0
    together: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Progress:
    """Where a run stands: everything besides tensors that a checkpoint needs. Saved as JSON."""

    stage: int = 0
    epoch: int = 1  # within the stage, from 1
    batch: int = 0  # steps done in this epoch
    stage_steps: int = 0
    steps: int = 0
    samples: int = 0  # data points seen, over all stages
    skipped_steps: int = 0
    rollbacks: int = 0
    stage_rollbacks: int = 0
    bad_in_a_row: int = 0
    rate_scale: float = 1.0
    best: float | None = None
    best_epoch: int = 0
    lines: int = 0  # complete lines of metrics.jsonl
    seconds: float = 0.0
    sums: list[float] = field(default_factory=list)  # of this epoch's metrics
    points: int = 0  # data points in `sums`
    events: list[str] = field(default_factory=list)  # of this epoch
    told: list[str] = field(default_factory=list)  # faults that were named in this stage
    finished: bool = False
    diverged: str | None = None  # why, where the run ended so

    def next_stage(self) -> None:
        """Move to the start of the next stage."""
        self.stage += 1
        self.epoch, self.batch, self.stage_steps = 1, 0, 0
        self.stage_rollbacks, self.bad_in_a_row, self.rate_scale = 0, 0, 1.0
        self.best, self.best_epoch, self.told = None, 0, []

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch += 1
        self.batch, self.points, self.sums, self.events = 0, 0, [], []

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Callback:
    """Watches a run; every method may be left as it is. Callbacks never change what is learned."""

    def on_start(self, model: Model, stages: Sequence[Stage]) -> None:
        """Before the first step."""

    def on_step(self, line: dict[str, Any]) -> None:
        """At most ten times a second: running means of this epoch, under "train", and the position."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        """After each epoch, with its line of `metrics.jsonl`."""

    def on_event(self, text: str) -> None:
        """A skipped step, a restored state, an early stop."""

    def on_end(self, history: History) -> None:
        """After the last step, however the run ended."""


def check_run(job: Job, processes: int, options: Options) -> None:
    """Refuse stages, data, options and a number of processes that do not fit.

    Raises:
        ConfigurationError: for stages without a name of their own, or a batch that cannot be divided.
        CombinationError: if a stage cannot train this model, or cannot be compiled.
        DataError: if there is no data.
    """
    model, stages, train, validation = job.model, job.stages, job.train, job.validation
    for name, source in (("train", train), ("validation", validation)):
        if source is not None and not hasattr(source, "batch"):
            raise ConfigurationError(
                f"`{name}` must be a `DataSource`, such as `ArraySplit(tensor, values=...)`; got a "
                f"`{type(source).__name__}`."
            )
    if not all(isinstance(stage, Stage) for stage in stages):
        raise ConfigurationError(f"`stages` must be a list of `Stage`; got {list(stages)}.")
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"`stages` must be one or more, with different names; got {names}.")
    for name, source in (("train", train), ("validation", validation)):
        if source is not None and len(source) == 0:
            raise DataError(f"`{name}` must hold at least one data point; got none.")
    for stage in stages:
        stage.check(model)
        if options.compile and not stage.objective.compiles:
            raise CombinationError(
                f"The loss of stage {stage.name!r}, {stage.objective}, holds a derivative, which `torch.compile` does "
                "not differentiate. Use `Options(compile=False)`, or another gradient or penalty."
            )
        if stage.patience is not None and validation is None:
            raise ConfigurationError(
                f"Stage {stage.name!r} has a patience of {stage.patience} epochs, but there is no validation data to "
                "wait for. Give `validation`, or leave `patience` out."
            )
        shards = processes * stage.accumulate_grad_batches
        if stage.batch_size % shards or len(train) < shards:
            raise ConfigurationError(
                f"`batch_size` {stage.batch_size} must be a multiple of {shards} (processes times accumulated "
                f"pieces), and there must be that many data points; got {len(train)}."
            )
