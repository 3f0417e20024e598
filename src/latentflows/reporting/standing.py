"""How runs stand that do not count: under way, stopped, ended without the figure, or not begun."""

from __future__ import annotations

from latentflows.studies.execution.locks import is_held
from latentflows.studies.execution.record import ENDED
from latentflows.studies.execution.study_folder import LOCK
from latentflows.studies.results.records import RunRecord, StudyRun
from latentflows.studies.results.results import Results


def is_under_way(results: Results, arm: str, seed: int) -> bool:
    """Whether a process is at work on a run that has not ended: it holds the run's lock, as one that evaluates does."""
    if results.status(arm, seed) in ENDED:
        return False
    folder = results.folder / results.place(arm, seed)
    return is_held(folder.with_name(f".{folder.name}.lock"))


def is_study_under_way(results: Results) -> bool:
    """Whether a process carries out a study that has not ended, though it may be between two of its runs."""
    asked = ((arm, seed) for arm in results.study.labels for seed in results.study.seeds)
    left = [(arm, seed) for arm, seed in asked if results.status(arm, seed) not in ENDED]
    if not left:
        return False
    return is_held(results.folder / LOCK) or any(is_under_way(results, arm, seed) for arm, seed in left)


def standing(results: Results, arm: str, seed: int) -> str:
    """How a run stands, in words: its status with the reason, and how far it is where it has not ended."""
    run = results.runs.get((arm, seed))
    if is_under_way(results, arm, seed):
        return f"under way{_reached(results, arm, seed)}"
    if run is None:
        begun = results.files_of(arm, seed).record is not None
        return f"stopped{_reached(results, arm, seed)}" if begun else "not run yet"
    if not run.reason or run.reason.startswith(run.status):
        return run.reason or run.status
    return f"{run.status}: {run.reason.rstrip('.')}"


def trouble(record: RunRecord | None) -> str:
    """What the training of a run met that was not finite, in words; empty for nothing."""
    skipped, back = (0, 0) if record is None else (record.skipped_steps, record.rollbacks)
    found = [f"{skipped:,} step{'s' if skipped > 1 else ''} skipped"] if skipped else []
    if back:
        found.append(f"{back:,} rollback{'s' if back > 1 else ''}, each halving the learning rate")
    return ", ".join(found)


def _reached(results: Results, arm: str, seed: int) -> str:
    """How far the log of a run reaches; empty where it has not begun."""
    epochs = results.files_of(arm, seed).epochs
    if not epochs:
        return ""
    last = epochs[-1]
    of = "" if last.max_epochs is None else f" of {last.max_epochs}"
    stage = f" of “{last.stage}”" if last.stage != epochs[0].stage else ""
    return f", at epoch {last.epoch}{of}{stage}"


def left_out(results: Results, counted: dict[str, set[int]]) -> list[tuple[str, list[int], str]]:
    """Label, seeds and standing of the runs that the study asks for and that do not count, alike ones together.

    Args:
        results: The results.
        counted: For every arm, the seeds that count.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for arm, label in results.study.labels.items():
        for seed in results.study.seeds:
            if seed not in counted[arm]:
                found.setdefault((label, _why(results, arm, seed)), []).append(seed)
    return [(label, seeds, why) for (label, why), seeds in found.items()]


def _why(results: Results, arm: str, seed: int) -> str:
    run = results.runs.get((arm, seed))
    if run is not None and run.status == "finished":
        return f"finished: {_without_figure(run)}"
    return standing(results, arm, seed)


def _without_figure(run: StudyRun) -> str:
    """Why a finished run has not the figure that the others are compared by."""
    if "nll_bound" in (run.figures or {}):
        return "it has an NLL bound of its codes, which is no NLL and does not stand in one column with it"
    if run.protocol is not None and run.protocol.without_bound is not None:
        return f"there is no bound on log p(x), as {run.protocol.without_bound}"
    return "no finite NLL"
