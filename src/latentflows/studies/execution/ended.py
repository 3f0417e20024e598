"""Runs that earlier sessions of a study ended: whether they are what it asks for now, and what to tell of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentflows.core.errors import CheckpointError, ConfigurationError
from latentflows.core.files import source_hash
from latentflows.studies.execution.job import outcome_of
from latentflows.studies.execution.record import ENDED, append_line, read_lines

if TYPE_CHECKING:
    from latentflows.studies.planning.plan import Plan, PlannedRun

_SHOWN = 4  # runs that a message names


def check_ended(plan: Plan, out: Path) -> None:
    """Refuse to go on beside runs that ended and were trained by other settings than the study asks for now.

    Each folder says by which settings its run was trained, those included that the study leaves to their defaults.
    How a run was measured may differ: its line in the record says that.

    Raises:
        ConfigurationError: naming runs and settings, or a configuration that cannot be read.
    """
    from latentflows.studies.running.folder import changed_settings
    from latentflows.studies.settings.overrides import read_whole_configuration

    wrong = []
    for run in _ended(plan, out):
        path = out / run.folder / "config.yaml"
        if path.is_file():
            try:
                before = read_whole_configuration(path)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{path} of a run that has ended cannot be read: {error} Go on with the version of latentflows "
                    "that trained it, or train the whole study again, with --overwrite or in a new folder."
                ) from None
            changed = changed_settings(before, run.configuration)
            learned = [key for key in changed if not key.startswith("evaluation.")]
            wrong += [f"{run.folder} differs in {', '.join(learned)}"] if learned else []
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigurationError(
            f"{out} has runs that were trained by other settings than the study now asks for: "
            f"{'; '.join(wrong[:_SHOWN])}{more}. A default of latentflows has changed since, or a run was trained "
            "anew in its folder. Train the whole study again, with --overwrite or in a new folder, or go on with the "
            "version that trained them."
        )


def add_finished_since(plan: Plan, out: Path) -> None:
    """Add a line for every run that stands as diverged and has finished since, when it was measured in another way.

    One that was trained in another way is refused before, by `check_ended`.
    """
    from latentflows.studies.running.folder import result_of

    last = {(line["arm"], line["seed"]): line for line in read_lines(out)}
    for run in plan.runs:
        line, folder = last.get((run.arm, run.seed), {"status": None}), out / run.folder
        result = result_of(folder) if line["status"] == "diverged" else None
        if result is not None and result.status == "finished":
            append_line(out, line | outcome_of(result))


def told_of_ended(plan: Plan, out: Path) -> list[str]:
    """Say how many runs are kept though other code trained them, and which have lost their folder."""
    from latentflows.studies.running.folder import read_record

    runs, other, gone = _ended(plan, out), 0, []
    for run in runs:
        try:
            record = read_record(out / run.folder)
        except CheckpointError:  # told where its figures are read
            continue
        if not record:
            gone.append(run.folder)
        elif record.get("versions", {}).get("source") != source_hash():  # earlier versions wrote none
            other += 1
    notes = []
    if other:
        notes.append(
            f"{other} of {len(runs)} runs that had ended were trained by other code of latentflows than is installed "
            "now, and are kept. To train all by one, use --overwrite or a new folder."
        )
    if gone:
        more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
        notes.append(
            f"The folders of {len(gone)} of {len(runs)} runs that had ended are gone: {', '.join(gone[:_SHOWN])}{more}."
            " Their figures stand in study.jsonl; to run one again, remove its line there."
        )
    return notes


def _ended(plan: Plan, out: Path) -> list[PlannedRun]:
    """Return the runs that finished or diverged, by their last lines in the record: those that are not run again."""
    last = {(line["arm"], line["seed"]): line["status"] for line in read_lines(out)}
    return [run for run in plan.runs if last.get((run.arm, run.seed)) in ENDED]
