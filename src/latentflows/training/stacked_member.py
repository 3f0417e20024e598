"""One of several runs that train together: its session, what it asks for next, and a clock of its own."""

from __future__ import annotations

import math
import time
from contextlib import suppress

from torch import Tensor

from latentflows.training.asks import Ask
from latentflows.training.learner import Outcome
from latentflows.training.session import Session


class Member:
    """A session that is driven from ask to ask.

    Its clock runs while it computes by itself, and is given its share of what is computed for several.

    Attributes:
        ask: What it wants computed next; None once it has ended.
        error: What ended it, if it did not end by itself.
    """

    def __init__(self, session: Session, resume: bool) -> None:
        self.session, self.ask, self.error = session, None, None
        self.ask: Ask | None
        self.error: Exception | None
        self._running = session.run(resume)
        self._busy, self._since = 0.0, None
        self._since: float | None
        self._judged: tuple[tuple[int, ...], bool] = ((), False)
        session.clock = self._clock

    def go(self, answer: Outcome | Tensor | None = None) -> None:
        """Send the answer to what was asked, None to let it compute for itself, and go on to the next ask."""
        self._since = time.monotonic()
        try:
            self.ask = self._running.send(answer)
        except StopIteration:
            self.ask = None
        except Exception as error:  # the others go on; whoever started them hears of it at the end
            self.ask, self.error = None, error
        finally:
            self._busy, self._since = self._clock(), None

    def epoch_alone(self) -> None:
        """Go on by itself to the end of an epoch, or of a stage."""
        progress = self.session.progress
        before = (progress.stage, progress.epoch)
        while self.ask is not None and (progress.stage, progress.epoch) == before:
            self.go()

    def stop(self, error: BaseException) -> None:
        """End the session where it stands, for a reason from outside; its last checkpoint stays."""
        self.ask = None
        with suppress(BaseException):
            self._running.throw(error)

    def share(self, seconds: float) -> None:
        """Count time that was spent on it by others."""
        self._busy += seconds

    @property
    def position(self) -> tuple[int, float]:
        """How far it is in its stage: at a block of validation data, or at the step after it."""
        assert self.ask is not None
        block = math.inf if self.ask.block is None else self.ask.block
        return self.session.progress.stage_steps, block

    @property
    def in_step(self) -> bool:
        """Whether its optimizer has taken every step of the stage, at the planned rate: others can share its steps."""
        progress = self.session.progress
        key = (progress.stage, progress.skipped_steps, progress.rollbacks)
        if self._judged[0] != key:
            taken = self.session.learner.num_steps
            good = progress.rate_scale == 1.0 and taken == progress.stage_steps
            self._judged = key, good
        return self._judged[1]

    def _clock(self) -> float:
        return self._busy + (0.0 if self._since is None else time.monotonic() - self._since)
