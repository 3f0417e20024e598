"""The page of a comparison: arms x seeds."""

import math
from pathlib import Path
from urllib.parse import quote

from latentflows.reporting.base import (
    Comparison,
    Picture,
    read_comparison,
    read_epochs,
    read_hardware,
    read_pictures,
)
from latentflows.reporting.compared_groups import compared_groups
from latentflows.reporting.drawing import Drawing
from latentflows.reporting.figures import forest_plot, run_dots, validation_curves
from latentflows.reporting.page import missing, write_page
from latentflows.reporting.records import StudyRun
from latentflows.reporting.table import Row, counted_runs, limits, quantity_of, rows_of


def write_comparison_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.svg` of a comparison, from its files alone.

    Args:
        folder: Folder of a comparison, complete or not.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder is no comparison folder, or one of its files cannot be read.
    """
    comparison = read_comparison(folder)
    rows = rows_of(comparison)
    labels = {arm.name: arm.label for arm in comparison.study.arms}
    values = {
        "title": comparison.study.name,
        "study": comparison.study,
        "rows": rows,
        "quantity": quantity_of(comparison),
        "limits": limits(comparison),
        "labels": labels,
        "baseline": labels[comparison.study.baseline],
        "num_runs": len(labels) * len(comparison.study.seeds),
        "num_counted": sum(row.num_finished for row in rows),
        "left_out": _left_out(comparison),
        "protocols": _protocols(comparison),
        "hardware": _hardware(comparison),
        "torn_lines": comparison.torn_lines,
        "missing": missing(folder, "study.jsonl"),
        "groups": compared_groups(comparison),
        "runs": [(run, _link(folder, run)) for run in comparison.runs.values()],
        "pictures": _pictures(comparison),
    }
    return write_page(folder, "comparison.html", _drawings(comparison, rows), values)


def _drawings(comparison: Comparison, rows: list[Row]) -> list[Drawing]:
    baseline = next(row.label for row in rows if row.is_baseline)
    differences = {
        row.label: (row.difference, list(row.difference_by_seed.values()))
        for row in rows
        if row.difference is not None
    }
    quantity = quantity_of(comparison)
    drawings = (
        forest_plot(differences, baseline, quantity),
        run_dots({row.label: list(row.nll_by_seed.values()) for row in rows}, quantity),
        validation_curves({row.label: _curves(comparison, row.arm) for row in rows}),
    )
    return [drawing for drawing in drawings if drawing is not None]


def _curves(comparison: Comparison, arm: str) -> list[list[float]]:
    """Validation ELBO per epoch of every run of an arm that counts."""
    runs = [read_epochs(comparison.folder / run.run)[0] for run in counted_runs(comparison, arm).values()]
    return [[(epoch.validation or {}).get("elbo", math.nan) for epoch in epochs] for epochs in runs if epochs]


def _left_out(comparison: Comparison) -> list[tuple[str, int, str]]:
    """Label, seed and reason of every run that the study asks for and that does not count."""
    left_out = []
    for arm in comparison.study.arms:
        counted = counted_runs(comparison, arm.name)
        for seed in comparison.study.seeds:
            if seed not in counted:
                run = comparison.runs.get((arm.name, seed))
                reason = "not run yet" if run is None else run.status
                left_out.append((arm.label, seed, "no finite NLL" if reason == "finished" else reason))
    return left_out


def _protocols(comparison: Comparison) -> list[str]:
    """The protocol lines of the runs that count; more than one means that the figures do not compare."""
    lines = set()
    for arm in comparison.study.arms:
        for run in counted_runs(comparison, arm.name).values():
            lines.add("a protocol that was not recorded" if run.protocol is None else run.protocol.conditions)
    return sorted(lines)


def _hardware(comparison: Comparison) -> list[str]:
    """What the runs that count were made on; more than one line means that their seconds do not compare."""
    lines = set()
    for arm in comparison.study.arms:
        for run in counted_runs(comparison, arm.name).values():
            hardware = read_hardware(comparison.folder / run.run)
            if hardware is not None:
                lines.add(", ".join(f"{name}: {value}" for name, value in hardware.items()))
    return sorted(lines)


def _link(folder: Path, run: StudyRun) -> str | None:
    """Relative link to the page of the run; None where it has not been written."""
    page = Path(run.run) / "report.html"
    return quote(page.as_posix()) if (folder / page).is_file() else None


def _pictures(comparison: Comparison) -> list[tuple[str, Picture, str, str | None]]:
    """Heading, picture, run and link: the data, then samples of every arm, at the first seed."""
    data, samples = [], []
    for arm in comparison.study.arms:
        run = comparison.runs.get((arm.name, comparison.study.seeds[0]))
        if run is None:
            continue
        pictures = {picture.file: picture for picture in read_pictures(comparison.folder / run.run)}
        source = (run.run, _link(comparison.folder, run))
        if "data.png" in pictures and not data:
            data.append(("Data", pictures["data.png"], *source))
        if "samples.png" in pictures:
            samples.append((arm.label, pictures["samples.png"], *source))
    return data + samples
