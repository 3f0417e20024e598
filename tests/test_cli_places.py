"""The command line in hostile places: cut files, folders that cannot be written to, full disks, other formats."""

import errno
import json
import os
import re
import shutil
import threading
import warnings
from pathlib import Path

import pytest

from latentflows.cli import main
from latentflows.cli_common import message_of
from latentflows.core import files
from latentflows.core.errors import DataError
from latentflows.studies.running import run as run_room
from latentflows.studies.settings.overrides import configuration_from
from tests.studies.conftest import tiny  # noqa: F401 - a fixture

NOTHING_MORE = ["evaluation.information=0", "evaluation.holes=0", "training.trackers=[]"]


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "made"
    assert run_room.run(configuration_from({}, [*tiny, *NOTHING_MORE]), folder).status == "finished"
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A run of its own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTFLOWS_DEBUG", raising=False)
    shutil.copytree(made, tmp_path / "run")
    return Path("run")


@pytest.fixture
def full(monkeypatch):
    """Let every file be written but those of a name, as if the disk were full."""

    real = os.fsync

    def fill(name: str) -> None:
        def fsync(file: int) -> None:
            if name in os.readlink(f"/proc/self/fd/{file}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(file)

        monkeypatch.setattr(files.os, "fsync", fsync)

    return fill


def commands(folder: Path) -> dict[str, list[str]]:
    run = str(folder)
    return {
        "report": ["report", run],
        "sample": ["sample", run, "--num", "2"],
        "evaluate": ["evaluate", run],
        "train": ["train", f"{run}/config.yaml", "--out", run, "--resume", "--quiet"],
    }


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def tear(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0][: len(lines[0]) // 2] + b"\n", *lines[1:]]))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", tear),
        ("evaluation.json", cut),
        ("run.json", cut),
        ("samples/index.json", cut),
        ("samples/data.png", cut),
    ],
)
def test_a_report_that_cannot_be_made_names_the_file(folder, capsys, name, damage):
    before = (folder / "report.html").read_bytes() if (folder / "report.html").exists() else None
    damage(folder / name)
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {folder / name}")
    assert "Restore or remove" in said
    assert before == ((folder / "report.html").read_bytes() if before is not None else None)


@pytest.mark.parametrize("name", ["config.yaml", "checkpoint/model.safetensors", "nll.npy"])
def test_a_report_that_can_be_made_says_what_is_damaged(folder, capsys, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["report", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{folder / 'report.html'}\n"
    assert captured.err.startswith(f"Warning: {path}")
    assert str(path) in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["sample", "evaluate", "train"])
def test_a_configuration_that_was_cut_is_not_filled_up_with_defaults(folder, capsys, command):
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text[: text.index("training:")])
    assert main(commands(folder)[command]) == 2
    assert "config.yaml is cut short: it has no `evaluation`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "evaluate", "train", "report"])
@pytest.mark.parametrize("key", ["activation", "num_importance_samples", "seed"])
def test_a_configuration_that_lost_a_line_is_not_filled_up_with_defaults(folder, capsys, command, key):
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    (folder / "config.yaml").write_text("".join(lines[:place] + lines[place + 1 :]))
    if command == "report":
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["report", str(folder)]) == 0
    else:
        assert main(commands(folder)[command]) == 2
    assert re.search(
        rf"config\.yaml is damaged: 1 of its \d+ settings are lost, among .*`([a-z_.]*\.)?{key}`",
        capsys.readouterr().err,
    )


def test_a_configuration_may_lack_what_there_was_not_when_it_was_written(folder):
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    (folder / "config.yaml").write_text("".join(line for line in lines if "activation:" not in line))
    record = json.loads((folder / "run.json").read_text())
    record["settings"] -= sum("activation:" in line for line in lines)
    (folder / "run.json").write_text(json.dumps(record))
    assert main(["sample", str(folder)]) == 0


@pytest.mark.parametrize("command", ["report", "sample", "evaluate", "train"])
@pytest.mark.parametrize("name", ["run.json", "evaluation.json"])
def test_a_file_of_another_format_is_named_with_what_to_do(folder, capsys, command, name):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    code = main(commands(folder)[command])
    said = capsys.readouterr().err
    if (command, name) == ("evaluate", "evaluation.json"):  # which is measured and written anew
        assert code == 0
        return
    assert code == 2
    assert f"{path} has format 2" in said
    assert "Use the latentflows version that wrote it." in said


def test_list_names_what_it_cannot_read_and_goes_on(folder, capsys):
    shutil.copytree(folder, "runs/whole")
    for name in ("run.json", "evaluation.json"):
        shutil.copytree(folder, f"runs/cut-{name}")
        cut(Path(f"runs/cut-{name}") / name)
    assert main(["list"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert "unreadable: runs/cut-evaluation.json/evaluation.json must hold a JSON object" in first
    assert "unreadable: runs/cut-run.json/run.json must hold a JSON object" in second
    assert "finished" in third


def test_list_of_a_folder_that_cannot_be_looked_into(folder, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["list", str(folder)]) == 2
    assert f"`{folder}` cannot be looked into" in capsys.readouterr().err


def test_what_is_not_to_be_kept_is_not_measured(folder, capsys, monkeypatch):
    measured = (folder / "evaluation.json").read_bytes()
    monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
    assert main(["evaluate", str(folder), "--seed", "4"]) == 2
    assert capsys.readouterr().err == (
        f"Error: {folder}: Permission denied. Get the right to it, or choose another path.\n"
    )
    assert main(["evaluate", str(folder)]) == 0  # nothing is to be measured
    assert (folder / "evaluation.json").read_bytes() == measured


@pytest.mark.parametrize(
    ("command", "done"),
    [
        ("sample", "The picture is in run/samples/drawn.png"),
        ("evaluate", "The figures are in run/evaluation.json"),
        ("train", "The run in run is finished"),
    ],
)
def test_what_was_done_stands_where_the_report_does_not_fit_the_disk(folder, capsys, full, command, done):
    full("report.html")
    assert main(commands(folder)[command]) == 2
    said = capsys.readouterr().err
    assert f"Error: {done}; the report could not be written: The disk is full: run/report.html" in said
    assert not list(folder.rglob("*.partial"))


def test_an_array_that_does_not_fit_the_disk_leaves_the_old_one(folder, capsys, full):
    Path("x.npy").write_bytes(b"old")
    full("x.npy")
    assert main(["sample", str(folder), "--num", "2", "--out", "x.npy"]) == 2
    assert "Error: The disk is full: x.npy" in capsys.readouterr().err
    assert Path("x.npy").read_bytes() == b"old"


def test_a_run_goes_on_after_a_full_disk(tmp_path, capsys, monkeypatch, full, tiny):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    command = ["train", *tiny, *NOTHING_MORE, "--out", "run", "--quiet", "--resume"]
    full("model.safetensors")
    assert main(command) == 2
    assert "Error: The disk is full: run/checkpoint/model.safetensors" in capsys.readouterr().err
    assert json.loads(Path("run/run.json").read_text())["status"] == "failed"
    full("nothing")
    assert main(command) == 0


@pytest.mark.parametrize("name", ["a b", "-dash", "\N{SNOWMAN}", "'quoted'"])
def test_any_name_of_a_folder_will_do(folder, capsys, name):
    folder.rename(name)
    for command in ("report", "sample", "evaluate"):
        assert main([command, "--", name]) == 0, capsys.readouterr().err
    assert main(["list", "--", name]) == 0
    assert f"{name}  finished" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["report", "sample", "evaluate", "train"])
def test_a_name_that_is_too_long_is_named(folder, capsys, command):
    assert main(commands(Path("n" * 300))[command]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {'n' * 300}")
    assert "File name too long" in said


def test_a_lock_that_cannot_be_made_is_told_by_the_folder(folder, capsys):
    name = "n" * 253  # itself short enough
    assert main(["train", "training.epochs=1", "--out", name]) == 2
    assert capsys.readouterr().err == f"Error: {name}: File name too long. Choose another path.\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space"), "[Errno 28] No space"),
        (MemoryError(), "MemoryError"),
        (SystemExit(0), None),
    ],
)
def test_why_a_thread_ended_is_one_line(folder, capsys, monkeypatch, error, said):
    def fail() -> None:
        raise error

    def report(_: Path) -> Path:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return folder

    monkeypatch.setattr("latentflows.cli.write_report", report)
    before = threading.excepthook
    assert main(["report", str(folder)]) == 0
    expected = "" if said is None else f"Warning: a thread beside the command ended: {said}\n"
    assert capsys.readouterr().err == expected
    assert threading.excepthook is before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("x"), "x"),
        (
            OSError(errno.ENOSPC, "No space"),
            "the disk is full. Free space and repeat the command, .*--resume",
        ),
        (
            OSError(errno.EROFS, "Read-only", "x"),
            "x: Read-only. Get the right to it, or choose another path.",
        ),
        (OSError(errno.ENOTDIR, "No folder", b"x"), "x: No folder. Choose another path."),
        (OSError("odd"), "odd. Choose another path."),
    ],
)
def test_the_message_of_an_error_says_what_to_do(error, message):
    assert re.fullmatch(message + ".*", message_of(error))
