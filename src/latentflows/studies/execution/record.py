"""`study.jsonl`: one line per run that ended, only ever added to, whole after a crash at any moment."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from latentflows.core.errors import CheckpointError

ENDED = ("finished", "diverged")  # what is not run again


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of `study.jsonl`; a torn last one, from a crash while it was written, is left out.

    Raises:
        CheckpointError: if another line cannot be read.
    """
    path = out / "study.jsonl"
    texts = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    lines = []
    for number, text in enumerate(texts[:-1], 1):  # after the last line break stands nothing, or a torn line
        try:
            lines.append(json.loads(text))
        except ValueError:
            raise CheckpointError(f"{path}, line {number} cannot be read. Remove that line.") from None
    return lines


def append_line(out: Path, line: dict[str, Any]) -> None:
    """Add a line to `study.jsonl` and bring it to disk; a torn last line is cut off first.

    Raises:
        CheckpointError: if the disk is full; what was there before is whole.
    """
    path = out / "study.jsonl"
    with open(path, "a+b", buffering=0) as file:
        whole = _whole(file)
        try:
            _write(file, json.dumps(line).encode() + b"\n")
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            file.truncate(whole)
            raise CheckpointError(
                f"The disk is full: a line of {path} could not be written. Free space and use --resume; the results "
                "are in the run folders, and nothing is run twice."
            ) from error


def _whole(file: Any) -> int:
    """Cut off what follows the last line break, and return where the file then ends."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    return whole


def _write(file: Any, content: bytes) -> None:
    """Write all of it: a system call may take a part."""
    while content:
        content = content[file.write(content) :]
