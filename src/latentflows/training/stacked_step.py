"""A step, or a block of validation data, of several members, computed by one program and checked against each alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import CombinationError
from latentflows.training.learner import Outcome
from latentflows.training.stacked_check import agree, block_alone, step_alone, unwritten
from latentflows.training.stacked_member import Member
from latentflows.training.stacked_program import Inputs, Program, write_program
from latentflows.training.stacked_state import Stack, fixed_tensors


class Together:
    """What computes one kind of ask for all members: steps, or blocks of one size.

    Args:
        stack: The members' weights.
        members: Whose rows these are.
        ready: Those who are still there, and ask for it now; of the others' rows the result is not looked at.

    Raises:
        CombinationError: where a step writes to buffers, leaves a parameter out, or gives other numbers than alone.
        Exception: of any kind, from `write_program`.
    """

    def __init__(self, stack: Stack, members: Sequence[Member], ready: Sequence[Member]) -> None:
        self.stack, self.members = stack, list(members)
        first, filled = ready[0], self._filled(ready)
        assert first.ask is not None
        self.is_step = first.ask.block is None
        self.draws = self._recorded(first)
        learners = [member.session.learner for member in filled]
        own, common = fixed_tensors(learners)
        self.program: Program = write_program(
            first.session.learner,
            stack,
            own,
            common,
            self.draws,
            self._inputs(filled),
            gradient=self.is_step,
        )
        self._check(ready)

    def _recorded(self, member: Member) -> list[noise.Draw]:
        """Let one member compute by itself, and note what it draws after its batch is read."""
        session, ask = member.session, member.ask
        assert ask is not None
        batch = session.batch(ask)
        with unwritten(session.learner), noise.recorded() as draws:
            if self.is_step:
                session.learner.step([batch], 1, session.epochs)
            else:
                session.learner.measure(batch)
        if self.is_step and any(p.grad is None for p in session.learner.parameters):
            raise CombinationError("the loss leaves a learning parameter out")
        return draws

    def _check(self, ready: Sequence[Member]) -> None:
        """Compare with what every member computes by itself, unless that is not finite."""
        result = self.program(self.stack.rows, self._inputs(self._filled(ready)))
        for member in ready:
            row, session, ask = self.members.index(member), member.session, member.ask
            assert ask is not None
            if self.is_step:
                loss, gradient = step_alone(session, ask)
                pairs = [(loss, result.losses[row]), (gradient, result.gradients[row])]
            else:
                pairs = [(block_alone(session, ask), result.sums[row])]
            finite = all(bool(alone.isfinite().all()) for alone, _ in pairs)
            # A gradient is judged by its own size: beside a loss of hundreds of nats it would hardly count.
            if finite and not all(agree(*pair, session.options.precision) for pair in pairs):
                raise CombinationError(f"the run of seed {session.seed} would get other numbers than alone")

    def _inputs(self, filled: Sequence[Member]) -> Inputs:
        """Read every member's batch and draw its noise, as it would by itself."""
        read = {}
        for member in dict.fromkeys(filled):
            assert member.ask is not None
            batch = member.session.batch(member.ask)
            read[member] = batch, [draw.take() for draw in self.draws]
        rows = [read[member] for member in filled]
        batches = [batch for batch, _ in rows]
        contexts = [batch.context for batch in batches if batch.context is not None]
        x = torch.stack([batch.x for batch in batches])
        return Inputs(
            x,
            torch.stack(contexts) if contexts else None,
            tuple(torch.stack(values) for values in zip(*(drawn for _, drawn in rows), strict=True)),
            torch.tensor(filled[0].session.epochs, dtype=torch.float32, device=x.device),
        )

    def _filled(self, ready: Sequence[Member]) -> list[Member]:
        """Let another one stand in for every member that is not there."""
        return [member if member in ready else ready[0] for member in self.members]

    def step(self, ready: Sequence[Member]) -> list[Outcome | None]:
        """Compute a step and move the weights of every ready member; None for one whose loss is not finite.

        Such a one has left the stack and has not moved: it takes the step by itself.
        """
        result = self.program(self.stack.rows, self._inputs(self._filled(ready)))
        norms = torch.linalg.vector_norm(result.gradients, dim=1)
        losses, norms = torch.stack([result.losses.to(norms.dtype), norms]).tolist()
        answers: list[Outcome | None] = []
        for member in ready:
            row = self.members.index(member)
            outcome = Outcome(result.sums[row], losses[row], norms[row])
            if not outcome.finite:
                self.stack.detach(row)
            answers.append(outcome if outcome.finite else None)
        if any(answer is not None for answer in answers):
            self.stack.move(result.gradients, norms, ready[0].session.rate)
        return answers

    def block(self, ready: Sequence[Member]) -> list[Tensor | None]:
        """Compute the sums over a block of validation data; None where they are not finite."""
        sums = self.program(self.stack.rows, self._inputs(self._filled(ready))).sums
        rows = [self.members.index(member) for member in ready]
        finite = [all(math.isfinite(value) for value in values) for values in sums.tolist()]
        return [sums[row] if finite[row] else None for row in rows]
