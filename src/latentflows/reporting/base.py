"""Read run folders and comparison folders: every file is checked, and an unreadable one is named."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from latentflows.core.errors import DataError
from latentflows.reporting.records import (
    Epoch,
    Evaluation,
    PictureEntry,
    Record,
    RunRecord,
    Study,
    StudyRun,
)

# The command that makes a missing file; `{folder}` is the run or comparison folder.
COMMANDS = {
    "config.yaml": "latentflows train CONFIG --out {folder}",
    "run.json": "latentflows train CONFIG --out {folder}",
    "metrics.jsonl": "latentflows train CONFIG --out {folder}",
    "evaluation.json": "latentflows evaluate {folder}",
    "samples/index.json": "latentflows sample {folder}",
    "study.jsonl": "latentflows compare STUDY --out {folder}",
}
RUN_FILES = ("run.json", "config.yaml", "metrics.jsonl", "evaluation.json")
AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class Picture:
    """A picture of `samples/`, ready to be shown."""

    file: str
    title: str
    caption: str
    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """A run folder as read; None or empty where a file is missing."""

    folder: Path
    record: RunRecord | None
    config: str | None
    epochs: tuple[Epoch, ...]
    torn_lines: int
    evaluation: Evaluation | None
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Comparison:
    """A comparison folder as read; `runs` holds the last line of every arm and seed."""

    folder: Path
    study: Study
    runs: dict[tuple[str, int], StudyRun]
    torn_lines: int


def read_run(folder: Path) -> Run:
    """Read everything a run folder holds.

    Args:
        folder: A folder with at least one of the files of a run.

    Returns:
        The run. A missing file leaves its part empty; a torn last line of `metrics.jsonl` is counted.

    Raises:
        DataError: The folder is no run folder, or a file in it cannot be read; the message names it.
    """
    if not any((folder / name).is_file() for name in RUN_FILES):
        raise DataError(
            f"{folder} must be a run folder, which holds one of {', '.join(RUN_FILES)}; found none."
        )
    record = _read_record(folder / "run.json", RunRecord)
    epochs, torn_lines = read_epochs(folder)
    return Run(
        folder=folder,
        record=record,
        config=_read_config(folder / "config.yaml"),
        epochs=epochs,
        torn_lines=torn_lines,
        evaluation=read_evaluation(folder),
        pictures=read_pictures(folder),
    )


def read_evaluation(folder: Path) -> Evaluation | None:
    """The evaluation of a run; None where there is none.

    Args:
        folder: A run folder.

    Raises:
        DataError: `evaluation.json` cannot be read.
    """
    return _read_record(folder / "evaluation.json", Evaluation)


def read_hardware(folder: Path) -> dict[str, Any] | None:
    """What a run was made on; None where there is no `run.json`.

    Args:
        folder: A run folder.

    Raises:
        DataError: `run.json` cannot be read.
    """
    record = _read_record(folder / "run.json", RunRecord)
    return None if record is None else record.hardware


def read_epochs(folder: Path) -> tuple[tuple[Epoch, ...], int]:
    """Epochs of a run in order, and the number of torn last lines (0 or 1).

    An epoch that was repeated after a resume counts once, as it was logged last.

    Args:
        folder: A run folder; without `metrics.jsonl` there are no epochs.

    Raises:
        DataError: A line other than the last cannot be read.
    """
    epochs, torn_lines = _read_records(folder / "metrics.jsonl", Epoch)
    return tuple({(epoch.stage, epoch.epoch): epoch for epoch in epochs}.values()), torn_lines


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """Pictures that `samples/index.json` lists and that exist, in its order.

    Args:
        folder: A run folder; without an index there are no pictures.

    Raises:
        DataError: The index or a picture cannot be read.
    """
    index = folder / "samples" / "index.json"
    text = _read_bytes(index)
    if text is None:
        return ()
    entries = _parse(text)
    if not isinstance(entries, list):
        raise DataError(f"{index} must hold a JSON list of pictures; it cannot be read as one.")
    pictures = [_read_picture(index, _check(index, entry, PictureEntry)) for entry in entries]
    return tuple(picture for picture in pictures if picture is not None)


def read_comparison(folder: Path) -> Comparison:
    """Read `study.json` and `study.jsonl` of a comparison folder.

    Args:
        folder: A comparison folder.

    Returns:
        The comparison; without `study.jsonl` it has no runs. A torn last line of it is counted.

    Raises:
        DataError: `study.json` is missing, or one of the files cannot be read or contradicts itself.
    """
    path = folder / "study.json"
    study = _read_record(path, Study)
    if study is None:
        raise DataError(f"{folder} must be a comparison folder, which holds study.json; found none.")
    arms = [arm.name for arm in study.arms]
    if len({arm.label for arm in study.arms}) < len(arms) or len(set(arms)) < len(arms):
        raise DataError(f"{path}: names and labels of the arms must differ; got {arms}. Rename one of them.")
    if study.baseline not in arms:
        raise DataError(f"{path}: `baseline` must be one of the arms {arms}; got {study.baseline!r}.")
    lines_path = folder / "study.jsonl"
    runs, torn_lines = _read_records(lines_path, StudyRun)
    for run in runs:
        if run.arm not in arms:
            raise DataError(f"{lines_path}: `arm` must be one of {arms}; got {run.arm!r}.")
        if Path(run.run).is_absolute() or ".." in Path(run.run).parts:
            raise DataError(f"{lines_path}: `run` must be a path inside {folder}; got {run.run!r}.")
    return Comparison(folder, study, {(run.arm, run.seed): run for run in runs}, torn_lines)


def _read_bytes(path: Path) -> bytes | None:
    """What the file holds; None where it is missing."""
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Restore or remove the file.") from error


def _read_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; none where the file is missing."""
    text = _read_bytes(path) or b""
    return [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]


def _parse(text: bytes) -> Any | None:
    """The JSON value of `text`; None where it is not JSON."""
    try:
        return json.loads(text.decode("utf-8"))
    except ValueError:  # covers JSONDecodeError and UnicodeDecodeError
        return None


def _check(where: Path | str, value: Any, kind: type[AnyRecord]) -> AnyRecord:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where} must hold a JSON object; it cannot be read as one. Restore or remove the file."
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = "; ".join(
            f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}" for fault in error.errors()[:3]
        )
        raise DataError(f"{where} is not as expected: {faults}. Restore or remove the file.") from error


def _read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    text = _read_bytes(path)
    return None if text is None else _check(path, _parse(text), kind)


def _read_records(path: Path, kind: type[AnyRecord]) -> tuple[list[AnyRecord], int]:
    """The records of the file's lines, and the number of torn last lines (0 or 1), which are left out."""
    lines = _read_lines(path)
    torn = bool(lines) and _parse(lines[-1][1]) is None
    whole = lines[: len(lines) - torn]
    return [_check(f"{path}, line {number},", _parse(line), kind) for number, line in whole], int(torn)


def _read_config(path: Path) -> str | None:
    import yaml

    content = _read_bytes(path)
    if content is None:
        return None
    try:
        text = content.decode("utf-8")
        yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"{path} cannot be read as YAML: {' '.join(str(error).split())}. Restore or remove the file."
        ) from error
    return text


def _read_picture(index: Path, entry: PictureEntry) -> Picture | None:
    from PIL import Image

    if Path(entry.file).name != entry.file:
        raise DataError(f"{index}: `file` must be a file name without folders; got {entry.file!r}.")
    path = index.parent / entry.file
    png = _read_bytes(path)
    if png is None:
        return None
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            width, height = image.size
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG chunk
        raise DataError(f"{path} cannot be read as a PNG picture: {error}. Make it again.") from error
    return Picture(entry.file, entry.title, entry.caption, png, width, height)
