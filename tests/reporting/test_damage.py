"""Files of a run folder that are damaged, and a page that is made all the same and says so."""

import numpy as np
import pytest
from torch import nn

from latentflows.reporting import write_run_report
from latentflows.reporting.base import read_run
from latentflows.training import save_weights


@pytest.fixture
def run(fake, tmp_path):
    folder = fake.write_run(tmp_path / "a-run", epochs=6)
    (folder / "checkpoint").mkdir()
    save_weights(nn.Linear(3, 2), folder / "checkpoint" / "model.safetensors")
    np.save(folder / "nll.npy", np.zeros(5))
    return folder


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _without_last_line(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


def _with_another_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _without_evaluation(content):
    return content[: content.index(b"evaluation:")]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("metrics.jsonl", _without_last_line, "ends at step 60, and the run had 72"),
        ("metrics.jsonl", lambda content: b"", "ends at step 0, and the run had 72"),
        ("config.yaml", _without_evaluation, "is cut short: it has no `evaluation`"),
        ("config.yaml", _without_last_line, " settings are lost, among `evaluation."),
        ("config.yaml", lambda content: content[:-1], "is cut short: its last line has no end; it is shown"),
        ("config.yaml", lambda content: b"a: 1\na: 2\n", "key 'a' is given twice"),
        ("nll.npy", _cut, "cannot be read as an array"),
        ("checkpoint/model.safetensors", _cut, "is not a readable checkpoint"),
        ("checkpoint/model.safetensors", _with_another_bit, "its checksum does not match"),
    ],
)
def test_a_page_is_made_and_says_what_is_damaged(run, name, change, said):
    path = run / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"{name}.*{said}"):
        page = write_run_report(run).read_text(encoding="utf-8").replace("&#39;", "'")
    assert page.count(said) == 1
    assert ("config.yaml, complete" in page) == (name != "config.yaml")


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "nll.npy", "checkpoint/model.safetensors"])
def test_a_file_that_is_missing_is_not_damaged(run, name):
    (run / name).unlink()
    assert read_run(run).damage == {}


@pytest.mark.parametrize("status", ["running", "interrupted", "diverged"])
def test_a_log_that_ends_early_is_that_of_a_run_that_did_not_finish(run, fake, status):
    fake.edit_json(run / "run.json", status=status, steps=1000)
    assert read_run(run).damage == {}
