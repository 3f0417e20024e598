"""Whether several runs can train as one program, whether it gives what each gives alone, and how fast it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latentflows.core.errors import CombinationError
from latentflows.training.asks import Ask
from latentflows.training.learner import Learner
from latentflows.training.record import described
from latentflows.training.session import Session

_ROUNDS, _BUDGET = 5, 0.25  # of a measurement: rounds, and seconds, at most
_TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 5e-2}  # of gradients and sums, relative; rounding is far below


def why_not(sessions: Sequence[Session]) -> str | None:
    """Say why these sessions, which stand in one stage, cannot train as one program; None where nothing speaks against.

    What only a trial shows (an operation without a rule, a decision that depends on values) is not among it.
    """
    first = sessions[0]
    objective = first.stage.objective
    reasons = {
        "several processes share the work": first.world.size > 1,
        "steps are compiled": first.options.compile,
        "batches are accumulated in pieces": first.stage.accumulate_grad_batches > 1,
        f"the updates of {type(objective).__name__} take turns": objective.takes_turns,
        f"{type(objective).__name__} brings a module of its own": objective.has_auxiliary,
        "running averages follow the data": bool(first.learner.running),
        "parameters are of several types": len({p.dtype for p in first.learner.parameters}) > 1,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return "; ".join(found) or _difference(sessions)


def _difference(sessions: Sequence[Session]) -> str | None:
    """Say in what the first session's model, stage or data differ from another's besides numbers."""
    first = sessions[0]
    plan = _plan(first)
    looks = _looks(first.model)
    for other in sessions[1:]:
        if _plan(other) != plan:
            return "stages or sizes of the data differ"
        if _looks(other.model) != looks:
            return "the models differ in more than their numbers"
    return None


def _plan(session: Session) -> tuple[object, ...]:
    length = None if session.validation is None else len(session.validation)
    stage = described(session.stage)
    return stage, session.total_steps, session.batch_size, len(session.train), length


def _looks(model: nn.Module) -> list[tuple[object, ...]]:
    """List types, plain settings and tensors' shapes of all modules."""
    return [
        (
            name,
            type(module),
            {key: value for key, value in vars(module).items() if _is_plain(value)},
            [(key, p.shape, p.dtype, p.requires_grad) for key, p in module.named_parameters(recurse=False)],
            [(key, b.shape, b.dtype) for key, b in module.named_buffers(recurse=False)],
        )
        for name, module in model.named_modules()
    ]


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def step_alone(session: Session, ask: Ask) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient (P,) of a step as the session computes it; nothing moves."""
    outcome = session.learner.step([session.batch(ask)], 1, session.epochs)
    gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in session.learner.vectors]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    return flat.new_tensor(outcome.loss), flat


def block_alone(session: Session, ask: Ask) -> Tensor:
    """Return the sums over a block of validation data as the session computes them."""
    return session.learner.measure(session.batch(ask))


def agree(one: Tensor, other: Tensor, precision: str) -> bool:
    """Whether two results are equal within rounding; non-finite ones are not."""
    distance = float(torch.linalg.vector_norm((one - other).double()))
    scale = float(torch.linalg.vector_norm(one.double()))
    return math.isfinite(distance) and distance <= _TOLERANCE[precision] * max(scale, 1e-6)


@contextmanager
def unwritten(learner: Learner) -> Iterator[None]:
    """Refuse, and undo, writing to buffers inside.

    Raises:
        CombinationError: at the end, if any buffer was written to.
    """
    before = [(buffer, buffer._version, buffer.clone()) for buffer in learner.module.buffers()]
    written: list[tuple[Tensor, Tensor]] = []
    try:
        yield
    finally:
        written += [(buffer, value) for buffer, version, value in before if buffer._version != version]
        for buffer, value in written:
            buffer.copy_(value)
    if written:
        raise CombinationError("a step writes to buffers of the model")


def lone_step(session: Session, ask: Ask) -> Callable[[], None]:
    """Return a whole step of one session, to be measured; call it between `snapshot` and `restore`."""

    def step() -> None:
        learner = session.learner
        learner.move(learner.step([session.batch(ask)], 1, session.epochs), session.rate)

    return step


def clock_of(device_type: str) -> Callable[[], float]:
    """Return the clock that times work on a device, in seconds.

    On a CPU with one thread it is that of processor time, to which the machine's other processes do less.
    """
    lone = device_type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if lone else time.perf_counter


def fastest(device: torch.device, *works: Callable[[], object]) -> list[float]:
    """Time works in turns, so that a slow moment falls on all; seconds of each one's best, the first left out."""
    clock = clock_of(device.type)
    seconds = [math.inf] * len(works)
    started = time.perf_counter()
    for number in range(_ROUNDS + 1):
        for index, work in enumerate(works):
            before = clock()
            work()
            if number:
                seconds[index] = min(seconds[index], clock() - before)
        if number > 1 and time.perf_counter() - started > _BUDGET:
            break
    return seconds
