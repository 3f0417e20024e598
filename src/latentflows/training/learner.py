"""One stage's learner: the model, its optimizer, moving average and snapshots, and a single guarded step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from latentflows.core.batches import Batch
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import DataError, NonFiniteError
from latentflows.core.running import Running
from latentflows.models.density import Model
from latentflows.objectives import Objective, Value
from latentflows.training.base import Options, Stage
from latentflows.training.checkpoint import (
    Tensors,
    clone,
    optimizer_tensors,
    prefixed,
    set_optimizer,
    set_weights,
    within,
)
from latentflows.training.masks import Masks
from latentflows.training.parallel import World, wrap

_SMALL = 2**18  # numbers; a vector of them (1 MiB) stays in a core's cache


class Step(nn.Module):
    """Model and objective as one module, so that DDP and `torch.compile` see a whole step."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, x: Tensor, context: Tensor | None, epoch: float | Tensor, objective: Objective | None = None
    ) -> Value:
        objective = objective or self.objective
        return objective(objective.trace(self.model, x, context), epoch)


@dataclass(frozen=True)
class Outcome:
    """What a step measured: sums of the objective's metrics, in its order, and whether all was finite."""

    sums: Tensor
    loss: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether the optimizer may move."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Learner:
    """The trainable state of one stage.

    Args:
        model: On its device already.
        stage: What learns, and how.
        options: Precision and compilation.
        world: The processes that share the work.
        trainable: The parameters that the caller has not frozen.
    """

    def __init__(
        self, model: Model, stage: Stage, options: Options, world: World, trainable: frozenset[nn.Parameter]
    ) -> None:
        self.model, self.stage, self.options, self.world = model, stage, options, world
        modules = [getattr(model, part) for part in stage.parts(model)]
        if stage.objective.has_auxiliary:
            modules.append(model.auxiliary)
        learning = dict.fromkeys(p for module in modules for p in module.parameters())
        self.running = [each for module in modules for each in module.modules() if isinstance(each, Running)]
        self.parameters = [p for p in learning if p in trainable]
        model.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.vectors: list[Tensor] = self._flattened()
        self.flattened = self.vectors[0] is not self.parameters[0]
        self.gradient = torch.zeros_like(self.vectors[0]) if self.flattened else torch.empty(0)
        self.pieces = _views(self.gradient, self.parameters) if self.flattened else []
        self.shares = False  # whether its numbers are views of those of several learners
        self.optimizer = optimizer_of(self.vectors, stage)
        step = Step(model, stage.objective)
        if options.compile:  # with eager's random numbers, so that compiling changes rounding alone
            step = torch.compile(step, dynamic=False, options={"fallback_random": True})
        idle = any(getattr(module, "may_idle", False) for module in model.modules())
        some_unused = stage.objective.takes_turns or idle
        self.module = wrap(step, world, some_unused=some_unused)  # type: ignore[arg-type]
        masked = self.parameters if self.flattened and not options.compile else []
        self.masks = Masks(model, masked)  # now that all processes have the buffers of the first
        self.average = [p.detach().clone() for p in self.vectors] if stage.ema_decay is not None else []
        self.best: Tensors = {}
        self.good: Tensors = self.snapshot()

    def train_mode(self) -> None:
        """Put learning parts in train mode and frozen ones in eval mode."""
        learning = self.stage.parts(self.model)
        for part in self.model.parts:
            getattr(self.model, part).train(part in learning)
        if self.model.auxiliary is not None:
            self.model.auxiliary.train()

    def step(self, pieces: Iterable[Batch], count: int, epoch: float, index: int = 0) -> Outcome:
        """Compute the gradient over `count` pieces of a batch of the stage's step `index`; move nothing yet."""
        for parameter in self.parameters:
            parameter.grad = None
        for module in self.running:
            module.begin()
        values: list[Value] = []
        time = torch.tensor(epoch, device=self.world.device) if self.options.compile else epoch
        objective = self.stage.objective.at(index) if self.stage.objective.takes_turns else None
        for number, piece in enumerate(pieces):
            with self._synchronized(number == count - 1), self.prior(), self.masks.on(self.vectors[0]):
                with self.autocast(), values_unchecked():
                    value = self.module(piece.x, piece.context, time, objective)
                (value.loss / count if count > 1 else value.loss).backward()
            values.append(value)
        names = self.stage.objective.metrics
        sums = (
            torch.stack([sums_of(value.metrics, names) for value in values]).sum(0)
            if count > 1
            else sums_of(values[0].metrics, names)
        )
        loss = sum(value.loss.item() for value in values) / count
        gradients = self._gradients()
        norms = gradients[0] if len(gradients) == 1 else torch.stack(torch._foreach_norm(gradients))
        return Outcome(sums, loss, torch.linalg.vector_norm(norms).item())

    def move(self, outcome: Outcome, rate: float) -> None:
        """Clip the gradient, let the optimizer move at this learning rate, and follow with the moving average."""
        limit = self.stage.gradient_clip_val
        if limit is not None and outcome.gradient_norm > limit:
            gradients = [p.grad for p in self.vectors if p.grad is not None]
            torch._foreach_mul_(gradients, limit / outcome.gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        advance(self.optimizer)
        for module in self.running:
            module.commit()
        if self.average:
            assert self.stage.ema_decay is not None
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.vectors, 1 - self.stage.ema_decay)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Tensor:
        """Return the sums of the objective's metrics over a batch, every schedule at its end.

        They are NaN where z diverged, or where a part refuses what another gives it, such as a prior that ends in a
        `Sigmoid` a z outside its interval, which training takes for the border. The run goes on, with a warning.
        """
        objective = self.stage.objective
        try:
            with self.autocast(), self.prior():
                value = objective(objective.trace(self.model, batch.x, batch.context))
                return sums_of(value.metrics, objective.metrics)
        except DataError as error:
            if not isinstance(error, NonFiniteError):
                warnings.warn(
                    f"Validation figures of stage {self.stage.name!r} are NaN. {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return torch.full((len(objective.metrics),), torch.nan, device=batch.x.device)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average in the model's place for a while."""
        if not self.average:
            yield
            return
        own = [p.detach().clone() for p in self.vectors]
        self._set(self.average)
        try:
            yield
        finally:
            self._set(own)

    def is_finite(self) -> bool:
        """Whether all learning weights are finite and no buffer holds NaN (a mask may hold infinities)."""
        weights = all(bool(torch.isfinite(p).all()) for p in self.vectors)
        return weights and not any(bool(torch.isnan(b).any()) for b in self.model.buffers())

    def keep_best(self) -> None:
        """Remember the weights as they would be used now."""
        with self.averaged():
            self.best = clone(self.model.state_dict())

    def select(self) -> None:
        """End the stage: take the best weights, or else the moving average, or else the last ones."""
        if self.best:
            set_weights(self.model, self.best, "the best weights")
        elif self.average:
            self._set(self.average)

    def release(self) -> None:
        """Let every parameter own its numbers again, and a skipped last step leave no trace."""
        for module in self.running:
            module.leave()
        if self.flattened or self.shares:
            for parameter in self.parameters:
                parameter.data = parameter.data.clone()

    @property
    def num_steps(self) -> int:
        """How many steps the optimizer has taken in this stage."""
        return max((int(state["step"]) for state in self.optimizer.state.values() if state), default=0)

    def share(self, row: Tensor, average: Tensor | None) -> None:
        """Let parameters and moving average be views of these vectors (P,), which hold the same numbers."""
        self.shares = True
        _become_views(self.parameters, row)
        if self.flattened:
            self.vectors[0].data = row
        if average is not None:
            sizes = [v.numel() for v in self.vectors]
            pieces = zip(average.split(sizes), self.vectors, strict=True)
            self.average = [piece.view_as(v) for piece, v in pieces]

    def share_moments(self, state: Tensors) -> None:
        """Let the optimizer's state be views of these vectors (P,); a number counts for all parameters."""
        sizes = [v.numel() for v in self.vectors]
        for name, value in state.items():
            pieces = [value] * len(sizes) if value.ndim == 0 else value.split(sizes)
            for vector, piece in zip(self.vectors, pieces, strict=True):
                self.optimizer.state[vector][name] = piece if value.ndim == 0 else piece.view_as(vector)

    def own(self) -> None:
        """Undo `share`: go on with copies."""
        vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.share(vector, None)  # of its own, from now on
        self.average = [value.clone() for value in self.average]
        for vector in self.vectors:
            self.optimizer.state[vector] = {k: v.clone() for k, v in self.optimizer.state[vector].items()}

    def snapshot(self) -> Tensors:
        """Copy weights, optimizer and moving average to the CPU."""
        average = {str(i): value for i, value in enumerate(self.average)}
        return (
            prefixed("model", clone(self.model.state_dict()))
            | prefixed("optimizer", clone(optimizer_tensors(self.optimizer)))
            | prefixed("average", clone(average))
        )

    def restore(self, tensors: Tensors) -> None:
        """Put a snapshot back."""
        set_weights(self.model, within("model", tensors), "the snapshot")
        set_optimizer(self.optimizer, within("optimizer", tensors))
        average = within("average", tensors)
        self.average = [average[str(i)].to(p.device).clone() for i, p in enumerate(self.vectors) if average]

    def tensors(self) -> Tensors:
        """Return all that a checkpoint needs."""
        return self.snapshot() | prefixed("best", self.best) | prefixed("good", self.good)

    def set_tensors(self, tensors: Tensors) -> None:
        """Put back what `tensors` returned."""
        self.restore(tensors)
        self.best, self.good = within("best", tensors), within("good", tensors)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.vectors, values)

    def prior(self) -> AbstractContextManager[object]:
        """Put N(0, I) in the prior's place, where the stage says so."""
        return self.stage.prior_in_force(self.model)

    def autocast(self) -> AbstractContextManager[object]:
        """Run networks in the precision of the options."""
        if self.options.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16)

    def _synchronized(self, last: bool) -> AbstractContextManager[object]:
        """Average gradients over processes only on the last piece of a batch."""
        if last or not isinstance(self.module, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def _flattened(self) -> list[Tensor]:
        """Let the learning parameters of a small model be views of one vector.

        Norm, optimizer and moving average then run once instead of once per parameter, which is most of their time
        in a small model. In a large one copying the gradients together would cost more than it saves.
        """
        total = sum(p.numel() for p in self.parameters)
        if self.stage.objective.takes_turns:  # a parameter whose turn it is not must not move
            return list(self.parameters)
        if total > _SMALL or len({(p.dtype, p.device) for p in self.parameters}) > 1:
            return list(self.parameters)
        vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        _become_views(self.parameters, vector)
        return [nn.Parameter(vector)]

    def _gradients(self) -> list[Tensor]:
        """Return the gradients of `vectors`, which the optimizer will read."""
        if self.flattened:
            gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in self.parameters]
            torch._foreach_copy_(self.pieces, gradients)
            self.masks.apply(self.gradient)
            self.vectors[0].grad = self.gradient
        return [p.grad for p in self.vectors if p.grad is not None]


def _become_views(parameters: list[nn.Parameter], vector: Tensor) -> None:
    """Let parameters be views of a vector of all their numbers."""
    for parameter, piece in zip(parameters, _views(vector, parameters), strict=True):
        parameter.data = piece


def _views(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the pieces of a vector of all their numbers, in the parameters' shapes."""
    pieces = vector.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]


def sums_of(metrics: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """Sum metrics (B,) over the data points: one number for each name, in float64."""
    return torch.stack([metrics[name] for name in names]).sum(1, dtype=torch.float64)


def optimizer_of(parameters: list[Tensor], stage: Stage) -> torch.optim.Optimizer:
    """Return the stage's optimizer of these parameters."""
    # Fused: one pass over weights, gradients and moments; 3 to 6 times the speed of the plain loop on a CPU.
    rate, decay = stage.learning_rate, stage.weight_decay
    if stage.optimizer == "adamax":
        return torch.optim.Adamax(parameters, lr=rate, weight_decay=decay, foreach=True)
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)


@torch.no_grad()
def advance(optimizer: torch.optim.Optimizer) -> None:
    """Step the optimizer; one vector under Adam by its functional form, in two thirds of the time.

    That leaves out the hooks and marks for a profiler around `step`, which cost more than a small model's numbers do.
    """
    group, *others = optimizer.param_groups
    vector, *more = group["params"]
    state = optimizer.state.get(vector)
    if not isinstance(optimizer, torch.optim.Adam) or others or more or not state or vector.grad is None:
        optimizer.step()
        return
    names = ("lr", "weight_decay", "eps", "amsgrad", "maximize", "fused", "decoupled_weight_decay")
    moments = [state["exp_avg"]], [state["exp_avg_sq"]]
    settings = {
        name: group[name] for name in names if name in group
    }  # the last one is newer than our oldest torch
    beta1, beta2 = group["betas"]
    adam([vector], [vector.grad], *moments, [], [state["step"]], beta1=beta1, beta2=beta2, **settings)


def learning_rate(stage: Stage, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of a stage of `total_steps`."""
    rate = stage.learning_rate
    if step < stage.warmup_steps:
        return rate * (step + 1) / stage.warmup_steps
    if stage.schedule == "constant":
        return rate
    done = (step - stage.warmup_steps) / max(total_steps - stage.warmup_steps, 1)
    return rate * (0.5 * (1 + math.cos(math.pi * done)) if stage.schedule == "cosine" else 1 - done)
