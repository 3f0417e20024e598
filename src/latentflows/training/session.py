"""One run of `fit`: where it stands, how it goes on, and what it leaves behind.

A session is a generator: before every step, and before every block of validation data, it yields an `Ask` and is sent
the answer, or None, and then computes for itself. So one run is driven by a plain loop, and several of one shape by a
loop that answers all of them at once (`latentflows.training.stacked`).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.training.asks import Ask, Asking
from latentflows.training.base import History, Job, Options, Progress, Stage
from latentflows.training.checkpoint import Tensors, clone, prefixed, save_weights, set_weights, within
from latentflows.training.diagnostics import faults, impossible, look
from latentflows.training.initialization import initialize_once
from latentflows.training.learner import Learner, Outcome, learning_rate
from latentflows.training.parallel import World
from latentflows.training.record import Record, plain
from latentflows.training.signals import interruptible

_SAVE_EVERY = 10.0  # seconds between checkpoints at the ends of short epochs
_SHOW_EVERY = 0.1  # seconds between calls of `on_step`
_VALIDATION_BLOCK = 512
_SETTLED = 200  # steps of a stage: in the first ones no latent follows the data yet


class Session:
    """One run of `fit`.

    Args:
        job: What is trained, on what.
        record: The files of the run, if it writes any.
        options: How it is carried out.
        world: The processes that share the work.
        stop: Signals that arrived: the run ends after the step in which it finds one.
    """

    stage: Stage
    learner: Learner

    def __init__(
        self, job: Job, record: Record | None, options: Options, world: World, stop: list[int]
    ) -> None:
        self.model, self.stages, self.train, self.validation = (
            job.model,
            job.stages,
            job.train,
            job.validation,
        )
        self.seed, self.callbacks = job.seed, job.callbacks if world.first else ()
        self.record, self.options, self.world, self.stop = record, options, world, stop
        self.clock: Callable[[], float] = time.monotonic  # where several take turns, each has one of its own
        self.progress, self.history = Progress(), History()
        self.trainable = frozenset(p for p in job.model.parameters() if p.requires_grad)
        self.sums = torch.zeros(())  # of this epoch's metrics, in the objective's order
        self.started = self.saved = self.shown = self.clock()
        self.seconds_before = 0.0
        self.batch_size = self.steps_per_epoch = self.total_steps = 1

    # -- the run and its stages -----------------------------------------------------------------------------

    def alone(self, resume: bool) -> History:
        """Run to the end, computing everything itself."""
        for _ in self.run(resume):
            pass
        return self.history

    def run(self, resume: bool) -> Asking:
        """Run to the end, or until a signal; what happened is in `history`."""
        tensors = self._begin(resume)
        for callback in self.callbacks:
            callback.on_start(self.model, self.stages)
        self.started = self.saved = self.clock()  # what a tracker takes to start is no training
        try:
            while not self.progress.finished and self.history.status == "finished":
                yield from self._stage(tensors)
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

    def _begin(self, resume: bool) -> Tensors:
        """Load the checkpoint, if there is one to resume from; otherwise start the run's files anew."""
        saved = self.record.load_shared(self.world) if resume and self.record is not None else None
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

    def _stage(self, tensors: Tensors) -> Asking:
        stage = self.stage = self.stages[self.progress.stage]
        key = (self.seed, noise.Purpose.INITIALIZATION, self.progress.stage)
        with interruptible():  # a fit by EM may take minutes; stopped in it, a run starts the stage anew
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
                yield from self._epoch()
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

    def _epoch(self) -> Asking:
        progress, every = self.progress, self.options.checkpoint_every
        noise.reseed(self.seed, noise.Purpose.ORDER, progress.stage, progress.epoch)
        order = noise.permutation(len(self.train))
        self.learner.train_mode()
        while progress.batch < self.steps_per_epoch and progress.stage_steps < self.total_steps:
            yield from self._step(order[progress.batch * self.batch_size :][: self.batch_size])
            if self.world.agree(bool(self.stop))[0]:
                self._interrupt()
            if self.history.status != "finished":
                return
            if every and progress.steps % every == 0:
                self._save()
        yield from self._end_epoch()

    def _step(self, indices: Tensor) -> Asking:
        progress = self.progress
        answer = yield Ask(indices)
        outcome = answer
        if not isinstance(outcome, Outcome):
            count = self.stage.accumulate_grad_batches
            pieces = self._pieces(indices, count)
            outcome = self.learner.step(pieces, count, self.epochs, self.progress.stage_steps)
        rate = self.rate
        progress.batch += 1
        progress.stage_steps += 1
        progress.steps += 1
        progress.samples += len(indices)
        if self.world.agree(not outcome.finite)[0]:
            self._skip(outcome)
            return
        progress.bad_in_a_row = 0
        if answer is None:
            self.learner.move(outcome, rate)
        self._count(outcome, len(indices) // self.world.size)

    @property
    def rate(self) -> float:
        """The learning rate of the step to come."""
        progress = self.progress
        return progress.rate_scale * learning_rate(self.stage, progress.stage_steps, self.total_steps)

    @property
    def epochs(self) -> float:
        """Time of the stage in epochs."""
        return self.progress.stage_steps / self.steps_per_epoch

    def batch(self, ask: Ask) -> Batch:
        """Start the noise of what is asked for, as a run in one piece on one device draws it, and read its data."""
        progress, source = self.progress, self.train
        if ask.block is None:
            noise.reseed(self.seed, noise.Purpose.STEP, progress.stage, progress.stage_steps, 0)
        else:
            assert self.validation is not None
            noise.reseed(self.seed, noise.Purpose.VALIDATION, ask.block)
            source = self.validation
        return source.batch(ask.indices).to(self.world.device)

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

    def _end_epoch(self) -> Asking:
        progress = self.progress
        if not self.learner.is_finite():
            self._roll_back("the weights became non-finite")
        figures = yield from self._validate()
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
        means = self._means(*self._totals())
        looked = self._look(means.get("kl"))
        line = plain(self._line(figures, means) | {"diagnostics": looked})
        if good:  # weights that gave no finite figure are nothing to return to
            self.learner.good = self.learner.snapshot()
        self.history.epochs.append(line)
        if self.record is not None and self.world.first:
            self.record.append(line)
        progress.next_epoch()
        self.sums = self._zeros()
        for callback in self.callbacks:
            callback.on_epoch(line)
        due = self.clock() - self.saved > _SAVE_EVERY
        if self.options.checkpoint_every is None and self.world.agree(due)[0]:
            self._save()

    def _validate(self) -> Generator[Ask, Outcome | Tensor | None, dict[str, float] | None]:
        """Return the objective's mean metrics over the validation data, under noise that never changes."""
        if self.validation is None:
            return None
        self.model.eval()
        sums = self._zeros()
        with self.learner.averaged():
            for block, start in enumerate(range(0, len(self.validation), _VALIDATION_BLOCK)):
                if block % self.world.size != self.world.rank:
                    continue
                indices = torch.arange(start, min(start + _VALIDATION_BLOCK, len(self.validation)))
                ask = Ask(indices, block)
                answer = yield ask
                sums = sums + (
                    answer if isinstance(answer, Tensor) else self.learner.measure(self.batch(ask))
                )
        means = self._means(self.world.total(sums).tolist(), len(self.validation))
        return {name: value for name, value in means.items() if value is not None}

    def _look(self, kl: float | None) -> dict[str, float]:
        """Diagnose posterior and prior, and name each fault once in a stage, when it has had time to learn."""
        progress = self.progress
        if not self.world.first:
            return {}
        source = self.train if self.validation is None else self.validation
        with self.learner.averaged(), self.learner.prior():
            count = self.options.points_to_diagnose(len(self.train))
            figures = look(self.model, source, count, self.seed, self.world.device)
        learns = "posterior" in self.stage.parts(self.model)  # a frozen one was judged while it learned
        settled = progress.stage_steps >= min(_SETTLED, self.total_steps) or self._stalled(progress.epoch)
        found = faults(figures) if learns and settled else {}
        for name, text in (found | impossible(kl)).items():
            if name not in progress.told:
                progress.told.append(name)
                self._tell(f"After epoch {progress.epoch} of stage {self.stage.name!r}: {text}")
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
        settings = stage.objective.settings(self.epochs)
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
        return self.seconds_before + self.clock() - self.started

    def _save(self, *, between_stages: bool = False) -> None:
        """Write a checkpoint; between stages it holds the selected weights alone."""
        self.progress.sums, points = ([], 0) if between_stages else self._totals()
        mine, self.progress.points = self.progress.points, points
        self.progress.lines, self.progress.seconds = len(self.history.epochs), self._seconds()
        self.saved = self.clock()
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
