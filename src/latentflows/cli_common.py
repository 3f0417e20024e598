"""What the commands share: options, the command that was given, how a study is run and reported."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from latentflows import terminal
from latentflows.core.errors import ConfigurationError

if TYPE_CHECKING:
    from latentflows.studies.execution.engines import Engine
    from latentflows.studies.planning.study import Study

DATA = "LATENTFLOWS_DATA"
Resume = Annotated[bool, typer.Option("--resume", help="Go on where it stopped; finished parts are skipped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data files.", show_default=f"${DATA}")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Workers = Annotated[int, typer.Option(help="Runs at a time, one core each.")]


def given_command() -> str:
    """Return the command line that started this process."""
    return shlex.join(["latentflows", *sys.argv[1:]])


def check_choice(resume: bool, overwrite: bool) -> None:
    """Refuse to go on with what is in a folder and to replace it at once.

    Raises:
        ConfigurationError: if both are asked for.
    """
    if resume and overwrite:
        raise ConfigurationError(
            "--resume goes on with what is in the folder, --overwrite replaces it; got both. Choose one."
        )


def say_if_new(folder: Path, resume: bool) -> None:
    """Say that there is nothing to go on with, where that was asked for: a script may always ask."""
    if resume and not (folder.exists() and (folder.is_file() or any(folder.iterdir()))):
        typer.echo(f"--resume: there is nothing in {folder} yet, so it starts from the beginning.", err=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the one process that works on a run folder, by the lock that a study takes on it.

    Where the folder around it cannot be written to, as that of a mounted one, there is no lock.

    Raises:
        ConfigurationError: if another process works on it, naming that process; if the folder can be none of a run.
        NotADirectoryError: if the folder would lie in a file.
    """
    from latentflows.studies.execution.locks import locked

    given, folder = folder, folder.resolve()
    if not folder.name:
        raise ConfigurationError(f"A run needs a folder of its own; got {folder}. Give another one by --out.")
    if any(path.is_file() for path in folder.parents):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(given))
    around = [path for path in folder.parents if not path.exists()]
    with ExitStack() as stack:
        for path in reversed(around):  # made for the lock alone, unless a run stands there in the end
            stack.callback(_remove_if_empty, path)
        try:
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), f"The run {folder}"))
        except OSError as error:
            if not folder.is_dir() or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def interrupted(command: str) -> NoReturn:
    """End with the command that goes on."""
    typer.echo(f"Interrupted; everything so far is saved. Continue with:\n  {command}", err=True)
    raise typer.Exit(130)


def write_report(folder: Path) -> Path:
    """Write the page of a run or of a study."""
    from latentflows.reporting import write_comparison_report, write_run_report

    if (folder / "study.json").is_file():
        return write_comparison_report(folder, run_pages=True)
    return write_run_report(folder)


def run_study(
    study: Study,
    out: Path,
    engine: Engine,
    *,
    together: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    again: str,
) -> None:
    """Run a study with a progress bar, show its table and write its report.

    Raises:
        ConfigurationError: if both `resume` and `overwrite` are asked for.
        typer.Exit: 130 after an interruption, with the command `again` to go on; 1 if every run failed.
    """
    check_choice(resume, overwrite)
    say_if_new(out, resume)
    from latentflows.studies.execution.compare import compare

    bar = None if quiet else terminal.ComparisonBar()
    try:
        progress = compare(
            study,
            out,
            engine=engine,
            together=together,
            resume=resume,
            overwrite=overwrite,
            command=given_command(),
            notify=(lambda progress: None) if bar is None else bar.show,
        )
    finally:
        if bar is not None:
            bar.stop()
    for name, reason in progress.failed.items():
        typer.echo(f"{name} did not finish: {reason}", err=True)
    if progress.done < progress.total:
        interrupted(f"{again} --out {shlex.quote(str(out))} --resume")
    terminal.show_table(out)
    typer.echo(f"Report: {write_report(out)}")
    if len(progress.failed) == progress.total:
        raise typer.Exit(1)
