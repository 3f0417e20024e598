"""One process at a time: a lock file that names who holds it, and that the death of its holder frees."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from latentflows.core.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

_LOOK_EVERY = 0.1  # seconds
_TRIES = 3  # in a row, where a file without a holder is in the way
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_PROCESS = uuid.uuid4().hex  # a dead process may have had our number


@contextmanager
def locked(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`; it is removed at the end.

    The lock is the operating system's (`flock`), so it ends with its process, however that ends; between machines it is
    as good as that of the file system they share. On a file system without locks whoever creates the file holds it:
    it names process and machine, and is stale where that process of this machine is gone. What a process of
    another machine left there is removed by hand.

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
            raise ConfigurationError(f"{what} is in use by {_holder(path)}")
        time.sleep(_LOOK_EVERY)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file `path`; the file is left as it is."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        free = _flock(file, shared=True)  # which needs no file that can be written
        return _lives(_read(path)) if free is None else not free
    finally:
        os.close(file)


def free_locks(folder: Path) -> None:
    """Remove the lock files in a folder whose holders are gone."""
    for path in folder.glob(".*.lock"):
        with suppress(ConfigurationError), locked(path, str(path)):
            pass


def _acquired(path: Path) -> int | None:
    """Return the open lock file, ours from now on; None where another process has it."""
    for _ in range(_TRIES):
        file, is_new = _opened(path)
        try:
            found = _tried(file, path, is_new)
        except BaseException:  # as on a full disk, where it cannot be signed
            if is_new:
                path.unlink(missing_ok=True)
            os.close(file)
            raise
        if found == "ours":
            return file
        os.close(file)
        if found == "taken":
            break
    return None


def _opened(path: Path) -> tuple[int, bool]:
    """Open the lock file, and say whether it is new: of several processes that create it, it is so for one."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            with suppress(FileNotFoundError):  # its holder removed it this moment
                return os.open(path, os.O_RDWR), False


def _tried(file: int, path: Path, is_new: bool) -> Literal["ours", "taken", "gone"]:
    """Take the lock and sign the file, if nobody has it; "gone" where the file is no more and another is to be made."""
    granted = _flock(file)
    if granted is None and not is_new:
        return "gone" if _removed_stale(path) else "taken"
    if granted is False:
        return "taken"
    if not _stands_at(file, path):  # the last holder removed it between our opening and our locking it
        return "gone"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"pid": os.getpid(), "process": _PROCESS, "host": socket.gethostname(), "since": now}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(content).encode(), 0)
    return "ours"


def _flock(file: int, *, shared: bool = False) -> bool | None:
    """Take the system's lock; whether that went well, or None where it has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _stands_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _removed_stale(path: Path) -> bool:
    """Remove the file of a holder that is gone: one process at a time, or the next one's would be removed too."""
    if _lives(_read(path)):
        return False
    broom = path.with_name(f".{path.name}.partial")
    try:
        os.close(os.open(broom, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    try:
        if _lives(_read(path)):  # by now it is another one's
            return False
        path.unlink(missing_ok=True)
    finally:
        broom.unlink(missing_ok=True)
    return True


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a holder may still be there; who has not signed yet is."""
    if not holder or holder["host"] != socket.gethostname() or os.name != "posix":
        return True  # it cannot be known from here
    if holder["pid"] == os.getpid():
        return holder.get("process") == _PROCESS
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
    except (OSError, ValueError, RecursionError):
        return {}


def _holder(path: Path) -> str:
    """Say who has it, and what to do."""
    holder = _read(path)
    if not holder:
        return f"another process. Wait for it to end, or stop it; if there is none, remove {path}."
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    return f"{who}. Wait for it to end, or stop it; if it no longer runs there, remove {path}."
