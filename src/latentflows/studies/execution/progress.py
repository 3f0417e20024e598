"""Where a study stands, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

_ENOUGH = 0.02  # share of a job that must be done before its speed says something


@dataclass
class Progress:
    """Where a study stands.

    Attributes:
        total: Runs of the study.
        done: Runs that have ended, also in an earlier session.
        failed: Names of those that did not finish, with the reason.
        active: Fraction done of each run under way, by name.
        waiting: The same of runs that were under way and will go on.
        seconds_left: Estimate from what runs of each arm took so far; None at the start.
        notes: What happened on the way: runs that started anew because their process died, seeds that do not train
            together because their seconds are held.
    """

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    active: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    notes: list[str] = field(default_factory=list)

    def end(self, name: str, line: dict[str, Any]) -> None:
        """Count a run that has ended; an interrupted one is still to be done."""
        self.active.pop(name, None)
        self.waiting.pop(name, None)
        self.done += line["status"] != "interrupted"
        if line["status"] in ("failed", "diverged"):
            self.failed[name] = line["reason"] or line["status"]

    @property
    def fraction(self) -> float:
        """Fraction of the whole study that is done."""
        return (self.done + sum(self.active.values()) + sum(self.waiting.values())) / self.total


@dataclass
class _Timed:
    """A job under way: when it started, and where it stood when it first reported."""

    started: float
    first: tuple[float, float] | None = None
    fraction: float = 0.0

    def report(self, now: float, fraction: float) -> None:
        self.fraction = max(self.fraction, fraction)  # runs that go apart count anew
        if self.first is None:  # a run that was taken up again starts with a fraction done
            self.first = (now, fraction)

    def whole(self, now: float) -> float | None:
        """Seconds that all of it would take, from its speed so far."""
        if self.first is None:
            return None
        since, before = self.first
        if self.fraction - before >= _ENOUGH:
            return (now - since) / (self.fraction - before)
        return (now - self.started) / self.fraction if self.fraction >= _ENOUGH else None


class Estimate:
    """Seconds left, from what a run of each arm takes: one that ended, else one under way, else an earlier session's.

    An arm of which nothing is known counts by its work beside that of the known ones: as much time for as much work.
    The rest is spread over the workers, and is at least what the longest job still takes.

    Args:
        jobs: For each job the name of its arm and its number of runs.
        workers: Jobs at a time.
        before: Seconds of runs that ended in earlier sessions, training and evaluation, by arm.
        work: Of a run of each arm, in any unit; all arms count alike where one of them has none.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[str, int]],
        workers: int,
        before: Mapping[str, list[float]],
        work: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs, self.workers, self.clock = jobs, workers, clock
        self.work = work if min(work.values(), default=0.0) > 0 else dict.fromkeys(work, 1.0)
        self.before = {arm: fmean(seconds) for arm, seconds in before.items()}
        self.measured: dict[str, list[float]] = {}
        self.active: dict[int, _Timed] = {}
        self.left = set(range(len(jobs)))

    def start(self, job: int) -> None:
        """Note that a job began, perhaps anew."""
        self.active[job] = _Timed(self.clock())

    def report(self, job: int, fraction: float) -> None:
        """Note how much of a job is done."""
        if job in self.active:
            self.active[job].report(self.clock(), fraction)

    def fraction(self, job: int) -> float:
        """Return how much of a job was done when it last reported."""
        return self.active[job].fraction if job in self.active else 0.0

    def end(self, job: int, *, measured: bool) -> None:
        """Note that a job ended; one that failed, or did a part of the work alone, measures nothing."""
        self.left.discard(job)
        timed = self.active.pop(job, None)
        if timed is not None and measured:
            arm, runs = self.jobs[job]
            self.measured.setdefault(arm, []).append((self.clock() - timed.started) / runs)

    def seconds_left(self) -> float | None:
        """Return the estimate; None as long as nothing is known."""
        if not self.left:
            return 0.0
        now = self.clock()
        per_run = dict(self.before)
        for job, timed in self.active.items():
            arm, runs = self.jobs[job]
            if (whole := timed.whole(now)) is not None:
                per_run[arm] = whole / runs
        per_run |= {arm: fmean(seconds) for arm, seconds in self.measured.items()}
        if not per_run:
            return None
        pace = sum(per_run.values()) / sum(self.work[arm] for arm in per_run)
        rest = [self._rest(job, per_run, pace) for job in self.left]
        return max(sum(rest) / min(self.workers, len(rest)), max(rest))

    def _rest(self, job: int, per_run: dict[str, float], pace: float) -> float:
        arm, runs = self.jobs[job]
        return runs * per_run.get(arm, pace * self.work[arm]) * (1 - self.fraction(job))
