"""Export of a study: its runs, arms, comparisons and curves as CSV, its table in LaTeX, its figures as SVG and PDF."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.core.files import write_atomically
from latentflows.reporting.base import resume_command
from latentflows.reporting.budgets import BudgetTable, budget_table
from latentflows.reporting.comparison_page import protocol_lines, study_drawings
from latentflows.reporting.latex import latex_table
from latentflows.reporting.study_pictures import study_pictures
from latentflows.reporting.table import table_of
from latentflows.studies.results.reading import read_record
from latentflows.studies.results.records import Record
from latentflows.studies.results.results import Results, read_results
from latentflows.studies.results.rows import CURVE_COLUMNS
from latentflows.studies.statistics.means import estimate

LISTING = "export.json"


class _Listing(Record):
    """`export.json`: the files that exports wrote into a folder."""

    format: Literal[1]
    exported: list[str]


def export_study(folder: Path, out: Path) -> list[Path]:
    """Write the tables and figures of a study for other programs; none of them needs pandas or LaTeX.

    | file | content |
    |---|---|
    | `runs.csv` | a row per run: the columns of `Results.rows` |
    | `arms.csv` | a row per arm and figure: mean over seeds, deviation, both intervals |
    | `comparisons.csv` | a row per comparison and figure; p-values are corrected within a figure |
    | `budgets.csv` | a row per arm: sizes solved for, parameters, FLOPs, epochs, steps, seconds |
    | `curves.csv` | a row per value of every epoch: the columns of `Results.curve_rows` |
    | `table.tex` | the table of the arms; needs booktabs |
    | `figures/*.svg`, `*.pdf` | the figures of the report, without links |
    | `samples/*.png` | the data, and samples of every arm at the seed that the report shows |
    | `export.json` | the names of these files, which the next export may replace |

    Args:
        folder: A study folder with a finished run.
        out: Where to write; files of an earlier export are replaced, others never.

    Returns:
        The files, in the order of the table.

    Raises:
        DataError: The folder is no study folder, a file in it cannot be read, or none of its runs has finished.
        ConfigurationError: `out` is no folder that can be written, or holds a file that no export wrote; nothing was
            written.
    """
    results = read_results(folder)
    _check_finished(results)
    contents = dict(_contents(results))
    try:
        out.mkdir(parents=True, exist_ok=True)
        listed = _check_own(out, list(contents))
        # First, so that an export that was stopped half-way can be made again.
        write_atomically(out / LISTING, _listing([*dict.fromkeys([*contents, *listed])]))
        for name, content in contents.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise ConfigurationError(
            f"`out` must be a folder that can be written; {error.filename or out}: {error.strerror}. Choose another "
            "`out`."
        ) from None
    return [out / name for name in (*contents, LISTING)]


def _check_finished(results: Results) -> None:
    """Refuse a study that has nothing to show yet.

    Raises:
        DataError: No run has finished.
    """
    if any(run.status == "finished" for run in results.runs.values()):
        return
    more = resume_command(results)
    raise DataError(
        f"{results.folder} must hold a finished run to be exported; none of its runs has finished."
        + (f" Go on with: {more}" if more else "")
    )


def _check_own(out: Path, names: Sequence[str]) -> list[str]:
    """Return what earlier exports wrote into a folder.

    Raises:
        ConfigurationError: A file is in the way that none of them wrote.
    """
    try:
        before = read_record(out / LISTING, _Listing)
    except DataError:  # a file of somebody else
        before = None
    listed = [] if before is None else before.exported
    own = {*listed, *([] if before is None else [LISTING])}
    foreign = [name for name in (*names, LISTING) if name not in own and os.path.lexists(out / name)]
    if foreign:
        raise ConfigurationError(
            f"`out` must not hold files that the export would replace and did not write; {out} holds "
            f"{', '.join(foreign)}. Move or remove {'it' if len(foreign) == 1 else 'them'}, or choose another `out`."
        )
    return listed


def _listing(names: Sequence[str]) -> bytes:
    return (json.dumps({"format": 1, "exported": list(names)}, indent=2) + "\n").encode()


def _contents(results: Results) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file."""
    table = table_of(results)
    budgets = budget_table(results, table)
    yield "runs.csv", to_csv(results.rows())
    yield "arms.csv", to_csv(_arm_rows(results))
    yield "comparisons.csv", to_csv(_comparison_rows(results))
    yield "budgets.csv", to_csv(_budget_rows(budgets))
    yield "curves.csv", to_csv(results.curve_rows(), CURVE_COLUMNS)
    yield "table.tex", latex_table(results, table, budgets, protocol_lines(results, brief=True)).encode()
    for drawing in study_drawings(results, table):
        yield f"figures/{drawing.name}.svg", drawing.standalone().encode()
        yield f"figures/{drawing.name}.pdf", drawing.pdf()
    for shown in study_pictures(results, {})[1]:
        yield f"samples/{Path(shown.run).name}-{shown.picture.file}", shown.picture.png


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> bytes:
    """Rows as CSV in UTF-8 with a header; what is None is empty.

    Args:
        rows: A value for every column, or for some.
        columns: Names in order; None for all that occur, in the order in which they do.
    """
    if columns is None:
        rows = list(rows)
        columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _figure_names(results: Results) -> list[str]:
    return list(dict.fromkeys(name for run in results.runs.values() for name in results.quantities(run)))


def _arm_rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for arm, label in results.study.labels.items():
        for name in _figure_names(results):
            values = results.values(name, arm)
            if not values:
                continue
            kinds, densities = (
                ", ".join(dict.fromkeys(each)) for each in zip(*_kinds(results, arm, values), strict=True)
            )
            found = estimate(list(values.values()))
            resampled = found.bootstrap
            rows.append(
                {
                    "arm": arm,
                    "label": label,
                    "figure": name,
                    "unit": results.unit(name),
                    "likelihood": kinds,
                    "prior_density": densities,
                    "seeds": found.num,
                    "mean": found.mean,
                    "standard_deviation": found.standard_deviation,
                    "t_low": found.low,
                    "t_high": found.high,
                    "bootstrap_low": None if resampled is None else resampled.low,
                    "bootstrap_high": None if resampled is None else resampled.high,
                    "bootstrap_method": None if resampled is None else resampled.method,
                    "interval_level": found.level,
                }
            )
    return rows


def _kinds(results: Results, arm: str, seeds: Iterable[int]) -> Iterator[tuple[str, str]]:
    """What log p(x) and the density of the prior are in each run; empty where it is not known."""
    for seed in seeds:
        run = results.runs[arm, seed]
        yield run.likelihood or "", "" if run.protocol is None else run.protocol.prior_density


def _comparison_rows(results: Results) -> list[dict[str, Any]]:
    """The comparisons by every figure; where protocols differ, a row that says so."""
    rows: list[dict[str, Any]] = []
    for name in _figure_names(results):
        try:
            compared = results.compare(name)
        except DataError as error:
            rows.append({"metric": name, "reason": str(error)})
        else:
            rows += [
                _named(results.comparison_row(comparison)) | {"unit": results.unit(name), "reason": None}
                for comparison in compared
            ]
    return sorted(rows, key=lambda row: "arm" not in row)  # whole rows first: they name the columns


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a comparison, with a name that says that a better mean is no finding."""
    return {"mean_is_better" if key == "better" else key: value for key, value in row.items()}


def _budget_rows(budgets: BudgetTable) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm.arm,
            "label": arm.label,
            "solved": arm.solved,
            "held": budgets.held,
            "amount": arm.amount,
            "off": arm.off,
            "within": arm.within,
            **{f"parameters.{part}": count for part, count in arm.parameters.items()},
            **{f"step_flops.{stage}": flops for stage, flops in arm.stage_flops.items()},
            "training_flops": arm.training_flops,
            "sampling_flops": arm.sampling_flops,
            "epochs": arm.epochs,
            "steps": arm.steps,
            "seconds": arm.seconds,
        }
        for arm in budgets.arms
    ]
