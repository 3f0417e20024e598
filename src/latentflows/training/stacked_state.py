"""The weights of several models of one shape as one matrix, a row for each, and what goes with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentflows.training.base import Stage
from latentflows.training.learner import Learner, optimizer_of

Named = dict[str, Tensor]


class Stack:
    """The learning parameters of S learners as rows of one matrix (S, P), under one optimizer.

    After `attach` the parameters, moments and moving average of every learner are views of its rows:
    what a learner saves, restores or validates is what the stack trains.

    Memory: S P numbers, and as many for each moment, the moving average and the gradient; the learners' own are freed.

    Args:
        learners: At least one, of one shape and as many optimizer steps.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners: list[Learner | None] = []
        self.stage: Stage = learners[0].stage
        self.sizes = [p.numel() for p in learners[0].parameters]
        self.shapes = [p.shape for p in learners[0].parameters]
        self.rows = nn.Parameter(torch.empty(0))
        self.average: Tensor | None = None
        self.optimizer = optimizer_of([self.rows], self.stage)
        self.attached = False
        self.copy(learners)

    def copy(self, learners: Sequence[Learner]) -> None:
        """Take over the learners' numbers as they are; they stay their own."""
        self.learners = list(learners)
        with torch.no_grad():
            self.rows = nn.Parameter(torch.stack([_row(learner.parameters) for learner in learners]))
        self.average = (
            torch.stack([_row(learner.average) for learner in learners]) if learners[0].average else None
        )
        self.optimizer = optimizer_of([self.rows], self.stage)
        states = [[learner.optimizer.state.get(v, {}) for v in learner.vectors] for learner in learners]
        for name, value in states[0][0].items():
            shared = value.ndim == 0
            self.optimizer.state[self.rows][name] = (
                value.clone()
                if shared
                else torch.stack([_row([each[name] for each in state]) for state in states])
            )

    def attach(self) -> None:
        """Make the learners' numbers views of their rows."""
        self.attached = True
        for index, learner in enumerate(self.learners):
            if learner is not None:
                learner.share(self.rows.data[index], None if self.average is None else self.average[index])
        self._attach_moments()

    def _attach_moments(self) -> None:
        state = self.optimizer.state[self.rows]
        for index, learner in enumerate(self.learners):
            if learner is not None and state:
                learner.share_moments({name: v if v.ndim == 0 else v[index] for name, v in state.items()})

    def detach(self, index: int) -> None:
        """Let a learner go on alone from where it stands; its row is no one's from now on."""
        learner, self.learners[index] = self.learners[index], None
        if learner is not None:
            learner.own()

    @torch.no_grad()
    def move(self, gradients: Tensor, norms: Sequence[float], rate: float) -> None:
        """Clip every row's gradient by itself, let the optimizer move, and follow with the moving average."""
        limit = self.stage.gradient_clip_val
        if limit is not None and any(norm > limit for norm in norms):
            factors = [limit / norm if norm > limit else 1.0 for norm in norms]
            gradients = gradients * gradients.new_tensor(factors)[:, None]
        self.rows.grad = gradients
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        first = not self.optimizer.state[self.rows]
        self.optimizer.step()
        self.rows.grad = None
        if first and self.attached:
            self._attach_moments()
        if self.average is not None:
            assert self.stage.ema_decay is not None
            self.average.lerp_(self.rows, 1 - self.stage.ema_decay)

    def pieces(self, row: Tensor) -> list[Tensor]:
        """Cut one row, or what stands for it inside a program, into parameters."""
        return [piece.view(shape) for piece, shape in zip(row.split(self.sizes), self.shapes, strict=True)]


def _row(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def fixed_tensors(learners: Sequence[Learner]) -> tuple[Named, Named]:
    """Give what does not learn: values that differ among the learners, each (S, ...), and those that do not, copied."""
    learning = {id(p) for p in learners[0].parameters}
    named = [_named(learner) for learner in learners]
    own, common = {}, {}
    for name, value in named[0].items():
        if id(value) in learning:
            continue
        values = [tensors[name].detach() for tensors in named]
        if all(torch.equal(values[0], other) for other in values[1:]):
            common[name] = values[0].clone()
        else:
            own[name] = torch.stack(values)
    return own, common


def learning_names(learner: Learner) -> list[str]:
    """Name the learning parameters, in the learner's order, as the module of the step knows them."""
    names = {id(p): name for name, p in learner.module.named_parameters()}
    return [names[id(p)] for p in learner.parameters]


def _named(learner: Learner) -> Named:
    return dict(learner.module.named_parameters()) | dict(learner.module.named_buffers())
