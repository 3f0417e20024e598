"""What the commands share: options, the command that was given, how a study is run and reported."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from latentflows import terminal
from latentflows.core.errors import ConfigurationError, LatentFlowsError

if TYPE_CHECKING:
    from latentflows.studies.execution.engines import Engine
    from latentflows.studies.planning.study import Study
    from latentflows.studies.settings.configuration import RunConfiguration

DATA = "LATENTFLOWS_DATA"
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
_ANOTHER_PATH = "Choose another path."
Resume = Annotated[bool, typer.Option("--resume", help="Go on where it stopped; finished parts are skipped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data files.", show_default=f"${DATA}")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Workers = Annotated[int, typer.Option(help="Runs at a time, one core each.")]


@contextmanager
def short_warnings() -> Iterator[None]:
    """Say on stderr what a warning says, or why a thread ended, without the place in the code."""

    def show(message: object, *_: object, **__: object) -> None:
        typer.echo(f"Warning: {message}", err=True)

    def show_end(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            show(f"a thread beside the command ended: {str(failed.exc_value) or failed.exc_type.__name__}")

    before = threading.excepthook
    threading.excepthook = show_end
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        threading.excepthook = before


def given_command() -> str:
    """Return the command line that started this process."""
    return shlex.join(["latentflows", *sys.argv[1:]])


def usual_folder(configuration: RunConfiguration) -> Path:
    """Return the folder of a run for which none is given.

    Raises:
        ConfigurationError: if the run's name makes none.
    """
    name = f"{configuration.name}-seed{configuration.seed}"
    if Path(name).name != name:
        raise ConfigurationError(
            f"The folder of a run is called by its `name`, which {configuration.name!r} cannot be. Take another name, "
            "or give the folder by --out."
        )
    return Path("runs") / name


def check_choice(resume: bool, overwrite: bool) -> None:
    """Refuse to go on with what is in a folder and to replace it at once.

    Raises:
        ConfigurationError: if both are asked for.
    """
    if resume and overwrite:
        raise ConfigurationError(
            "--resume goes on with what is in the folder, --overwrite replaces it; got both. Choose one."
        )


def with_options(overrides: Sequence[str], options: Mapping[str, object]) -> list[str]:
    """Append to overrides the options that were given, each by the key that it is short for.

    Raises:
        ConfigurationError: if a key is given both ways.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key in given:
            raise ConfigurationError(
                f"`{key}` is given twice: {text!r}, and {given[key]} by its option. Give one."
            )
    return [*overrides, *(f"{key}={value}" for key, value in given.items())]


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
            if error.errno not in _NO_RIGHT or not folder.is_dir():
                raise OSError(error.errno, error.strerror, str(given)) from error
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def interrupted(command: str) -> NoReturn:
    """End with the command that goes on."""
    typer.echo(f"Interrupted; everything so far is saved. Continue with:\n  {command}", err=True)
    raise typer.Exit(130)


def message_of(error: Exception) -> str | None:
    """Say what went wrong, where, and what to do; nothing of what only a mistake of this library raises."""
    if isinstance(error, LatentFlowsError):
        return str(error)
    if not isinstance(error, OSError):
        from latentflows.studies.running.failures import OUT_OF_MEMORY, is_out_of_memory

        return OUT_OF_MEMORY if is_out_of_memory(error) else None
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk is full. Free space and repeat the command, a run or a study with --resume."
    advice = "Get the right to it, or choose another path." if error.errno in _NO_RIGHT else _ANOTHER_PATH
    return f"{where}{error.strerror or error}. {advice}"


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written to, before work is done for it.

    Raises:
        PermissionError: naming the folder.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_report_of(folder: Path, done: str) -> Path:
    """Write the page of what has been done, which stands whatever happens to the page.

    Raises:
        LatentFlowsError: if the page cannot be made, saying first what was done.
    """
    try:
        return write_report(folder)
    except (LatentFlowsError, OSError) as error:
        raise LatentFlowsError(f"{done}; the report could not be written: {message_of(error)}") from error


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
    """Run a study with a progress bar, tell what happened on the way, show its table and write its report.

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
    for note in progress.notes:
        typer.echo(note, err=True)
    for name, reason in progress.failed.items():
        typer.echo(f"{name} did not finish: {reason}", err=True)
    if progress.done < progress.total:
        interrupted(f"{again} --out {shlex.quote(str(out))} --resume")
    terminal.show_table(out)
    typer.echo(f"Report: {write_report_of(out, f'The study in {out} is done')}")
    if len(progress.failed) == progress.total:
        raise typer.Exit(1)
