"""A run that ends anywhere, in any way, goes on to the same bits; what cannot be trusted is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentflows.core.errors import CheckpointError
from latentflows.distributions import em
from latentflows.models import Trace
from latentflows.objectives import ELBO, Objective, Value
from latentflows.training import Callback, Options, fit
from latentflows.training.checkpoint import load_tensors
from tests.training import victim
from tests.training.tiny import (
    BATCH,
    Crash,
    Images,
    Poison,
    Watch,
    assert_same_run,
    crash_at,
    lines,
    mixture_vae,
    one_stage,
    same,
    state,
    three_stages,
    two_stages,
    vae,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `victim.train`, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert victim.train(folder) == "finished"
    return folder


def test_a_killed_process_resumes_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    """One process per case of `victim`, each ended by a real signal."""
    command = [sys.executable, "-m", "tests.training.victim", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert ended.keys() == {*victim.SIGNALS, *victim.PLACES}
    for case, end in ended.items():
        soft = not case.startswith("kill")
        assert end["signal"] == (0 if soft else signal.SIGKILL), case
        assert 0 <= end["steps"] < 20, case
        if soft:
            assert end["steps"] == victim.SIGNALS[case][1] - 2, (
                case
            )  # the step's own, not the last regular one
        assert victim.train(tmp_path / case, resume=True) == "finished"
        assert_same_run(tmp_path / case, whole)
        assert sorted(os.listdir(tmp_path / case / "checkpoint")) == [
            "last.safetensors",
            "model.safetensors",
        ], case


@pytest.mark.parametrize("first", [3, 4])
def test_a_crash_at_any_read_resumes_to_the_same_bits(whole: Path, tmp_path: Path, first: int) -> None:
    """Every step of both stages, some followed by a second crash soon after."""
    for read in range(first, 23, 2):
        folder = tmp_path / str(read)
        with pytest.raises(Crash):
            victim.train(folder, on_read=crash_at(read))
        if read % 3 == 0:
            with pytest.raises(Crash):
                victim.train(folder, on_read=crash_at(4), resume=True)
        assert victim.train(folder, resume=True) == "finished"
        assert_same_run(folder, whole)


def test_a_crash_between_a_line_and_its_checkpoint_leaves_no_line_twice(whole: Path, tmp_path: Path) -> None:
    class AtEpoch(Callback):
        def __init__(self, count: int) -> None:
            self.left = count

        def on_epoch(self, line: dict) -> None:
            self.left -= 1
            if self.left == 0:
                raise Crash

    for epoch in range(1, 6):
        folder = tmp_path / str(epoch)
        with pytest.raises(Crash):
            victim.train(folder, callbacks=[AtEpoch(epoch)])
        assert len(lines(folder)) == epoch
        assert victim.train(folder, resume=True) == "finished"
        assert_same_run(folder, whole)


def test_checkpoints_at_every_place_give_the_same_run(whole: Path, tmp_path: Path) -> None:
    """However often checkpoints are written, nothing changes, and a crash in validation is survived."""
    for every in (1, 4, None):
        folder = tmp_path / str(every)
        held_out = Images(16, seed=1, on_read=crash_at(4))  # the check of the data, then one read per epoch
        settings = {"out": folder, "seed": 11, "options": Options(checkpoint_every=every)}
        with pytest.raises(Crash):
            fit(vae("iaf", "real_nvp"), two_stages(), Images(), validation=held_out, **settings)
        held_out.on_read = None
        fit(vae("iaf", "real_nvp"), two_stages(), Images(), validation=held_out, resume=True, **settings)
        assert_same_run(folder, whole)


@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_a_run_that_rolled_back_resumes_to_the_same_bits(tmp_path: Path, how: str) -> None:
    objective = Poison(frozenset({1, 5, 6, 7}), how)  # type: ignore[arg-type]
    settings = {"options": Options(checkpoint_every=1, max_bad_steps=3), "validation": Images(8, seed=1)}
    stages = one_stage(objective, ema_decay=0.5)
    whole = fit(vae(), stages, Images(), out=tmp_path / "whole", **settings)
    assert whole.rollbacks == 1
    for read in range(2, 14):
        folder = tmp_path / str(read)
        with pytest.raises(Crash):
            fit(vae(), stages, Images(on_read=crash_at(read)), out=folder, **settings)
        again = fit(vae(), stages, Images(), out=folder, resume=True, **settings)
        assert_same_run(folder, tmp_path / "whole")
        assert (again.skipped_steps, again.rollbacks) == (4, 1)


def test_early_stopping_is_the_same_after_a_resume(tmp_path: Path) -> None:
    stages = one_stage(learning_rate=0.3, max_epochs=9, patience=1, ema_decay=0.2)
    settings: dict[str, Any] = {"validation": Images(8, seed=1), "options": Options(checkpoint_every=2)}
    fit(vae(), stages, Images(), out=tmp_path / "whole", **settings)
    epochs = len(lines(tmp_path / "whole"))
    assert 1 < epochs < 9
    for read in range(3, 2 + epochs * 4, 3):
        folder = tmp_path / str(read)
        with pytest.raises(Crash):
            fit(vae(), stages, Images(on_read=crash_at(read)), out=folder, **settings)
        fit(vae(), stages, Images(), out=folder, resume=True, **settings)
        assert_same_run(folder, tmp_path / "whole")


def test_a_joint_third_stage_resumes_too(tmp_path: Path) -> None:
    def run(folder: Path, read: int, resume: bool = False) -> None:
        model = vae(prior="real_nvp")
        fit(model, three_stages(), Images(on_read=crash_at(read)), out=folder, resume=resume,
            options=Options(checkpoint_every=2))  # fmt: skip

    run(tmp_path / "whole", 1000)
    with pytest.raises(Crash):
        run(tmp_path / "crashed", 26)
    run(tmp_path / "crashed", 1000, resume=True)
    assert_same_run(tmp_path / "crashed", tmp_path / "whole")


def test_history_of_a_resumed_run_is_that_of_the_whole(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        victim.train(tmp_path, on_read=crash_at(11))
    watch = Watch()
    history = fit(
        vae("iaf", "real_nvp"),
        two_stages(),
        Images(),
        validation=Images(16, seed=1),
        out=tmp_path,
        seed=11,
        resume=True,
        callbacks=[watch],
    )
    assert history.steps == 20
    assert len(history.epochs) == 5
    assert len(watch.lines) == 4  # those of the second session
    assert all(
        later["seconds"] >= line["seconds"]
        for line, later in zip(history.epochs, history.epochs[1:], strict=False)
    )


def test_resuming_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert victim.train(tmp_path / "run", resume=True) == "finished"
    assert_same_run(tmp_path / "run", whole)


def test_resuming_a_diverged_run_says_so_again(tmp_path: Path) -> None:
    stages = [*one_stage(Poison(frozenset(range(99)))), *two_stages()]
    settings = {"out": tmp_path, "options": Options(max_bad_steps=2, max_rollbacks=2)}
    first = fit(vae(prior="real_nvp"), stages, Images(), **settings)
    again = fit(vae(prior="real_nvp"), stages, Images(), resume=True, **settings)
    assert first.status == again.status == "diverged"
    assert first.reason == again.reason is not None


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        fit(vae(), one_stage(), Images(on_read=crash_at(9)), out=tmp_path)  # no checkpoint within 10 seconds
    assert not (tmp_path / "checkpoint").exists()
    fit(vae(), one_stage(), Images(), out=tmp_path, resume=True)
    fit(vae(), one_stage(), Images(), out=tmp_path / "whole")
    assert_same_run(tmp_path, tmp_path / "whole")


def test_starting_anew_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        fit(
            vae(), one_stage(), Images(on_read=crash_at(9)), out=tmp_path, options=Options(checkpoint_every=1)
        )
    fit(vae(), one_stage(max_epochs=1), Images(), out=tmp_path)
    assert len(lines(tmp_path)) == 1


# -- another run ---------------------------------------------------------------------------------------------


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A run that ended after 7 of 12 steps."""
    with pytest.raises(Crash):
        fit(
            vae(),
            one_stage(),
            Images(on_read=crash_at(11)),
            out=tmp_path,
            options=Options(checkpoint_every=1),
        )
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "other seed"),
        ({"train": Images(40)}, "other training_points"),
        ({"train": Images(seed=1)}, r"other training_data\. Resume with the settings and data"),
        ({"stages": one_stage(learning_rate=1e-3)}, "other stages"),
        ({"stages": one_stage(batch_size=4)}, "other stages"),
        ({"stages": one_stage(ELBO(beta=2.0))}, "other stages"),
        ({"stages": [*one_stage(), *one_stage(name="more")]}, "other stages"),
        ({"model": vae(prior="real_nvp")}, "belongs to another model"),
    ],
    ids=["seed", "number of data", "data", "learning rate", "batch", "objective", "more stages", "model"],
)
def test_resume_refuses_another_run(crashed: Path, change: dict, message: str) -> None:
    settings = {"model": vae(), "stages": one_stage(), "train": Images(), **change}
    with pytest.raises(CheckpointError, match=message) as error:
        fit(**settings, out=crashed, resume=True)
    assert "last.safetensors" in str(error.value)


def test_resume_may_make_a_stage_longer(crashed: Path, tmp_path: Path) -> None:
    stages = one_stage(max_epochs=5)
    fit(vae(), stages, Images(), out=crashed, resume=True, options=Options(checkpoint_every=1))
    fit(vae(), stages, Images(), out=tmp_path / "whole", options=Options(checkpoint_every=1))
    without_length = [{k: v for k, v in line.items() if k != "max_epochs"} for line in lines(crashed)]
    assert without_length[0]["epoch"] == 1
    assert [line | {"max_epochs": 5} for line in without_length] == lines(tmp_path / "whole")
    models = [load_tensors(f / "checkpoint" / "model.safetensors")[0] for f in (crashed, tmp_path / "whole")]
    assert same(*models)


def test_an_objective_without_a_repr_of_its_own_can_be_resumed(tmp_path: Path) -> None:
    class Plain(Objective):
        def __call__(self, trace: Trace, epoch: float | Tensor = 0.0) -> Value:
            return ELBO()(trace, epoch)

    for resume in (False, True):
        history = fit(vae(), one_stage(Plain()), Images(), out=tmp_path, resume=resume)
        assert history.status == "finished"


@pytest.mark.parametrize("change", [{"max_epochs": 9}, {"max_epochs": 1}, {"max_steps": 99}])
def test_a_finished_run_cannot_change_its_length(whole: Path, tmp_path: Path, change: dict[str, int]) -> None:
    shutil.copytree(whole, tmp_path / "run")
    stages = two_stages()
    for index, name in enumerate(("autoencoder", "prior")):
        changed = [replace(s, **change) if i == index else s for i, s in enumerate(stages)]
        with pytest.raises(
            CheckpointError, match=rf"stage '{name}' has ended, with max_epochs=\d, .*another folder"
        ):
            fit(vae("iaf", "real_nvp"), changed, Images(), out=tmp_path / "run", seed=11, resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_stage_that_has_ended_cannot_change_its_length_and_a_later_one_can(tmp_path: Path) -> None:
    first, second = two_stages()
    with pytest.raises(Crash):  # inside the second stage
        victim.train(tmp_path, on_read=crash_at(17))
    settings: dict[str, Any] = {"validation": Images(16, seed=1), "out": tmp_path, "seed": 11, "resume": True}
    with pytest.raises(CheckpointError, match="stage 'autoencoder' has ended"):
        fit(vae("iaf", "real_nvp"), [replace(first, max_epochs=9), second], Images(), **settings)
    fit(vae("iaf", "real_nvp"), [first, replace(second, max_epochs=4)], Images(), **settings)
    assert [line["epoch"] for line in lines(tmp_path) if line["stage"] == "prior"] == [1, 2, 3, 4]


# -- damage --------------------------------------------------------------------------------------------------


def test_a_torn_last_line_after_the_checkpoint_is_written_again(crashed: Path, tmp_path: Path) -> None:
    with open(crashed / "metrics.jsonl", "a") as file:
        file.write('{"stage": "joi')
    fit(vae(), one_stage(), Images(), out=crashed, resume=True)
    fit(vae(), one_stage(), Images(), out=tmp_path / "whole")
    assert lines(crashed) == lines(tmp_path / "whole")


@pytest.mark.parametrize("content", ["", '{"stage": "jo', None], ids=["empty", "torn", "missing"])
def test_lines_that_the_checkpoint_counts_on_are_missed(crashed: Path, content: str | None) -> None:
    metrics = crashed / "metrics.jsonl"
    metrics.unlink() if content is None else metrics.write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        fit(vae(), one_stage(), Images(), out=crashed, resume=True)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(crashed: Path, part: float) -> None:
    last = crashed / "checkpoint" / "last.safetensors"
    content = last.read_bytes()
    last.write_bytes(content[: int(part * len(content))])
    before = state(model := vae())
    with pytest.raises(CheckpointError, match=r"last\.safetensors is not a readable checkpoint"):
        fit(model, one_stage(), Images(), out=crashed, resume=True)
    assert same(before, state(model))


def test_a_stage_may_not_be_resumed_under_another_name(crashed: Path) -> None:
    (stage,) = one_stage()
    with pytest.raises(CheckpointError, match="other stages"):
        fit(vae(), [replace(stage, name="other")], Images(), out=crashed, resume=True)


@dataclass(frozen=True)
class Stop(Callback):
    """Sends this process a signal at an epoch's end."""

    number: int
    epoch: int

    def on_epoch(self, line: dict) -> None:
        if line["epoch"] == self.epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_resumable(tmp_path: Path, number: int) -> None:
    watch = Watch()
    history = fit(vae(), one_stage(), Images(), out=tmp_path, callbacks=[Stop(number, 1), watch])
    assert history.status == "interrupted"
    assert history.steps == 5
    assert signal.Signals(number).name in str(history.reason)
    assert watch.statuses == ["interrupted"]
    again = fit(vae(), one_stage(), Images(), out=tmp_path, resume=True)
    assert again.status == "finished"
    fit(vae(), one_stage(), Images(), out=tmp_path / "whole")
    assert_same_run(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_fit_by_em_at_once(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start of the second stage; resumed, it begins with the same fit."""
    whole, steps = mixture_vae(), []
    fit(whole, two_stages(), Images(), out=tmp_path / "whole")
    step = em._Run.step

    def stopped(run: em._Run) -> float:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(em._Run, "step", stopped)
        watch = Watch()
        with pytest.raises(KeyboardInterrupt):
            fit(mixture_vae(), two_stages(), Images(), out=tmp_path / "cut", callbacks=[watch])
    assert len(steps) == 2
    assert watch.statuses == ["interrupted"]
    model = mixture_vae()
    assert fit(model, two_stages(), Images(), out=tmp_path / "cut", resume=True).status == "finished"
    assert same(state(model), state(whole))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def twice(read: int) -> None:
        if read == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    watch = Watch()
    with pytest.raises(KeyboardInterrupt):
        fit(
            vae(),
            one_stage(),
            Images(on_read=twice),
            out=tmp_path,
            options=Options(checkpoint_every=1),
            callbacks=[watch],
        )
    assert watch.statuses == ["interrupted"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(vae(), one_stage(), Images(), out=tmp_path, resume=True, options=Options(checkpoint_every=1))
    fit(vae(), one_stage(), Images(), out=tmp_path / "whole", options=Options(checkpoint_every=1))
    assert_same_run(tmp_path, tmp_path / "whole")


def test_the_number_of_points_in_a_batch_is_the_stages(crashed: Path) -> None:
    progress = load_tensors(crashed / "checkpoint" / "last.safetensors")[1]["progress"]
    assert progress["samples"] == 7 * BATCH
    assert progress["points"] == 3 * BATCH
    assert progress["sums"] == pytest.approx(progress["sums"])
    assert all(torch.isfinite(torch.tensor(progress["sums"])))
