"""What a worker of a study carries out: the runs of one arm that are left, each under its lock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflows.studies.execution.engines.base import Report
from latentflows.studies.execution.locks import locked
from latentflows.studies.running.failures import reason_of

if TYPE_CHECKING:
    from latentflows.studies.planning.plan import PlannedRun
    from latentflows.studies.running.run import RunResult

_TRAINED = 0.95  # share of a run that counts as training in the estimate of the time left
_PATIENCE = 60.0  # seconds that a process of a killed session may need to save its run and end
_BY_SIGNAL = "interrupted by a signal"
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Runs of one arm, for one worker.

    Attributes:
        runs: At least one.
        out: Study folder, as an absolute path.
        command: The command that started the study, for the runs' records.
        together: Whether runs of the same shape may train as one program.
    """

    runs: tuple[PlannedRun, ...]
    out: Path
    command: str
    together: bool

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.runs[0].arm


def run_job(job: Job, report: Report) -> list[tuple[int, Outcome]]:
    """Carry out the runs of a job in a worker process, taking up what earlier attempts left.

    It reports the fraction done of the whole job, and (position, outcome) of every run as it ends; a run that has ended
    may be evaluated by others, while the rest goes on.

    Returns:
        The same pairs of position and outcome; a run that an interruption kept from starting may have none.
    """
    with ExitStack() as stack:
        locks = [stack.enter_context(ExitStack()) for _ in job.runs]
        for lock, planned in zip(locks, job.runs, strict=True):
            folder = job.out / planned.folder
            lock.enter_context(
                locked(folder.with_name(f".{folder.name}.lock"), f"The run {folder}", patience=_PATIENCE)
            )

        def tell(content: Any) -> None:
            if isinstance(content, tuple):
                locks[content[0]].close()
            report(content)

        told: dict[int, Outcome] = {}
        if job.together and len(job.runs) > 1:
            _together(job, tell, told)
        _one_by_one(job, tell, told)
    return sorted(told.items())


def _together(job: Job, report: Report, told: dict[int, Outcome]) -> None:
    """Carry out all runs at once."""
    from latentflows.studies.running.run import FractionDone
    from latentflows.studies.running.together import run_together

    def ended(position: int, result: RunResult) -> None:
        told[position] = outcome_of(result)
        report((position, told[position]))

    try:
        run_together(
            [planned.configuration for planned in job.runs],
            [job.out / planned.folder for planned in job.runs],
            callbacks=[FractionDone(lambda fraction: report(_TRAINED * fraction))],
            command=job.command,
            ended=ended,
        )
    except KeyboardInterrupt:
        for position in range(len(job.runs)):
            told.setdefault(position, unfinished("interrupted", _BY_SIGNAL))


def _one_by_one(job: Job, report: Report, told: dict[int, Outcome]) -> None:
    """Carry out the runs that are open, until somebody asks to stop."""
    for position, planned in enumerate(job.runs):
        if position in told:
            continue
        if any(outcome["status"] == "interrupted" for outcome in told.values()):
            return

        def report_fraction(fraction: float, done: int = len(told)) -> None:
            report((done + _TRAINED * fraction) / len(job.runs))

        told[position] = _outcome_of(planned, job, report_fraction)
        report((position, told[position]))


def _outcome_of(planned: PlannedRun, job: Job, report_fraction: Callable[[float], None]) -> Outcome:
    from latentflows.studies.running.run import FractionDone, run

    try:
        result = run(
            planned.configuration,
            job.out / planned.folder,
            resume=True,
            callbacks=[FractionDone(report_fraction)],
            command=job.command,
        )
    except KeyboardInterrupt:
        return unfinished("interrupted", _BY_SIGNAL)
    except Exception as error:  # the other runs go on
        return unfinished("failed", reason_of(error))
    return outcome_of(result)


def outcome_of(result: RunResult) -> Outcome:
    """Return what the line of `study.jsonl` says of a run."""
    return {
        "status": result.status,
        "reason": result.reason,
        "figures": result.figures,
        "protocol": result.protocol,
        "parameters": result.parameters
        or None,  # none is known of a run that failed before its model was there
        "seconds": result.seconds,
        "evaluation_seconds": result.evaluation_seconds,
    }


def unfinished(status: str, reason: str) -> Outcome:
    """Return the outcome of a run of which nothing else is known."""
    unknown = dict.fromkeys(("figures", "protocol", "parameters", "seconds", "evaluation_seconds"))
    return {"status": status, "reason": reason, **unknown}
