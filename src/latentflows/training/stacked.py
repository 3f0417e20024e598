"""`fit_together`: runs of one shape that differ in their seed train as one program, each equal to its lone run.

Every run keeps its own session, checkpoint, record and callbacks. They move from step to step together; what a step
computes is computed for all at once: their weights are rows of one matrix (`stacked_state`), their noise is drawn from
each one's own stream and handed in (`core.noise`), the step is vectorized over models and traced once
(`stacked_program`). Whoever gets into trouble goes on by itself, whoever stops early waits for the next stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from latentflows.core import noise
from latentflows.core.errors import LatentFlowsError
from latentflows.training.base import History, Job, Options, check_run
from latentflows.training.learner import Outcome
from latentflows.training.loop import open_session
from latentflows.training.parallel import join
from latentflows.training.signals import stop_signals
from latentflows.training.stacked_check import block_alone, fastest, lone_step, why_not
from latentflows.training.stacked_member import Member
from latentflows.training.stacked_state import Stack
from latentflows.training.stacked_step import Together

Way = Literal["auto", "together", "alone"]
_WORTH = 2000  # steps of one run that are left, over all runs, from which tracing and measuring pay
_WORTH_BLOCKS = 800  # the same for blocks of validation data
_GAIN = 0.95  # of the time one after another that training together must stay below


def fit_together(
    jobs: Sequence[Job],
    *,
    options: Options | None = None,
    resume: bool = False,
    way: Way = "auto",
    announce: Callable[[str], None] = lambda _: None,
) -> list[History | Exception]:
    """Train runs of one shape, as one program where that is possible and faster; else one after another.

    Each ends as its lone run would, up to float32 rounding, and bit by bit where it trains alone. Folders are those of
    `fit`: a run that was begun here may be resumed by `fit`, and the other way round. `History.seconds` is a run's
    share of the wall time; `History.together` says for every stage how it trained.

    Memory: for S runs S times that of one, and S times its gradients and the values of its step.

    Args:
        jobs: Runs whose models and stages differ in numbers alone; anything else trains alone, with the reason.
        options: As for `fit`.
        resume: Go on from the folders, where there are checkpoints.
        way: "auto" measures a few steps of each stage; "together" spares that; "alone" forbids it.
        announce: Receives, for every stage, how it trains and why.

    Returns:
        For every job what happened, or the error that ended it; the others went on.

    Raises:
        CombinationError, ConfigurationError, DataError: as `fit` does, before anything trains.
    """
    options = options or Options()
    world = join(options.accelerator)
    for job in jobs:
        check_run(job, world.size, options)
    with noise.preserved(), stop_signals() as stop:
        members = [Member(open_session(job, options, world, stop), resume) for job in jobs]
        _Group(members, way, announce).run()
    return [member.error or member.session.history for member in members]


class _Group:
    """The members, and how the stage in which the last of them are is trained."""

    def __init__(self, members: Sequence[Member], way: Way, announce: Callable[[str], None]) -> None:
        self.members, self.way, self.announce = members, way, announce
        self.stage, self.alone = -1, False
        self.stack: Stack | None = None
        self.slots: list[Member] = []  # of the stack's rows
        self.programs: dict[tuple[bool, int], Together | None] = {}  # by kind and size of what is asked for

    def run(self) -> None:
        try:
            for member in self.members:
                member.go()
            while here := self._last():
                self._round(here)
        except BaseException as error:
            for member in self.members:
                member.stop(error)
            raise

    def _last(self) -> list[Member]:
        """Give the members in the earliest stage that any is in; the others wait for them."""
        going = [member for member in self.members if member.ask is not None]
        stage = min((member.session.progress.stage for member in going), default=-1)
        if stage != self.stage:
            self.stage, self.alone = stage, self.way == "alone"
            self._forget()
        return [member for member in going if member.session.progress.stage == stage]

    def _forget(self) -> None:
        self.stack, self.slots, self.programs = None, [], {}

    def _round(self, here: list[Member]) -> None:
        """Bring the members here further: to the end of an epoch by themselves, or one ask together."""
        ready = [member for member in here if member.in_step and not self._has_left(member)]
        self._leave([member for member in here if member not in ready])
        if self.alone or len(ready) < 2:
            self._leave(here)
            for member in here:
                member.epoch_alone()
            return
        furthest = max(member.position for member in ready)
        # Whoever was resumed from an earlier checkpoint catches up first.
        late = [member for member in ready if member.position < furthest]
        for member in late or [member for member in here if member not in ready]:
            member.go()
        if not late:
            self._together(ready)

    def _has_left(self, member: Member) -> bool:
        """Whether the stack is others' alone: one whose step was finite only by itself keeps in step, but has left."""
        stack, slots = self.stack, self.slots
        return stack is not None and (member not in slots or stack.learners[slots.index(member)] is None)

    def _leave(self, members: Sequence[Member]) -> None:
        """Give members numbers of their own: rows of one stack share the optimizer's count of steps."""
        for member in members:
            if self.stack is not None and member in self.slots:
                self.stack.detach(self.slots.index(member))

    def _together(self, ready: list[Member]) -> None:
        ask = ready[0].ask
        assert ask is not None
        if self.stack is not None and 2 * len(ready) <= len(self.slots) and _left(ready) >= _WORTH:
            self._leave(ready)
            self._forget()  # most rows are idle: a smaller stack pays
        kind = ask.block is None, len(ask.indices)
        if kind not in self.programs and (ask.block is None or self.stack is not None):
            self.programs[kind] = self._steps(ready) if ask.block is None else self._blocks(ready)
        program = self.programs.get(kind)
        started = time.monotonic()
        answers = self._answers(program, ready) if program is not None else [None] * len(ready)
        seconds = (time.monotonic() - started) / len(ready)
        for member, answer in zip(ready, answers, strict=True):
            member.share(seconds)
            member.go(answer)

    def _answers(self, program: Together, ready: list[Member]) -> Sequence[Outcome | Tensor | None]:
        """Compute what all ask for; where that fails (memory ran out, say) each goes on by itself."""
        try:
            return program.step(ready) if program.is_step else program.block(ready)
        except Exception as error:
            self.alone = True
            self._leave(ready)
            self._tell(ready, _Choice(None, _first_line(error)))
            return [None] * len(ready)

    def _tell(self, ready: list[Member], choice: _Choice) -> None:
        told = choice.told(ready)
        for member in ready:
            member.session.history.together.append(told)
        self.announce(told["text"])

    def _tell_of_blocks(self, ready: list[Member], choice: _Choice) -> None:
        """Add it to what was told of the stage's steps."""
        ask = ready[0].ask
        assert ask is not None
        told = choice.told(ready, len(ask.indices))
        for member in ready:
            entries = member.session.history.together
            entries[-1] = entries[-1] | {"validation": [*entries[-1].get("validation", []), told]}
        self.announce(told["text"])

    def _steps(self, ready: list[Member]) -> Together | None:
        """Decide whether the steps of this stage are taken together, from where the members are."""
        choice = self._tried(ready)
        self.alone = choice.program is None
        if choice.program is not None:
            self.stack, self.slots = choice.program.stack, ready
            self.stack.copy([member.session.learner for member in ready])
            self.stack.attach()
        self._tell(ready, choice)
        return choice.program

    def _tried(self, ready: list[Member]) -> _Choice:
        """Write the program of a step, check it, and measure it beside a step of one run."""
        started = time.monotonic()
        reason = why_not([member.session for member in ready])
        if reason is None and self.way == "auto" and _left(ready) < _WORTH:
            reason = f"{_left(ready)} steps are too few to gain from it"
        if reason is not None:
            return _Choice(None, reason)
        try:
            stack = Stack([member.session.learner for member in ready])
            program = Together(stack, ready, ready)
            if self.way == "together":
                return _Choice(program, "as asked for")
            alone, together = _measured(program, ready)
        except Exception as error:
            return _Choice(None, _first_line(error))
        finally:
            _share(ready, started)
        return _Choice.of(program, alone, together)

    def _blocks(self, ready: list[Member]) -> Together | None:
        """Decide the same about blocks of validation data, where steps are taken together."""
        choice = self._tried_blocks(ready)
        self._tell_of_blocks(ready, choice)
        return choice.program

    def _tried_blocks(self, ready: list[Member]) -> _Choice:
        """Write the program of a block, check it, and measure it beside blocks of one run."""
        assert self.stack is not None
        session, ask = ready[0].session, ready[0].ask
        assert ask is not None
        if self.way == "auto" and (epochs := _left(ready, epochs=True)) < _WORTH_BLOCKS:
            return _Choice(None, f"{epochs} epochs are too few to gain from it")
        started = time.monotonic()
        try:
            program = Together(self.stack, self.slots, ready)
            if self.way == "together":
                return _Choice(program, "as asked for")
            alone, together = fastest(
                session.world.device, lambda: block_alone(session, ask), lambda: program.block(ready)
            )
        except Exception as error:
            return _Choice(None, _first_line(error))
        finally:
            _share(ready, started)
        return _Choice.of(program, alone * len(ready), together)


@dataclass(frozen=True)
class _Choice:
    """A program, or None for one after another; why, and the seconds of all runs for one ask either way."""

    program: Together | None
    reason: str | None
    alone: float | None = None
    together: float | None = None

    @staticmethod
    def of(program: Together, alone: float, together: float) -> _Choice:
        """Choose by what was measured."""
        return _Choice(program if together < _GAIN * alone else None, None, alone, together)

    def told(self, ready: Sequence[Member], block: int | None = None) -> dict[str, Any]:
        """Say so of steps, or of blocks of so many validation data points, for people and for `run.json`."""
        stage = ready[0].session.stage.name
        what, does = "step", f"{len(ready)} runs train"
        if block is not None:
            what, does = "block", f"{len(ready)} runs measure blocks of {block} validation data points"
        how = "together" if self.program is not None else "one after another"
        figures = {}
        why = self.reason
        if self.alone is not None and self.together is not None:
            figures = {f"{what}_ms_alone": self.alone * 1e3, f"{what}_ms_together": self.together * 1e3}
            why = (
                f"a {what} of all takes {self.together * 1e3:.3g} ms together and {self.alone * 1e3:.3g} ms one after "
                "another"
            )
        text = f"Stage {stage!r}: {does} {how}: {why}."
        return {
            "stage": stage,
            "runs": len(ready),
            "together": self.program is not None,
            "text": text,
            **figures,
        }


def _share(ready: Sequence[Member], started: float) -> None:
    """Count the time since then for all alike."""
    for member in ready:
        member.share((time.monotonic() - started) / len(ready))


def _left(ready: Sequence[Member], *, epochs: bool = False) -> int:
    """Count steps, or epochs, that are left in this stage, over all members."""
    session = ready[0].session
    steps = session.total_steps - session.progress.stage_steps
    return len(ready) * (-(-steps // session.steps_per_epoch) if epochs else steps)


def _measured(program: Together, ready: Sequence[Member]) -> tuple[float, float]:
    """Measure a step of all members one after another, and together; nothing has moved in the end."""
    session, ask = ready[0].session, ready[0].ask
    assert ask is not None
    before = session.learner.snapshot()
    try:
        alone, together = fastest(session.world.device, lone_step(session, ask), lambda: program.step(ready))
    finally:
        session.learner.restore(before)
    return alone * len(ready), together


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return line if isinstance(error, LatentFlowsError) else f"{type(error).__name__}: {line}"
