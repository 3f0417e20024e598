"""Read run folders whole, with their pictures: every file is checked, and an unreadable one is named."""

import io
import shlex
from dataclasses import dataclass
from pathlib import Path

from latentflows.core.errors import DataError
from latentflows.reporting.damage import damages
from latentflows.studies.execution.record import ENDED
from latentflows.studies.results.reading import (
    check,
    parse,
    read_bytes,
    read_epochs,
    read_evaluation,
    read_record,
)
from latentflows.studies.results.records import Epoch, Evaluation, PictureEntry, RunRecord
from latentflows.studies.results.results import Results

# The command that makes a missing file; `{folder}` is the run folder.
COMMANDS = {
    "config.yaml": "latentflows train CONFIG --out {folder}",
    "run.json": "latentflows train CONFIG --out {folder}",
    "metrics.jsonl": "latentflows train CONFIG --out {folder}",
    "evaluation.json": "latentflows evaluate {folder}",
    "samples/index.json": "latentflows train {folder}/config.yaml --out {folder} --resume",
}
RUN_FILES = ("run.json", "config.yaml", "metrics.jsonl", "evaluation.json")


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
    """A run folder as read; None or empty where a file is missing.

    `damage` says by file what is damaged, where that leaves enough for a page.
    """

    folder: Path
    record: RunRecord | None
    config: str | None
    epochs: tuple[Epoch, ...]
    damage: dict[str, str]
    evaluation: Evaluation | None
    pictures: tuple[Picture, ...]
    undrawn: tuple[PictureEntry, ...]


def read_run(folder: Path) -> Run:
    """Read everything a run folder holds.

    Args:
        folder: A folder with at least one of the files of a run.

    Returns:
        The run. A missing file leaves its part empty; what is damaged beside it is told in `damage`.

    Raises:
        DataError: The folder is no run folder, or a file in it cannot be read; the message names it.
    """
    if not any((folder / name).is_file() for name in RUN_FILES):
        missing = "it is a file" if folder.is_file() else "there is no such folder"
        raise DataError(
            f"{folder} must be a run folder, which holds one of {', '.join(RUN_FILES)}, or a study folder, which holds "
            f"study.json; {'it has no file of a run' if folder.is_dir() else missing}."
        )
    record = read_record(folder / "run.json", RunRecord)
    epochs, torn_lines = read_epochs(folder)
    return Run(
        folder=folder,
        record=record,
        config=_read_config(folder / "config.yaml"),
        epochs=epochs,
        damage=damages(folder, record, epochs, torn_lines),
        evaluation=read_evaluation(folder),
        pictures=read_pictures(folder),
        undrawn=read_undrawn(folder),
    )


def resume_command(results: Results) -> str | None:
    """The command that goes on with a study, from the one that started it; None where every run has ended."""
    study = results.study
    ended = {key for key, run in results.runs.items() if run.status in ENDED}
    if all((arm, seed) in ended for arm in study.labels for seed in study.seeds):
        return None
    try:
        words = shlex.split(study.command)
    except ValueError:  # an open quotation mark
        words = []
    if words[:1] != ["latentflows"]:  # started from Python
        return "compare(study, Path(" + repr(str(results.folder)) + "), resume=True)"
    kept = [
        word for word in words if word not in ("--resume", "--overwrite") and not word.startswith("--out=")
    ]
    if "--out" in kept[:-1]:
        place = kept.index("--out")
        del kept[place : place + 2]
    return shlex.join([*kept, "--out", str(results.folder), "--resume"])


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """Pictures that `samples/index.json` lists and that exist, in its order.

    Args:
        folder: A run folder; without an index there are no pictures.

    Raises:
        DataError: The index or a picture cannot be read.
    """
    index = folder / "samples" / "index.json"
    pictures = [_read_picture(index, entry) for entry in _entries(folder)]
    return tuple(picture for picture in pictures if picture is not None)


def read_undrawn(folder: Path) -> tuple[PictureEntry, ...]:
    """Pictures that could not be made of this model or these data; their captions say why.

    Args:
        folder: A run folder; without an index there are none.

    Raises:
        DataError: The index cannot be read.
    """
    return tuple(entry for entry in _entries(folder) if entry.caption.startswith("Not drawn: "))


def _entries(folder: Path) -> list[PictureEntry]:
    """What the index of pictures lists; nothing where there is none."""
    index = folder / "samples" / "index.json"
    text = read_bytes(index)
    if text is None:
        return []
    entries = parse(text)
    if not isinstance(entries, list):
        raise DataError(
            f"{index} must hold a JSON list of pictures; it cannot be read as one. Restore or remove it."
        )
    return [check(index, entry, PictureEntry) for entry in entries]


def _read_config(path: Path) -> str | None:
    import yaml

    content = read_bytes(path)
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
    from PIL import Image, UnidentifiedImageError

    if Path(entry.file).name != entry.file:
        raise DataError(f"{index}: `file` must be a file name without folders; got {entry.file!r}.")
    path = index.parent / entry.file
    png = read_bytes(path)
    if png is None:
        return None
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            width, height = image.size
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no PNG picture. Restore or remove it.") from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG chunk
        raise DataError(f"{path} cannot be read as a PNG picture: {error}. Restore or remove it.") from error
    return Picture(entry.file, entry.title, entry.caption, png, width, height)
