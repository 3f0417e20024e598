"""Worker processes: results, progress, tasks that fail, workers that die, and stopping."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.studies.execution.engines import LocalPool, local
from latentflows.studies.running.failures import OUT_OF_MEMORY


def task(job, report):
    """What the workers do; found by its name in a new process."""
    if job == "raise":
        raise ValueError("a reason")
    if job == "exit":
        os._exit(3)
    if job == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(job, Path):  # die once
        if not job.exists():
            job.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "second attempt"
    if job == "no memory":
        raise MemoryError
    if job == "wait":
        try:
            report(0.5)
            for _ in range(600):  # Ray interrupts Python code, no system call
                time.sleep(0.1)
        except KeyboardInterrupt:
            return "stopped"
    if job == "wait on":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        report(0.5)
        time.sleep(60)
    if job == "take note and wait on":  # as `fit` does after its last look
        signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
        report(0.5)
        for _ in range(600):
            time.sleep(0.1)
    return job * 2, torch.get_num_threads()


def test_a_job_that_fails_does_not_take_the_others_along():
    jobs = ["exit", 1, "raise", 2, "be killed", 3, "no memory"]
    events = list(LocalPool(2).over_jobs(task, jobs))
    ends = {event.job: (event.kind, event.content) for event in events if event.kind in ("result", "lost")}
    assert [ends[job] for job in (1, 3, 5)] == [("result", (2, 1)), ("result", (4, 1)), ("result", (6, 1))]
    assert ends[0] == ("lost", "The worker process ended with exit code 3.")
    assert ends[2] == ("lost", "ValueError: a reason")
    assert ends[4][0] == "lost"
    assert "memory ran out" in ends[4][1]
    assert ends[6] == ("lost", OUT_OF_MEMORY)
    kinds = {job: [event.kind for event in events if event.job == job] for job in range(len(jobs))}
    died = ["started", "again", "started", "lost"]  # a process that died is tried once more
    assert [kinds[job] for job in (0, 1, 2, 4)] == [died, ["started", "result"], ["started", "lost"], died]


def test_a_script_without_a_guard_is_told_so_and_ends(tmp_path):
    script = tmp_path / "script.py"
    pool = "from latentflows.studies.execution.engines import LocalPool\n"
    script.write_text(f"{pool}print(list(LocalPool(2).over_jobs(print, [1, 2, 3])))\n")
    started = time.monotonic()
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stdout == ""
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "latentflows.core.errors.ConfigurationError: A worker process failed as it started"
    )
    assert last.endswith('put its call under `if __name__ == "__main__":`.')
    assert time.monotonic() - started < 60


def test_a_job_whose_process_dies_is_taken_up_again(tmp_path):
    events = list(LocalPool(1).over_jobs(task, [tmp_path / "mark", 1]))
    assert [(event.job, event.kind) for event in events] == [
        (0, "started"), (0, "again"), (1, "started"), (1, "result"), (0, "started"), (0, "result"),
    ]  # fmt: skip
    assert events[-1].content == "second attempt"


def test_a_stop_interrupts_running_jobs_and_drops_waiting_ones():
    seen = []
    for event in LocalPool(1).over_jobs(
        task, ["wait", "wait"], lambda: int(any(e.kind == "progress" for e in seen))
    ):
        seen.append(event)
    assert [(event.job, event.kind, event.content) for event in seen] == [
        (0, "started", None), (0, "progress", 0.5), (0, "result", "stopped"),
    ]  # fmt: skip


def test_a_stop_reaches_a_process_that_is_being_born():
    seen, started = [], time.monotonic()
    for event in LocalPool(1).over_jobs(task, ["wait"], lambda: int(bool(seen))):
        seen.append(event)
    assert seen[0].kind == "started"
    assert seen[-1].kind == "lost" or seen[-1].content == "stopped"
    assert time.monotonic() - started < 50


def test_a_signal_that_was_only_noted_is_sent_again(monkeypatch):
    monkeypatch.setattr(local, "_INSIST", 0.2)
    started = time.monotonic()
    events = LocalPool(1).over_jobs(task, ["take note and wait on"])
    assert [next(events).kind, next(events).kind] == ["started", "progress"]
    events.close()
    assert time.monotonic() - started < 50


def test_a_process_insists_on_ending_with_its_parent(monkeypatch):
    sent = []

    def kill(process, number):
        sent.append((process, number))
        if len(sent) == 3:
            raise InterruptedError

    monkeypatch.setattr(local, "parent_process", threading.current_thread)
    monkeypatch.setattr(threading.current_thread(), "join", lambda: None)
    monkeypatch.setattr(local.os, "kill", kill)
    monkeypatch.setattr(local.time, "sleep", lambda _: None)
    with pytest.raises(InterruptedError):
        local._end_with_parent()
    assert sent == [(os.getpid(), signal.SIGTERM)] * 3


def test_a_second_stop_ends_them_at_once():
    seen = []
    started = time.monotonic()
    for event in LocalPool(1).over_jobs(
        task, ["wait on"], lambda: 2 * any(e.kind == "progress" for e in seen)
    ):
        seen.append(event)
    assert seen[-1].kind == "lost"
    assert time.monotonic() - started < 50


def test_a_pool_needs_a_worker():
    with pytest.raises(
        ConfigurationError, match="`workers` must be at least 1, as must `threads`; got 0 and 1"
    ):
        LocalPool(0)
