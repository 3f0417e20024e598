"""The page of a study: arms x seeds, at which budgets, by which protocol, and what follows."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from latentflows.core.errors import DataError
from latentflows.reporting.base import COMMANDS, RUN_FILES, Picture, read_pictures, resume_command
from latentflows.reporting.budgets import budget_table
from latentflows.reporting.compared_groups import compared_groups
from latentflows.reporting.drawing import Drawing
from latentflows.reporting.page import write_page
from latentflows.reporting.published import published_rows
from latentflows.reporting.run_page import write_run_report
from latentflows.reporting.study_figures import (
    AXES,
    MOST_BANDS,
    Axis,
    Contrast,
    Points,
    forest_plot,
    run_dots,
    validation_curves,
)
from latentflows.reporting.table import (
    Compared,
    StudyTable,
    counted_runs,
    limits,
    protocols_of,
    table_of,
)
from latentflows.studies.results.records import StudyRun
from latentflows.studies.results.results import Results, read_results
from latentflows.studies.results.rows import cumulative_flops

# What the curves show, the first that a run has logged: key, name, which way is better.
CURVES = (("elbo", "ELBO", "higher is better"), ("nll", "NLL", "lower is better"))


def write_comparison_report(folder: Path, *, run_pages: bool = False) -> Path:
    """Write `report.html` and `figures/*.svg` of a study, from its files alone.

    Every figure leads to the page of its run where that has been written.

    Cost: about a second of one core, and with `run_pages` another one for each run.

    Args:
        folder: Folder of a study, complete or not.
        run_pages: Write the page of every run too, where it has none that is newer than its files.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder is no study folder, or one of its files cannot be read.
    """
    results = read_results(folder)
    if run_pages:
        for run in results.runs.values():
            _write_run_page(folder / run.run)
    table, labels = table_of(results), results.study.labels
    links, drawings = run_links(results), study_drawings(results, table)
    values = {
        "figures": {drawing.name: drawing for drawing in drawings},
        "title": results.study.name,
        "study": results.study,
        "table": table,
        "budgets": budget_table(results, table),
        "published": published_rows(results.study.published, table),
        "limits": limits(results),
        "labels": labels,
        "links": {arm: {seed: links.get((arm, seed)) for seed in results.study.seeds} for arm in labels},
        "num_runs": len(labels) * len(results.study.seeds),
        "num_counted": sum(row.num_finished for row in table.rows),
        "left_out": _left_out(results),
        "protocols": protocol_lines(results),
        "facts": _facts(results),
        "torn_lines": results.torn_lines,
        "resume": resume_command(results),
        "groups": compared_groups(results),
        "runs": [
            (arm, seed, results.runs.get((arm, seed)), links.get((arm, seed)))
            for arm in labels
            for seed in results.study.seeds
        ],
        "pictures": _pictures(results, links),
        "without_pictures": _without_pictures(results),
        "metric": table.metric,
        "most_bands": MOST_BANDS,
    }
    return write_page(folder, "comparison.html", drawings, values)


def _write_run_page(run: Path) -> None:
    """Write the page of a run that has none, or an older one; what cannot be read has none, and the study says so."""
    page = run / "report.html"
    changed = [path.stat().st_mtime for name in RUN_FILES if (path := run / name).is_file()]
    if changed and not (page.is_file() and page.stat().st_mtime >= max(changed)):
        with suppress(DataError):
            write_run_report(run)


def study_drawings(results: Results, table: StudyTable) -> list[Drawing]:
    """The figures of a study that there are data for: differences, every run, and curves.

    Args:
        results: The results.
        table: Their tables.
    """
    links = {key: link for key, link in run_links(results).items() if link is not None}
    of_arm = {
        arm: {seed: link for (name, seed), link in links.items() if name == arm}
        for arm in results.study.labels
    }
    compared = [found for found in table.comparisons if found.comparison.difference is not None]
    contrasts = [
        Contrast(_label(found, table), found.comparison, of_arm[found.comparison.arm]) for found in compared
    ]
    values = {row.label: row.nll_by_seed for row in table.rows}
    by_label = {row.label: of_arm[row.arm] for row in table.rows}
    drawings = [
        forest_plot(contrasts, f"“{table.baseline}”" if table.baseline else "the other arm", table.quantity),
        run_dots(values, by_label, table.quantity),
        *(_curves(results, axis) for axis in AXES),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _label(found: Compared, table: StudyTable) -> str:
    return found.label if table.baseline is not None else f"“{found.label}” against “{found.other_label}”"


def _curves(results: Results, axis: Axis) -> Drawing | None:
    """The first of `CURVES` that any run has logged, against one axis."""
    for key, name, better in CURVES:
        arms = {label: _points(results, arm, key, axis) for arm, label in results.study.labels.items()}
        drawing = validation_curves(arms, axis, name, better)
        if drawing is not None:
            return drawing
    return None


def _points(results: Results, arm: str, key: str, axis: Axis) -> list[Points]:
    """Position and validation value at every epoch, of every run of an arm that counts."""
    found: list[Points] = []
    for run in counted_runs(results, arm).values():
        epochs = results.files(run).epochs
        flops = cumulative_flops(epochs, results.planned(arm))
        places = flops if axis.name == "flops" else [getattr(epoch, axis.name) for epoch in epochs]
        points = [
            (math.nan if place is None else float(place), (epoch.validation or {}).get(key, math.nan))
            for place, epoch in zip(places, epochs, strict=True)
        ]
        if points:
            found.append(points)
    return found


def _without_figure(run: StudyRun) -> str:
    """Why a finished run has not the figure that the others are compared by."""
    if "nll_bound" in (run.figures or {}):
        return "it has an NLL bound of its codes, which is no NLL and does not stand in one column with it"
    return "no finite NLL"


def _left_out(results: Results) -> list[tuple[str, int, str]]:
    """Label, seed and reason of every run that the study asks for and that does not count."""
    left_out = []
    for arm, label in results.study.labels.items():
        counted = counted_runs(results, arm)
        for seed in results.study.seeds:
            run = results.runs.get((arm, seed))
            if run is None:
                left_out.append((label, seed, "not run yet"))
            elif seed not in counted:
                status = _without_figure(run) if run.status == "finished" else run.status
                left_out.append(
                    (label, seed, f"{status}: {run.reason.rstrip('.')}" if run.reason else status)
                )
    return left_out


def protocol_lines(results: Results, *, brief: bool = False) -> list[str]:
    """The protocol lines of the runs that count; more than one means that the figures may not compare.

    Args:
        results: The results.
        brief: Whether to name the data alone, without how they were made.
    """
    lines = {
        "a protocol that was not recorded" if found is None else found.brief if brief else found.conditions
        for found in protocols_of(results)
    }
    return sorted(lines)


@dataclass(frozen=True)
class _Facts:
    """What the runs that count were made on, and by which versions; a line for every difference."""

    hardware: list[str]
    versions: list[str]


def _facts(results: Results) -> _Facts:
    runs = [run for arm in results.study.labels for run in counted_runs(results, arm).values()]
    records = [record for run in runs if (record := results.files(run).record) is not None]
    return _Facts(
        sorted({_in_words(record.hardware) for record in records}),
        sorted({_in_words(record.versions) for record in records}),
    )


def _in_words(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in facts.items())


def run_links(results: Results) -> dict[tuple[str, int], str | None]:
    """Relative link to the page of every run; None where it has not been written."""
    return {key: _link(results.folder, run) for key, run in results.runs.items()}


def _link(folder: Path, run: StudyRun) -> str | None:
    page = Path(run.run) / "report.html"
    return quote(page.as_posix()) if (folder / page).is_file() else None


@dataclass(frozen=True)
class _Shown:
    """A picture with its heading, its run and the link to it."""

    heading: str
    picture: Picture
    run: str
    link: str | None


def _pictures(results: Results, links: Mapping[tuple[str, int], str | None]) -> tuple[int, list[_Shown]]:
    """The seed at which most arms have samples, the first of these; the data, then samples of every arm at it."""
    study = results.study
    has_samples = {
        seed: sum(
            (results.folder / run.run / "samples" / "samples.png").is_file()
            for (_, other), run in results.runs.items()
            if other == seed
        )
        for seed in study.seeds
    }
    seed = max(study.seeds, key=lambda seed: has_samples[seed])
    data, samples = [], []
    for arm, label in study.labels.items():
        run = results.runs.get((arm, seed))
        if run is None:
            continue
        pictures = {picture.file: picture for picture in read_pictures(results.folder / run.run)}
        source = (run.run, links.get((arm, seed)))
        if "data.png" in pictures and not data:
            data.append(_Shown("Data", pictures["data.png"], *source))
        if "samples.png" in pictures:
            samples.append(_Shown(label, pictures["samples.png"], *source))
        if "latents.png" in pictures:
            samples.append(_Shown(f"{label}: q(z) and p(z)", pictures["latents.png"], *source))
    return seed, data + samples


def _without_pictures(results: Results) -> tuple[str, str | None]:
    """What to do where no run has pictures: draw those of a finished one, or go on."""
    finished = [run for run in results.runs.values() if run.status == "finished"]
    if not finished:
        return "No run has finished, so there are no pictures yet.", None
    folder = shlex.quote(str(results.folder / finished[0].run))
    return "No run of this seed has pictures. To make them:", COMMANDS["samples/index.json"].format(
        folder=folder
    )
