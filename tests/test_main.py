"""`python -m latentflows`: the same command line, also in several processes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from latentflows import __version__
from latentflows.cli import main
from latentflows.reporting.base import read_run
from tests.training.test_parallel import needs_gloo

SETTINGS = [
    "latent_dim=3",
    "network.width=16",
    "training.epochs=2",
    "evaluation.num_importance_samples=5",
    "training.trackers=[]",
    "--quiet",
]


def start(*arguments, processes=1):
    """Run the module, under `torchrun` for several processes; return exit code and output."""
    command = ["-m", "latentflows", *arguments]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"},
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output


def test_the_module_is_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start("--version") == (0, f"latentflows {__version__}\n")
    code, output = start("train", "nowhere.yaml")
    assert code == 2
    assert output.startswith("Error: nowhere.yaml: no such file")


def figures_of(run):
    lines = [*run.epochs]
    return [line.train for line in lines] + [line.validation for line in lines]


@needs_gloo
def test_two_processes_leave_one_run_that_is_that_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SETTINGS, "training.accumulate=2", "--out", "one"]) == 0
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.yaml").write_text("seed: 7\n")  # another run, which has to go
    (tmp_path / "two" / "metrics.jsonl").write_text("not of this run\n")
    code, output = start("train", *SETTINGS, "--out", "two", "--overwrite", processes=2)
    assert code == 0, output
    assert output.count("Run: two") == 1
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    assert two.record is not None
    assert (two.record.status, two.record.steps, two.record.hardware["processes"]) == ("finished", 18, 2)
    assert len(two.pictures) == len(one.pictures) == 7
    for ours, theirs in zip(figures_of(one), figures_of(two), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    assert one.evaluation is not None
    assert two.evaluation is not None
    for name, figure in one.evaluation.figures.items():
        if figure is not None:
            assert two.evaluation.figures[name].mean == pytest.approx(figure.mean, rel=1e-3), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    before = (tmp_path / "two" / "evaluation.json").read_text()
    code, output = start("train", *SETTINGS, "--out", "two", "--resume", processes=2)  # nothing is left to do
    assert code == 0, output
    (tmp_path / "two" / "evaluation.json").unlink()
    code, output = start("train", *SETTINGS, "--out", "two", "--resume", processes=2)  # the evaluation alone
    assert code == 0, output
    again = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert again["figures"] == json.loads(before)["figures"]


@needs_gloo
def test_what_the_first_process_refuses_ends_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    code, output = start("train", *SETTINGS, "--out", "mine", processes=2)
    assert code != 0
    assert output.count("Error: mine is not empty and holds no run") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_other_commands_are_refused_under_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo"]) == 2
    assert "`torchrun` runs `latentflows train` alone; got `demo`" in capsys.readouterr().err
