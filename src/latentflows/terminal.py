"""What the command line shows: the progress of a comparison, its table, figures and lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentflows.core.errors import DataError

if TYPE_CHECKING:
    from latentflows.studies.comparison import Progress


class ComparisonBar:
    """A whole comparison as one bar, with an estimate of the time left and the runs under way."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )

    def show(self, progress: Progress) -> None:
        """Bring the bar up to date; it appears with the first call."""
        if not self.bar.tasks:
            self.bar.start()
            self.bar.add_task("", total=1.0, note="")
        seconds = progress.seconds_left
        notes = [] if seconds is None else [f"about {int(seconds) // 60}:{int(seconds) % 60:02d} left"]
        notes += [f"{name} {100 * fraction:.0f}%" for name, fraction in progress.active.items()]
        self.bar.update(
            self.bar.tasks[0].id,
            completed=progress.fraction,
            description=f"runs {progress.done}/{progress.total}",
            note=", ".join(notes),
        )

    def stop(self) -> None:
        """Leave the bar as it is; nothing is printed where it never appeared."""
        if self.bar.tasks:
            self.bar.stop()


def show_figures(figures: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Print the figures of an evaluation with their errors, one per line, and how they were measured."""
    from latentflows.reporting.records import Protocol

    for name, figure in figures.items():
        if figure is not None and figure["mean"] is not None:
            typer.echo(_figure_line(name.replace("_", " "), figure))
    measured = Protocol.model_validate(protocol)
    typer.echo(f"Measured on: {measured.conditions}.")
    typer.echo("±: standard error over images. Monte Carlo error: from finite K, at the same images.")
    if measured.caution:
        typer.echo(measured.caution)


def show_groups(evaluation: dict[str, Any]) -> None:
    """Print the groups of figures of an evaluation, each with its protocol, or why it was not measured."""
    from latentflows.reporting.groups import group_tables
    from latentflows.reporting.records import Evaluation

    for table in group_tables(Evaluation.model_validate(evaluation)):
        typer.echo(f"\n{table.title}")
        if table.reason is not None:
            typer.echo(f"Not measured: {table.reason}")
            continue
        width = max((len(words.name) for words, _ in table.rows), default=0)
        for words, quantity in table.rows:
            figure = quantity.model_dump()
            typer.echo(_figure_line(words.name, figure, max(words.decimals, 3), width))
        typer.echo(f"By: {table.protocol}.")


def _figure_line(name: str, figure: dict[str, Any], decimals: int = 3, width: int = 22) -> str:
    error, noise, p = (figure.get(key) for key in ("standard_error", "monte_carlo_error", "p_value"))
    spread = "" if error is None else f" ± {error:.{decimals}f}"
    finite = "" if noise is None else f" (Monte Carlo error {noise:.2g})"
    tested = "" if p is None else f" (p-value {p:.3f})"
    return f"{name:>{width}}  {figure['mean']:.{decimals}f}{spread} {figure['unit']}{finite}{tested}"


def show_table(folder: Path) -> None:
    """Print a comparison: one row per arm, and in words what the figures support."""
    from rich.console import Console
    from rich.table import Table

    from latentflows.reporting.base import read_comparison
    from latentflows.reporting.table import limits, quantity_of, rows_of
    from latentflows.studies.statistics import format_interval

    comparison = read_comparison(folder)
    rows, quantity = rows_of(comparison), quantity_of(comparison)
    table = Table(box=None, padding=(0, 2, 0, 0), collapse_padding=True)
    table.add_column("arm")  # it alone wraps in a narrow terminal: no figure is cut
    for heading in ("parameters", "epochs", quantity, "difference", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        error = "" if row.nll_standard_error is None else f" ± {row.nll_standard_error:.2f}"
        table.add_row(
            row.label,
            "" if row.parameters is None else f"{row.parameters.total:,}",
            "" if row.epochs is None else f"{row.epochs.mean:.0f}",
            "none" if row.nll is None else f"{row.nll.mean:.2f}{error}",
            "" if row.difference is None else format_interval(row.difference),
            "" if row.seconds is None else f"{row.seconds.mean:.0f}",
        )
    console = Console(markup=False, highlight=False)
    console.print(table)
    baseline = next(row.label for row in rows if row.is_baseline)
    console.print(
        f"\n{quantity[0].upper()}{quantity[1:]} in nats: mean over seeds ± standard error over images. Difference: 95% "
        f"interval of the paired difference to {baseline}, over seeds. Epochs: over all stages.\n"
    )
    for row in rows:
        if row.verdict is not None:
            console.print(f"{row.verdict}\n")
    console.print(f"What the figures do not support. {' '.join(limits(comparison))}\n")


def list_components() -> None:
    """Print the kinds of every part."""
    from latentflows.studies.options import kinds

    width = max(len(f"{kind.key}={kind.allowed}") for kind in kinds())
    for kind in kinds():
        typer.echo(f"{kind.key + '=' + kind.allowed:<{width}}  {kind.description}")


def list_options() -> None:
    """Print every key of a configuration with its default, what it means and what it takes."""
    from latentflows.studies.options import options

    for option in options():
        where = f" [{', '.join(option.kinds)}]" if option.kinds else ""
        typer.echo(f"{option.key}={option.default}{where}\n    {option.description} Takes {option.allowed}.")
    typer.echo("Kinds, as in posterior=iaf, are shown by: latentflows list components")


def list_runs(folder: Path) -> None:
    """Print the runs below a folder with status, NLL and size.

    Raises:
        DataError: if there is no such folder.
    """
    if not folder.is_dir() and folder != Path("runs"):
        raise DataError(
            f"`{folder}` must be a folder of runs, `components` or `options`; there is no such folder."
        )
    found = sorted(folder.glob("**/run.json"))
    if not found:
        typer.echo(f"No runs in {folder}. Make one with: latentflows train")
    for path in found:
        try:
            line = _run_line(path.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            line = f"unreadable ({type(error).__name__})"
        typer.echo(f"{path.parent}  {line}")


def _run_line(folder: Path) -> str:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    shown = "not evaluated"
    if (folder / "evaluation.json").is_file():
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        nll, protocol = evaluation["figures"].get("nll"), evaluation["protocol"]
        shown = "no NLL" if nll is None else _nll_line(nll, protocol)
    return f"{record['status']:<12} {shown:<44} {record['parameters']['total']:>10,} parameters"


def _nll_line(nll: dict[str, Any], protocol: dict[str, Any]) -> str:
    error = "" if nll["standard_error"] is None else f" ± {nll['standard_error']:.2f}"
    return (
        f"{protocol['split']} NLL {nll['mean']:.2f}{error} nats (K = {protocol['num_importance_samples']:,})"
    )
