"""Files that appear as a whole or not at all; and what the files of this package are."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from latentflows.core.errors import CheckpointError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path`, or leave it as it was; folders on the way are made.

    The content is written beside the target, synced to disk, and renamed over it.

    Raises:
        CheckpointError: if the disk is full, naming the file and the size.
        OSError: if the place cannot be written to, naming `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always this name, so that what a killed process left is written over.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the same one again
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"The disk is full: {path} needs {len(content):,} bytes. Free space and repeat the command, a "
                "run or a study with --resume; what was there before is intact."
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def check_format(path: Path, found: object, expected: int) -> None:
    """Refuse a file of another format than this version writes.

    Raises:
        CheckpointError: naming both formats.
    """
    if found != expected:
        raise CheckpointError(
            f"{path} has format {found}; this version reads {expected}. Use the latentflows version that wrote it."
        )


def is_partial(path: Path) -> bool:
    """Whether a file is what a process that was killed inside `write_atomically` left."""
    return path.name.startswith(".") and path.name.endswith(".partial")


@lru_cache
def source_hash() -> str:
    """Return the first digits of a hash over the code of this package, which tells states of one version apart.

    "unknown" where it does not lie in files. What an editor leaves, with names that begin with a dot, is no part of it.
    """
    root, digest, any_file = Path(__file__).parents[1], hashlib.sha256(), False
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(name.as_posix().encode() + b"\0" + path.read_bytes())
        any_file = True
    return digest.hexdigest()[:12] if any_file else "unknown"
