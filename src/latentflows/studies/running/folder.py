"""A run folder: what it holds, how it is recorded, and whether a run may go on in it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch

from latentflows._version import __version__
from latentflows.core.errors import CheckpointError, ConfigurationError, LatentFlowsError, NonFiniteError
from latentflows.core.files import check_format, is_partial, source_hash, write_atomically
from latentflows.models.density import Model
from latentflows.studies.building.build import RECORD_FORMAT
from latentflows.studies.measuring.measure import lacks_nll
from latentflows.studies.running.failures import reason_of
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.overrides import (
    MAY_DIFFER,
    differences,
    flat,
    read_whole_configuration,
    to_yaml,
)
from latentflows.training import History
from latentflows.training.parallel import num_processes, on_gpu

FILES = ("config.yaml", "run.json", "metrics.jsonl", "evaluation.json", "nll.npy", "report.html")
FOLDERS = ("checkpoint", "samples", "figures", "tensorboard", "wandb")
# What "together" of a run says that trained with others in an earlier session, and by itself since.
WENT_ON: dict[str, Any] = {"together": False, "text": "It went on by itself."}
# Settings by which the evaluation of a run met NaN or infinity; others may give figures.
_NOT_FINITE_BY = "not_finite_by"
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
        evaluation_seconds: Wall time of all that is in `evaluation.json`; None without it.
    """

    folder: Path
    status: str
    reason: str | None
    figures: dict[str, Any] | None
    parameters: dict[str, int]
    seconds: float
    protocol: dict[str, Any] | None = None
    evaluation_seconds: float | None = None


def check_folder(configuration: RunConfiguration, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else than what is to be run.

    Raises:
        ConfigurationError: saying what is there and what to do.
    """
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"`out` must be a folder; {out} is a file. Choose another one.")
    if overwrite or not out.exists() or all(is_partial(item) for item in out.iterdir()):
        return
    if not (out / "config.yaml").is_file():
        raise ConfigurationError(f"{out} is not empty and holds no run. Choose another `out`.")
    before = read_whole_configuration(out / "config.yaml")
    record = read_record(out)
    status = record.get("status", "unknown")
    changed = changed_settings(before, configuration)
    if resume and (status not in ("finished", "diverged") or _NOT_FINITE_BY in record):  # not measured yet
        changed = [key for key in changed if not key.startswith("evaluation.")]
    if changed and resume and _is_longer(before, configuration, changed):
        if status in ("finished", "diverged"):
            raise ConfigurationError(
                f"{out} holds a run that is {status}; its length ({', '.join(changed)}) can change no more. Train the "
                "longer one into another `out`."
            )
        return
    if changed:
        raise ConfigurationError(
            f"{out} holds a run of another configuration, which differs in {', '.join(changed)}. Choose another `out`, "
            "or replace that run with --overwrite."
        )
    if not resume:
        raise ConfigurationError(
            f"{out} holds this run already (status {status}). Continue it with --resume, choose another `out`, or "
            "replace it with --overwrite."
        )


def changed_settings(before: RunConfiguration, after: RunConfiguration) -> list[str]:
    """Name the settings in which two runs differ in what they learn, or in how that is measured."""
    return [key for key in differences(before, after) if key not in MAY_DIFFER]


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


def ended_result(configuration: RunConfiguration, out: Path) -> RunResult | None:
    """Return the result of a run on which nothing is left to do: evaluated and with all its files, or diverged.

    One that diverged in its evaluation, and is asked to be evaluated in another way now, is left to do.
    """
    result = result_of(out)
    if result is None:
        return None
    if result.status == "diverged":  # run.json alone decides: several processes look here, and one writes
        settings = _settings_of_evaluation(configuration)
        return result if read_record(out).get(_NOT_FINITE_BY, settings) == settings else None
    if result.status != "finished" or result.figures is None:
        return None
    if lacks_nll(out, result.figures) and (out / "checkpoint" / "model.safetensors").is_file():
        return None
    return result if (out / "samples" / "index.json").is_file() else None


def _settings_of_evaluation(configuration: RunConfiguration) -> dict[str, Any]:
    return configuration.evaluation.model_dump(mode="json")


def result_of(out: Path) -> RunResult | None:
    """Read how a run ended from its folder; None where there is no record. "failed" counts as it stands."""
    record = read_record(out)
    if not record:
        return None
    evaluation = _read(out / "evaluation.json")
    parts = [evaluation, *evaluation.get("groups", {}).values()]
    return RunResult(
        folder=out,
        status=record.get("status", "failed"),
        reason=record.get("reason"),
        figures=evaluation.get("figures"),
        parameters=record.get("parameters", {}),
        seconds=record.get("seconds", 0.0),
        protocol=evaluation.get("protocol"),
        evaluation_seconds=round(sum(part.get("seconds", 0.0) for part in parts), 3) if evaluation else None,
    )


def first_record(
    configuration: RunConfiguration, model: Model, labels: Sequence[str], out: Path, command: str
) -> dict[str, Any]:
    """Return `run.json` as it is when training starts or goes on; what an earlier session counted is kept."""
    before = read_record(out)
    sources = [*before.get("versions", {}).get("source", "").split(", "), source_hash()]
    return {
        "format": RECORD_FORMAT,
        "name": configuration.name,
        "status": "running",
        "reason": None,
        "trained": bool(before.get("trained")),
        "settings": len(flat(configuration.model_dump(mode="json"))),
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
            "source": ", ".join(dict.fromkeys(filter(None, sources))),  # of every session
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
        "labels": list(labels),
        **({"together": before["together"]} if "together" in before else {}),
    }


def write_start(configuration: RunConfiguration, out: Path, record: dict[str, Any], *, trained: bool) -> None:
    """Write down that a run trains; unless it has been trained, forget its measures: they are of other weights."""
    record["trained"] = trained and record["trained"]
    write_atomically(out / "config.yaml", to_yaml(configuration).encode())
    write_record(out, record)
    if not trained:
        (out / "evaluation.json").unlink(missing_ok=True)
        (out / "nll.npy").unlink(missing_ok=True)
        (out / "samples" / "index.json").unlink(missing_ok=True)


def of_history(history: History, record: Mapping[str, Any], *, trained: bool) -> dict[str, Any]:
    """Return what `run.json` says of a training that has ended.

    Args:
        history: Of this session.
        record: As it was when the session began; what it says of earlier sessions that trained together stays.
        trained: Whether training had ended before.
    """
    before = record.get("together", [])
    told = history.together or ([WENT_ON] if before and not trained and before[-1] != WENT_ON else [])
    return {
        "status": history.status,
        "reason": history.reason,
        "trained": history.status == "diverged" or record["trained"],
        "seconds": round(history.seconds, 3),
        "steps": history.steps,
        "skipped_steps": history.skipped_steps,
        "rollbacks": history.rollbacks,
        **({"together": [*before, *told]} if before or told else {}),
    }


def record_failure(
    configuration: RunConfiguration, out: Path, record: dict[str, Any], error: BaseException
) -> None:
    """Record why a run ended early; return for an interruption or a model that diverged, raise for everything else.

    A trained model whose evaluation meets NaN or infinity has diverged, as one whose training broke down: a mean
    without it flatters the others, and to evaluate it once more gives the same, unless by other settings.
    """
    if isinstance(error, KeyboardInterrupt):
        record |= {"status": "interrupted", "reason": "interrupted by a signal"}
        return
    reason = reason_of(error)
    if isinstance(error, NonFiniteError) and record["status"] == "finished":  # training has ended well
        record |= {"status": "diverged", "reason": reason}
        record[_NOT_FINITE_BY] = _settings_of_evaluation(configuration)
        return
    record |= {"status": "failed", "reason": reason}
    with suppress(OSError, LatentFlowsError):  # on a full disk the reason reaches the caller alone
        write_record(out, record)
    _raise(error, reason)


def _raise(error: BaseException, reason: str) -> NoReturn:
    if isinstance(error, LatentFlowsError) or reason.startswith(type(error).__name__):
        raise error
    raise LatentFlowsError(reason) from error


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write `run.json`."""
    write_atomically(out / "run.json", (json.dumps(record, indent=2) + "\n").encode())


def read_record(out: Path) -> dict[str, Any]:
    """Read `run.json`; empty where there is none.

    Raises:
        CheckpointError: if the file is damaged, or of another format.
    """
    record = _read(out / "run.json")
    if record:
        check_format(out / "run.json", record.get("format"), RECORD_FORMAT)
    return record


def _read(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; empty where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Restore or remove the file.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Restore or remove the file.")
    return content
