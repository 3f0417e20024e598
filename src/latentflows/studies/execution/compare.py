"""Carry out a study: several arms over several seeds, each run in a folder of its own, resumable at any moment."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentflows.core.errors import ConfigurationError
from latentflows.studies.execution.ended import add_finished_since, check_ended, told_of_ended
from latentflows.studies.execution.engines import Engine, Event, LocalPool
from latentflows.studies.execution.engines.local import GUARD
from latentflows.studies.execution.job import Job, Outcome, run_job, unfinished
from latentflows.studies.execution.locks import free_locks, locked
from latentflows.studies.execution.progress import Estimate, Progress
from latentflows.studies.execution.record import ENDED, append_line, read_lines
from latentflows.studies.execution.study_folder import LOCK, check_folder, prepare_folder
from latentflows.studies.planning.study import Study

if TYPE_CHECKING:
    from latentflows.studies.planning.plan import Plan, PlannedRun

Notify = Callable[[Progress], None]


def compare(
    study: Study,
    out: Path | str,
    *,
    engine: Engine | None = None,
    together: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    command: str = "",
    notify: Notify = lambda _: None,
) -> Progress:
    """Run every arm with every seed into the study folder `out`.

    Sizes are settled and every arm is built before anything is written. Each run that ends adds one line to
    `study.jsonl`. A run that fails is recorded with its reason and the others go on; one whose process dies is taken
    up again by another process where its checkpoint left it, a bounded number of times. On resume, finished and
    diverged runs are skipped, and all others go on where they were; one that diverged in its evaluation and was made to
    finish in its folder, by other settings of that, counts from then on; the study may have more seeds. Ctrl-C lets
    running ones write a checkpoint; a second one ends them at once.

    Where the budget holds seconds, seeds train one by one, as they were timed: those of seeds that train together are
    shared, in some arms and not in others.

    Cost: memory of the engine's processes, each about 400 MiB for torch alone.

    Args:
        study: What to compare.
        out: Study folder; a file system that all workers share.
        engine: Where runs take place; None for a pool of `workers` processes on this machine.
        together: Let the seeds of an arm train as one program where that is faster; not where seconds are held.
        resume: Go on with the same study.
        overwrite: Remove a study that is there.
        workers: Processes of the pool, at best as many as cores.
        command: The command that started it, for the record.
        notify: Receives the progress whenever it changes.

    Returns:
        The last progress; `done < total` after an interruption.

    Raises:
        ConfigurationError: if an arm is wrong, if `out` holds something else, also runs by other settings, or another
            process works on it, or if the engine cannot start; nothing was run. Also for a script that calls it outside
            of `if __name__ == "__main__":`.
        CheckpointError: if the record cannot be read, or the disk is too full to go on with it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker, as it imports the script
        raise ConfigurationError(GUARD)
    engine = LocalPool(workers) if engine is None else engine
    out = Path(out).absolute()
    check_folder(study, out, resume=resume, overwrite=overwrite)
    from latentflows.studies.planning.plan import (  # with torch; what is above is refused at once
        plan,
        read_settled,
    )

    settled = {} if overwrite else read_settled(out / "plan.json")
    planned = plan(study, settled, threads=engine.threads)
    with locked(out / LOCK, f"The study in {out}"), engine:
        check_folder(study, out, resume=resume, overwrite=overwrite)
        engine.check(out)
        if not overwrite:
            check_ended(planned, out)
        prepare_folder(planned, out, command, overwrite=overwrite)
        add_finished_since(planned, out)
        return _Session(planned, out, engine, together, command, notify).go()


class _Session:
    """The runs of a study that are left, and where they stand."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        engine: Engine,
        together: bool,
        command: str,
        notify: Notify,
    ) -> None:
        self.out, self.engine, self.command, self.notify = out, engine, command, notify
        ended = {(line["arm"], line["seed"]): line for line in read_lines(out) if line["status"] in ENDED}
        self.left = [run for run in plan.runs if (run.arm, run.seed) not in ended]
        self.work = plan.work()
        self.before: dict[str, list[float]] = {}
        for line in ended.values():
            evaluated = line.get("evaluation_seconds") or 0.0  # which earlier versions did not write
            self.before.setdefault(line["arm"], []).append(line["seconds"] + evaluated)
        self.progress = Progress(total=len(plan.runs), done=len(plan.runs) - len(self.left))
        budget = plan.study.budget
        timed = budget is not None and budget.hold == "seconds"
        self.together = together and not timed
        if together and timed:
            self.progress.notes.append(
                "Seeds train one by one, as they were timed: the budget holds seconds."
            )
        self.progress.notes += told_of_ended(plan, out)
        self.most: dict[tuple[str, ...], float] = {}  # runs done of each job, by the names of its runs
        self.told: set[tuple[str, int]] = set()  # runs of which this session wrote a line

    def go(self) -> Progress:
        groups = [(run,) for run in self.left]
        if self.together:
            groups = grouped(self.left, self.engine.workers)
        with _counting_stops() as stop:
            while groups and not stop():
                jobs = [Job(group, self.out, self.command, self.together) for group in groups]
                groups = self._round(jobs, stop)
        free_locks(self.out / "runs")  # of processes that were killed
        return self.progress

    def _round(self, jobs: Sequence[Job], stop: Callable[[], int]) -> list[tuple[PlannedRun, ...]]:
        """Carry out jobs; return, one by one, the runs of those that ended without telling how each run did."""
        sizes = [(job.arm, len(job.runs)) for job in jobs]
        estimate = Estimate(sizes, self.engine.workers, self.before, self.work)
        apart: list[tuple[PlannedRun, ...]] = []
        for event in self.engine.over_jobs(run_job, jobs, stop):
            job = jobs[event.job]
            self._time(estimate, event)
            if event.kind == "started":
                self._show(job, 0.0)
            elif event.kind == "again":
                names = ", ".join(_name(run) for run in self._open(job))
                self.progress.notes.append(f"{names} will go on in another process: {event.content}")
            elif event.kind == "progress":
                if not isinstance(event.content, float):
                    position, outcome = event.content
                    self._end(job.runs[position], outcome)
                self._show(job, estimate.fraction(event.job))
            elif event.kind == "result":
                for position, outcome in event.content:
                    self._end(job.runs[position], outcome)
                self._hide(job)
            elif stop():
                self._end_all(job, unfinished("interrupted", "ended at once by the user"))
            elif len(job.runs) > 1:
                apart += [(run,) for run in self._open(job)]
                self._wait(job)
            else:
                self._end_all(job, unfinished("failed", event.content))
            self.progress.seconds_left = estimate.seconds_left()
            self.notify(self.progress)
        return apart

    def _time(self, estimate: Estimate, event: Event) -> None:
        if event.kind in ("started", "again"):
            estimate.start(event.job)
        elif event.kind == "progress" and isinstance(event.content, float):
            estimate.report(event.job, event.content)
        elif event.kind in ("result", "lost"):
            told = event.content if event.kind == "result" else []
            whole = bool(told) and all(outcome["status"] == "finished" for _, outcome in told)
            estimate.end(event.job, measured=whole)

    def _open(self, job: Job) -> list[PlannedRun]:
        """Return the runs of a job of which no line was written."""
        return [run for run in job.runs if (run.arm, run.seed) not in self.told]

    def _show(self, job: Job, fraction: float) -> None:
        """Spread the fraction of a job that is done over its runs: those that ended, and the rest alike."""
        rest = self._open(job)
        ended = len(job.runs) - len(rest)
        names = tuple(map(_name, job.runs))
        self.most[names] = max(fraction * len(names), self.most.get(names, 0.0))
        for run in rest:
            self.progress.waiting.pop(_name(run), None)
            self.progress.active[_name(run)] = min(max((self.most[names] - ended) / len(rest), 0.0), 1.0)

    def _wait(self, job: Job) -> None:
        """Keep what runs have done that go on later, each by itself: they have their checkpoints."""
        for name in map(_name, self._open(job)):
            self.progress.waiting[name] = self.most[(name,)] = self.progress.active.pop(name, 0.0)

    def _hide(self, job: Job) -> None:
        for run in job.runs:
            self.progress.active.pop(_name(run), None)

    def _end(self, run: PlannedRun, outcome: Outcome) -> None:
        """Write the line of a run that ended, once."""
        if (run.arm, run.seed) in self.told:
            return
        self.told.add((run.arm, run.seed))
        line = {"arm": run.arm, "seed": run.seed, "run": run.folder, **outcome}
        append_line(self.out, line)
        self.progress.end(_name(run), line)

    def _end_all(self, job: Job, outcome: Outcome) -> None:
        for run in self._open(job):
            self._end(run, outcome)


def _name(run: PlannedRun) -> str:
    return f"{run.arm}-seed{run.seed}"


def grouped(runs: Sequence[PlannedRun], workers: int) -> list[tuple[PlannedRun, ...]]:
    """Put the runs of each arm into one group, then halve the largest ones until every worker has one."""
    by_arm: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    groups = [tuple(group) for group in by_arm.values()]
    while groups and len(groups) < workers and len(largest := max(groups, key=len)) > 1:
        place, half = groups.index(largest), (len(largest) + 1) // 2
        groups[place : place + 1] = [largest[:half], largest[half:]]
    return groups


@contextmanager
def _counting_stops() -> Iterator[Callable[[], int]]:
    """Count SIGINT and SIGTERM instead of being ended by them; give back a function that returns the count."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield lambda: len(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
