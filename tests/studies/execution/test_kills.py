"""A study whose processes are killed at random moments, the driver among them: each result is there, once."""

import json

import pytest

from tests.stress import faults, torment


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_is_complete(tmp_path):
    counts = torment(tmp_path, arms=4, seeds=6, worker_kills=2, driver_kills=2, together=False)
    assert counts["starts"] == 1 + counts["driver"]
    assert counts["worker"] + counts["driver"] > 0
    assert faults(tmp_path, 4, 6) == []
    record = tmp_path / "study" / "study.jsonl"
    whole = record.read_text()
    lines = whole.splitlines(keepends=True)
    finished = next(line for line in lines if json.loads(line)["status"] == "finished")
    # What the check of this test would find.
    for spoiled in (
        whole + finished,
        whole.replace(finished, ""),
        whole.replace('"mean": -', '"mean": -9', 1),
        whole[:-1],
    ):
        record.write_text(spoiled)
        assert faults(tmp_path, 4, 6) != []
