"""Lock files: one holder at a time, freed by its death, also where the file system has no locks."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from latentflows.core.errors import ConfigurationError
from latentflows.studies.execution import locks as locks_room
from latentflows.studies.execution.locks import free_locks, is_held, locked

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
        message = r"process 1 on elsewhere since 2026\. Wait .* no longer runs there, remove .*lock\.$"
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


def of_the_dead():
    """What a process of this machine left that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return json.dumps({"pid": process.pid, "host": socket.gethostname(), "since": "2026"})


def test_locks_of_the_dead_are_removed(path, other):
    for name in (".a.lock", ".b.lock", "c.lock"):
        (path.parent / name).write_text(of_the_dead())
    (path.parent / ".d.lock").hardlink_to(path)
    free_locks(path.parent)
    assert sorted(item.name for item in path.parent.iterdir()) == [".d.lock", "c.lock", "lock"]


def test_whether_a_lock_is_held_is_told_without_taking_it(path, other):
    before = path.read_bytes()
    assert is_held(path)
    other.kill()
    other.wait()
    assert not is_held(path)
    assert path.read_bytes() == before
    path.unlink()
    assert not is_held(path)
    assert not path.exists()


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks_room.fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("moment", range(9))
@pytest.mark.parametrize("before", ["nothing", "a dead holder's file"])
def test_one_of_two_gets_it_whenever_the_second_comes(before, moment, tmp_path, monkeypatch):
    """The second tries, from beginning to end, before the n-th system call of the first."""
    path = tmp_path / "lock"
    if before != "nothing":
        path.write_text(of_the_dead())
    calls, found = 0, []

    def interposed(name):
        whole = getattr(os, name)

        def call(*arguments, **settings):
            nonlocal calls
            calls += 1
            if calls == moment + 1 and not found:
                found.append(locks_room._acquired(path))
            return whole(*arguments, **settings)

        monkeypatch.setattr(os, name, call)

    for name in ("open", "close", "unlink", "kill", "ftruncate", "pwrite"):
        interposed(name)
    found.append(locks_room._acquired(path))
    if calls <= moment:
        found.append(locks_room._acquired(path))  # after the first's last call
    assert sorted(file is not None for file in found) == [False, True]
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [item.name for item in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("without_locks")
def test_a_file_that_nobody_has_signed_yet_is_taken(tmp_path):
    """Its maker may be about to write; if it died just then, the message says what to do."""
    path = tmp_path / "lock"
    path.touch()
    message = r"^It is in use by another process\. .* if there is none, remove .*lock\.$"
    with pytest.raises(ConfigurationError, match=message), locked(path, "It"):
        pass
