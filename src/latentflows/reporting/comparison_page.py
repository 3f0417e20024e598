"""The page of a study: arms x seeds, at which budgets, by which protocol, and what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from latentflows.core.errors import DataError
from latentflows.reporting.base import RUN_FILES, resume_command
from latentflows.reporting.budgets import budget_table
from latentflows.reporting.compared_groups import compared_groups
from latentflows.reporting.drawing import Drawing
from latentflows.reporting.limits import limits
from latentflows.reporting.page import write_page
from latentflows.reporting.parts import MARK_WORDS
from latentflows.reporting.published import published_rows
from latentflows.reporting.run_page import write_run_report
from latentflows.reporting.standing import is_study_under_way, left_out, standing, trouble
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
from latentflows.reporting.study_pictures import study_pictures, without_pictures
from latentflows.reporting.table import (
    Compared,
    StudyTable,
    counted_runs,
    protocols_of,
    table_of,
)
from latentflows.studies.execution.record import ENDED
from latentflows.studies.results.reading import AS_ONE_PROGRAM
from latentflows.studies.results.records import Epoch, StudyRun
from latentflows.studies.results.results import Results, read_results
from latentflows.studies.results.rows import cumulative_flops

UNEVEN = 1.5  # times the seconds of a step in another run of the same arm: the machine was not quiet
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
    under_way = is_study_under_way(results)
    values = {
        "figures": {drawing.name: drawing for drawing in drawings},
        "title": results.study.name,
        "study": results.study,
        "table": table,
        "budgets": budget_table(results, table),
        "published": published_rows(results.study.published, table),
        "limits": limits(results, table),
        "monte_carlo_error": _monte_carlo_error(results, table.metric),
        "sign_flips": any(found.comparison.sign_flip_can_find for found in table.comparisons),
        "uneven_seconds": _uneven_seconds(results),
        "over_images": any(found.comparison.error_over_images is not None for found in table.comparisons),
        "labels": labels,
        "links": {arm: {seed: links.get((arm, seed)) for seed in results.study.seeds} for arm in labels},
        "num_runs": len(labels) * len(results.study.seeds),
        "num_counted": sum(row.num_finished for row in table.rows),
        "left_out": left_out(results, {arm: set(counted_runs(results, arm)) for arm in labels}),
        "under_way": under_way,
        "protocols": protocol_lines(results),
        "marks": {row.arm: row.mark for row in table.rows},
        "mark_words": MARK_WORDS,
        "facts": _facts(results),
        "torn_lines": results.torn_lines,
        "gone": [
            run.run
            for run in results.runs.values()
            if run.status in ENDED and results.files(run).record is None
        ],
        "resume": None if under_way else resume_command(results),
        "groups": compared_groups(results),
        "runs": [
            (arm, seed, results.runs.get((arm, seed)), _stands(results, arm, seed), links.get((arm, seed)))
            for arm in labels
            for seed in results.study.seeds
        ],
        "pictures": study_pictures(results, links),
        "without_pictures": without_pictures(results),
        "metric": table.metric,
        "most_bands": MOST_BANDS,
    }
    return write_page(folder, "comparison.html", drawings, values)


def _stands(results: Results, arm: str, seed: int) -> str:
    """How a run stands, and what its training met that was not finite."""
    found = trouble(results.files_of(arm, seed).record)
    return "; ".join([standing(results, arm, seed), *([found] if found else [])])


def _write_run_page(run: Path) -> None:
    """Write the page of a run that has none, or an older one; what cannot be read has none, and the study says so."""
    page = run / "report.html"
    changed = [path.stat().st_mtime for name in RUN_FILES if (path := run / name).is_file()]
    if changed and not (page.is_file() and page.stat().st_mtime >= max(changed)):
        with suppress(DataError):
            write_run_report(run)


def study_drawings(results: Results, table: StudyTable) -> list[Drawing]:
    """The figures of a study that there are data for: differences, every run, and curves; none where none compare.

    Args:
        results: The results.
        table: Their tables.
    """
    if table.protocol_differences:  # what was measured differently shares no axis either
        return []
    links = {key: link for key, link in run_links(results).items() if link is not None}
    of_arm = {
        arm: {seed: link for (name, seed), link in links.items() if name == arm}
        for arm in results.study.labels
    }
    compared = [found for found in table.comparisons if found.comparison.difference is not None]
    contrasts = [
        Contrast(_label(found, table), found.comparison, of_arm[found.comparison.arm]) for found in compared
    ]
    values = {row.mark + row.name: row.nll_by_seed for row in table.rows}
    by_label = {row.mark + row.name: of_arm[row.arm] for row in table.rows}
    drawings = [
        forest_plot(contrasts, f"“{table.baseline}”" if table.baseline else "the other arm", table.quantity),
        run_dots(values, by_label, table.quantity),
        *(_curves(results, table, axis) for axis in AXES),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _label(found: Compared, table: StudyTable) -> str:
    """What stands beside a difference: the arm, the other where there are several, and its seeds where some miss."""
    label = found.label if table.baseline is not None else f"“{found.label}” against “{found.other_label}”"
    num, of = len(found.comparison.by_seed), max(row.num_seeds for row in table.rows)
    return label if num == of else f"{label} ({num} of {of} seeds)"


def _curves(results: Results, table: StudyTable, axis: Axis) -> Drawing | None:
    """The first of `CURVES` that any run has logged, against one axis."""
    for key, name, better in CURVES:
        arms = {row.mark + row.label: _points(results, row.arm, key, axis) for row in table.rows}
        drawing = validation_curves(arms, axis, name, better)
        if drawing is not None:
            return drawing
    return None


def _points(results: Results, arm: str, key: str, axis: Axis) -> list[Points]:
    """Position and validation value by stage and epoch, of every run of an arm that counts."""
    found: list[Points] = []
    for run in counted_runs(results, arm).values():
        epochs = results.files(run).epochs
        flops = cumulative_flops(epochs, results.planned(arm))
        places = flops if axis.name == "flops" else [getattr(epoch, axis.name) for epoch in epochs]
        points = {
            (epoch.stage, epoch.epoch): (math.nan if place is None else float(place), value)
            for place, epoch, value in zip(places, epochs, _validation_values(epochs, key), strict=True)
        }
        if points:
            found.append(points)
    return found


def _validation_values(epochs: Sequence[Epoch], key: str) -> list[float]:
    """A validation figure at every epoch; NaN where it was not logged.

    A stage of the prior alone logs no ELBO. Encoder and decoder stand still in it, at their best epoch so far, so that
    it is the reconstruction of that epoch less the KL. Where the best epoch was chosen by another figure than the ELBO,
    it is not known which that was: NaN.
    """
    found, best, reconstruction = [], -math.inf, math.nan
    for epoch in epochs:
        values = epoch.validation or {}
        if key == "elbo" and "prior_nll" in values:
            found.append(reconstruction - values.get("kl", math.nan))
            continue
        found.append(values.get(key, math.nan))
        if values.get("elbo", -math.inf) > best:
            best, chosen = (
                values["elbo"],
                math.isclose(values.get("loss", math.nan), -values["elbo"], rel_tol=1e-6),
            )
            reconstruction = values.get("reconstruction", math.nan) if chosen else math.nan
    return found


def _monte_carlo_error(results: Results, metric: str) -> str | None:
    """The largest Monte Carlo error of the runs that count, with two digits; None where there is none."""
    runs = [run for arm in results.study.labels for run in counted_runs(results, arm).values()]
    found = [
        quantity.monte_carlo_error
        for run in runs
        if (quantity := (run.figures or {}).get(metric)) is not None
    ]
    known = [error for error in found if error is not None]
    return f"{max(known):.2g}" if known else None


def _uneven_seconds(results: Results) -> str | None:
    """A caution where a step takes longer in some runs of an arm than in others, or runs shared their seconds."""
    ways = [found for found in results.protocol_differences("seconds") if found.startswith(AS_ONE_PROGRAM)]
    cautions = [
        f"Seconds do not compare, as runs that train as one program share them: {found}." for found in ways
    ]
    factors = {label: _unevenness(results, arm) for arm, label in results.study.labels.items()}
    label = max(factors, key=lambda label: factors[label])
    if factors[label] >= UNEVEN:
        cautions.append(
            f"A step took up to {factors[label]:.1f} times as long in one run of “{label}” as in another: the machine "
            "had other work, and seconds say little about arms."
        )
    return " ".join(cautions) or None


def _unevenness(results: Results, arm: str) -> float:
    """The longest over the shortest mean time of a step among the runs of an arm that count and trained alike."""
    alike: dict[tuple[tuple[str, int], ...], list[float]] = {}
    for run in counted_runs(results, arm).values():
        record = results.files(run).record
        if record and record.steps and record.seconds:
            alike.setdefault(record.trained_with, []).append(record.seconds / record.steps)
    return max((max(each) / min(each) for each in alike.values()), default=1.0)


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
