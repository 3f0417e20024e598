"""`fit`: trains a model through its stages, survives bad steps, signals and crashes, and resumes exactly.

Every step draws its noise from (seed, stage, step, shard) and every epoch its order from (seed, stage, epoch), so a
checkpoint needs no generator's state: a resumed run repeats what the killed one would have done, bit by bit on a CPU.
A batch is cut in shards, one per process and per accumulated piece; two processes, or one with two pieces, see the
same data and the same noise.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.models.density import Model
from latentflows.training.base import Callback, History, Options, Progress, Stage, check_run
from latentflows.training.checkpoint import Tensors, clone, prefixed, save_weights, set_weights, within
from latentflows.training.diagnostics import faults, look
from latentflows.training.initialization import initialize_once
from latentflows.training.learner import Learner, Outcome, learning_rate
from latentflows.training.parallel import World, join
from latentflows.training.record import Record, identity, lengths, plain
from latentflows.training.signals import stop_signals

_SAVE_EVERY = 10.0  # seconds between checkpoints at the ends of short epochs
_SHOW_EVERY = 0.1  # seconds between calls of `on_step`
_VALIDATION_BLOCK = 512


def fit(
    model: Model,
    stages: Sequence[Stage],
    train: DataSource,
    *,
    validation: DataSource | None = None,
    out: Path | None = None,
    seed: int = 0,
    options: Options | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> History:
    """Train `model` in place through `stages`, one after the other.

    With validation data the weights of the best epoch of each stage are kept: by ELBO at beta 1 (by its own bound for
    IWAE, by log-density for a prior's stage). A non-finite loss or gradient skips the step; several in a row restore
    the last good state at half the learning rate. SIGINT and SIGTERM end the run after the step, resumable.

    Under `torchrun` every process calls `fit`; the batch is divided among them and only the first one writes.

    Memory: 4 bytes times (weights, gradients, 2 moments, optional moving average) on the device, and copies of the
    best weights and of the last good state in main memory.

    Args:
        model: Trained in place; ends with the selected weights, in eval mode.
        stages: At least one, of different names.
        train: Training data; batches are drawn without replacement, an incomplete last one is left out.
        validation: Held-out data.
        out: Folder for `metrics.jsonl` and `checkpoint/`; without it nothing is written.
        seed: Of order and noise. The weights are the caller's.
        options: Device, precision, compilation, checkpoints, tolerance to bad steps.
        callbacks: Progress bar, trackers.
        resume: Go on from `out`, if there is a checkpoint.

    Raises:
        CombinationError: if a stage cannot train this model.
        ConfigurationError: for stages without a name of their own, or a batch that cannot be divided.
        DataError: for data that the likelihood gives no probability to.
        CheckpointError: if the checkpoint to resume from is damaged or belongs to another run, or if the length of a
            stage that has ended was changed.
    """
    options = options or Options()
    world = join(options.accelerator)
    check_run(model, stages, train, validation, world.size, options)
    with noise.preserved(), stop_signals() as stop:
        model.to(world.device).eval()
        for source in (train, validation):
            if source is not None:
                model.check_data(*source.batch(torch.arange(min(len(source), 1000))).to(world.device))
        run = identity(stages, seed, len(train))
        record = None if out is None else Record(Path(out), run, lengths(stages))
        session = _Run(model, tuple(stages), train, validation, record, seed, options, world, stop)
        session.callbacks = callbacks if world.first else ()
        return session.go(resume)


class _Run:
    """One call of `fit`: where it stands, and how it goes on."""

    stage: Stage
    learner: Learner
    callbacks: Sequence[Callback] = ()

    def __init__(
        self,
        model: Model,
        stages: tuple[Stage, ...],
        train: DataSource,
        validation: DataSource | None,
        record: Record | None,
        seed: int,
        options: Options,
        world: World,
        stop: list[int],
    ) -> None:
        self.model, self.stages, self.train, self.validation = model, stages, train, validation
        self.record, self.seed, self.options, self.world, self.stop = record, seed, options, world, stop
        self.progress, self.history = Progress(), History()
        self.trainable = frozenset(p for p in model.parameters() if p.requires_grad)
        self.sums = torch.zeros(())  # of this epoch's metrics, in the objective's order
        self.started = self.saved = self.shown = time.monotonic()
        self.seconds_before = 0.0
        self.batch_size = self.steps_per_epoch = self.total_steps = 1

    # -- the run and its stages -----------------------------------------------------------------------------

    def go(self, resume: bool) -> History:
        tensors = self._begin(resume)
        for callback in self.callbacks:
            callback.on_start(self.model, self.stages)
        self.started = time.monotonic()  # what a tracker takes to start is no training
        try:
            while not self.progress.finished and self.history.status == "finished":
                self._stage(tensors)
                tensors = {}
        except BaseException as error:
            self.history.status, self.history.reason = "interrupted", f"{type(error).__name__}: {error}"
            raise
        finally:
            for parameter in self.trainable:
                parameter.requires_grad_(True)
            self.model.eval()
            self._fill_history()
            for callback in self.callbacks:
                callback.on_end(self.history)
        return self.history

    def _begin(self, resume: bool) -> Tensors:
        """Load the checkpoint, if there is one to resume from; otherwise start the run's files anew."""
        saved = self.record.load() if resume and self.record is not None else None
        if self.record is None or saved is None:
            if self.record is not None and self.world.first:
                self.record.start()
            return {}
        tensors, self.progress, self.history.epochs = saved
        self.seconds_before = self.progress.seconds
        if self.progress.diverged is not None:
            self.history.status, self.history.reason = "diverged", self.progress.diverged
        if self.world.first:
            self.record.keep(self.history.epochs)
        if not self.world.first:  # the checkpoint has the sums of all processes; the first one takes them on
            self.progress.sums, self.progress.points = [], 0
        set_weights(self.model, within("model", tensors), str(self.record.last))
        return tensors

    def _stage(self, tensors: Tensors) -> None:
        stage = self.stage = self.stages[self.progress.stage]
        key = (self.seed, noise.Purpose.INITIALIZATION, self.progress.stage)
        initialize_once(self.model, stage, self.trainable, self.train, self.world, key)
        self.learner = Learner(self.model, stage, self.options, self.world, self.trainable)
        self.sums = self._zeros()
        if self.progress.sums:
            self.sums = self.sums + self.sums.new_tensor(self.progress.sums)
        if within("good", tensors):
            self.learner.set_tensors(tensors)
        shards = self.world.size * stage.accumulate_grad_batches
        self.batch_size = min(stage.batch_size, len(self.train)) // shards * shards
        self.steps_per_epoch = len(self.train) // self.batch_size
        all_steps = stage.max_epochs * self.steps_per_epoch
        self.total_steps = min(stage.max_steps or all_steps, all_steps)
        try:
            while self.history.status == "finished" and self._goes_on():
                self._epoch()
            if self.history.status == "interrupted":
                return
            self.learner.select()
        finally:
            self.learner.release()
        self.progress.next_stage()
        self.progress.finished = self.progress.stage == len(self.stages) or self.history.status == "diverged"
        self._save(between_stages=True)

    def _goes_on(self) -> bool:
        progress = self.progress
        if progress.batch:  # resumed inside an epoch: it must end, be validated and be written down
            return True
        return progress.stage_steps < self.total_steps and not self._stalled(progress.epoch - 1)

    def _stalled(self, epoch: int) -> bool:
        """Whether the validation figure has not improved for `patience` epochs, counted after the warm-up."""
        patience, progress = self.stage.patience, self.progress
        if patience is None or self.validation is None:
            return False
        return epoch - max(progress.best_epoch, int(self.stage.objective.schedule_epochs)) >= patience

    # -- epochs and steps -----------------------------------------------------------------------------------

    def _epoch(self) -> None:
        progress, every = self.progress, self.options.checkpoint_every
        noise.reseed(self.seed, noise.Purpose.ORDER, progress.stage, progress.epoch)
        order = noise.permutation(len(self.train))
        self.learner.train_mode()
        while progress.batch < self.steps_per_epoch and progress.stage_steps < self.total_steps:
            self._step(order[progress.batch * self.batch_size :][: self.batch_size])
            if self.world.agree(bool(self.stop))[0]:
                self._interrupt()
            if self.history.status != "finished":
                return
            if every and progress.steps % every == 0:
                self._save()
        self._end_epoch()

    def _step(self, indices: Tensor) -> None:
        progress, count = self.progress, self.stage.accumulate_grad_batches
        epochs = progress.stage_steps / self.steps_per_epoch
        outcome = self.learner.step(self._pieces(indices, count), count, epochs, progress.stage_steps)
        rate = progress.rate_scale * learning_rate(self.stage, progress.stage_steps, self.total_steps)
        progress.batch += 1
        progress.stage_steps += 1
        progress.steps += 1
        progress.samples += len(indices)
        if self.world.agree(not outcome.finite)[0]:
            self._skip(outcome)
            return
        progress.bad_in_a_row = 0
        self.learner.move(outcome, rate)
        self._count(outcome, len(indices) // self.world.size)

    def _pieces(self, indices: Tensor, count: int) -> Iterator[Batch]:
        """Give this process's pieces of a batch, each under its own noise."""
        shards = indices.tensor_split(self.world.size * count)
        for index in range(count):
            shard = self.world.rank * count + index
            noise.reseed(self.seed, noise.Purpose.STEP, self.progress.stage, self.progress.stage_steps, shard)
            yield self.train.batch(shards[shard]).to(self.world.device)

    def _count(self, outcome: Outcome, points: int) -> None:
        """Add a step's metrics to the epoch's, and show where the run is."""
        self.progress.points += points
        self.sums = self.sums + outcome.sums
        if self.callbacks and time.monotonic() - self.shown > _SHOW_EVERY:
            self.shown = time.monotonic()
            line = self._line(None, self._means(self.sums.tolist(), self.progress.points))
            for callback in self.callbacks:
                callback.on_step(line)

    def _end_epoch(self) -> None:
        progress = self.progress
        if not self.learner.is_finite():
            self._roll_back("the weights became non-finite")
        figures = self._validate()
        good = progress.bad_in_a_row == 0
        if figures is not None:
            score = self.stage.objective.score(figures)
            good = math.isfinite(score)
            if good and (progress.best is None or score > progress.best):
                progress.best, progress.best_epoch = score, progress.epoch
                self.learner.keep_best()
        if self._stalled(progress.epoch):
            self._tell(
                f"Stage {self.stage.name!r} stopped early: best validation figure at epoch {progress.best_epoch}."
            )
        looked = self._look()
        line = plain(self._line(figures, self._means(*self._totals())) | {"diagnostics": looked})
        if good:  # weights that gave no finite figure are nothing to return to
            self.learner.good = self.learner.snapshot()
        self.history.epochs.append(line)
        if self.record is not None and self.world.first:
            self.record.append(line)
        progress.next_epoch()
        self.sums = self._zeros()
        for callback in self.callbacks:
            callback.on_epoch(line)
        due = time.monotonic() - self.saved > _SAVE_EVERY
        if self.options.checkpoint_every is None and self.world.agree(due)[0]:
            self._save()

    def _validate(self) -> dict[str, float] | None:
        """Return the objective's mean metrics over the validation data, under noise that never changes."""
        if self.validation is None:
            return None
        self.model.eval()
        sums = self._zeros()
        with self.learner.averaged():
            for block, start in enumerate(range(0, len(self.validation), _VALIDATION_BLOCK)):
                if block % self.world.size != self.world.rank:
                    continue
                noise.reseed(self.seed, noise.Purpose.VALIDATION, block)
                indices = torch.arange(start, min(start + _VALIDATION_BLOCK, len(self.validation)))
                sums = sums + self.learner.measure(self.validation.batch(indices).to(self.world.device))
        means = self._means(self.world.total(sums).tolist(), len(self.validation))
        return {name: value for name, value in means.items() if value is not None}

    def _look(self) -> dict[str, float]:
        """Diagnose posterior and prior, and name each fault once in a stage."""
        if not self.world.first:
            return {}
        source = self.train if self.validation is None else self.validation
        with self.learner.averaged(), self.learner.prior():
            figures = look(self.model, source, self.options.diagnose, self.seed, self.world.device)
        learns = "posterior" in self.stage.parts(self.model)  # a frozen one was judged while it learned
        for name, text in faults(figures).items() if learns else ():
            if name not in self.progress.told:
                self.progress.told.append(name)
                self._tell(f"After epoch {self.progress.epoch} of stage {self.stage.name!r}: {text}")
        return figures

    # -- bad steps and interruptions ------------------------------------------------------------------------

    def _skip(self, outcome: Outcome) -> None:
        progress = self.progress
        progress.skipped_steps += 1
        progress.bad_in_a_row += 1
        what = f"loss {outcome.loss:g}, gradient norm {outcome.gradient_norm:g}"
        if progress.bad_in_a_row == 1:
            self._tell(f"Step {progress.steps} of stage {self.stage.name!r} skipped: {what}.")
        if progress.bad_in_a_row >= self.options.max_bad_steps:
            self._roll_back(f"{progress.bad_in_a_row} steps in a row were non-finite ({what})")

    def _roll_back(self, why: str) -> None:
        progress = self.progress
        self.learner.restore(self.learner.good)
        progress.bad_in_a_row = 0
        progress.rollbacks += 1
        progress.stage_rollbacks += 1
        progress.rate_scale /= 2
        self._tell(
            f"Step {progress.steps} of stage {self.stage.name!r}: {why}; the last good state was restored and the "
            f"learning rate halved to {progress.rate_scale:g} of its plan."
        )
        if progress.stage_rollbacks >= self.options.max_rollbacks:
            self.history.status = "diverged"
            self.history.reason = progress.diverged = (
                f"Stage {self.stage.name!r} was restored {progress.stage_rollbacks} times; last: {why}. Its last good "
                "weights are kept. Lower the learning rate, clip gradients, or look at the data."
            )

    def _interrupt(self) -> None:
        self._save()
        name = signal.Signals(self.stop[0]).name if self.stop else "another process"
        self.history.status = "interrupted"
        self.history.reason = f"Stopped by {name} at step {self.progress.steps}; resumable."

    # -- records --------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        self.progress.events.append(text)
        for callback in self.callbacks:
            callback.on_event(text)

    def _zeros(self) -> Tensor:
        count = len(self.stage.objective.metrics)
        return torch.zeros(count, dtype=torch.float64, device=self.world.device)

    def _totals(self) -> tuple[list[float], int]:
        """Sum this epoch's metrics, and its data points, over all processes."""
        points = self.sums.new_tensor([self.progress.points])
        *totals, count = self.world.total(torch.cat([self.sums, points])).tolist()
        return totals, int(count)

    def _means(self, sums: list[float], points: int) -> dict[str, float | None]:
        names = self.stage.objective.metrics
        return {name: value / points if points else None for name, value in zip(names, sums, strict=True)}

    def _line(self, figures: dict[str, float] | None, means: dict[str, float | None]) -> dict[str, Any]:
        progress, stage = self.progress, self.stage
        plan = learning_rate(stage, max(progress.stage_steps - 1, 0), self.total_steps)
        settings = stage.objective.settings(progress.stage_steps / self.steps_per_epoch)
        return {
            "stage": stage.name,
            "epoch": progress.epoch,
            "max_epochs": stage.max_epochs,
            "step": progress.steps,
            "seconds": round(self._seconds(), 3),
            "samples": progress.samples,
            "learning_rate": progress.rate_scale * plan,
            "skipped_steps": progress.skipped_steps,
            "rollbacks": progress.rollbacks,
            "train": means | settings,
            "validation": figures,
            "events": list(progress.events),
        }

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save(self, *, between_stages: bool = False) -> None:
        """Write a checkpoint; between stages it holds the selected weights alone."""
        self.progress.sums, points = ([], 0) if between_stages else self._totals()
        mine, self.progress.points = self.progress.points, points
        self.progress.lines, self.progress.seconds = len(self.history.epochs), self._seconds()
        self.saved = time.monotonic()
        if self.record is not None and self.world.first:
            if between_stages:  # first the weights: the checkpoint may say that the run has ended
                save_weights(self.model, self.record.weights)
            tensors = (
                prefixed("model", clone(self.model.state_dict()))
                if between_stages
                else self.learner.tensors()
            )
            self.record.save(tensors, self.progress)
        self.progress.points = mine
        self.world.wait()

    def _fill_history(self) -> None:
        history, progress = self.history, self.progress
        history.steps, history.skipped_steps = progress.steps, progress.skipped_steps
        history.rollbacks, history.seconds = progress.rollbacks, self._seconds()
