"""One run: its folder, how it goes on, and how it is recorded when it does not finish."""

import errno
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from latentflows.core.errors import CheckpointError, ConfigurationError, LatentFlowsError, NonFiniteError
from latentflows.reporting.base import read_run
from latentflows.studies.building.build import build_data, load_run
from latentflows.studies.measuring import bounds as bounds_room
from latentflows.studies.measuring.measure import evaluate, replaced, write_samples
from latentflows.studies.running import folder as folder_room
from latentflows.studies.running import run as run_room
from latentflows.studies.running.run import FractionDone, run
from latentflows.studies.settings.overrides import configuration_from, read_configuration
from latentflows.training import Callback, History


@pytest.fixture
def configuration(tiny):
    return configuration_from({}, tiny)


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_leaves_a_complete_folder(configuration, tmp_path):
    announced = []
    result = run(configuration, tmp_path / "a" / "b", command="the command", announce=announced.append)
    folder = tmp_path / "a" / "b"
    assert (result.status, result.reason, result.folder) == ("finished", None, folder)
    assert announced == ["training", "evaluation", "pictures"]
    read = read_run(folder)
    assert read.record is not None
    assert (read.record.status, read.record.command, read.record.seed) == ("finished", "the command", 0)
    assert read.record.parameters.total == result.parameters["total"] > 0
    assert len(read.epochs) == 3
    assert read.evaluation is not None
    assert read.evaluation.protocol.num_images == 6
    assert result.figures is not None
    assert read.evaluation.figures["nll"].mean == result.figures["nll"]["mean"]
    nll = np.load(folder / "nll.npy")
    assert nll.shape == (6,)
    assert nll.mean() == pytest.approx(result.figures["nll"]["mean"], rel=1e-12)
    assert len(read.pictures) == 7  # two latents: latents.png too
    assert read_configuration(folder / "config.yaml") == configuration
    assert load_run(str(folder))[1].event_shape == (1, 4, 4)


def test_two_stages_train_the_prior_last(tiny, tmp_path):
    overrides = ["prior=real_nvp", "prior.width=4", "training.plan=two_stage", "training.prior_epochs=2"]
    run(configuration_from({}, [*tiny, *overrides]), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["vae"] * 3 + ["prior"] * 2
    assert "prior_nll" in lines[-1]["train"]


def test_resuming_a_finished_run_does_nothing(configuration, tmp_path, monkeypatch):
    first = run(configuration, tmp_path)
    monkeypatch.setattr(run_room, "build_data", pytest.fail)
    assert run(configuration, tmp_path, resume=True) == first


def test_resuming_repeats_only_what_is_missing(configuration, tmp_path):
    first = run(configuration, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "evaluation.json").unlink()
    announced = []
    second = run(configuration, tmp_path, resume=True, announce=announced.append)
    assert announced == ["training", "evaluation"]
    assert second.figures == first.figures
    assert (tmp_path / "metrics.jsonl").read_text() == before


class Interrupt(Callback):
    """Sends this process an interrupt after the second epoch."""

    def on_epoch(self, line):
        if line["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_goes_on_to_the_same_figures(configuration, tmp_path):
    stopped = run(configuration, tmp_path / "a", callbacks=[Interrupt()])
    assert (stopped.status, stopped.figures) == ("interrupted", None)
    assert record_of(tmp_path / "a")["status"] == "interrupted"
    resumed = run(configuration, tmp_path / "a", resume=True)
    assert resumed.status == "finished"
    assert resumed.figures == run(configuration, tmp_path / "b").figures


def _on_own_data(tiny, root, *overrides):
    """The tiny configuration on a copy of its data, which `_replace_data` may replace."""
    (name,) = (item for item in tiny if item.startswith("data.root="))
    np.save(root, np.load(name.partition("=")[2]))
    return configuration_from({}, [*tiny, f"data.root={root}", *overrides])


def _replace_data(root):
    np.save(root, 255 - np.load(root))


def test_a_run_goes_on_with_no_other_data_of_the_same_number(tiny, tmp_path):
    root = tmp_path / "images.npy"
    configuration = _on_own_data(tiny, root)
    run(configuration, tmp_path / "a", callbacks=[Interrupt()])
    _replace_data(root)
    with pytest.raises(CheckpointError, match="written with other training_data"):
        run(configuration, tmp_path / "a", resume=True)
    assert record_of(tmp_path / "a")["status"] == "interrupted"
    _replace_data(root)
    assert run(configuration, tmp_path / "a", resume=True).status == "finished"


def test_what_was_measured_on_other_data_is_measured_anew(tiny, tmp_path):
    root = tmp_path / "images.npy"
    configuration = _on_own_data(tiny, root, "evaluation.neighbors=3")
    run(configuration, tmp_path / "a")
    model = load_run(tmp_path / "a")[1]
    path = tmp_path / "a" / "evaluation.json"
    first = json.loads(path.read_text())

    def measured(data):
        parts = []
        content = evaluate(model, data, configuration.evaluation, tmp_path / "a", announce=parts.append)
        return parts, content

    assert measured(build_data(configuration)) == ([], first)
    _replace_data(root)
    other = build_data(configuration)
    parts, content = measured(other)
    assert parts == ["evaluation", "evaluation: neighbors"]
    assert content["figures"]["nll"] != first["figures"]["nll"]
    place = "other data in the same place"
    bounds = (
        f"figures on the test split, {first['protocol']['num_images']} data points, K = 8, seed 0, {place}"
    )
    told = replaced(first, content)
    assert told[0] == bounds
    assert told[1].startswith("figures of neighbors (")
    assert told[1].endswith(f", {place})")
    hashes = {each["protocol"]["data_hash"] for each in (content, content["groups"]["neighbors"])}
    assert hashes == {content["protocol"]["data_hash"]} != {first["protocol"]["data_hash"]}
    for each in (content, content["groups"]["neighbors"]):  # of an earlier version
        del each["protocol"]["data_hash"]
    path.write_text(json.dumps(content))
    assert measured(other) == ([], content)
    assert replaced(content, content) == []
    (tmp_path / "a" / "nll.npy").unlink()
    parts, again = measured(other)
    assert parts == ["evaluation"]
    assert replaced(content, again) == []


def test_what_was_measured_of_unfinished_weights_is_not_taken_for_the_run(tiny, tmp_path):
    stages = ["prior=real_nvp", "prior.width=4", "training.plan=two_stage", "training.prior_epochs=3"]
    configuration = configuration_from({}, [*tiny, *stages])
    expected = run(configuration, tmp_path / "whole")

    class InPriorStage(Callback):
        def on_epoch(self, line):
            if line["stage"] == "prior":
                os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "cut"
    assert run(configuration, folder, callbacks=[InPriorStage()]).status == "interrupted"
    assert (folder / "checkpoint" / "model.safetensors").is_file()  # of the first stage
    with pytest.raises(
        CheckpointError, match="is interrupted, so its weights are not those it will end with"
    ):
        load_run(folder)
    for name in ("evaluation.json", "samples/index.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"figures": {"nll": {"mean": -1.0}}}')
    resumed = run(configuration, folder, resume=True)
    assert (resumed.figures, resumed.protocol) == (expected.figures, expected.protocol)
    assert len(read_run(folder).pictures) == 7


def test_figures_come_with_their_protocol(configuration, tmp_path):
    result = run(configuration, tmp_path)
    assert result.protocol == json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
    assert result.protocol["num_importance_samples"] == 8


def test_pictures_are_of_the_evaluated_split(tiny, tmp_path, monkeypatch):
    shown = []

    def draw(model, source, folder, **settings):
        shown.append((source.batch(torch.arange(6)).x, settings["what"]))

    monkeypatch.setattr(run_room, "write_pictures", draw)
    configuration = configuration_from({}, [*tiny, "evaluation.split=validation", "training.epochs=1"])
    run(configuration, tmp_path)
    data = build_data(configuration)  # of black and white pixels, so binarization draws the same every time
    [(x, what)] = shown
    assert what == "validation data points"
    assert torch.equal(x, data.validation.batch(torch.arange(6)).x)
    assert not torch.equal(x, data.test.batch(torch.arange(6)).x)


def test_an_interrupt_outside_of_training_is_recorded_too(configuration, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bounds_room, "evaluate_bounds", interrupt)
    assert run(configuration, tmp_path).status == "interrupted"
    monkeypatch.undo()
    assert run(configuration, tmp_path, resume=True).status == "finished"


def test_a_run_stopped_while_it_is_measured_can_be_used_and_measured_otherwise(tiny, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bounds_room, "evaluate_bounds", interrupt)
    dear = configuration_from({}, [*tiny, "evaluation.num_importance_samples=9999"])
    assert run(dear, tmp_path).reason == "interrupted by a signal"
    monkeypatch.undo()
    assert load_run(tmp_path)[0] == dear  # training has ended: the weights are the run's
    cheap = configuration_from({}, [*tiny, "evaluation.num_importance_samples=3"])
    result = run(cheap, tmp_path, resume=True)
    assert (result.status, result.protocol["num_importance_samples"]) == ("finished", 3)
    with pytest.raises(ConfigurationError, match=r"differs in evaluation\.num_importance_samples"):
        run(dear, tmp_path, resume=True)


def test_a_run_stopped_while_its_pictures_are_drawn_can_be_measured_otherwise(tiny, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_room, "write_pictures", interrupt)
    assert run(configuration_from({}, tiny), tmp_path).status == "interrupted"
    monkeypatch.undo()
    other = configuration_from({}, [*tiny, "evaluation.num_importance_samples=3"])
    assert run(other, tmp_path, resume=True).protocol["num_importance_samples"] == 3


def test_weights_are_the_runs_once_the_priors_normalizer_is_known(tiny, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    configuration = configuration_from({}, [*tiny, "prior=resampled", "prior.width=4"])
    expected = run(configuration, tmp_path / "whole").figures
    with monkeypatch.context() as patch:
        patch.setattr(run_room, "finish_prior", interrupt)
        assert run(configuration, tmp_path / "cut").status == "interrupted"
    with pytest.raises(CheckpointError, match="is interrupted, so its weights are not those"):
        load_run(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(bounds_room, "evaluate_bounds", interrupt)
        assert run(configuration, tmp_path / "cut", resume=True).status == "interrupted"
    load_run(tmp_path / "cut")
    assert run(configuration, tmp_path / "cut", resume=True).figures == expected


def test_a_finished_run_without_its_large_files_stays_as_it_is(configuration, tmp_path):
    expected = run(configuration, tmp_path).figures
    (tmp_path / "nll.npy").unlink()
    shutil.rmtree(tmp_path / "checkpoint")
    assert run(configuration, tmp_path, resume=True).figures == expected
    assert not (tmp_path / "nll.npy").exists()


def test_a_run_resumed_for_longer_is_not_trained_until_it_ends(configuration, tmp_path):
    run(configuration, tmp_path, callbacks=[Interrupt()])
    assert record_of(tmp_path)["trained"] is False
    run(configuration, tmp_path, resume=True)
    assert record_of(tmp_path)["trained"] is True


def test_a_lost_file_of_the_nll_is_made_again(configuration, tmp_path):
    expected = run(configuration, tmp_path).figures
    before = (tmp_path / "nll.npy").read_bytes()
    (tmp_path / "nll.npy").unlink()
    assert run(configuration, tmp_path, resume=True).figures == expected
    assert (tmp_path / "nll.npy").read_bytes() == before


def test_a_diverged_run_is_recorded_and_not_repeated(configuration, tmp_path, monkeypatch):
    def diverge(*_, **__):
        return History(status="diverged", reason="the loss became NaN", steps=7, rollbacks=2)

    monkeypatch.setattr(run_room, "fit", diverge)
    result = run(configuration, tmp_path)
    assert (result.status, result.reason, result.figures) == ("diverged", "the loss became NaN", None)
    assert (record_of(tmp_path)["steps"], record_of(tmp_path)["rollbacks"]) == (7, 2)
    monkeypatch.setattr(run_room, "fit", pytest.fail)
    assert run(configuration, tmp_path, resume=True) == result


def test_a_run_whose_evaluation_finds_nothing_finite_has_diverged(configuration, tmp_path, monkeypatch):
    """To fail is to be tried again, and to be in no mean without a word; its weights can be measured in other ways."""

    def refuse(*_, **__):
        raise NonFiniteError("The NLL is infinite.")

    with monkeypatch.context() as patch:
        patch.setattr(bounds_room, "evaluate_bounds", refuse)
        result = run(configuration, tmp_path)
    assert (result.status, result.reason, result.figures) == ("diverged", "The NLL is infinite.", None)
    assert (record_of(tmp_path)["status"], record_of(tmp_path)["trained"]) == ("diverged", True)
    assert run(configuration, tmp_path, resume=True) == result
    _, model = load_run(tmp_path)
    settings = configuration.evaluation.model_copy(update={"num_importance_samples": 20})
    found = evaluate(model, build_data(configuration), settings, tmp_path)
    assert found["protocol"]["num_importance_samples"] == 20
    assert found["figures"]["nll"]["mean"] > 0


def test_a_run_that_diverged_in_its_evaluation_finishes_when_measured_in_another_way(
    tiny, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise NonFiniteError("The NLL is infinite.")

    few, more = (configuration_from({}, [*tiny, f"evaluation.num_importance_samples={k}"]) for k in (8, 20))
    with monkeypatch.context() as patch:
        patch.setattr(bounds_room, "evaluate_bounds", refuse)
        assert run(few, tmp_path).status == "diverged"
        with pytest.raises(ConfigurationError, match="is diverged; its length"):
            run(
                few.model_copy(update={"training": few.training.model_copy(update={"epochs": 9})}),
                tmp_path,
                resume=True,
            )
        again = run(
            few.model_copy(update={"evaluation": more.evaluation.model_copy(update={"seed": 1})}),
            tmp_path,
            resume=True,
        )
        assert again.status == "diverged"  # by these settings too
    lines = (tmp_path / "metrics.jsonl").read_text()
    _, model = load_run(tmp_path)
    found = evaluate(model, build_data(more), more.evaluation, tmp_path)
    announced = []
    result = run(more, tmp_path, resume=True, announce=announced.append)
    assert (result.status, result.reason, result.figures) == ("finished", None, found["figures"])
    assert announced == ["training", "pictures"]  # what is measured is not measured again
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert read_configuration(tmp_path / "config.yaml") == more
    with pytest.raises(ConfigurationError, match="holds a run of another configuration"):
        run(few, tmp_path, resume=True)


def test_other_settings_of_evaluation_mend_no_training_that_diverged(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run_room, "fit", lambda *_, **__: History(status="diverged", reason="NaN"))
    run(configuration_from({}, tiny), tmp_path)
    with pytest.raises(ConfigurationError, match=r"differs in evaluation\.num_importance_samples"):
        run(configuration_from({}, [*tiny, "evaluation.num_importance_samples=20"]), tmp_path, resume=True)


def test_a_result_says_how_long_its_evaluation_took(configuration, tmp_path):
    assert run(configuration, tmp_path).evaluation_seconds is not None
    path = tmp_path / "evaluation.json"
    content = json.loads(path.read_text()) | {"seconds": 40.0}
    content["groups"] = {"holes": {"seconds": 2.5}, "gaps": {"reason": "none"}}
    path.write_text(json.dumps(content))
    assert run(configuration, tmp_path, resume=True).evaluation_seconds == 42.5


def test_what_is_not_finite_before_training_has_ended_is_an_error(configuration, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise NonFiniteError("The path is not finite.")

    monkeypatch.setattr(run_room, "fit", refuse)
    with pytest.raises(NonFiniteError):
        run(configuration, tmp_path)
    assert record_of(tmp_path)["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "raised", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left"), LatentFlowsError, "The disk is full"),
        (MemoryError(), LatentFlowsError, "Out of memory. Lower training.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), LatentFlowsError, "Out of memory"),
        (LatentFlowsError("No features."), LatentFlowsError, "No features"),
        (ZeroDivisionError("by zero"), ZeroDivisionError, "ZeroDivisionError: by zero"),
    ],
)
def test_a_failed_run_is_recorded_with_its_reason(
    configuration, tmp_path, monkeypatch, error, raised, reason
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(bounds_room, "evaluate_bounds", fail)
    with pytest.raises(raised):
        run(configuration, tmp_path)
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    assert record["reason"].startswith(reason)
    assert record["steps"] > 0
    monkeypatch.undo()
    assert run(configuration, tmp_path, resume=True).status == "finished"


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (
            ["data.preparation=unit", "likelihood=categorical", "likelihood.levels=4"], 1,
            "A categorical likelihood needs gray levels v / 3",
        ),
        (["training.compile=true", "objective=regularized_autoencoder"], 1, "which `torch.compile` does not"),
        ([], 3, "`batch_size` 16 must be a multiple of 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_leaves_no_folder(tiny, tmp_path, monkeypatch, overrides, processes, message):
    monkeypatch.setattr(run_room, "num_processes", lambda: processes)
    monkeypatch.setattr(run_room, "fit", lambda *_, **__: pytest.fail("it went on to train"))
    np.save(tmp_path / "gray.npy", np.arange(60 * 16, dtype=np.uint8).reshape(60, 4, 4) % 251)
    overrides = [f"data.root={tmp_path / 'gray.npy'}", *overrides]
    with pytest.raises(LatentFlowsError, match=message):
        run(configuration_from({}, [*tiny, *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_leave_no_folder(tiny, tmp_path):
    configuration = configuration_from({}, [*tiny, f"data.root={tmp_path / 'nowhere.npy'}"])
    with pytest.raises(LatentFlowsError, match="nowhere"):
        run(configuration, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten_by_accident(configuration, tiny, tmp_path):
    folder = tmp_path / "run"
    run(configuration, folder)
    with pytest.raises(
        ConfigurationError, match=r"holds this run already .status finished.*--resume.*--overwrite"
    ):
        run(configuration, folder)
    other = configuration_from({}, [*tiny, "seed=1", "posterior=planar"])
    for resume in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"another configuration, which differs in seed, posterior.kind"
        ):
            run(other, folder, resume=resume)
    with pytest.raises(ConfigurationError, match="is not empty and holds no run"):
        run(configuration, tmp_path)
    with pytest.raises(ConfigurationError, match="is a file"):
        run(configuration, folder / "config.yaml")
    (folder / "notes.txt").write_text("mine")
    run(other, folder, overwrite=True)
    assert record_of(folder)["seed"] == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_run_may_go_on_with_its_data_elsewhere(configuration, tiny, tmp_path):
    folder, data = tmp_path / "run", tmp_path / "moved.npy"
    run(configuration, folder)
    (folder / "evaluation.json").unlink()
    np.save(data, np.load(configuration.data.root))
    moved = configuration_from({}, [*tiny, f"data.root={data}"])
    assert run(moved, folder, resume=True).status == "finished"


def test_a_damaged_record_is_named(configuration, tmp_path):
    run(configuration, tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run.json cannot be read"):
        run(configuration, tmp_path, resume=True)


def test_evaluation_follows_its_protocol(tiny, tmp_path):
    configuration = configuration_from({}, [*tiny, "evaluation.split=validation", "evaluation.num_images=4"])
    run(configuration, tmp_path / "run")
    _, model = load_run(tmp_path / "run")
    data = build_data(configuration)
    content = evaluate(model, data, configuration.evaluation, None)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["figures"] == content["figures"]
    protocol = content["protocol"]
    assert (protocol["split"], protocol["num_images"], protocol["num_importance_samples"]) == (
        "validation",
        4,
        8,
    )
    assert "dynamic binarization" in protocol["data"]
    more = evaluate(model, data, configuration.evaluation.model_copy(update={"split": "test"}), None)
    assert more["figures"]["nll"] != content["figures"]["nll"]


def test_drawn_samples_become_pictures_or_arrays(configuration, tmp_path):
    run(configuration, tmp_path / "run")
    _, model = load_run(tmp_path / "run")
    settings = {"num": 9, "temperature": 0.5, "seed": 3}
    for mean in (False, True, True):  # the third replaces the second
        path = write_samples(model, tmp_path / "run", mean=mean, out=None, **settings)
    assert path == tmp_path / "run" / "samples" / "drawn.png"
    drawn = [picture for picture in read_run(tmp_path / "run").pictures if picture.file == "drawn.png"]
    assert [p.caption for p in drawn] == [
        "9 means of p(x|z), with z from the prior at temperature 0.5, seed 3."
    ]
    array = write_samples(model, tmp_path / "run", mean=True, out=tmp_path / "x.npy", **settings)
    assert np.load(array).shape == (9, 1, 4, 4)


def test_fraction_done_counts_all_stages(tiny, tmp_path):
    overrides = ["prior=gaussian", "training.plan=two_stage", "training.epochs=3", "training.prior_epochs=1"]
    fractions = []
    run(configuration_from({}, [*tiny, *overrides]), tmp_path, callbacks=[FractionDone(fractions.append)])
    assert fractions == [0.25, 0.5, 0.75, 1.0]


def test_a_run_leaves_the_generator_alone(configuration, tmp_path):
    before = torch.get_rng_state()
    run(configuration, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# -- length ---------------------------------------------------------------------------------------------------


def test_an_unfinished_run_may_become_longer(configuration, tiny, tmp_path):
    run(configuration, tmp_path / "run", callbacks=[Interrupt()])
    longer, shorter = (configuration_from({}, [*tiny, f"training.epochs={n}"]) for n in (5, 2))
    with pytest.raises(ConfigurationError, match=r"another configuration, which differs in training.epochs"):
        run(longer, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"another configuration, which differs in training.epochs"):
        run(shorter, tmp_path / "run", resume=True)
    assert run(longer, tmp_path / "run", resume=True).status == "finished"
    assert len(read_run(tmp_path / "run").epochs) == 5
    assert read_configuration(tmp_path / "run" / "config.yaml") == longer


def test_a_finished_run_does_not_become_longer(configuration, tiny, tmp_path):
    run(configuration, tmp_path)
    longer = configuration_from({}, [*tiny, "training.epochs=5"])
    with pytest.raises(
        ConfigurationError, match=r"is finished; its length .training.epochs. .*another `out`"
    ):
        run(longer, tmp_path, resume=True)


def test_a_run_that_is_only_not_evaluated_does_not_become_longer(configuration, tiny, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bounds_room, "evaluate_bounds", interrupt)
    run(configuration, tmp_path)
    monkeypatch.undo()
    before = (tmp_path / "config.yaml").read_text(), record_of(tmp_path)
    with pytest.raises(CheckpointError, match="stage 'joint' has ended"):
        run(configuration_from({}, [*tiny, "training.epochs=5"]), tmp_path, resume=True)
    assert before == ((tmp_path / "config.yaml").read_text(), record_of(tmp_path))
    assert run(configuration, tmp_path, resume=True).status == "finished"


def test_data_that_are_missing_do_not_cost_the_run_that_is_there(configuration, tiny, tmp_path):
    first = run(configuration, tmp_path / "run")
    moved = configuration_from({}, [*tiny, f"data.root={tmp_path / 'nowhere.npy'}"])
    with pytest.raises(LatentFlowsError, match="nowhere"):
        run(moved, tmp_path / "run", overwrite=True)
    assert run(configuration, tmp_path / "run", resume=True) == first


# -- trackers -------------------------------------------------------------------------------------------------


def tracked(tiny, value):
    return configuration_from({}, [*tiny, "training.epochs=1", f"training.trackers={value}"])


def test_tensorboard_is_written_where_it_is_installed_and_removed_with_the_run(tiny, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run(tracked(tiny, "null"), tmp_path)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1
    run(tracked(tiny, "[]"), tmp_path, overwrite=True)
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    assert run(tracked(tiny, "null"), tmp_path, overwrite=True).status == "finished"
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("package", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_asked_for_and_missing_is_named_before_anything_is_written(
    tiny, tmp_path, monkeypatch, package
):
    module = "torch.utils.tensorboard.writer" if package == "tensorboard" else package
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'latentflows\[{package}\]'"):
        run(tracked(tiny, package), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_with_other_trackers(configuration, tiny, tmp_path):
    run(configuration, tmp_path, callbacks=[Interrupt()])
    other = configuration_from({}, [*tiny, "training.trackers=null"])
    assert run(other, tmp_path, resume=True).status == "finished"


@pytest.mark.parametrize(
    ("override", "key"), [("prior=vamp", "prior.num_components"), ("prior=exemplar", "prior.num_exemplars")]
)
def test_a_prior_that_needs_more_data_than_there_are_is_refused_before_a_run_is_removed(
    override, key, configuration, tiny, tmp_path
):
    run(configuration, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    greedy = configuration_from({}, [*tiny, override, f"{key}=5000"])
    with pytest.raises(ConfigurationError, match=f"`{key}`=5000 starts from as many training data points"):
        run(greedy, tmp_path / "run", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_the_record_names_the_code_of_every_session(tiny, tmp_path, monkeypatch):
    run(configuration_from({}, tiny), tmp_path)
    configuration, model = load_run(tmp_path)
    first = json.loads((tmp_path / "run.json").read_text())["versions"]["source"]
    for source in ("b", "b", "c"):
        monkeypatch.setattr(folder_room, "source_hash", lambda source=source: source)
        record = folder_room.first_record(configuration, model, (), tmp_path, "")
        folder_room.write_record(tmp_path, record)
    assert record["versions"]["source"] == f"{first}, b, c"
