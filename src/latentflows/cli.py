"""The command line: parse arguments, call one function of the library, print what came of it.

Nothing beyond typer is imported before a command runs, so that `--help` answers at once. Mistakes in the input end
with one message on stderr and exit code 2; `--debug` or LATENTFLOWS_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from latentflows import terminal
from latentflows._version import __version__
from latentflows.core.errors import ConfigurationError, DataError, LatentFlowsError

if TYPE_CHECKING:
    from latentflows.studies.comparison import Study
    from latentflows.studies.run import RunResult

DEBUG = "LATENTFLOWS_DEBUG"
DATA = "LATENTFLOWS_DATA"
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

Resume = Annotated[bool, typer.Option("--resume", help="Go on where it stopped; finished parts are skipped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data files.", show_default=f"${DATA}")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Workers = Annotated[int, typer.Option(help="Runs at a time, one core each.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failed run, 2 for bad input, 130 if interrupted."""
    try:
        with warnings.catch_warnings():
            if not os.environ.get(DEBUG):
                warnings.showwarning = _show_warning
            app(args=None if arguments is None else list(arguments), prog_name="latentflows")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except (LatentFlowsError, OSError) as error:
        if os.environ.get(DEBUG):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}. Choose another path."
        typer.echo(f"Error: {text}", err=True)
        return 2
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Say what the warning says, without the place in the code."""
    typer.echo(f"Warning: {message}", err=True)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"latentflows {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks; also {DEBUG}=1.")] = False,
) -> None:
    """VAEs whose posterior, prior and likelihood may each be a normalizing flow.

    Start with: latentflows demo
    """
    if debug:
        os.environ[DEBUG] = "1"
    if context.invoked_subcommand != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            f"`torchrun` runs `latentflows train` alone; got `{context.invoked_subcommand}`. Start it without torchrun."
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Comparison folder.")] = Path("runs/demo"),
    workers: Workers = 2,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compare five models on digits: where does a flow help? Minutes on two cores.

    Example: latentflows demo --out runs/demo
    """
    from latentflows.studies.demo import demo_study

    _compare(
        demo_study(), out, workers, resume=resume, overwrite=overwrite, quiet=quiet, again="latentflows demo"
    )


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Arms, seeds and what they share.")],
    out: Annotated[Path, typer.Option(help="Comparison folder.")],
    workers: Workers = 2,
    data_root: DataRoot = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run several arms over several seeds and compare them.

    Example: latentflows compare examples/digits_study.yaml --out runs/study
    """
    from latentflows.studies.comparison import read_study

    if data_root is not None:
        os.environ[DATA] = str(data_root)  # the worker processes inherit it
    again = f"latentflows compare {shlex.quote(str(study))}"
    _compare(read_study(study), out, workers, resume=resume, overwrite=overwrite, quiet=quiet, again=again)


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG.yaml | KEY=VALUE", help="A configuration, and what to change in it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/NAME-seedSEED")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Train a model, evaluate it and draw pictures, into a run folder.

    Example: latentflows train examples/mnist_real_nvp.yaml posterior=iaf training.epochs=50

    On several devices: torchrun --nproc-per-node 2 -m latentflows train ...

    All keys are shown by: latentflows list options
    """
    from latentflows.studies.overrides import read_configuration

    files = [text for text in arguments or [] if "=" not in text]
    overrides = [text for text in arguments or [] if "=" in text]
    if len(files) > 1:
        raise ConfigurationError(
            f"One configuration at a time; got {', '.join(files)}. Overrides are KEY=VALUE."
        )
    overrides += [] if data_root is None else [f"data.root={data_root}"]
    configuration = read_configuration(Path(files[0]) if files else None, overrides)
    folder = out or Path("runs") / f"{configuration.name}-seed{configuration.seed}"

    from latentflows.studies.run import run
    from latentflows.training import ProgressBar
    from latentflows.training.parallel import is_first

    quiet = quiet or not is_first()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = run(
        configuration,
        folder,
        resume=resume,
        overwrite=overwrite,
        callbacks=[] if quiet else [ProgressBar()],
        command=_command(),
        announce=lambda part: None if quiet else typer.echo(f"{part} ..."),
    )
    if not is_first():
        return
    if result.status == "interrupted":
        config = shlex.quote(str(folder / "config.yaml"))
        _interrupted(f"latentflows train {config} --out {shlex.quote(str(folder))} --resume")
    _show_result(result)


@app.command()
def evaluate(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="evaluation.KEY=VALUE", help="What to measure; see `latentflows list options`."
        ),
    ] = None,
    num_importance_samples: Annotated[
        int | None, typer.Option(help="K.", show_default="as in the run")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(help="Only the first n.", show_default="as in the run")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="test or validation.", show_default="as in the run")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples.", show_default="as in the run")] = None,
    data_root: DataRoot = None,
) -> None:
    """Measure a trained run by other settings, or more of it; what was measured by the same ones is kept.

    Example: latentflows evaluate runs/demo/runs/iaf-seed0 --num-importance-samples 5000

    Example: latentflows evaluate runs/demo/runs/iaf-seed0 evaluation.gaps=20 evaluation.samples=400
    """
    from latentflows.studies.build import build_data, load_run
    from latentflows.studies.measure import evaluate as measure
    from latentflows.studies.overrides import configuration_from

    for text in overrides or []:
        if not text.startswith(("evaluation.", "data.root=")):
            raise ConfigurationError(
                f"A trained run takes evaluation.KEY=VALUE and data.root=FOLDER alone; got {text!r}. Its other "
                "settings are those that it was trained with."
            )
    configuration, model = load_run(run)
    given = {
        "evaluation.num_importance_samples": num_importance_samples,
        "evaluation.num_images": num_images,
        "evaluation.split": split,
        "evaluation.seed": seed,
        "data.root": data_root,
    }
    changes = [*(overrides or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    configuration = configuration_from(configuration.model_dump(mode="json"), changes)
    content = measure(model, build_data(configuration), configuration.evaluation, run)
    terminal.show_figures(content["figures"], content["protocol"])
    terminal.show_groups(content)
    _report(run)


@app.command()
def sample(
    run: Run,
    num: Annotated[
        int | None,
        typer.Option(max=1_000_000, help="How many; of each class.", show_default="64, or 10 of each class"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A class by name or number; may be repeated.", show_default="every class"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Scale of the prior's base noise.")] = 1.0,
    mean: Annotated[bool, typer.Option("--mean", help="Show E[x|z] instead of a draw of x.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help=".png or .npy.", show_default="RUN/samples/drawn.png")
    ] = None,
) -> None:
    """Draw from a trained run; from one that is given a label, a row of pictures for each class.

    Example: latentflows sample runs/demo/runs/iaf-prior-seed0 --num 100 --temperature 0.8
    """
    from latentflows.studies.build import load_run
    from latentflows.studies.measure import write_samples

    if out is not None and out.suffix not in (".png", ".npy"):
        raise ConfigurationError(f"`out` must end in .png (a picture) or .npy (an array); got {out}.")
    _, model = load_run(run)
    typer.echo(
        write_samples(
            model,
            run,
            num=num,
            temperature=temperature,
            mean=mean,
            seed=seed,
            out=out,
            labels=label or (),
        )
    )
    if out is None:
        _report(run)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_COMPARISON", help="A run or comparison folder.")],
) -> None:
    """Write report.html from the files of a run or of a comparison.

    Example: latentflows report runs/demo
    """
    typer.echo(_report(folder))


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER | components | options", help="Where to look for runs, or what to list."
        ),
    ] = "runs",
) -> None:
    """List runs with status and figures; or the kinds of components; or every key of a configuration.

    Example: latentflows list components
    """
    if what == "components":
        terminal.list_components()
    elif what == "options":
        terminal.list_options()
    else:
        terminal.list_runs(Path(what))


@app.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist, fashion_mnist, omniglot or cifar10.")],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder to put it in.", show_default=f"${DATA}", envvar=DATA, show_envvar=False),
    ] = None,
) -> None:
    """Download a data set from its authors and verify it.

    Example: latentflows download mnist --root data
    """
    if root is None:
        raise DataError(f"`--root` is missing: name a folder for the data, or set {DATA}.")
    from latentflows.data import download as fetch

    typer.echo(fetch(name, root))


def _command() -> str:
    return shlex.join(["latentflows", *sys.argv[1:]])


def _interrupted(command: str) -> NoReturn:
    typer.echo(f"Interrupted; everything so far is saved. Continue with:\n  {command}", err=True)
    raise typer.Exit(130)


def _compare(
    study: Study, out: Path, workers: int, *, resume: bool, overwrite: bool, quiet: bool, again: str
) -> None:
    from latentflows.studies.comparison import compare as run_all

    bar = None if quiet else terminal.ComparisonBar()
    try:
        progress = run_all(
            study,
            out,
            resume=resume,
            overwrite=overwrite,
            workers=workers,
            command=_command(),
            notify=(lambda progress: None) if bar is None else bar.show,
        )
    finally:
        if bar is not None:
            bar.stop()
    for name, reason in progress.failed.items():
        typer.echo(f"{name} did not finish: {reason}", err=True)
    if progress.done < progress.total:
        _interrupted(f"{again} --out {shlex.quote(str(out))} --workers {workers} --resume")
    terminal.show_table(out)
    typer.echo(f"Report: {_report(out)}")
    if len(progress.failed) == progress.total:
        raise typer.Exit(1)


def _show_result(result: RunResult) -> None:
    if result.status != "finished":
        typer.echo(f"The run in {result.folder} {result.status}: {result.reason}", err=True)
        raise typer.Exit(1)
    if result.figures is not None and result.protocol is not None:
        terminal.show_figures(result.figures, result.protocol)
    typer.echo(f"Run: {result.folder}  Report: {_report(result.folder)}")


def _report(folder: Path) -> Path:
    from latentflows.reporting import write_comparison_report, write_run_report

    return (write_comparison_report if (folder / "study.json").is_file() else write_run_report)(folder)
