"""What an engine is: it carries out jobs in other processes, and tells what happens to each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Report = Callable[[Any], None]
Task = Callable[[Any, Report], Any]
Stop = Callable[[], int]


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    Attributes:
        job: Its position in the list of jobs.
        kind: "started"; "progress" with what the task reported; "again" with the reason where its worker died and it
            will start anew; "result" with what the task returned; "lost" with the reason where the worker died too
            often or the task raised. A job ends with one "result" or one "lost".
        content: See `kind`.
    """

    job: int
    kind: Literal["started", "progress", "again", "result", "lost"]
    content: Any = None


def never() -> int:
    """Ask for no stop."""
    return 0


class Engine(ABC):
    """Processes that carry out jobs, here or on other machines; a context manager that starts and ends them.

    Attributes:
        threads: Threads of torch that each job has.
    """

    threads: int = 1

    @abstractmethod
    def __enter__(self) -> Engine: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    @abstractmethod
    def workers(self) -> int:
        """Jobs at a time; known once the engine was entered."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Refuse a folder that not every worker can read and write.

        Args:
            folder: An existing folder.

        Raises:
            ConfigurationError: naming the workers that do not see it, and what to do.
        """

    @abstractmethod
    def over_jobs(self, task: Task, jobs: Sequence[Any], stop: Stop = never) -> Iterator[Event]:
        """Run `task(job, report)` for every job; yield events until all have ended.

        A job whose worker dies is given to another one, a bounded number of times: it must take up what it finds of
        an earlier attempt. When `stop()` becomes 1, waiting jobs are dropped and running ones receive an interrupt,
        which they may answer by returning early; at 2 they are ended at once.

        Args:
            task: A function of a module that a new process can import; `report` may be called at any time.
            jobs: What the task is given, one at a time; must pickle.
            stop: How often a stop was asked for.
        """
