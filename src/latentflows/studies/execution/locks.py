"""One process at a time: a lock file that names who holds it, and that the death of its holder frees."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentflows.core.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

_LOOK_EVERY = 0.1  # seconds


@contextmanager
def locked(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`; it is removed at the end.

    The lock is the operating system's (`flock`), so it ends with its process, however that ends. On a file system
    without locks the file's own word counts: it names process and machine, and is stale where that process of this
    machine is gone.

    Args:
        path: The lock file; its folder is made.
        what: What it protects, for the message.
        patience: Seconds to wait for another holder.

    Raises:
        ConfigurationError: if another process holds it, naming that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while (file := _acquired(path)) is None:
        if time.monotonic() >= deadline:
            raise ConfigurationError(f"{what} is in use by {_holder(path)}. Wait for it to end, or stop it.")
        time.sleep(_LOOK_EVERY)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def free_locks(folder: Path) -> None:
    """Remove the lock files in a folder whose holders are gone."""
    for path in folder.glob(".*.lock"):
        with suppress(ConfigurationError), locked(path, str(path)):
            pass


def _acquired(path: Path) -> int | None:
    """Return the open lock file, ours from now on; None where another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _is_free(file, path):
            os.close(file)
            return None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(content).encode(), 0)
    except BaseException:
        os.close(file)
        raise
    return file


def _is_free(file: int, path: Path) -> bool:
    """Take the system's lock where there is one; otherwise believe what the file says."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        else:  # the last holder may have removed the file between our opening and our locking it
            return path.exists() and os.path.samestat(os.fstat(file), path.stat())
    return not _lives(_read(path))


def _lives(holder: dict[str, Any]) -> bool:
    if not holder:
        return False
    if holder["host"] != socket.gethostname() or os.name != "posix":
        return True  # it cannot be known from here
    if holder["pid"] == os.getpid():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _holder(path: Path) -> str:
    holder = _read(path)
    if not holder:
        return "another process"
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    return f"{who} (if that machine is gone, remove {path})"
