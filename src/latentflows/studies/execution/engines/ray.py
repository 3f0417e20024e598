"""Ray: the jobs of a study on the machines of a cluster, or on one that is started here."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

from latentflows._version import __version__
from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.core.files import source_hash
from latentflows.studies.execution.engines.base import Engine, Event, Stop, Task, never
from latentflows.studies.running.failures import reason_of

_PATIENCE = 0.2  # seconds between looks at what happened
_RETRIES = 3  # of a job whose worker or machine died
_KNOCK = 10.0  # seconds for an address to answer at all
_TIMEOUT = 120.0  # seconds for a machine to answer when it is checked
_STORE = 80 * 2**20  # bytes of Ray's object store here, its least: jobs and results are small
_DATA = "LATENTFLOWS_DATA"


class RayEngine(Engine):
    """Jobs as Ray tasks, a bounded number in flight.

    Every machine needs this package with the same code, and the study folder (and the data) at the same path. A job
    whose process or machine dies is given to another one up to three times.

    Memory: 1.2 GiB for Ray itself where it is started here, and about 500 MiB a process.

    Args:
        address: Of a running cluster, such as "auto" or "HOST:6379"; None to start Ray on this machine, or to use
            the Ray that this program has started already.
        workers: Jobs at a time; None for as many as the cluster has room for at the start.
        cpus_per_run: Cores that each job takes, which is also its number of threads.
        gpus_per_run: GPUs, or share of one, that each job takes.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus_per_run: int = 1,
        gpus_per_run: float = 0.0,
    ) -> None:
        self.address, self.wanted = address, workers
        self.cpus_per_run = self.threads = cpus_per_run
        self.gpus_per_run = gpus_per_run
        self._started = False
        self._workers = 0

    def __enter__(self) -> RayEngine:
        ray = _ray()
        if not ray.is_initialized():
            self._start(ray)
            self._started = True
        try:
            self._workers = self._room(ray)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, ray: ModuleType) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            cores = (self.wanted or os.cpu_count() or 1) * self.cpus_per_run
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_STORE,
                **quiet,
            )
            return
        try:
            _knock(self.address)
            ray.init(address=self.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"No Ray cluster answers at `address`={self.address} ({str(error).splitlines()[0]}). Start one with "
                "`ray start --head`, or leave the address out to start Ray on this machine. If the cluster asks for a "
                "token, set RAY_AUTH_MODE=token."
            ) from None

    def _room(self, ray: ModuleType) -> int:
        """Return how many jobs the cluster has room for, or fewer if fewer are wanted."""
        has = ray.cluster_resources()
        room = int(has.get("CPU", 0) // self.cpus_per_run)
        if self.gpus_per_run:
            room = min(room, int(has.get("GPU", 0) / self.gpus_per_run + 1e-9))
        if room < 1:
            raise ConfigurationError(
                f"The Ray cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs; one run needs "
                f"{self.cpus_per_run} and {self.gpus_per_run:g}. Lower `gpus_per_run`, or add machines."
            )
        return room if self.wanted is None else min(room, self.wanted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            _ray().shutdown()
        self._started = False

    @property
    def workers(self) -> int:
        return self._workers

    def check(self, folder: Path) -> None:
        ray = _ray()
        token = uuid.uuid4().hex
        probe = folder / f".probe-{token}"
        probe.write_text(token)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        try:
            answers = {
                node["NodeManagerHostname"]: self._ask(ray, node["NodeID"], folder, token) for node in nodes
            }
        finally:
            for path in folder.glob(f".probe-{token}*"):
                path.unlink(missing_ok=True)
        faults = [f"{name}: {answer}" for name, answer in answers.items() if answer]
        if faults:
            raise ConfigurationError("Not every machine of the cluster can work here. " + " ".join(faults))

    def _ask(self, ray: ModuleType, node: str, folder: Path, token: str) -> str:
        """Return what is wrong with a machine; empty for nothing."""
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(_look).options(num_cpus=0, max_retries=1, scheduling_strategy=strategy)
        try:
            code, read = ray.get(task.remote(str(folder), token, node), timeout=_TIMEOUT)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            return ""  # it has left the cluster meanwhile
        except ray.exceptions.LocalRayletDiedError:
            raise LatentFlowsError(self.gone()) from None
        except ray.exceptions.RayError as error:
            return (
                f"it cannot run this package ({type(error).__name__}: {_last_line(error)}). Install latentflows "
                f"{__version__} there, in the environment that Ray runs in."
            )
        if code != _code():
            return f"it has latentflows {code}; this is {_code()}. Install the same on both."
        if not (read and (folder / f".probe-{token}-{node}").exists()):
            return f"it does not share {folder}. Put the study on a file system that all machines mount at one path."
        return ""

    def gone(self) -> str:
        """Say that Ray ended under a study, and what to do."""
        where = "" if self.address is None else f" at {self.address}"
        return (
            f"The Ray cluster{where} is gone, so the study stopped. Results so far are recorded, and runs that were "
            "under way keep their last checkpoint. Start Ray again, then go on with --resume."
        )

    def over_jobs(self, task: Task, jobs: Sequence[Any], stop: Stop = never) -> Iterator[Event]:
        """Run the jobs, see `Engine`.

        Raises:
            LatentFlowsError: if Ray ends on this machine, and with it the way to all others.
        """
        flight = _Flight(_ray(), self, task, jobs)
        told = 0
        try:
            while True:
                if stop() > told:
                    told = stop()
                    flight.cancel(force=told > 1)
                flight.fill()
                yield from flight.messages()
                if not flight.active:
                    return
                for event in flight.ended():
                    yield from flight.messages()
                    if event.job not in flight.begun:  # its message is still on the way
                        flight.begun.add(event.job)
                        yield Event(event.job, "started")
                    yield event
        finally:
            flight.close()


class _Flight:
    """Jobs that wait, and jobs that were given to Ray."""

    def __init__(self, ray: ModuleType, engine: RayEngine, task: Task, jobs: Sequence[Any]) -> None:
        self.ray, self.engine, self.jobs = ray, engine, jobs
        self.waiting, self.deaths = deque(range(len(jobs))), Counter[int]()
        self.active: dict[Any, int] = {}
        self.begun: set[int] = set()
        self.canceled = False
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        # Beside the driver: a machine that dies does not take the messages of the others along.
        self.asked: Any = None  # the messages that the board was asked for
        self.board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=strategy).remote()
        self.serve = ray.remote(_serve).options(
            num_cpus=engine.cpus_per_run, num_gpus=engine.gpus_per_run, max_retries=0
        )
        self.task, self.surroundings = task, _surroundings(engine.threads)

    def fill(self) -> None:
        """Give Ray as many jobs as may be under way."""
        while self.waiting and len(self.active) < self.engine.workers:
            position = self.waiting.popleft()
            key = (position, self.deaths[position])
            reference = self.serve.remote(self.task, self.jobs[position], key, self.board, self.surroundings)
            self.active[reference] = position

    def messages(self) -> list[Event]:
        """Return what the workers told since the last look; those of an attempt that died are left out."""
        if self.asked is None:
            self.asked = self.board.take.remote()
        if not self.ray.wait([self.asked], timeout=_PATIENCE)[0]:
            return []  # a busy machine: the answer is still to come, and will be read next time
        asked, self.asked = self.asked, None
        told: list[tuple[tuple[int, int], Literal["started", "progress"], Any]] = []
        with suppress(self.ray.exceptions.RayError):  # without messages a job still ends
            told = self.ray.get(asked)
        open_jobs = set(self.active.values())
        events = [
            Event(job, kind, content)
            for (job, attempt), kind, content in told
            if job in open_jobs and attempt == self.deaths[job]
        ]
        self.begun.update(event.job for event in events)
        return events

    def ended(self) -> Iterator[Event]:
        """Wait a moment for jobs to end."""
        done, _ = self.ray.wait(list(self.active), timeout=_PATIENCE)
        for reference in done:
            event = self._event(reference)
            if event is not None:
                yield event
            self.active.pop(reference)

    def _event(self, reference: Any) -> Event | None:
        """Return how an attempt ended; None for a job that was canceled before it began."""
        job, errors = self.active[reference], self.ray.exceptions
        try:
            kind, content = self.ray.get(reference)
            return Event(job, kind, content)
        except errors.TaskCancelledError:
            return Event(job, "lost", "It was ended at once.") if job in self.begun else None
        except errors.RayTaskError as error:  # it could not even be read on the other side
            return Event(job, "lost", _last_line(error))
        except errors.LocalRayletDiedError:
            # Ray beside this process: nothing can be given to any machine any more.
            raise LatentFlowsError(self.engine.gone()) from None
        except errors.RayError as error:
            return self._death(job, error)

    def _death(self, job: int, error: Exception) -> Event:
        self.deaths[job] += 1
        reason = _cause(error, self.ray.exceptions)
        if self.canceled or self.deaths[job] > _RETRIES:
            return Event(job, "lost", reason)
        self.waiting.append(job)
        return Event(job, "again", reason)

    def cancel(self, *, force: bool) -> None:
        """Drop what waits, and interrupt what runs; with force, end it at once."""
        self.canceled = True
        self.waiting.clear()
        for reference in self.active:
            self.ray.cancel(reference, force=force)

    def close(self) -> None:
        """Leave nothing running."""
        if self.ray.is_initialized():
            self.cancel(force=True)
            self.ray.kill(self.board)


class _Board:
    """Where workers leave messages for the driver."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def put(self, key: tuple[int, int], kind: str, content: Any) -> None:
        self.messages.append((key, kind, content))

    def take(self) -> list[Any]:
        taken, self.messages = self.messages, []
        return taken


def _serve(task: Task, job: Any, key: tuple[int, int], board: Any, surroundings: dict[str, Any]) -> Any:
    """Carry out one job in a process of Ray."""
    os.environ.update(surroundings["environment"])
    with suppress(
        OSError
    ):  # relative paths mean the same as where the study was started, if that folder is there
        os.chdir(surroundings["folder"])
    import torch

    torch.set_num_threads(surroundings["threads"])
    board.put.remote(key, "started", None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # by which Ray cancels
    try:
        return "result", task(job, lambda content: board.put.remote(key, "progress", content))
    except BaseException as error:  # whatever it was, the driver records it and the others go on
        return "lost", reason_of(error)
    finally:
        signal.signal(signal.SIGINT, before)


def _knock(address: str) -> None:
    """Connect once where an address names a port: Ray itself tries for a quarter of an hour.

    Raises:
        OSError: where nobody listens.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _look(folder: str, token: str, node: str) -> tuple[str, bool]:
    """Read the probe on another machine and leave an answer beside it; return the code there."""
    probe = Path(folder) / f".probe-{token}"
    try:
        read = probe.read_text() == token
        probe.with_name(f"{probe.name}-{node}").write_text(socket.gethostname())
    except OSError:
        read = False
    return _code(), read


def _code() -> str:
    """Name the version of this package and the state of its code, which may differ within one version."""
    return f"{__version__} (code {source_hash()})"


def _surroundings(threads: int) -> dict[str, Any]:
    root = os.environ.get(_DATA)
    environment = {} if root is None else {_DATA: str(Path(root).absolute())}
    return {"environment": environment, "folder": os.getcwd(), "threads": threads}


def _cause(error: Exception, errors: ModuleType) -> str:
    if isinstance(error, errors.OutOfMemoryError):
        return "Ray ended the process because the machine's memory ran out. Use fewer workers or more memory a run."
    if isinstance(error, errors.NodeDiedError):
        return "The machine of the run died or left the cluster."
    if isinstance(error, errors.WorkerCrashedError):
        return (
            "The worker process died; if it was killed, most likely because memory ran out. Use fewer workers, or "
            "lower training.batch_size or evaluation.num_importance_samples."
        )
    return f"{type(error).__name__}: {_last_line(error)}"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _ray() -> ModuleType:
    """Import Ray, with its reports to its makers off."""
    from latentflows.core.optional import import_optional

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_optional("ray", install="latentflows[ray]")
    import_optional("ray.util.scheduling_strategies", install="latentflows[ray]")
    return ray
