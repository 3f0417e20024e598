"""Jobs of a study: seeds of an arm in one worker, together or one by one, under their locks."""

import errno
import json

import pytest
import torch

from latentflows.core.errors import ConfigurationError, NonFiniteError
from latentflows.studies.execution import job as job_room
from latentflows.studies.execution.job import Job, outcome_of, run_job
from latentflows.studies.execution.locks import is_held, locked
from latentflows.studies.planning.plan import PlannedRun
from latentflows.studies.results.records import StudyRun
from latentflows.studies.running import run as run_room
from latentflows.studies.running import together as together_room
from latentflows.studies.running.failures import OUT_OF_MEMORY, reason_of
from latentflows.studies.running.run import RunResult
from latentflows.studies.settings.overrides import configuration_from


def job_of(tiny, folder, *, seeds=2, together=True):
    runs = [
        PlannedRun(
            "a",
            seed,
            configuration_from({}, [*tiny, f"seed={seed}", f"name=a-seed{seed}"]),
            f"runs/a-seed{seed}",
        )
        for seed in range(seeds)
    ]
    return Job(tuple(runs), folder, "the command", together)


@pytest.mark.parametrize("together", [True, False])
def test_a_job_leaves_its_runs_and_tells_how_each_ended(tiny, tmp_path, together):
    job, told = job_of(tiny, tmp_path, together=together), []
    outcomes = run_job(job, told.append)
    assert [position for position, _ in outcomes] == [0, 1]
    assert [content for content in told if isinstance(content, tuple)] == outcomes
    fractions = [content for content in told if isinstance(content, float)]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] <= fractions[-1] <= 0.99
    for position, outcome in outcomes:
        folder = tmp_path / f"runs/a-seed{position}"
        assert outcome["status"] == "finished"
        assert outcome["figures"] == json.loads((folder / "evaluation.json").read_text())["figures"]
        assert json.loads((folder / "run.json").read_text())["command"] == "the command"
    assert outcomes[0][1]["figures"] != outcomes[1][1]["figures"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a-seed0", "a-seed1"]


@pytest.mark.parametrize("together", [True, False])
def test_a_run_that_has_ended_is_free_while_the_others_go_on(tiny, tmp_path, together):
    held = []

    def look(content):
        if isinstance(content, tuple):
            held.append([is_held(tmp_path / "runs" / f".a-seed{seed}.lock") for seed in range(2)])

    run_job(job_of(tiny, tmp_path, together=together), look)
    assert held == [[False, True], [False, False]]


def test_what_is_complete_is_told_and_not_run_again(tiny, tmp_path, monkeypatch):
    outcomes = run_job(job_of(tiny, tmp_path), lambda _: None)
    monkeypatch.setattr(run_room, "fit", None)
    for together in (True, False):
        assert run_job(job_of(tiny, tmp_path, together=together), lambda _: None) == outcomes


def fake(statuses, calls):
    def run(configuration, folder, **_):
        status = statuses[configuration.seed]
        calls.append(configuration.seed)
        if isinstance(status, BaseException):
            raise status
        return RunResult(folder, status, None, None, {"total": 1}, 1.0)

    return run


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        ((NonFiniteError("why"), "finished"), [("failed", "why"), ("finished", None)]),
        ((MemoryError(), "diverged"), [("failed", OUT_OF_MEMORY), ("diverged", None)]),
        (("interrupted", "finished"), [("interrupted", None)]),
        ((KeyboardInterrupt(), "finished"), [("interrupted", "interrupted by a signal")]),
    ],
)
def test_a_run_that_fails_leaves_the_others_and_an_interrupt_ends_them(
    statuses, wanted, tiny, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(run_room, "run", fake(statuses, calls))
    outcomes = run_job(job_of(tiny, tmp_path, together=False), lambda _: None)
    assert [(outcome["status"], outcome["reason"]) for _, outcome in outcomes] == wanted
    assert calls == list(range(len(wanted)))


def test_an_interrupt_before_the_training_of_a_group_is_no_failure(tiny, tmp_path, monkeypatch):
    def run_together(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(together_room, "run_together", run_together)
    outcomes = run_job(job_of(tiny, tmp_path), lambda _: None)
    assert [outcome["status"] for _, outcome in outcomes] == ["interrupted"] * 2


def test_a_run_that_another_process_still_saves_is_waited_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(job_room, "_PATIENCE", 0.2)
    with (
        locked(tmp_path / "runs" / ".a-seed1.lock", "it"),
        pytest.raises(ConfigurationError, match=r"The run .*a-seed1 is in use by process"),
    ):
        run_job(job_of(tiny, tmp_path), lambda _: None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OUT_OF_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
            OUT_OF_MEMORY,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OUT_OF_MEMORY),
        (ValueError("not enough memory"), "ValueError: not enough memory"),
        (OSError(errno.ENOSPC, "No space", "f"), "The disk is full (f). Free space and use --resume."),
        (
            OSError(errno.EDQUOT, "Quota"),
            "The disk is full (while writing the run). Free space and use --resume.",
        ),
        (OSError(errno.EACCES, "Denied"), "PermissionError: [Errno 13] Denied"),
        (NonFiniteError("why"), "why"),
        (KeyError(), "KeyError"),
    ],
)
def test_reasons_name_what_a_user_can_change(error, reason):
    assert reason_of(error) == reason


def test_the_line_of_a_run_that_failed_before_its_model_was_there_can_be_read(tmp_path):
    outcome = outcome_of(RunResult(tmp_path, "failed", OUT_OF_MEMORY, None, {}, 0.0))
    assert outcome["parameters"] is None
    line = {"arm": "a", "seed": 0, "run": "runs/a-seed0", **outcome}
    assert StudyRun.model_validate(line).reason == OUT_OF_MEMORY
