"""Several runs that differ in their seed alone: trained together where that is faster, each in its own folder."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.studies.building.build import build_data, build_options, build_trackers
from latentflows.studies.running.failures import OUT_OF_MEMORY, reason_of
from latentflows.studies.running.folder import (
    WENT_ON,
    RunResult,
    check_folder,
    ended_result,
    first_record,
    of_history,
    read_record,
    record_failure,
    result_of,
    write_record,
    write_start,
)
from latentflows.studies.running.run import (
    Parts,
    finish_weights,
    is_trained,
    measure_and_draw,
    prepare,
    run,
)
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.overrides import differences
from latentflows.training import Callback, History, Job, fit_together
from latentflows.training.parallel import num_processes, on_gpu
from latentflows.training.stacked_progress import GroupProgress

_COPIES = 11  # of the weights: themselves, gradient, two moments, average, best ones, last good state (four), one spare
_SHARE = 0.25  # of the memory that is free, which weights may take
Ended = Callable[[int, RunResult], None]  # position and result of a run


def run_together(
    configurations: Sequence[RunConfiguration],
    folders: Sequence[Path],
    *,
    callbacks: Sequence[Callback] = (),
    command: str = "",
    announce: Callable[[str], None] = lambda _: None,
    ended: Ended = lambda position, result: None,
) -> list[RunResult]:
    """Do what `run(..., resume=True)` does for every configuration, training all at once where that is faster.

    How each stage is trained is measured and announced, and stands in `run.json` under "together". A run that fails
    is recorded and the others go on; one that is complete, or has diverged, is left as it is. Runs that fail as a
    group, or for which memory does not suffice beside the others, go on one after another, each by `run` alone. Every
    folder can be resumed by `run` too, and one that `run` has begun can be resumed here. Evaluation follows, run
    after run.

    Memory: for S runs of W weights about 44 S W bytes, and S times the values of a training step; the data are held
    once. Where the weights of all would take more than a quarter of the free memory, runs go in several groups.

    Args:
        configurations: Different in `seed` and `name` alone.
        folders: A run folder for each.
        callbacks: Watch the group as if it were one run: an epoch has ended when all runs have ended it. Events bear
            the name of the run.
        command: The command that made the runs, for their records.
        announce: Receives the name of each part as it starts, and how the runs train.
        ended: Receives position and result of every run as it ends.

    Returns:
        The result of each, in the order of the configurations; "failed" where an error ended it.

    Raises:
        ConfigurationError: if configurations differ in more, or a folder holds something else; nothing was changed.
        CheckpointError: if a checkpoint to resume from is damaged, before anything is changed.
        LatentFlowsError: if what is to be trained cannot be built, before anything is changed.
    """
    _check(configurations, folders)
    if num_processes() > 1:
        return _one_by_one(configurations, folders, callbacks, command, ended)
    results: dict[int, RunResult] = {}

    def end(position: int, result: RunResult) -> None:
        results[position] = result
        ended(position, result)

    for position, (configuration, folder) in enumerate(zip(configurations, folders, strict=True)):
        if (recorded := ended_result(configuration, folder)) is not None:
            end(position, recorded)
    left = [i for i in range(len(folders)) if i not in results]
    apart, stopped = _in_groups(
        [_Run(i, configurations[i], folders[i], command) for i in left], callbacks, announce, end
    )
    if apart:
        gc.collect()  # the models: errors hold the frames that they came through
        lone = {i: _Lone(configurations[i], folders[i], command, reason) for i, reason in apart.items()}
        _after_one_another(lone, stopped, callbacks, announce, end)
    return [results[position] for position in range(len(folders))]


def _check(configurations: Sequence[RunConfiguration], folders: Sequence[Path]) -> None:
    """Refuse configurations that are no seeds of one run, and folders that hold something else."""
    if not configurations or len(configurations) != len(folders) or len(set(folders)) < len(folders):
        raise ConfigurationError(
            f"`folders` must be different ones, one for each of at least one configuration; got {len(folders)} for "
            f"{len(configurations)}."
        )
    for other in configurations[1:]:
        changed = [key for key in differences(configurations[0], other) if key not in ("seed", "name")]
        if changed:
            raise ConfigurationError(
                f"Runs that go together may differ in `seed` and `name` alone; {', '.join(changed)} differ. Give "
                "them to `run` one by one."
            )
    for configuration, folder in zip(configurations, folders, strict=True):
        check_folder(configuration, folder, resume=True, overwrite=False)


def _one_by_one(
    configurations: Sequence[RunConfiguration],
    folders: Sequence[Path],
    callbacks: Sequence[Callback],
    command: str,
    ended: Ended,
) -> list[RunResult]:
    """Several processes share every run, so no two runs share a process."""
    results = []
    for position, (configuration, folder) in enumerate(zip(configurations, folders, strict=True)):
        results.append(run(configuration, folder, resume=True, callbacks=callbacks, command=command))
        ended(position, results[-1])
    return results


class _Run:
    """One of the runs, and what becomes of it."""

    parts: Parts
    trained: bool
    callbacks: list[Callback]

    def __init__(self, position: int, configuration: RunConfiguration, out: Path, command: str) -> None:
        self.position, self.configuration, self.out, self.command = position, configuration, out, command
        self.record: dict[str, Any] | None = None  # as in `run.json`, from when it began
        self.history: History | None = None
        self.error: BaseException | None = None
        self.failed_as_group = False  # the error may be another run's

    def begin(self) -> bool:
        """Write down that it runs; whether that went well."""
        model, labels = self.parts.model, self.parts.data.labels
        try:
            self.record = first_record(self.configuration, model, labels, self.out, self.command)
            write_start(self.configuration, self.out, self.record, trained=self.trained)
        except Exception as error:
            self.error = error
        return self.error is None

    def job(self) -> Job:
        """Return what is to be trained."""
        parts = self.parts
        return Job(
            parts.model,
            parts.stages,
            parts.data.train,
            parts.data.validation,
            self.out,
            self.configuration.seed,
            self.callbacks,
        )

    def finish(self, stopped: bool, announce: Callable[[str], None]) -> RunResult:
        """Evaluate and draw, if it trained to its end and nobody asked to stop, and write down how it ended."""
        if self.record is None:
            if self.error is not None:
                return RunResult(self.out, "failed", reason_of(self.error), None, {}, 0.0)
            return RunResult(self.out, "interrupted", "interrupted before it began", None, {}, 0.0)
        try:
            if self.error is not None:
                raise self.error
            assert self.history is not None
            self.record |= of_history(self.history, self.record, trained=self.trained)
            if self.history.status == "finished" and stopped:
                self.record |= {"status": "interrupted", "reason": "interrupted before its evaluation"}
            elif self.history.status == "finished":
                finish_weights(self.parts.model, self.configuration, self.out, self.record)
                measure_and_draw(self.parts.model, self.parts.data, self.configuration, self.out, announce)
            write_record(self.out, self.record)
        except BaseException as error:
            return self._failed(self.record, error)
        result = result_of(self.out)
        assert result is not None
        return result

    def _failed(self, record: dict[str, Any], error: BaseException) -> RunResult:
        """Record an error or an interruption; on a full disk the result alone says so."""
        with suppress(Exception):
            record_failure(self.configuration, self.out, record, error)
        with suppress(Exception):
            write_record(self.out, record)
        return RunResult(
            self.out, record["status"], record["reason"], None, record["parameters"], record["seconds"]
        )


def _in_groups(
    runs: list[_Run], callbacks: Sequence[Callback], announce: Callable[[str], None], end: Ended
) -> tuple[dict[int, str], bool]:
    """Train group after group, and evaluate.

    Returns:
        By position, why a run must go by itself; and whether somebody asked to stop.
    """
    watched = GroupProgress(callbacks, [each.configuration.name or each.out.name for each in _prepared(runs)])
    for number, each in enumerate(runs):
        each.callbacks = [*each.callbacks, *watched.of(number)]
    apart: dict[int, str] = {}
    stopped = False
    for group in _groups(runs):
        stopped = stopped or _train(group, announce)
        for each in group:
            result = each.finish(stopped, announce)
            stopped = stopped or result.status == "interrupted"
            if not stopped and len(runs) > 1 and (each.failed_as_group or result.reason == OUT_OF_MEMORY):
                apart[each.position] = result.reason or "failed"
            else:
                end(each.position, result)
    return apart, stopped


@dataclass(frozen=True)
class _Lone:
    """A run that goes on by itself, and why."""

    configuration: RunConfiguration
    out: Path
    command: str
    reason: str

    def carry_out(self, callbacks: Sequence[Callback], announce: Callable[[str], None]) -> RunResult:
        """Do what `run` does; an error is its own from here on."""
        try:
            result = run(
                self.configuration,
                self.out,
                resume=True,
                callbacks=callbacks,
                command=self.command,
                announce=announce,
            )
        except KeyboardInterrupt:
            return RunResult(self.out, "interrupted", "interrupted by a signal", None, {}, 0.0)
        except Exception as error:
            result = RunResult(self.out, "failed", reason_of(error), None, {}, 0.0)
        with suppress(OSError, LatentFlowsError):
            note = {"together": False, "text": f"It went on by itself: {self.reason}"}
            record = read_record(self.out)
            told = [part for part in record.get("together", []) if part != WENT_ON]
            write_record(self.out, record | {"together": [*told, note]})
        return result


def _after_one_another(
    runs: Mapping[int, _Lone],
    stopped: bool,
    callbacks: Sequence[Callback],
    announce: Callable[[str], None],
    end: Ended,
) -> None:
    """Carry out runs by position, until somebody asks to stop."""
    for reason in dict.fromkeys(each.reason for each in runs.values()):
        names = [each.out.name for each in runs.values() if each.reason == reason]
        announce(f"{', '.join(names)} go on one after another: {reason}")
    watched = GroupProgress(callbacks, [each.out.name for each in runs.values()])
    for number, (position, each) in enumerate(runs.items()):
        if stopped:
            why = "interrupted before it went on by itself"
            result = RunResult(each.out, "interrupted", why, None, {}, 0.0)
        else:
            result = each.carry_out(watched.of(number), announce)
        stopped = stopped or result.status == "interrupted"
        end(position, result)


def _prepared(runs: list[_Run]) -> list[_Run]:
    """Build all that is trained, over data that are held once."""
    if not runs:
        return []
    data = build_data(runs[0].configuration)
    for each in runs:
        each.parts = prepare(each.configuration, data)
        each.callbacks = list(build_trackers(each.configuration, each.out))
        each.trained = is_trained(each.configuration, each.parts, each.out)
    return runs


def _groups(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Cut runs into groups whose weights fit into their share of the free memory."""
    if not runs:
        return []
    weights = sum(p.numel() * p.element_size() for p in runs[0].parts.model.parameters())
    most = max(1, int(_SHARE * _free_memory(runs[0].configuration) / (_COPIES * weights)))
    number = -(-len(runs) // most)
    size = -(-len(runs) // number)
    return [list(runs[start : start + size]) for start in range(0, len(runs), size)]


def _free_memory(configuration: RunConfiguration) -> float:
    """Return the bytes that are free where the models live; infinity where the system does not say."""
    if on_gpu(configuration.training.accelerator):
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def _train(group: Sequence[_Run], announce: Callable[[str], None]) -> bool:
    """Train a group; afterwards each has a history, or the error that ended it. Whether somebody asked to stop."""
    begun = [each for each in group if each.begin()]
    announce("training")
    try:
        histories = fit_together(
            [each.job() for each in begun],
            options=build_options(group[0].configuration),
            resume=True,
            announce=announce,
        )
    except (Exception, KeyboardInterrupt) as error:
        for each in begun:
            each.error, each.failed_as_group = error, isinstance(error, Exception)
        return isinstance(error, KeyboardInterrupt)
    for each, history in zip(begun, histories, strict=True):
        if isinstance(history, History):
            each.history = history
        else:
            each.error = history
    return any(each.history is not None and each.history.status == "interrupted" for each in begun)
