"""Lock files: one holder at a time, freed by its death, also where the file system has no locks."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from latentflows.core.errors import ConfigurationError
from latentflows.studies.execution import locks as locks_room
from latentflows.studies.execution.locks import free_locks, locked

HOLD = """
import sys, time
from pathlib import Path
from latentflows.studies.execution.locks import free_locks, locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["with locks of the system", "without"])
def path(request, tmp_path, monkeypatch):
    if request.param == "without":

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(locks_room.fcntl, "flock", refuse)
    return tmp_path / "folder" / "lock"


@pytest.fixture
def other(path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_names_its_holder_and_goes_with_it(path, other):
    message = rf"^The study is in use by process {other.pid} on .* since 20"
    with pytest.raises(ConfigurationError, match=message), locked(path, "The study"):
        pass
    assert path.exists()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with locked(path, "The study"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_patience_outlasts_a_holder_that_ends(path, other):
    def end():
        time.sleep(0.3)
        other.kill()
        other.wait()

    thread = threading.Thread(target=end)
    thread.start()
    with locked(path, "The study", patience=30):
        assert other.poll() is not None
    thread.join()


def test_a_lock_is_freed_by_an_error(path):
    with pytest.raises(KeyError), locked(path, "it"):
        raise KeyError
    with locked(path, "it"):
        pass


def test_a_holder_on_another_machine_is_believed(path, monkeypatch):
    path.parent.mkdir()
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2026"}))
    if locks_room.fcntl.flock.__name__ == "refuse":
        message = r"process 1 on elsewhere .*machine is gone, remove"
        with pytest.raises(ConfigurationError, match=message), locked(path, "it"):
            pass
    else:  # the system knows that nobody has it
        with locked(path, "it"):
            pass


def test_a_file_that_the_last_holder_removed_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    flock, removed = locks_room.fcntl.flock, []

    def remove_first(file, how):
        if not removed:
            removed.append(path.unlink())
        return flock(file, how)

    monkeypatch.setattr(locks_room.fcntl, "flock", remove_first)
    with locked(path, "it", patience=5), pytest.raises(ConfigurationError), locked(path, "it"):
        pass


def test_locks_of_the_dead_are_removed(path, other):
    for name in (".a.lock", ".b.lock", "c.lock"):
        (path.parent / name).touch()
    (path.parent / ".d.lock").hardlink_to(path)
    free_locks(path.parent)
    assert sorted(item.name for item in path.parent.iterdir()) == [".d.lock", "c.lock", "lock"]
