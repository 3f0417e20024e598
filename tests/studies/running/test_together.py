"""Seeds of one configuration that train together: every folder is what `run` would have left, whatever happens."""

import json
import math
import os
import signal

import pytest

from latentflows.core.errors import ConfigurationError, NonFiniteError
from latentflows.studies.results.reading import read_record
from latentflows.studies.results.records import RunRecord
from latentflows.studies.running import together as room
from latentflows.studies.running.failures import OUT_OF_MEMORY
from latentflows.studies.running.run import FractionDone, run
from latentflows.studies.running.together import run_together
from latentflows.studies.settings.overrides import configuration_from
from latentflows.training import Callback, stacked
from latentflows.training.checkpoint import load_tensors
from latentflows.training.record import Record

FLOW = ["prior=real_nvp", "prior.width=4", "training.plan=two_stage", "training.prior_epochs=2"]


@pytest.fixture
def configurations(tiny):
    return [configuration_from({}, [*tiny, *FLOW, f"seed={seed}", f"name=s{seed}"]) for seed in range(3)]


@pytest.fixture
def eager(monkeypatch):
    """Train together however short the runs are."""
    monkeypatch.setattr(stacked, "_WORTH", 1)
    monkeypatch.setattr(stacked, "_GAIN", math.inf)


def folders(root):
    return [root / f"s{seed}" for seed in range(3)]


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_close(one, other):
    """Fail unless two run folders hold the same weights and figures up to rounding, and the same pictures."""
    for figure, value in one.figures.items():
        if value is not None:
            assert value["mean"] == pytest.approx(other.figures[figure]["mean"], rel=1e-3, abs=1e-3), figure
    weights = [load_tensors(result.folder / "checkpoint" / "model.safetensors")[0] for result in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert (weights[0][name] - weights[1][name]).double().abs().max() < 1e-4, name
    assert len(lines_of(one.folder)) == len(lines_of(other.folder))
    assert {path.name for path in (one.folder / "samples").iterdir()} == {
        path.name for path in (other.folder / "samples").iterdir()
    }


@pytest.mark.usefixtures("eager")
def test_every_folder_is_what_a_lone_run_leaves(configurations, tmp_path):
    announced, ended = [], []
    results = run_together(
        configurations,
        folders(tmp_path),
        command="the command",
        announce=announced.append,
        ended=lambda position, result: ended.append((position, result.status)),
    )
    assert ended == [(0, "finished"), (1, "finished"), (2, "finished")]
    assert announced[0] == "training"
    assert announced[1].startswith("Stage 'vae': 3 runs train together: a step of all takes ")
    for configuration, result in zip(configurations, results, strict=True):
        record = record_of(result.folder)
        assert (record["status"], record["seed"], record["command"]) == (
            "finished",
            configuration.seed,
            "the command",
        )
        assert [entry["together"] for entry in record["together"]] == [True, True]
        assert_close(result, run(configuration, tmp_path / "lone" / configuration.name))
    assert len({result.figures["nll"]["mean"] for result in results}) == 3


def test_runs_that_are_too_short_are_those_of_run_bit_by_bit(configurations, tmp_path):
    results = run_together(configurations, folders(tmp_path))
    for configuration, result in zip(configurations, results, strict=True):
        lone = run(configuration, tmp_path / "lone" / configuration.name)
        assert result.figures == lone.figures
        assert lines_of(result.folder) == lines_of(lone.folder)
        assert "too few" in record_of(result.folder)["together"][0]["text"]


def test_what_is_complete_is_left_alone(configurations, tmp_path, monkeypatch):
    first = run(configurations[1], tmp_path / "s1")
    written = (tmp_path / "s1" / "run.json").stat().st_mtime_ns
    results = run_together(configurations, folders(tmp_path))
    assert results[1] == first
    assert (tmp_path / "s1" / "run.json").stat().st_mtime_ns == written
    monkeypatch.setattr(room, "build_data", pytest.fail)
    assert run_together(configurations, folders(tmp_path)) == results


class Killed(BaseException):
    """The process is gone: nothing more is written."""


@pytest.mark.usefixtures("eager")
def test_a_killed_group_goes_on(configurations, tmp_path, monkeypatch):
    saves, whole = 0, Record.save

    def save_or_die(self, *arguments):
        nonlocal saves
        saves += 1
        if saves == 5:  # in the middle of the second stage's checkpoints
            raise Killed
        whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", save_or_die)
        with pytest.raises(Killed):
            run_together(configurations, folders(tmp_path))
    assert [record_of(folder)["status"] for folder in folders(tmp_path)] == ["running"] * 3
    results = run_together(configurations[:2], folders(tmp_path)[:2])
    results.append(run(configurations[2], tmp_path / "s2", resume=True))
    for configuration, result in zip(configurations, results, strict=True):
        assert_close(result, run(configuration, tmp_path / "lone" / configuration.name))


def interrupted_after_an_epoch(configurations, tmp_path):
    class Stop(Callback):
        def on_epoch(self, line):
            os.kill(os.getpid(), signal.SIGINT)

    return run_together(configurations, folders(tmp_path), callbacks=[Stop()])


@pytest.mark.usefixtures("eager")
def test_how_every_session_trained_stays_told(configurations, tmp_path, monkeypatch):
    interrupted_after_an_epoch(configurations, tmp_path)
    monkeypatch.setattr(stacked, "_WORTH", math.inf)
    run_together(configurations[:2], folders(tmp_path)[:2])
    run(configurations[2], tmp_path / "s2", resume=True)
    told = [[(e.get("stage"), e["together"]) for e in record_of(f)["together"]] for f in folders(tmp_path)]
    assert told[:2] == [[("vae", True), ("vae", False), ("prior", False)]] * 2
    assert told[2] == [("vae", True), (None, False)]
    assert record_of(tmp_path / "s2")["together"][1]["text"] == "It went on by itself."
    record = read_record(tmp_path / "s0" / "run.json", RunRecord)
    assert record.trained_with == (("vae", 3), ("vae", 1), ("prior", 1))
    (tmp_path / "s2" / "samples" / "index.json").unlink()
    run(configurations[2], tmp_path / "s2", resume=True)  # it has been trained: nothing more is told
    assert len(record_of(tmp_path / "s2")["together"]) == 2


@pytest.mark.usefixtures("eager")
def test_an_interruption_leaves_all_resumable(configurations, tmp_path):
    results = interrupted_after_an_epoch(configurations, tmp_path)
    assert [result.status for result in results] == ["interrupted"] * 3
    assert [record_of(folder)["status"] for folder in folders(tmp_path)] == ["interrupted"] * 3
    assert [result.status for result in run_together(configurations, folders(tmp_path))] == ["finished"] * 3


@pytest.mark.usefixtures("eager")
def test_a_run_that_fails_is_recorded_and_the_others_go_on(configurations, tmp_path, monkeypatch):
    whole = Record.append

    def append(self, line):
        if "s1" in str(self.metrics) and line["epoch"] == 2:
            raise OSError(28, "No space left on device", str(self.metrics))
        whole(self, line)

    monkeypatch.setattr(Record, "append", append)
    results = run_together(configurations, folders(tmp_path))
    assert [result.status for result in results] == ["finished", "failed", "finished"]
    assert results[1].reason.startswith("The disk is full")
    assert record_of(tmp_path / "s1")["status"] == "failed"
    assert results[1].figures is None


@pytest.mark.usefixtures("eager")
def test_a_run_whose_evaluation_finds_nothing_finite_has_diverged(configurations, tmp_path, monkeypatch):
    measure = room.measure_and_draw

    def measure_some(model, data, configuration, out, announce):
        if out.name == "s1":
            raise NonFiniteError("The NLL is infinite.")
        measure(model, data, configuration, out, announce)

    with monkeypatch.context() as patch:
        patch.setattr(room, "measure_and_draw", measure_some)
        results = run_together(configurations, folders(tmp_path))
    assert [result.status for result in results] == ["finished", "diverged", "finished"]
    assert (results[1].reason, record_of(tmp_path / "s1")["status"]) == ("The NLL is infinite.", "diverged")
    assert run_together(configurations, folders(tmp_path)) == results
    settings = configurations[1].evaluation.model_copy(update={"num_importance_samples": 20})
    changed = configurations[1].model_copy(update={"evaluation": settings})
    assert [result.status for result in run_together([changed], [tmp_path / "s1"])] == ["finished"]


def assert_alone_to_the_bit(results, configurations, root):
    for configuration, result in zip(configurations, results, strict=True):
        lone = run(configuration, root / configuration.name)
        assert (result.status, result.figures) == (lone.status, lone.figures)
        assert lines_of(result.folder) == lines_of(lone.folder)


def test_an_error_of_the_group_is_no_runs(configurations, tmp_path, monkeypatch):
    """The runs go on one after another, and only the one that fails by itself is failed."""

    def of_the_group(*_, **__):
        raise RuntimeError("the stack fell over")

    monkeypatch.setattr(room, "fit_together", of_the_group)
    announced, ended, fractions = [], [], []
    whole = Record.append

    def append(self, line):
        if "s1" in str(self.metrics) and line["epoch"] == 2:
            raise OSError(28, "No space left on device", str(self.metrics))
        whole(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "append", append)
        results = run_together(
            configurations,
            folders(tmp_path),
            callbacks=[FractionDone(fractions.append)],
            announce=announced.append,
            ended=lambda position, result: ended.append((position, result.status)),
        )
    assert ended == [(0, "finished"), (1, "failed"), (2, "finished")]
    assert "s0, s1, s2 go on one after another: RuntimeError: the stack fell over" in announced
    assert results[1].reason.startswith("The disk is full")
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for result in results:
        (note,) = record_of(result.folder)["together"]
        assert not note["together"]
        assert note["text"] == "It went on by itself: RuntimeError: the stack fell over"
    assert_alone_to_the_bit(results[::2], configurations[::2], tmp_path / "lone")


def test_what_memory_does_not_suffice_for_beside_others_goes_by_itself(configurations, tmp_path, monkeypatch):
    """Whether it ran out in training or in evaluation; a run that is alone in the job has no other chance."""
    fit, measure = room.fit_together, room.measure_and_draw

    def fit_some(jobs, **settings):
        histories = fit(jobs[:-1], **settings)
        return [*histories, MemoryError()]

    def measure_some(model, data, configuration, out, announce):
        if configuration.seed == 0:
            raise MemoryError
        measure(model, data, configuration, out, announce)

    monkeypatch.setattr(room, "fit_together", fit_some)
    monkeypatch.setattr(room, "measure_and_draw", measure_some)
    announced, ended = [], []
    results = run_together(
        configurations,
        folders(tmp_path),
        announce=announced.append,
        ended=lambda position, _: ended.append(position),
    )
    assert ended == [1, 0, 2]
    assert any(text.startswith("s0, s2 go on one after another: Out of memory.") for text in announced)
    assert_alone_to_the_bit(results, configurations, tmp_path / "lone")
    *trained, note = record_of(results[0].folder)["together"]  # its training went well, and stays told
    assert [part["stage"] for part in trained] == ["vae", "prior"]
    assert note["text"] == f"It went on by itself: {OUT_OF_MEMORY}"
    (alone,) = run_together(configurations[:1], [tmp_path / "one"])
    assert (alone.status, alone.reason) == ("failed", OUT_OF_MEMORY)


def test_who_asks_to_stop_stops_those_who_go_by_themselves(configurations, tmp_path, monkeypatch):
    def of_the_group(*_, **__):
        raise RuntimeError("the stack fell over")

    class Stop(Callback):
        def on_start(self, model, stages):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(room, "fit_together", of_the_group)
    results = run_together(configurations, folders(tmp_path), callbacks=[Stop()])
    assert [result.status for result in results] == ["interrupted"] * 3
    assert results[1].reason == "interrupted before it went on by itself"
    assert not (tmp_path / "s1" / "evaluation.json").exists()


@pytest.mark.usefixtures("eager")
def test_watchers_see_one_run(configurations, tmp_path):
    fractions, calls = [], []

    class Watch(Callback):
        def on_start(self, model, stages):
            calls.append("start")

        def on_event(self, text):
            calls.append(text.split(":")[0])

        def on_end(self, history):
            calls.append("end")

    run_together(configurations, folders(tmp_path), callbacks=[FractionDone(fractions.append), Watch()])
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert calls[0] == "start"
    assert calls[-1] == "end"
    assert {*calls[1:-1]} <= {"s0", "s1", "s2"}


def test_groups_fit_into_memory(configurations, tmp_path, monkeypatch):
    groups = []
    fit = room.fit_together
    monkeypatch.setattr(
        room, "fit_together", lambda jobs, **rest: groups.append(len(jobs)) or fit(jobs, **rest)
    )
    weights = 4 * run(configurations[0], tmp_path / "one").parameters["total"]
    monkeypatch.setattr(room, "_free_memory", lambda _: 2.5 * 4 * 11 * weights)
    results = run_together(configurations, folders(tmp_path))
    assert groups == [2, 1]
    assert [result.status for result in results] == ["finished"] * 3


def test_other_differences_are_refused_before_anything_is_written(configurations, tiny, tmp_path):
    wider = configuration_from({}, [*tiny, *FLOW, "prior.width=8", "seed=5"])
    with pytest.raises(ConfigurationError, match=r"prior\.width differ"):
        run_together([configurations[0], wider], folders(tmp_path)[:2])
    with pytest.raises(ConfigurationError, match="different ones, one for each"):
        run_together(configurations, [tmp_path / "s0"] * 3)
    assert not any(tmp_path.iterdir())
