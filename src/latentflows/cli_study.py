"""`latentflows study`: plan, run and export studies; parse arguments, call one function of the library."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentflows import terminal
from latentflows.cli_common import DATA, DataRoot, Overwrite, Quiet, Resume, run_study, with_options
from latentflows.core.errors import ConfigurationError, LatentFlowsError

if TYPE_CHECKING:
    from latentflows.studies.planning.study import Study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Arms over seeds at equal budgets: plan, run and export; `latentflows report` writes the page again.",
)

Source = Annotated[
    str, typer.Argument(metavar="STUDY.yaml | NAME", help="A file, or one of `latentflows study list`.")
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes to what all arms share; also seeds=0,1,2 and budget.KEY."
    ),
]


@app.command("list")
def list_() -> None:
    """List the studies that come with the package.

    Example: latentflows study list
    """
    from latentflows.studies.planning.ready import ready_studies

    for name, study in ready_studies().items():
        typer.echo(f"{name}\n    {study.name}")


@app.command()
def plan(study: Source, changes: Changes = None, data_root: DataRoot = None) -> None:
    """Show what a study would run: sizes, parameters and FLOPs of every arm. Nothing is trained.

    Example: latentflows study plan prior-at-equal-budget data=digits
    """
    _set_data(data_root, changes)
    from latentflows.studies.planning.ready import find_study

    found = find_study(study, changes or [])
    _check_data(found, data_root)

    from latentflows.studies.planning.plan import plan as make_plan

    terminal.show_plan(make_plan(found))
    terminal.show_untaken(found, changes or [])


@app.command()
def run(
    study: Source,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="Study folder.", show_default="runs/NAME")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time, one core each.", show_default="2, or all of a cluster")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster.", show_default="one on this machine")
    ] = None,
    gpus_per_run: Annotated[float, typer.Option(help="Share of a GPU that each run gets on Ray.")] = 0.0,
    together: Annotated[
        bool,
        typer.Option(
            "--together/--one-by-one", help="Train the seeds of an arm as one program where that is faster."
        ),
    ] = True,
    data_root: DataRoot = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run every arm of a study with every seed, and write its report.

    Example: latentflows study run examples/digits_study.yaml --out runs/study

    Example: latentflows study run posterior-and-prior data=digits seeds=0,1,2 training.epochs=60
    """
    _set_data(data_root, changes)
    from latentflows.studies.planning.ready import find_study

    found = find_study(study, changes or [])
    _check_data(found, data_root)

    from latentflows.studies.execution.engines import engine_from

    chosen = engine_from(engine, workers=workers, address=address, gpus_per_run=gpus_per_run)
    options = [
        *([] if engine == "local" else ["--engine", engine]),
        *([] if address is None else ["--address", address]),
        *([] if workers is None else ["--workers", str(workers)]),
        *([] if gpus_per_run == 0 else ["--gpus-per-run", f"{gpus_per_run:g}"]),
        *([] if together else ["--one-by-one"]),
        *([] if data_root is None else ["--data-root", str(data_root)]),
    ]
    terminal.show_untaken(found, changes or [])
    run_study(
        found,
        out or Path("runs") / Path(study).stem,
        chosen,
        together=together,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        again=f"latentflows study run {shlex.join([study, *(changes or []), *options])}",
    )


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="STUDY_FOLDER", help="The folder of a study.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="STUDY_FOLDER/export")
    ] = None,
) -> None:
    """Write the tables of a study as CSV and LaTeX, and its figures as SVG and PDF.

    Example: latentflows study export runs/study --out thesis/figures
    """
    from latentflows.reporting import export_study

    for path in export_study(folder, out or folder / "export"):
        typer.echo(path)


def _check_data(study: Study, root: Path | None) -> None:
    """Refuse a folder of data that no arm reads, or not every arm that reads files."""
    from latentflows.data.load import is_read_from_files

    if root is None:
        return
    try:
        data = {arm.name: study.configuration(arm, study.seeds[0]).data for arm in study.all_arms()}
    except LatentFlowsError:  # what is wrong with the arms is said by those who build them
        return
    own = [
        arm
        for arm, each in data.items()
        if is_read_from_files(each.name) and each.root is not None and Path(each.root) != root
    ]
    if own:
        raise ConfigurationError(
            f"--data-root does not reach {', '.join(own)}: `data.root`={data[own[0]].root} stands in the study; got "
            f"{root}. Change it there, or leave --data-root out."
        )
    names = {each.name for each in data.values()}
    if not any(is_read_from_files(name) for name in names):
        raise ConfigurationError(
            f"--data-root has no effect: {', '.join(sorted(names))} is not read from files; got {root}. Leave it out."
        )


def _set_data(root: Path | None, changes: list[str] | None) -> None:
    with_options(changes or [], {"data.root": root})  # refuses both; the option goes another way
    if root is not None:
        os.environ[DATA] = str(root)  # the worker processes inherit it
