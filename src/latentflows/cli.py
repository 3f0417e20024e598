"""The command line: parse arguments, call one function of the library, print what came of it.

Nothing beyond typer is imported before a command runs, so that `--help` answers at once. Mistakes in the input end
with one message on stderr and exit code 2; `--debug` or LATENTFLOWS_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentflows import cli_study, terminal
from latentflows._version import __version__
from latentflows.cli_common import (
    DATA,
    DataRoot,
    Overwrite,
    Quiet,
    Resume,
    Workers,
    alone,
    check_choice,
    check_writable,
    given_command,
    interrupted,
    message_of,
    run_study,
    say_if_new,
    short_warnings,
    usual_folder,
    with_options,
    write_report,
    write_report_of,
)
from latentflows.core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from latentflows.studies.running.run import RunResult

DEBUG = "LATENTFLOWS_DEBUG"
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(cli_study.app, name="study")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failed run, 2 for bad input, 130 if interrupted."""
    try:
        with nullcontext() if os.environ.get(DEBUG) else short_warnings():
            app(args=None if arguments is None else list(arguments), prog_name="latentflows")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = message_of(error)
        if os.environ.get(DEBUG) or message is None:
            raise
        typer.echo(f"Error: {message}", err=True)
        return 2
    return 0


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
    if context.invoked_subcommand != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
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
    from latentflows.studies.execution.engines import engine_from

    run_study(
        demo_study(),
        out,
        engine_from("local", workers=workers),
        together=True,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        again=f"latentflows demo --workers {workers}",
    )


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
    check_choice(resume, overwrite)
    from latentflows.studies.settings.overrides import read_configuration

    files = [text for text in arguments or [] if "=" not in text]
    overrides = [text for text in arguments or [] if "=" in text]
    if len(files) > 1:
        raise ConfigurationError(
            f"One configuration at a time; got {', '.join(files)}. Overrides are KEY=VALUE."
        )
    overrides = with_options(overrides, {"data.root": data_root})
    configuration = read_configuration(Path(files[0]) if files else None, overrides)
    folder = out or usual_folder(configuration)

    from latentflows.studies.running.run import run
    from latentflows.training import ProgressBar
    from latentflows.training.parallel import is_first

    if is_first():
        say_if_new(folder, resume)
    quiet = quiet or not is_first()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with alone(folder) if is_first() else nullcontext():
        result = run(
            configuration,
            folder,
            resume=resume,
            overwrite=overwrite,
            callbacks=[] if quiet else [ProgressBar()],
            command=given_command(),
            announce=lambda part: None if quiet else typer.echo(f"{part} ..."),
        )
    if not is_first():
        return
    if result.status == "interrupted":
        config = shlex.quote(str(folder / "config.yaml"))
        interrupted(f"latentflows train {config} --out {shlex.quote(str(folder))} --resume")
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

    Figures by other settings (split, images, K, seed) replace the earlier ones in evaluation.json; it is said which.

    Example: latentflows evaluate runs/demo/runs/iaf-seed0 --num-importance-samples 5000

    Example: latentflows evaluate runs/demo/runs/iaf-seed0 evaluation.gaps=20 evaluation.samples=400
    """
    from latentflows.studies.building.build import build_data, load_run
    from latentflows.studies.measuring.bounds import has_importance_samples
    from latentflows.studies.measuring.measure import evaluate as measure
    from latentflows.studies.measuring.measure import recorded, replaced
    from latentflows.studies.settings.overrides import configuration_from

    for text in overrides or []:
        if not text.startswith(("evaluation.", "data.root=")):
            raise ConfigurationError(
                f"A trained run takes evaluation.KEY=VALUE and data.root=FOLDER alone; got {text!r}. Its other "
                "settings are those that it was trained with."
            )
    given = {
        "evaluation.num_importance_samples": num_importance_samples,
        "evaluation.num_images": num_images,
        "evaluation.split": split,
        "evaluation.seed": seed,
        "data.root": data_root,
    }
    changes = with_options(overrides or [], given)

    def announce(part: str) -> None:
        check_writable(run)  # as something is to be measured
        typer.echo(f"{part} ...", err=True)

    with alone(run):
        configuration, model = load_run(run)
        if any(text.startswith("evaluation.num_importance_samples=") for text in changes) and not (
            has_importance_samples(model)
        ):
            raise ConfigurationError(
                f"{run}: this model uses no importance samples, so their number changes none of its figures. Leave "
                "out --num-importance-samples."
            )
        configuration = configuration_from(configuration.model_dump(mode="json"), changes)
        before = recorded(run)
        data, settings = build_data(configuration), configuration.evaluation
        content = measure(model, data, settings, run, announce=announce)
    for line in replaced(before, content):
        typer.echo(f"Replaced: {line}")
    terminal.show_figures(content["figures"], content["protocol"])
    terminal.show_training_note(run)
    terminal.show_groups(content)
    write_report_of(run, f"The figures are in {run / 'evaluation.json'}")


@app.command()
def sample(
    run: Run,
    num: Annotated[
        int | None,
        typer.Option(
            max=1_000_000,
            help="How many; of each class, or for each picture.",
            show_default="64, or 10 of each",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A class by name or number; may be repeated.", show_default="every class"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Scale of the prior's base noise.")] = 1.0,
    mean: Annotated[bool, typer.Option("--mean", help="Show E[x|z] instead of a draw of x.")] = False,
    guidance: Annotated[
        float,
        typer.Option(
            help="Weight that pushes draws away from those without a label; prior=tarflow or flow_matching."
        ),
    ] = 0.0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Of a draw from prior=flow_matching, or noise_contrastive with langevin.",
            show_default="as in the run",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help=".png or .npy.", show_default="RUN/samples/drawn.png")
    ] = None,
) -> None:
    """Draw from a trained run; from one that is given a label or a picture, a row for each class or for some pictures.

    Example: latentflows sample runs/demo/runs/iaf-prior-seed0 --num 100 --temperature 0.8
    """
    from latentflows.models import DensityModel
    from latentflows.studies.building.build import load_run
    from latentflows.studies.measuring.measure import write_samples

    if out is not None and out.suffix not in (".png", ".npy"):
        raise ConfigurationError(f"`out` must end in .png (a picture) or .npy (an array); got {out}.")
    _, model = load_run(run)
    if mean and isinstance(model, DensityModel):
        raise ConfigurationError(
            "A density of the data has no mean of p(x|z) to show. Leave out --mean; draws at a lower --temperature are "
            "smoother."
        )
    path = write_samples(
        model,
        run,
        num=num,
        temperature=temperature,
        mean=mean,
        seed=seed,
        out=out,
        labels=label or (),
        guidance=guidance,
        steps=steps,
    )
    typer.echo(path)
    if out is None:
        write_report_of(run, f"The picture is in {path}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDY", help="A run or study folder.")],
) -> None:
    """Write report.html from the files of a run or of a study.

    Example: latentflows report runs/demo
    """
    typer.echo(write_report(folder))


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
    from latentflows.data import download as fetch
    from latentflows.data.download import check_source

    check_source(name)
    if root is None:
        raise DataError(f"`--root` is missing: name a folder for the data, or set {DATA}.")
    typer.echo(fetch(name, root))


def _show_result(result: RunResult) -> None:
    if result.status != "finished":
        typer.echo(f"The run in {result.folder} {result.status}: {result.reason}", err=True)
        raise typer.Exit(1)
    from latentflows.studies.results.reading import read_evaluation

    if result.figures is not None and result.protocol is not None:
        evaluation = read_evaluation(result.folder)
        assert evaluation is not None
        terminal.show_figures(result.figures, result.protocol)
        terminal.show_training_note(result.folder)
        terminal.show_groups(evaluation.model_dump())
    page = write_report_of(result.folder, f"The run in {result.folder} is finished")
    typer.echo(f"Run: {result.folder}  Report: {page}")
