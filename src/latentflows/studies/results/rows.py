"""Rows of a study's results as plain values: one for every run, and one for every value of every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from latentflows.studies.results.records import Epoch, PlannedArm, StudyRun

if TYPE_CHECKING:
    from latentflows.studies.results.results import Results

CURVE_COLUMNS = (
    "arm",
    "label",
    "seed",
    "stage",
    "epoch",
    "step",
    "samples",
    "seconds",
    "flops",
    "split",
    "metric",
    "value",
)


def cumulative_flops(epochs: Sequence[Epoch], planned: PlannedArm | None) -> list[float | None]:
    """FLOPs of all training steps up to the end of each epoch; None from where they are not known on.

    Args:
        epochs: The log of a run.
        planned: The arm, with the FLOPs of one data point in a step of each stage.
    """
    total: float | None = 0.0
    found: list[float | None] = []
    before = 0
    for epoch in epochs:
        each = None if planned is None else planned.stage_flops.get(epoch.stage)
        if total is None or each is None or epoch.samples is None:
            total = None
        else:
            total += (epoch.samples - before) * each
            before = epoch.samples
        found.append(total)
    return found


def run_row(results: Results, arm: str, seed: int) -> dict[str, Any]:
    """One row of `Results.rows`."""
    run, planned = results.runs.get((arm, seed)), results.planned(arm)
    files = results.files_of(arm, seed)
    row: dict[str, Any] = {
        "arm": arm,
        "label": results.study.labels[arm],
        "seed": seed,
        "status": results.status(arm, seed),
        "reason": None if run is None else run.reason,
        "folder": None if run is None and files.record is None else results.place(arm, seed),
        "seconds": None if run is None else run.seconds,
        "steps": None if run is None or files.record is None else files.record.steps,
        "skipped_steps": None if run is None or files.record is None else files.record.skipped_steps,
        "rollbacks": None if run is None or files.record is None else files.record.rollbacks,
        "epochs": len(files.epochs) or None,
        "likelihood": None if run is None else run.likelihood,
        "prior_density": None if run is None or run.protocol is None else run.protocol.prior_density,
    }
    if run is not None and run.parameters is not None:
        row |= {f"parameters.{part}": count for part, count in run.parameters.shown.items()}
    if planned is not None:
        row |= {f"solved.{key}": value for key, value in planned.solved.items()}
    for name, quantity in ({} if run is None else results.quantities(run)).items():
        row[name] = quantity.mean
        row |= {f"{name}.{error}": value for error, value in quantity.errors.items()}
    return row


def curve_rows(results: Results, arm: str, run: StudyRun) -> Iterator[dict[str, Any]]:
    """The rows of `Results.curve_rows` of one run."""
    epochs = results.files(run).epochs
    flops = cumulative_flops(epochs, results.planned(arm))
    for epoch, spent in zip(epochs, flops, strict=True):
        place = {
            "arm": arm,
            "label": results.study.labels[arm],
            "seed": run.seed,
            "stage": epoch.stage,
            "epoch": epoch.epoch,
            "step": epoch.step,
            "samples": epoch.samples,
            "seconds": epoch.seconds,
            "flops": spent,
        }
        parts = {"train": epoch.train, "validation": epoch.validation, "diagnostics": epoch.diagnostics}
        for split, values in parts.items():
            for metric, value in (values or {}).items():
                yield place | {"split": split, "metric": metric, "value": value}
