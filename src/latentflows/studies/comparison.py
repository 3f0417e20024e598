"""A comparison: several arms over several seeds, each run in a folder of its own, resumable and safe to interrupt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from latentflows.core.errors import CheckpointError, ConfigurationError, LatentFlowsError
from latentflows.core.files import write_atomically
from latentflows.studies.configuration import RunConfiguration
from latentflows.studies.overrides import configuration_from, read_mapping
from latentflows.studies.pool import Event, Report, over_jobs
from latentflows.studies.settings import Integer, Settings

_ENDED = ("finished", "diverged")  # what a resumed comparison does not run again
_TRAINED = 0.95  # share of a run that counts as training in the estimate of the time left


class Arm(Settings):
    """One arm of a comparison: overrides of the shared configuration."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="Name; part of the run folders' names.")
    label: str = Field(min_length=1, description="Name to show.")
    overrides: list[str] = Field(default_factory=list, description='Such as ["prior=real_nvp"].')


class Study(Settings):
    """What is compared: arms over seeds, against a baseline."""

    name: str = Field(min_length=1, description="Title.")
    description: str = Field(default="", description="What the comparison is about.")
    base: dict[str, Any] = Field(default_factory=dict, description="Configuration that all arms share.")
    arms: Annotated[list[Arm], Field(min_length=1)] = Field(description="What differs.")
    seeds: Annotated[list[Integer], Field(min_length=1)] = Field(
        description="Every arm runs with each of them."
    )
    baseline: str = Field(description="Name of the arm that the others are compared with.")

    @model_validator(mode="after")
    def _names_fit(self) -> Study:
        names = [arm.name for arm in self.arms]
        for what, values in (
            ("names", names),
            ("labels", [arm.label for arm in self.arms]),
            ("seeds", self.seeds),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} must differ; got {values}")
        if self.baseline not in names:
            raise ValueError(f"`baseline` must be one of {', '.join(names)}; got {self.baseline!r}")
        return self

    def configuration(self, arm: Arm, seed: int) -> RunConfiguration:
        """Return the configuration of one run; without trackers, unless the study names some.

        Raises:
            ConfigurationError: naming the arm, if its overrides do not apply.
        """
        try:
            configuration = configuration_from(
                self.base, [*arm.overrides, f"seed={seed}", f"name={arm.name}-seed{seed}"]
            )
        except LatentFlowsError as error:
            raise ConfigurationError(f"Arm {arm.name!r}: {error}") from None
        trackers = configuration.training.trackers or ()
        training = configuration.training.model_copy(update={"trackers": trackers})
        return configuration.model_copy(update={"training": training})


def read_study(path: Path) -> Study:
    """Read a study from a YAML or TOML file with the keys of `Study`.

    Raises:
        ConfigurationError: with every fault of the file.
    """
    return _checked(read_mapping(path), str(path))


def _checked(raw: dict[str, Any], source: str) -> Study:
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        faults = [
            f"`{'.'.join(map(str, item['loc'])) or 'study'}`: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigurationError(f"{source} is no study: {'; '.join(faults)}.") from None


@dataclass
class Progress:
    """Where a comparison stands.

    Attributes:
        total: Runs of the comparison.
        done: Runs that have ended, also in an earlier session.
        failed: Names of those that did not finish, with the reason.
        active: Fraction done of each run under way, by name.
        seconds_left: Estimate from the speed so far; None at the start.
    """

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    active: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None

    def end(self, name: str, line: dict[str, Any]) -> None:
        """Count a run that has ended; an interrupted one is still to be done."""
        self.active.pop(name, None)
        self.done += line["status"] != "interrupted"
        if line["status"] in ("failed", "diverged"):
            self.failed[name] = line["reason"] or line["status"]

    @property
    def fraction(self) -> float:
        """Fraction of the whole comparison that is done."""
        return (self.done + sum(self.active.values())) / self.total


@dataclass(frozen=True)
class _Job:
    configuration: RunConfiguration
    folder: Path
    command: str


def compare(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    command: str = "",
    notify: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Run every arm with every seed, `workers` at a time with one thread each, into the comparison folder `out`.

    Each ended run adds one line to `study.jsonl`. A run that fails is recorded with its reason and the others go on.
    On resume, finished and diverged runs are skipped, and interrupted ones go on where they were. Ctrl-C lets running
    ones write a checkpoint; a second one ends them at once.

    Cost: memory of `workers` processes, each about 400 MiB for torch alone.

    Args:
        study: What to compare.
        out: Comparison folder.
        resume: Go on with the same study.
        overwrite: Remove a comparison that is there.
        workers: Processes, at best as many as cores.
        command: The command that started it, for the record.
        notify: Receives the progress whenever it changes.

    Returns:
        The last progress; `done < total` after an interruption.

    Raises:
        ConfigurationError: if an arm's configuration is wrong or `out` holds something else; nothing was run.
    """
    if workers < 1:
        raise ConfigurationError(f"`workers` must be at least 1; got {workers}.")
    runs = [(arm, seed, study.configuration(arm, seed)) for arm in study.arms for seed in study.seeds]
    _prepare(study, out, command, resume=resume, overwrite=overwrite)
    ended = {(line["arm"], line["seed"]) for line in read_lines(out) if line["status"] in _ENDED}
    left = [(arm, seed, item) for arm, seed, item in runs if (arm.name, seed) not in ended]
    jobs = [_Job(item, out / _folder(arm, seed), command) for arm, seed, item in left]
    progress = Progress(total=len(runs), done=len(runs) - len(left))
    clock = _Clock(progress)
    with _counting_stops() as stop:
        for event in over_jobs(run_job, jobs, workers=workers, stop=stop):
            arm, seed, configuration = left[event.job]
            name = configuration.name or arm.name
            if event.kind in ("started", "progress"):
                progress.active[name] = event.content or 0.0
            else:
                line = {"arm": arm.name, "seed": seed, "run": _folder(arm, seed), **_outcome(event)}
                append_line(out, line)
                progress.end(name, line)
            clock.tick()
            notify(progress)
    return progress


def run_job(job: _Job, report: Report) -> dict[str, Any]:
    """Carry out one run in a worker process, and return what its line of `study.jsonl` says of it."""
    from latentflows.studies.run import FractionDone, run

    callbacks = [FractionDone(lambda fraction: report(_TRAINED * fraction))]
    result = run(job.configuration, job.folder, resume=True, callbacks=callbacks, command=job.command)
    return {
        "status": result.status,
        "reason": result.reason,
        "figures": result.figures,
        "protocol": result.protocol,
        "parameters": result.parameters,
        "seconds": result.seconds,
    }


def _outcome(event: Event) -> dict[str, Any]:
    if event.kind == "result":
        return event.content
    unknown = dict.fromkeys(("figures", "protocol", "parameters", "seconds"))
    return {"status": "failed", "reason": event.content, **unknown}


def _folder(arm: Arm, seed: int) -> str:
    return f"runs/{arm.name}-seed{seed}"


def _prepare(study: Study, out: Path, command: str, *, resume: bool, overwrite: bool) -> None:
    """Write `study.json`, unless `out` holds something that must not be touched."""
    path = out / "study.json"
    content = study.model_dump(mode="json")
    if path.is_file() and overwrite:
        shutil.rmtree(out / "runs", ignore_errors=True)
        (out / "study.jsonl").unlink(missing_ok=True)
    elif path.is_file():
        before = _checked(_known(read_mapping(path)), str(path))
        if before != study:
            raise ConfigurationError(
                f"{out} holds another comparison ({before.name!r}, or the same with other settings). Choose another "
                "`out`, or replace it with --overwrite."
            )
        if not resume:
            raise ConfigurationError(
                f"{out} holds this comparison already. Continue it with --resume, choose another `out`, or replace it "
                "with --overwrite."
            )
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigurationError(
            f"{out} is not an empty folder and holds no comparison. Choose another `out`."
        )
    text = json.dumps({"format": 1, "command": command, **content}, indent=2) + "\n"
    write_atomically(path, text.encode())


def _known(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key in Study.model_fields}


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of `study.jsonl`; a torn last one, from a crash while it was written, is left out.

    Raises:
        CheckpointError: if another line cannot be read.
    """
    path = out / "study.jsonl"
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            if number < len(texts):
                raise CheckpointError(f"{path}, line {number} cannot be read. Remove that line.") from None
    return lines


def append_line(out: Path, line: dict[str, Any]) -> None:
    """Add a line to `study.jsonl` and bring it to disk; a torn last line is cut off first."""
    with open(out / "study.jsonl", "a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class _Clock:
    """Estimates the time left from the work done in this session."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.started, self.before = progress, time.monotonic(), progress.done

    def tick(self) -> None:
        progress = self.progress
        worked = progress.done + sum(progress.active.values()) - self.before
        if worked > 0.05:  # of a run: before that the start of the processes would count
            per_run = (time.monotonic() - self.started) / worked
            progress.seconds_left = per_run * (1 - progress.fraction) * progress.total


@contextmanager
def _counting_stops() -> Iterator[Callable[[], int]]:
    """Count SIGINT and SIGTERM instead of being ended by them; give back a function that returns the count."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield lambda: len(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
