"""One run: from a configuration to a run folder with weights, figures and pictures, resumable at every part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latentflows.core import noise
from latentflows.core.errors import ConfigurationError
from latentflows.data import ImageData
from latentflows.generation import write_pictures
from latentflows.models.density import Model
from latentflows.models.inference import evaluation_mode
from latentflows.studies.building.build import (
    build_data,
    build_model,
    build_options,
    build_stages,
    build_trackers,
    context_shape_of,
)
from latentflows.studies.measuring.measure import evaluate, evaluated_split, finish_prior, is_evaluated
from latentflows.studies.running.folder import (
    RunResult,
    check_folder,
    clear,
    ended_result,
    first_record,
    of_history,
    record_failure,
    result_of,
    write_record,
    write_start,
)
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.training import Callback, History, Stage, fit, load_weights, save_weights
from latentflows.training.base import Job, check_run
from latentflows.training.loop import check_data
from latentflows.training.parallel import is_first, num_processes
from latentflows.training.record import Record, identity, lengths


def run(
    configuration: RunConfiguration,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    announce: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """Train, evaluate and draw pictures, writing everything to the run folder `out`.

    Data and model are built before anything is written or removed. However the run ends, `run.json` says so; a part
    that is finished is not repeated on resume. Under `torchrun` every process calls `run`; the first one alone looks
    at the folder, writes, evaluates and draws, the others train along.

    Args:
        configuration: What to run.
        out: Run folder.
        resume: Go on with a run of the same configuration, or start it where there is none. Stages that have not
            ended may become longer, and what was not measured, or gave nothing finite, measured in another way.
        overwrite: Remove a run that is there.
        callbacks: Watch the training.
        command: The command that made the run, for its record.
        announce: Receives the name of each part as it starts.

    Returns:
        The result, also of a run that was interrupted or that diverged. Processes after the first know no figures.

    Raises:
        ConfigurationError: if `out` holds something else or a tracker is not installed, before anything is changed.
        CheckpointError: if the checkpoint to resume from is damaged or does not fit, before anything is changed.
        LatentFlowsError: if data, memory or disk do not suffice; the run is recorded as failed.
    """
    if is_first():
        check_folder(configuration, out, resume=resume, overwrite=overwrite)
    ended = None if overwrite else ended_result(configuration, out)
    if ended is not None:
        return ended
    parts = prepare(configuration, build_data(configuration))
    if not is_first():  # it meets the first process inside `fit`, which by then has prepared the folder
        history = _train(configuration, parts, out, resume=resume, callbacks=())
        return RunResult(
            out, history.status, history.reason, None, parts.model.num_parameters(), history.seconds
        )
    callbacks = [*build_trackers(configuration, out), *callbacks]
    trained = resume and is_trained(configuration, parts, out)
    if overwrite:
        clear(out)
    record = first_record(configuration, parts.model, parts.data.labels, out, command)
    try:
        write_start(configuration, out, record, trained=trained)
        announce("training")
        history = _train(configuration, parts, out, resume=resume, callbacks=callbacks)
        record |= of_history(history, record, trained=trained)
        if history.status == "finished":
            finish_weights(parts.model, configuration, out, record)
            measure_and_draw(parts.model, parts.data, configuration, out, announce)
    except BaseException as error:
        record_failure(configuration, out, record, error)
    write_record(out, record)
    result = result_of(out)
    assert result is not None
    return result


class Parts(NamedTuple):
    """What is trained, on what."""

    data: ImageData
    model: Model
    stages: list[Stage]


def prepare(configuration: RunConfiguration, data: ImageData) -> Parts:
    """Build what is trained, and check all that can be checked before training.

    Raises:
        ConfigurationError, CombinationError, DataError: for what cannot be trained on these data.
    """
    evaluated_split(data, configuration.evaluation)
    model = build_model(configuration, data.train.event_shape, context_shape_of(data))
    stages = build_stages(configuration, model, len(data.train))
    check_run(Job(model, stages, data.train, data.validation), num_processes(), build_options(configuration))
    with noise.preserved(), evaluation_mode(model):
        check_data(model, (data.train, data.validation))
    _check_points(configuration, len(data.train))
    return Parts(data, model, stages)


def _check_points(configuration: RunConfiguration, available: int) -> None:
    """Refuse a prior that starts from more data points than there are, before anything is written."""
    for part, settings in (("prior", configuration.prior), ("prior_base", configuration.prior_base)):
        from_data = getattr(settings, "start", None) in ("data", "em")
        for key in ("num_exemplars", "num_components"):
            wanted = getattr(settings, key, 0) if from_data or key == "num_exemplars" else 0
            if wanted > available:
                raise ConfigurationError(
                    f"`{part}.{key}`={wanted} starts from as many training data points, and there are {available}. "
                    "Lower it, or let it start without data where the kind allows that."
                )


def is_trained(configuration: RunConfiguration, parts: Parts, out: Path) -> bool:
    """Whether training in `out` has ended; raises where its checkpoint is damaged or does not fit."""
    key = identity(parts.stages, configuration.seed, parts.data.train)
    saved = Record(out, key, lengths(parts.stages)).load()
    return saved is not None and saved[1].finished


def _train(
    configuration: RunConfiguration, parts: Parts, out: Path, *, resume: bool, callbacks: Sequence[Callback]
) -> History:
    return fit(
        parts.model,
        parts.stages,
        parts.data.train,
        validation=parts.data.validation,
        out=out,
        seed=configuration.seed,
        options=build_options(configuration),
        callbacks=callbacks,
        resume=resume,
    )


class FractionDone(Callback):
    """Reports how much of the training is done; a stage that stops early counts as done when the next one starts."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report
        self.before: dict[str, int] = {}
        self.total = 1

    def on_start(self, model: Model, stages: Sequence[Stage]) -> None:
        epochs = [stage.max_epochs for stage in stages]
        self.total = sum(epochs)
        self.before = {stage.name: sum(epochs[:index]) for index, stage in enumerate(stages)}

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.report((self.before[line["stage"]] + line["epoch"]) / self.total)


def finish_weights(model: Model, configuration: RunConfiguration, out: Path, record: dict[str, Any]) -> None:
    """Load the selected weights, whatever a resumed `fit` left in the model, and do what they still lack.

    From then on they are the run's, and `run.json` says so: others may load them.
    """
    weights = out / "checkpoint" / "model.safetensors"
    load_weights(model, weights)
    model.eval()
    if not record["trained"] and finish_prior(model, configuration.evaluation.seed):
        save_weights(model, weights)
    record["trained"] = True
    write_record(out, record | {"status": "running"})


def measure_and_draw(
    model: Model, data: ImageData, configuration: RunConfiguration, out: Path, announce: Callable[[str], None]
) -> None:
    """Evaluate and draw a model with its finished weights."""
    settings = configuration.evaluation
    if not is_evaluated(out, settings, model, data):
        evaluate(model, data, settings, out, announce=announce)
    if not (out / "samples" / "index.json").is_file():
        announce("pictures")
        write_pictures(
            model,
            evaluated_split(data, settings),
            out / "samples",
            temperature=settings.temperature,
            seed=settings.seed,
            what=f"{settings.split} data points",
        )
