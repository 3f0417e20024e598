"""Files are replaced as a whole, whatever happens on the way."""

import os
import re
from pathlib import Path

import pytest

from latentflows.core import files
from latentflows.core.errors import CheckpointError
from latentflows.core.files import check_format, write_atomically


def test_folders_on_the_way_are_made_and_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["c"]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def full(path: Path, mode: str, **settings: object) -> object:
        return real("/dev/full", mode)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(CheckpointError, match="The disk is full"):
        write_atomically(tmp_path / "a", b"x" * 100)


@pytest.mark.parametrize("name", ["a" * 255, "\N{SNOWMAN}" * 85, "is-a-folder"])
def test_a_place_that_cannot_be_written_to_is_named_as_it_was_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "is-a-folder").mkdir()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the file is looked at
        write_atomically(tmp_path / name, b"new")
    assert caught.value.filename == str(tmp_path / name)
    assert os.listdir(tmp_path) == ["is-a-folder"]


def test_a_file_of_another_format_is_refused() -> None:
    check_format(Path("run.json"), 1, 1)
    for found in (None, 0, 2):
        with pytest.raises(
            CheckpointError, match=rf"run\.json has format {found}; this version reads 1\. Use the"
        ):
            check_format(Path("run.json"), found, 1)


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    left = tmp_path / ".a.partial"
    left.write_bytes(b"half of a file")
    write_atomically(tmp_path / "a", b"whole")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_the_hash_of_the_code_follows_names_and_contents(tmp_path, monkeypatch):
    assert re.fullmatch("[0-9a-f]{12}", files.source_hash())
    (tmp_path / "core").mkdir()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "core" / "files.py"))
    (tmp_path / ".#one.py").symlink_to("nowhere")  # an editor's lock
    assert files.source_hash.__wrapped__() == "unknown"
    found = set()
    for name, content in [("one.py", b"1"), ("one.py", b"2"), ("two.py", b"2"), ("two.txt", b"2")]:
        (tmp_path / name).write_bytes(content)
        found.add(files.source_hash.__wrapped__())
    assert len(found) == 3
