"""Warm worker processes: each imports torch once, works through jobs, and may die without taking the others along."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

Report = Callable[[float], None]
Task = Callable[[Any, Report], Any]
_PATIENCE = 0.2  # seconds between looks at whether to stop


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    Attributes:
        job: Its position in the list of jobs.
        kind: "started"; "progress" with a fraction; "result" with what the task returned; "lost" with the reason
            where the worker died or the task raised.
        content: See `kind`.
    """

    job: int
    kind: Literal["started", "progress", "result", "lost"]
    content: Any = None


class _Worker:
    """One process and the job it works on."""

    def __init__(self, task: Task, threads: int) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, task, threads))
        with (
            _ignoring_interrupts()
        ):  # inherited: an interrupt while the process is being born does not kill it
            self.process.start()
        theirs.close()
        self.job: int | None = None

    def give(self, position: int, job: Any) -> None:
        self.job = position
        self.connection.send(job)

    def end(self) -> None:
        self.connection.close()
        self.process.join()


def over_jobs(
    task: Task, jobs: Sequence[Any], *, workers: int, threads: int = 1, stop: Callable[[], int] = lambda: 0
) -> Iterator[Event]:
    """Run `task(job, report)` for every job, `workers` at a time; yield events until all have ended.

    When `stop()` becomes 1, waiting jobs are dropped and running ones receive an interrupt, which they may answer by
    returning early; at 2 they are ended at once.

    Args:
        task: A function of a module that a new process can import; `report(fraction)` may be called at any time.
        jobs: What the task is given, one at a time; must pickle.
        workers: Number of processes.
        threads: Threads of torch in each process.
        stop: How often a stop was asked for.
    """
    waiting = deque(enumerate(jobs))
    team = [_Worker(task, threads) for _ in range(min(workers, len(jobs)))]
    told = 0
    try:
        while True:
            if stop() > told:
                told = stop()
                waiting.clear()
                _pass_on(team, at_once=told > 1)
            for index, worker in enumerate(team):
                if worker.job is None and waiting:
                    if not worker.process.is_alive():
                        worker.end()
                        team[index] = worker = _Worker(task, threads)
                    worker.give(*waiting.popleft())
                    yield Event(worker.job or 0, "started")
            busy = {worker.connection: worker for worker in team if worker.job is not None}
            if not busy:
                return
            for connection in wait(list(busy), timeout=_PATIENCE):
                assert isinstance(connection, Connection)
                yield _next_event(busy[connection])
    finally:
        _pass_on(team, at_once=True)
        for worker in team:
            worker.end()


def _next_event(worker: _Worker) -> Event:
    assert worker.job is not None
    job = worker.job
    try:
        kind, content = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        kind, content = "lost", _cause(worker.process.exitcode)
    if kind != "progress":
        worker.job = None
    return Event(job, kind, content)


def _cause(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "The worker process was killed, most likely because memory ran out. Use fewer workers."
    return f"The worker process ended with exit code {code}."


def _pass_on(team: list[_Worker], *, at_once: bool) -> None:
    for worker in team:
        if worker.job is None or not worker.process.is_alive() or worker.process.pid is None:
            continue
        if at_once:
            worker.process.terminate()
        else:
            os.kill(worker.process.pid, signal.SIGINT)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, task: Task, threads: int) -> None:
    """Work through jobs until the parent closes the connection or ends."""
    if os.name == "posix":
        os.setpgrp()  # an interrupt from the terminal reaches the parent alone, which passes it on once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            answer = ("result", task(job, lambda fraction: connection.send(("progress", fraction))))
        except BaseException as error:  # whatever it was, the parent records it and the others go on
            answer = ("lost", str(error) or type(error).__name__)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            connection.send(answer)
        except OSError:
            return


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
