"""Worker processes: results, progress, tasks that fail, workers that die, and stopping."""

import os
import signal
import time

import torch

from latentflows.studies.pool import over_jobs


def task(job, report):
    """What the workers do; found by its name in a new process."""
    if job == "raise":
        raise ValueError("a reason")
    if job == "exit":
        os._exit(3)
    if job == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "wait":
        try:
            report(0.5)
            time.sleep(60)
        except KeyboardInterrupt:
            return "stopped"
    if job == "wait on":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        report(0.5)
        time.sleep(60)
    return job * 2, torch.get_num_threads()


def test_a_job_that_fails_does_not_take_the_others_along():
    jobs = ["exit", 1, "raise", 2, "be killed", 3]
    events = list(over_jobs(task, jobs, workers=2))
    ends = {event.job: (event.kind, event.content) for event in events if event.kind in ("result", "lost")}
    assert len(events) == 2 * len(jobs)  # each starts and ends once
    assert [ends[job] for job in (1, 3, 5)] == [("result", (2, 1)), ("result", (4, 1)), ("result", (6, 1))]
    assert ends[0] == ("lost", "The worker process ended with exit code 3.")
    assert ends[2] == ("lost", "a reason")
    assert ends[4][0] == "lost"
    assert "memory ran out" in ends[4][1]


def test_a_stop_interrupts_running_jobs_and_drops_waiting_ones():
    seen = []
    for event in over_jobs(
        task, ["wait", "wait"], workers=1, stop=lambda: int(any(e.kind == "progress" for e in seen))
    ):
        seen.append(event)
    assert [(event.job, event.kind, event.content) for event in seen] == [
        (0, "started", None), (0, "progress", 0.5), (0, "result", "stopped"),
    ]  # fmt: skip


def test_a_second_stop_ends_them_at_once():
    seen = []
    started = time.monotonic()
    for event in over_jobs(
        task, ["wait on"], workers=1, stop=lambda: 2 * any(e.kind == "progress" for e in seen)
    ):
        seen.append(event)
    assert seen[-1].kind == "lost"
    assert time.monotonic() - started < 50
