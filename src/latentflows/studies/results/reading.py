"""Read the JSON files of run folders and study folders: every file is checked, an unreadable one is named."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from latentflows.core.errors import DataError
from latentflows.studies.results.records import Epoch, Evaluation, Group, Record, RunRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AS_ONE_PROGRAM = "runs trained as one program"
AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_evaluation(folder: Path) -> Evaluation | None:
    """Return the evaluation of a run; None where there is none.

    Args:
        folder: A run folder.

    Raises:
        DataError: `evaluation.json` cannot be read.
    """
    return read_record(folder / "evaluation.json", Evaluation)


def read_epochs(folder: Path) -> tuple[tuple[Epoch, ...], int]:
    """Return the epochs of a run in order, and the number of torn last lines (0 or 1).

    An epoch that was repeated after a resume counts once, as it was logged last.

    Args:
        folder: A run folder; without `metrics.jsonl` there are no epochs.

    Raises:
        DataError: A line other than the last cannot be read.
    """
    epochs, torn_lines = read_records(folder / "metrics.jsonl", Epoch)
    return tuple({(epoch.stage, epoch.epoch): epoch for epoch in epochs}.values()), torn_lines


def read_bytes(path: Path) -> bytes | None:
    """Return what the file holds; None where it is missing.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Restore or remove the file.") from error


def parse(text: bytes) -> Any | None:
    """Return the JSON value of `text`; None where it is not JSON."""
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):  # covers JSONDecodeError and UnicodeDecodeError
        return None


def check(where: Path | str, value: Any, kind: type[AnyRecord]) -> AnyRecord:
    """Return a JSON value as a record.

    Args:
        where: The file, and the line in it, for the message.
        value: What it holds.
        kind: The record.

    Raises:
        DataError: It does not fit.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where} must hold a JSON object; it cannot be read as one. Restore or remove the file."
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        if "format" in value and any(fault["loc"] == ("format",) for fault in error.errors()):
            raise DataError(
                f"{where} has format {value['format']}, which this version does not read. Use the latentflows version "
                "that wrote it."
            ) from error
        faults = "; ".join(
            f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}" for fault in error.errors()[:3]
        )
        raise DataError(f"{where} is not as expected: {faults}. Restore or remove the file.") from error


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    """Return the record that a JSON file holds; None where it is missing.

    Raises:
        DataError: It cannot be read, or does not fit.
    """
    text = read_bytes(path)
    return None if text is None else check(path, parse(text), kind)


def read_records(path: Path, kind: type[AnyRecord]) -> tuple[list[AnyRecord], int]:
    """Return the records of a file's lines, and the number of torn last lines (0 or 1), which are left out.

    A last line is torn where its line break is missing: those who write such a file cut it off when they go on.

    Raises:
        DataError: Another line cannot be read, or does not fit.
    """
    text = read_bytes(path) or b""
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    torn = bool(lines) and not text.endswith(b"\n")
    whole = lines[: len(lines) - torn]
    return [check(f"{path}, line {number},", parse(line), kind) for number, line in whole], int(torn)


class RunFiles:
    """The files of one run, each read when it is first asked for, and once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def record(self) -> RunRecord | None:
        """`run.json`; None where there is none."""
        return read_record(self.folder / "run.json", RunRecord)

    @property
    def timing(self) -> dict[str, Any]:
        """What the run's seconds depend on: hardware, and how many runs were one program; empty where not known."""
        if self.record is None:
            return {}
        numbers = sorted({runs for _, runs in self.record.trained_with}) or [1]
        return self.record.hardware | {AS_ONE_PROGRAM: " and ".join(map(str, numbers))}

    @cached_property
    def epochs(self) -> tuple[Epoch, ...]:
        """The log."""
        return read_epochs(self.folder)[0]

    @cached_property
    def nll(self) -> NDArray[np.float64] | None:
        """NLL of every image, nats, from `nll.npy`; None where there is none."""
        import numpy as np

        path = self.folder / "nll.npy"
        content = read_bytes(path)
        if content is None:
            return None
        try:
            found = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(
                f"{path} cannot be read as an array: {error}. Restore or remove the file."
            ) from error
        if found.ndim != 1:
            raise DataError(
                f"{path} must hold a number for each image; got shape {found.shape}. Remove the file."
            )
        return found

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups of figures of `evaluation.json`; none where there is no such file."""
        evaluation = read_evaluation(self.folder)
        return {} if evaluation is None else evaluation.groups
