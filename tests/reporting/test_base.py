"""Reading of run folders and comparison folders: what is tolerated, and what is named in an error."""

import json
import math
import re

import pytest

from latentflows.core.errors import DataError
from latentflows.reporting.base import read_run
from latentflows.studies.results.results import read_results


@pytest.fixture
def run(fake, tmp_path):
    return fake.write_run(tmp_path / "a-run", epochs=6)


def test_a_complete_run_is_read_whole(run):
    result = read_run(run)
    assert result.record is not None
    assert result.evaluation is not None
    assert (len(result.epochs), result.damage, len(result.pictures)) == (6, {}, 6)
    assert result.record.parameters.total == 290_384
    assert "kind: iaf" in (result.config or "")
    assert (result.pictures[0].width, result.pictures[0].height) == (55, 55)


@pytest.mark.parametrize("tail", [b'{"stage": "jo', b'{"stage": "joint"', b"\xe2\x82", b"\x00\x00\x00"])
def test_a_torn_last_line_is_left_out_and_told(run, tail):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    result = read_run(run)
    assert len(result.epochs) == 6
    assert list(result.damage) == ["metrics.jsonl"]
    assert "1 torn line at the end was left out" in result.damage["metrics.jsonl"]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=re.escape("metrics.jsonl, line 3,")):
        read_run(run)


def test_a_last_line_that_is_whole_but_lacks_a_key_is_an_error(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "joint"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 7, is not as expected: `epoch`"):
        read_run(run)


def test_an_epoch_repeated_after_a_resume_counts_once_as_logged_last(run, fake):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[-1]) | {"learning_rate": 0.5}
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(again)]) + "\n")
    epochs = read_run(run).epochs
    assert len(epochs) == 6
    assert epochs[-1].learning_rate == 0.5


def test_null_and_nan_read_as_not_a_number(run, fake):
    fake.edit_lines(run / "metrics.jsonl", lambda line: line | {"train": {"loss": None, "elbo": math.nan}})
    assert all(math.isnan(value) for value in read_run(run).epochs[0].train.values())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"format": 2}'),
        ("evaluation.json", "\x00"),
        ("config.yaml", "a: [1"),
        ("samples/index.json", "{}"),
        ("samples/index.json", '[{"file": "../data.png", "title": "", "caption": ""}]'),
        ("samples/samples.png", "not a picture"),
    ],
)
def test_an_unreadable_file_is_named(run, file, content):
    (run / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(file)):
        read_run(run)


def test_a_cut_picture_is_named(run):
    path = run / "samples" / "data.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"data\.png cannot be read as a PNG"):
        read_run(run)


def test_a_folder_in_place_of_a_file_is_named(run):
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").mkdir()
    with pytest.raises(DataError, match=r"evaluation\.json cannot be read"):
        read_run(run)


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "evaluation.json"])
def test_one_missing_file_leaves_the_rest(run, name):
    (run / name).unlink()
    assert read_run(run).pictures


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="must be a run folder"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="must be a study folder"):
        read_results(tmp_path)


@pytest.fixture
def study(fake, tmp_path):
    return fake.write_comparison(tmp_path / "study", seeds=(0, 1), gains={"a": 0.0, "b": 1.0})


def test_a_comparison_holds_the_last_line_of_every_run(study):
    lines = (study / "study.jsonl").read_text()
    first = json.loads(lines.splitlines()[0]) | {"status": "failed", "figures": None}
    (study / "study.jsonl").write_text(lines + json.dumps(first) + "\n")
    comparison = read_results(study)
    assert len(comparison.runs) == 4
    assert comparison.runs["a", 0].status == "failed"


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "runs/../../x"])
def test_a_run_outside_the_folder_is_refused(study, fake, path):
    fake.edit_lines(study / "study.jsonl", lambda line: line | {"run": path})
    with pytest.raises(DataError, match="path inside"):
        read_results(study)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "c"}, "`baseline` must be one of"),
        ({"seeds": []}, "seeds"),
        (
            {"arms": [{"name": "a", "label": "A"}, {"name": "b", "label": "A"}], "baseline": "a"},
            "must differ",
        ),
        ({"arms": [{"name": "a", "label": "A"}], "baseline": "a"}, "`arm` must be one of"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(study, fake, changes, message):
    fake.edit_json(study / "study.json", **changes)
    with pytest.raises(DataError, match=message):
        read_results(study)


def test_a_torn_last_line_of_a_comparison_is_left_out_and_counted(study):
    before = read_results(study)
    assert before.torn_lines == 0
    with (study / "study.jsonl").open("a") as file:
        file.write('{"arm": "a"')
    after = read_results(study)
    assert (after.runs, after.torn_lines) == (before.runs, 1)


@pytest.mark.parametrize("line", ['{"arm": "a"', '{"arm": "a"}', "[]"])
def test_any_other_bad_line_of_a_comparison_is_an_error_with_its_number(study, line):
    path = study / "study.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(DataError, match=re.escape("study.jsonl, line 2,")):
        read_results(study)
    if line != '{"arm": "a"':
        path.write_text("\n".join([*lines, line]) + "\n")
        with pytest.raises(DataError, match=re.escape("study.jsonl, line 5,")):
            read_results(study)
