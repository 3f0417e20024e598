"""One run: from a configuration to a run folder with weights, figures and pictures, resumable at every part."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from latentflows._version import __version__
from latentflows.core.errors import CheckpointError, ConfigurationError, LatentFlowsError
from latentflows.core.files import write_atomically
from latentflows.data import ImageData
from latentflows.generation import write_pictures
from latentflows.models import VAE
from latentflows.studies.build import (
    build_data,
    build_model,
    build_options,
    build_stages,
    build_trackers,
    context_shape_of,
)
from latentflows.studies.configuration import RunConfiguration
from latentflows.studies.measure import evaluate, evaluated_split, finish_prior, is_evaluated
from latentflows.studies.overrides import differences, read_configuration, to_yaml
from latentflows.training import Callback, History, Stage, fit, load_weights, save_weights
from latentflows.training.parallel import is_first, num_processes, on_gpu
from latentflows.training.record import Record, identity, lengths

FILES = ("config.yaml", "run.json", "metrics.jsonl", "evaluation.json", "report.html")
FOLDERS = ("checkpoint", "samples", "figures", "tensorboard", "wandb")
# Settings that may differ when a run goes on: they change where and how it runs, not what it learns.
_MAY_DIFFER = {"data.root", "training.accelerator", "training.checkpoint_every", "training.trackers"}
_LENGTHS = {"training.epochs", "training.prior_epochs", "training.joint_epochs"}


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: The run folder.
        status: "finished", "interrupted", "diverged" or "failed".
        reason: Why, where it did not finish.
        figures: As in `evaluation.json`; None where the run was not evaluated.
        parameters: Numbers of parameters by part, and in total.
        seconds: Wall time of training, over all sessions.
        protocol: How the figures were measured, as in `evaluation.json`; None without figures.
    """

    folder: Path
    status: str
    reason: str | None
    figures: dict[str, Any] | None
    parameters: dict[str, int]
    seconds: float
    protocol: dict[str, Any] | None = None


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
            ended may become longer.
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
    recorded = None if overwrite else result_of(out)
    if recorded is not None and (recorded.status == "diverged" or _is_complete(recorded)):
        return recorded
    parts = _build(configuration)
    if not is_first():  # it meets the first process inside `fit`, which by then has prepared the folder
        history = _train(configuration, parts, out, resume=resume, callbacks=())
        return RunResult(
            out, history.status, history.reason, None, parts.model.num_parameters(), history.seconds
        )
    callbacks = [*build_trackers(configuration, out), *callbacks]
    trained = resume and _is_trained(configuration, parts, out)
    if overwrite:
        clear(out)
    record = _first_record(configuration, parts.model, out, command) | {"labels": list(parts.data.labels)}
    try:
        write_atomically(out / "config.yaml", to_yaml(configuration).encode())
        _write_record(out, record)
        if not trained:
            _forget_measures(out)
        announce("training")
        history = _train(configuration, parts, out, resume=resume, callbacks=callbacks)
        record |= _of_history(history)
        if history.status == "finished":
            _write_record(out, record | {"status": "running"})
            _measure(parts.model, parts.data, configuration, out, announce)
    except BaseException as error:
        _record_failure(out, record, error)
    _write_record(out, record)
    result = result_of(out)
    assert result is not None
    return result


class _Parts(NamedTuple):
    data: ImageData
    model: VAE
    stages: list[Stage]


def _build(configuration: RunConfiguration) -> _Parts:
    """Build what is trained, and check all that can be checked before training."""
    data = build_data(configuration)
    evaluated_split(data, configuration.evaluation)
    model = build_model(configuration, data.train.event_shape, context_shape_of(data))
    stages = build_stages(configuration, model, len(data.train))
    for stage in stages:
        stage.check(model)
    _check_points(configuration, len(data.train))
    return _Parts(data, model, stages)


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


def _is_trained(configuration: RunConfiguration, parts: _Parts, out: Path) -> bool:
    """Whether training in `out` has ended; raises where its checkpoint is damaged or does not fit."""
    key = identity(parts.stages, configuration.seed, len(parts.data.train))
    saved = Record(out, key, lengths(parts.stages)).load()
    return saved is not None and saved[1].finished


def _forget_measures(out: Path) -> None:
    """Remove figures and the index of pictures: they are of other weights than those to come."""
    (out / "evaluation.json").unlink(missing_ok=True)
    (out / "samples" / "index.json").unlink(missing_ok=True)


def _train(
    configuration: RunConfiguration, parts: _Parts, out: Path, *, resume: bool, callbacks: Sequence[Callback]
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

    def on_start(self, model: VAE, stages: Sequence[Stage]) -> None:
        epochs = [stage.max_epochs for stage in stages]
        self.total = sum(epochs)
        self.before = {stage.name: sum(epochs[:index]) for index, stage in enumerate(stages)}

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.report((self.before[line["stage"]] + line["epoch"]) / self.total)


def check_folder(configuration: RunConfiguration, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else than what is to be run.

    Raises:
        ConfigurationError: saying what is there and what to do.
    """
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"`out` must be a folder; {out} is a file. Choose another one.")
    if overwrite or not out.exists() or not any(out.iterdir()):
        return
    if not (out / "config.yaml").is_file():
        raise ConfigurationError(f"{out} is not empty and holds no run. Choose another `out`.")
    before = read_configuration(out / "config.yaml")
    status = _read_record(out).get("status", "unknown")
    changed = [key for key in differences(before, configuration) if key not in _MAY_DIFFER]
    if changed and resume and _is_longer(before, configuration, changed):
        if status in ("finished", "diverged"):
            raise ConfigurationError(
                f"{out} holds a run that is {status}; its length ({', '.join(changed)}) can change no more. Train the "
                "longer one into another `out`."
            )
        return
    if changed:
        raise ConfigurationError(
            f"{out} holds a run of another configuration: {', '.join(changed)} differ. Choose another `out`, or "
            "replace that run with --overwrite."
        )
    if not resume:
        raise ConfigurationError(
            f"{out} holds this run already (status {status}). Continue it with --resume, choose another `out`, or "
            "replace it with --overwrite."
        )


def _is_longer(before: RunConfiguration, after: RunConfiguration, changed: Sequence[str]) -> bool:
    """Whether stages become longer, and nothing else changes."""
    names = [key.partition(".")[2] for key in changed if key in _LENGTHS]
    return len(names) == len(changed) and all(
        getattr(after.training, name, 0) > getattr(before.training, name, 0) for name in names
    )


def clear(out: Path) -> None:
    """Remove the files of a run, and nothing else, from a folder."""
    import shutil

    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)


def _is_complete(result: RunResult) -> bool:
    pictures = result.folder / "samples" / "index.json"
    return result.status == "finished" and result.figures is not None and pictures.is_file()


def result_of(out: Path) -> RunResult | None:
    """Read how a run ended from its folder; None where there is no record. "failed" counts as it stands."""
    record = _read_record(out)
    if not record:
        return None
    evaluation = _read(out / "evaluation.json")
    return RunResult(
        folder=out,
        status=record.get("status", "failed"),
        reason=record.get("reason"),
        figures=evaluation.get("figures"),
        parameters=record.get("parameters", {}),
        seconds=record.get("seconds", 0.0),
        protocol=evaluation.get("protocol"),
    )


def _measure(
    model: VAE, data: ImageData, configuration: RunConfiguration, out: Path, announce: Callable[[str], None]
) -> None:
    """Evaluate and draw the selected weights, whatever a resumed `fit` left in the model."""
    weights, settings = out / "checkpoint" / "model.safetensors", configuration.evaluation
    load_weights(model, weights)
    model.eval()
    if not (out / "evaluation.json").is_file() and finish_prior(model, settings.seed):
        save_weights(model, weights)
    if not is_evaluated(out, settings):
        announce("evaluation")
        evaluate(model, data, settings, out)
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


def _first_record(configuration: RunConfiguration, model: VAE, out: Path, command: str) -> dict[str, Any]:
    before = _read_record(out)
    return {
        "format": 1,
        "name": configuration.name,
        "status": "running",
        "reason": None,
        "command": before.get("command") or command,
        "seed": configuration.seed,
        "event_shape": list(model.event_shape),
        "context_shape": None if model.context_shape is None else list(model.context_shape),
        "parameters": model.num_parameters(),
        "seconds": before.get("seconds", 0.0),
        "steps": before.get("steps", 0),
        "skipped_steps": before.get("skipped_steps", 0),
        "rollbacks": before.get("rollbacks", 0),
        "versions": {
            "latentflows": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
            "threads": torch.get_num_threads(),
            "processes": num_processes(),
            "device": torch.cuda.get_device_name() if on_gpu(configuration.training.accelerator) else "cpu",
        },
        "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _of_history(history: History) -> dict[str, Any]:
    return {
        "status": history.status,
        "reason": history.reason,
        "seconds": round(history.seconds, 3),
        "steps": history.steps,
        "skipped_steps": history.skipped_steps,
        "rollbacks": history.rollbacks,
    }


def _record_failure(out: Path, record: dict[str, Any], error: BaseException) -> None:
    """Record why a run ended early; return for an interruption, raise for everything else."""
    if isinstance(error, KeyboardInterrupt):
        record |= {"status": "interrupted", "reason": "interrupted by the user"}
        return
    reason = _reason(error)
    record |= {"status": "failed", "reason": reason}
    with suppress(OSError, LatentFlowsError):  # on a full disk the reason reaches the caller alone
        _write_record(out, record)
    _raise(error, reason)


def _raise(error: BaseException, reason: str) -> NoReturn:
    if isinstance(error, LatentFlowsError) or reason.startswith(type(error).__name__):
        raise error
    raise LatentFlowsError(reason) from error


def _reason(error: BaseException) -> str:
    """Name what a user can do something about; of anything else, type and message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full ({error.filename or 'while writing the run'}). Free space and use --resume."
    allocation = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or allocation:
        return (
            "Out of memory. Lower training.batch_size or objective.num_samples, or raise training.accumulate."
        )
    return str(error) if isinstance(error, LatentFlowsError) else f"{type(error).__name__}: {error}"


def _write_record(out: Path, record: dict[str, Any]) -> None:
    write_atomically(out / "run.json", (json.dumps(record, indent=2) + "\n").encode())


def _read_record(out: Path) -> dict[str, Any]:
    return _read(out / "run.json")


def _read(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; empty where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Restore or remove the file.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Restore or remove the file.")
    return content
