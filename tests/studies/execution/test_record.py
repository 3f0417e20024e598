"""The record of a study: lines that survive a crash, and a full disk."""

import errno
import json

import pytest

from latentflows.core.errors import CheckpointError
from latentflows.studies.execution import record as record_room
from latentflows.studies.execution.record import append_line, read_lines


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path):
    assert read_lines(tmp_path) == []
    append_line(tmp_path, {"n": 1})
    path = tmp_path / "study.jsonl"
    path.write_text(path.read_text() + '{"n": 2')
    assert read_lines(tmp_path) == [{"n": 1}]
    append_line(tmp_path, {"n": 3})
    assert read_lines(tmp_path) == [{"n": 1}, {"n": 3}]
    path.write_text("{\n" + path.read_text())
    with pytest.raises(CheckpointError, match="line 1 cannot be read"):
        read_lines(tmp_path)


def test_a_record_is_whole_wherever_a_crash_cut_it(tmp_path):
    path = tmp_path / "study.jsonl"
    lines = [{"run": "a", "reason": "é\u2028"}, {"run": "b", "figures": None}]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        kept = lines[: content[:cut].count(b"\n")]
        assert read_lines(tmp_path) == kept
        append_line(tmp_path, {"run": "c"})
        assert read_lines(tmp_path) == [*kept, {"run": "c"}]


def test_a_line_that_the_disk_has_no_room_for_leaves_the_others_whole(tmp_path, monkeypatch):
    append_line(tmp_path, {"n": 1})
    before = (tmp_path / "study.jsonl").read_bytes()

    def full(file, content):
        file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_room, "_write", full)
    with pytest.raises(CheckpointError, match=r"The disk is full: a line of .*study.jsonl.*--resume"):
        append_line(tmp_path, {"n": 2})
    assert (tmp_path / "study.jsonl").read_bytes() == before


def test_a_line_of_which_the_system_takes_a_part_is_written_on(tmp_path):
    class Slow:
        def __init__(self):
            self.content = b""

        def write(self, content):
            self.content += content[:3]
            return len(content[:3])

    file = Slow()
    record_room._write(file, b"0123456789")
    assert file.content == b"0123456789"
