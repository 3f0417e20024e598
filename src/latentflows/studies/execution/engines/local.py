"""Warm worker processes: each imports torch once, works through jobs, and may die without taking the others along."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from latentflows.core.errors import ConfigurationError
from latentflows.studies.execution.engines.base import Engine, Event, Report, Stop, Task, never
from latentflows.studies.running.failures import reason_of

_PATIENCE = 0.2  # seconds between looks at whether to stop
_RETRIES = 1  # of a job whose worker died
GUARD = 'Every worker process imports the script that started it: put its call under `if __name__ == "__main__":`.'
_INSIST = 5.0  # seconds until a process is told again to end: `fit` takes note of a signal, perhaps after its last look


class LocalPool(Engine):
    """Worker processes on this machine, with one thread each.

    Memory: about 400 MiB a process for torch alone, and what a run takes.

    Args:
        workers: Processes, at best as many as cores.
        threads: Threads of torch in each process.

    Raises:
        ConfigurationError: if a number is below 1.
    """

    def __init__(self, workers: int = 2, *, threads: int = 1) -> None:
        if min(workers, threads) < 1:
            raise ConfigurationError(
                f"`workers` must be at least 1, as must `threads`; got {workers} and {threads}."
            )
        self._workers, self.threads = workers, threads

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def workers(self) -> int:
        return self._workers

    def check(self, folder: Path) -> None:
        """All processes of one machine see the same folders."""

    def over_jobs(self, task: Task, jobs: Sequence[Any], stop: Stop = never) -> Iterator[Event]:
        """Run the jobs, see `Engine`.

        Raises:
            ConfigurationError: if a process ends by an error before any has begun to work.
        """
        waiting, deaths, begun = deque(range(len(jobs))), Counter[int](), False
        team = [_Worker(task, self.threads) for _ in range(min(self.workers, len(jobs)))]
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
                            team[index] = worker = _Worker(task, self.threads)
                        position = waiting.popleft()
                        worker.give(position, jobs[position])
                        yield Event(position, "started")
                busy = {worker.connection: worker for worker in team if worker.job is not None}
                if not busy:
                    return
                for connection in wait(list(busy), timeout=_PATIENCE):
                    assert isinstance(connection, Connection)
                    worker = busy[connection]
                    event, died = _next_event(worker)
                    begun = begun or worker.listens
                    if died and not begun and not told and worker.process.exitcode == 1:
                        raise ConfigurationError(
                            f"A worker process failed as it started, see above. If a script started it: {GUARD}"
                        )
                    if event is None:
                        if told:
                            _pass_on([worker], at_once=told > 1)
                        continue
                    deaths[event.job] += died
                    if died and not told and deaths[event.job] <= _RETRIES:
                        waiting.append(event.job)
                        event = Event(event.job, "again", event.content)
                    yield event
        finally:
            _pass_on(team, at_once=True)
            for worker in team:
                worker.end()


class _Worker:
    """One process and the job it works on."""

    def __init__(self, task: Task, threads: int) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, task, threads))
        # Inherited: an interrupt while the process is being born does not kill it.
        with _ignoring_interrupts():
            self.process.start()
        theirs.close()
        self.job: int | None = None
        self.listens = False  # to interrupts: it has begun the job

    def give(self, position: int, job: Any) -> None:
        self.job, self.listens = position, False
        with suppress(OSError):  # the worker died this moment: reading from it will tell
            self.connection.send(job)

    def end(self) -> None:
        self.connection.close()
        self.process.join(_INSIST)
        while self.process.is_alive():
            self.process.terminate()
            self.process.join(_INSIST)


def _next_event(worker: _Worker) -> tuple[Event | None, bool]:
    """Return what a worker has to tell, and whether it died; nothing where it listens from now on."""
    assert worker.job is not None
    job, died = worker.job, False
    try:
        kind, content = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        kind, content, died = "lost", _cause(worker.process.exitcode), True
    if kind == "listens":
        worker.listens = True
        return None, False
    if kind != "progress":
        worker.job = None
    return Event(job, kind, content), died


def _cause(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return (
            "The worker process was killed, most likely because memory ran out. Use fewer workers, or lower "
            "training.batch_size or evaluation.num_importance_samples."
        )
    return f"The worker process ended with exit code {code}."


def _pass_on(team: list[_Worker], *, at_once: bool) -> None:
    for worker in team:
        if worker.job is None or not worker.process.is_alive() or worker.process.pid is None:
            continue
        if at_once:
            worker.process.terminate()
        elif worker.listens:  # else it would not notice; it is told as soon as it does
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
            connection.send(("listens", None))
            answer = ("result", task(job, _reporting(connection)))
        except BaseException as error:  # whatever it was, the parent records it and the others go on
            answer = ("lost", reason_of(error))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            connection.send(answer)
        except OSError:
            return


def _reporting(connection: Connection) -> Report:
    def report(content: Any) -> None:
        with suppress(
            OSError
        ):  # the parent is gone: a signal ends this process, and the run saves itself first
            connection.send(("progress", content))

    return report


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_INSIST)
