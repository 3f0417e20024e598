"""Non-finite losses, gradients, weights and figures: skipped, counted, rolled back, and never kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentflows.core.batches import Batch
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, StandardGaussian
from latentflows.models import VAE, Trace
from latentflows.networks import MLP
from latentflows.objectives import ELBO, Value
from latentflows.training import Callback, Options, ProgressBar, fit
from latentflows.training.checkpoint import load_tensors, within
from latentflows.training.learner import Learner
from tests.training.tiny import (
    SHAPE,
    STEPS_PER_EPOCH,
    Fixed,
    Images,
    Poison,
    Watch,
    finite,
    lines,
    moved,
    one_stage,
    same,
    state,
    vae,
)

HELD_OUT: dict[str, Any] = {"validation": Images(8, seed=1)}


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_bad_step_is_skipped_counted_and_told(how: Any, tmp_path: Path) -> None:
    watch, model = Watch(), vae()
    history = fit(
        model,
        one_stage(Poison(frozenset({2, 6}), how), ema_decay=0.5),
        Images(),
        out=tmp_path,
        options=Options(diagnose=0),
        callbacks=[watch],
    )
    assert (history.status, history.steps, history.skipped_steps, history.rollbacks) == ("finished", 12, 2, 0)
    assert finite(state(model))
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [1, 2, 2]
    assert [len(line["events"]) for line in lines(tmp_path)] == [1, 1, 0]
    assert watch.events[0].startswith("Step 3 of stage 'joint' skipped: loss")
    assert ("gradient norm nan" in watch.events[0]) or how == "inf"
    assert all(math.isfinite(line["train"]["elbo"]) for line in lines(tmp_path))


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_skipped_step_leaves_weights_moments_and_average_alone(how: Any) -> None:
    """A run all of whose later steps are bad ends with the bits of one that stopped before them."""
    short, long = vae(), vae()
    settings: dict[str, Any] = {"ema_decay": 0.9, "weight_decay": 0.1}
    fit(short, one_stage(max_steps=3, **settings), Images())
    fit(
        long,
        one_stage(Poison(frozenset(range(3, 99)), how), max_steps=8, **settings),
        Images(),
        options=Options(max_bad_steps=99),
    )
    assert same(state(short), state(long))


def test_nan_never_enters_the_checkpoint(tmp_path: Path) -> None:
    objective = Poison(frozenset({1, 3, 4, 7}), "gradient")
    fit(vae(), one_stage(objective, ema_decay=0.9), Images(), out=tmp_path, options=Options(checkpoint_every=1),
        callbacks=[checked := Checked(tmp_path)], **HELD_OUT)  # fmt: skip
    assert checked.count >= 3


class Checked(Callback):
    """Looks for NaN in the checkpoint after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.last, self.count = folder / "checkpoint" / "last.safetensors", 0

    def on_epoch(self, line: dict) -> None:
        tensors, _ = load_tensors(self.last)
        assert within("average", tensors)
        assert within("optimizer", tensors)
        assert finite(tensors)
        self.count += 1


def test_several_bad_steps_in_a_row_restore_the_last_good_state_at_half_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, model = Watch(), vae()
    restored = []
    original = Learner.restore

    def restore(self: Learner, tensors: dict) -> None:
        original(self, tensors)
        restored.append(state(self.model))

    monkeypatch.setattr(Learner, "restore", restore)
    # Steps 4 and 5 move on from the snapshot at the end of the first epoch; 6, 7 and 8 are bad.
    objective = Poison(frozenset({6, 7, 8}))
    history = fit(
        model,
        one_stage(objective, max_epochs=4),
        Images(),
        options=Options(max_bad_steps=3, diagnose=0),
        callbacks=[watch],
    )
    assert len(restored) == 1
    assert same(restored[0], watch.weights[1])
    assert not same(watch.weights[2], watch.weights[1])
    assert (history.status, history.skipped_steps, history.rollbacks) == ("finished", 3, 1)
    assert [line["learning_rate"] for line in watch.lines] == [0.01, 0.01, 0.005, 0.005]
    assert [line["rollbacks"] for line in watch.lines] == [0, 0, 1, 1]
    told = watch.events[-1]
    assert told.startswith("Step 9 of stage 'joint': 3 steps in a row were non-finite (loss nan")
    assert "restored" in told
    assert "halved to 0.5 of its plan" in told
    assert moved(watch.weights[3], watch.weights[4])
    assert finite(state(model))


def test_the_optimizer_is_rolled_back_with_the_weights() -> None:
    """After a rollback to the very start, the run is a fresh one at half the rate."""
    rolled, fresh = vae(), vae()
    objective = Poison(frozenset({1, 2}))
    fit(rolled, one_stage(objective, max_steps=4, ema_decay=0.5), Images(), options=Options(max_bad_steps=2))
    fit(fresh, one_stage(max_steps=1, ema_decay=0.5, learning_rate=0.005), Images())
    # Other noise in step 3 than in step 0, but Adam's first step has the size of the rate whatever the gradient.
    start = state(vae())
    name = "likelihood.network.last.linear.bias"
    one, two = state(rolled)[name] - start[name], state(fresh)[name] - start[name]
    assert one.abs().max() == pytest.approx(0.0025, rel=1e-3)
    assert two.abs().max() == pytest.approx(0.0025, rel=1e-3)


def test_weights_that_gave_no_finite_figure_are_nothing_to_return_to() -> None:
    """The first epoch ends in a bad step, so the state to go back to is the start, not the end of that epoch."""
    watch, model = Watch(), vae()
    bad = frozenset({STEPS_PER_EPOCH - 1, *range(STEPS_PER_EPOCH, 99)})
    options = Options(max_bad_steps=3, max_rollbacks=1)
    history = fit(model, one_stage(Poison(bad)), Images(), options=options, callbacks=[watch])
    assert history.status == "diverged"
    assert same(state(model), watch.weights[0])
    assert not same(watch.weights[1], watch.weights[0])


def test_a_finite_validation_figure_makes_weights_good(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, model = Watch(), vae()
    bad = frozenset({STEPS_PER_EPOCH - 1, *range(STEPS_PER_EPOCH, 99)})
    options = Options(max_bad_steps=3, max_rollbacks=1)
    fit(model, one_stage(Poison(bad)), Images(), options=options, callbacks=[watch], **HELD_OUT)
    assert same(state(model), watch.weights[1])


def test_a_run_that_stays_bad_ends_diverged_with_its_last_good_weights(tmp_path: Path) -> None:
    watch, model = Watch(), vae()
    objective = Poison(frozenset(range(STEPS_PER_EPOCH, 999)))
    history = fit(
        model,
        [*one_stage(objective, max_epochs=50), *one_stage(name="never")],
        Images(),
        out=tmp_path,
        options=Options(max_bad_steps=2, max_rollbacks=3),
        callbacks=[watch],
    )
    assert history.status == "diverged"
    assert history.rollbacks == 3
    assert history.skipped_steps == 6
    assert "'joint' was restored 3 times" in str(history.reason)
    assert "Lower the learning rate" in str(history.reason)
    assert {line["stage"] for line in lines(tmp_path)} == {"joint"}
    assert same(state(model), watch.weights[1])
    assert finite(state(model))
    assert same(load_tensors(tmp_path / "checkpoint" / "model.safetensors")[0], watch.weights[1])
    assert watch.statuses == ["diverged"]


def test_a_run_that_is_bad_from_the_start_ends_with_its_first_weights(tmp_path: Path) -> None:
    model = vae()
    before = state(model)
    options = Options(max_bad_steps=2, max_rollbacks=2)
    history = fit(model, one_stage(Poison(frozenset(range(99)))), Images(), out=tmp_path, options=options)
    assert history.status == "diverged"
    assert same(state(model), before)


def test_an_epoch_without_one_good_step_has_no_train_figures(tmp_path: Path) -> None:
    objective = Poison(frozenset(range(STEPS_PER_EPOCH)))
    fit(vae(), one_stage(objective), Images(), out=tmp_path, callbacks=[ProgressBar()])
    assert lines(tmp_path)[0]["train"]["elbo"] is None
    assert lines(tmp_path)[1]["train"]["elbo"] < 0


# -- figures -------------------------------------------------------------------------------------------------


def test_nan_in_validation_is_null_in_the_log_and_never_the_best(tmp_path: Path) -> None:
    watch, model = Watch(), vae()
    objective = Poison(validation=True)
    history = fit(
        model, one_stage(objective), Images(), out=tmp_path, callbacks=[watch, ProgressBar()], **HELD_OUT
    )
    assert history.status == "finished"
    assert all(line["validation"]["elbo"] is None for line in lines(tmp_path))
    assert same(state(model), watch.weights[3])  # the last weights: nothing was better


def test_a_finite_epoch_after_nan_in_validation_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([math.nan, 3.0, 2.0])
    monkeypatch.setattr(Poison, "score", lambda *_: next(scores))
    watch, model = Watch(), vae()
    fit(model, one_stage(Poison()), Images(), callbacks=[watch], **HELD_OUT)
    assert same(state(model), watch.weights[2])


def test_an_infinite_metric_beside_a_finite_loss_is_null_and_no_reason_to_skip(tmp_path: Path) -> None:
    class InfiniteKL(ELBO):
        def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
            value = super().__call__(trace, epoch)
            return Value(value.loss, value.metrics | {"kl": value.metrics["kl"] + math.inf})

    history = fit(vae(), one_stage(InfiniteKL()), Images(), out=tmp_path, **HELD_OUT)
    assert history.skipped_steps == 0
    assert [line["train"]["kl"] for line in lines(tmp_path)] == [None] * 3
    assert all(line["validation"]["elbo"] < 0 for line in lines(tmp_path))


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    fit(vae(), one_stage(Poison(validation=True)), Images(), out=tmp_path, **HELD_OUT)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


# -- weights and buffers -------------------------------------------------------------------------------------


def test_weights_that_become_infinite_are_rolled_back_before_they_are_kept() -> None:
    model = vae()
    watch = Watch()
    history = fit(
        model,
        one_stage(learning_rate=1e39, max_epochs=2, ema_decay=0.5, max_steps=1),
        Images(),
        callbacks=[watch],
        **HELD_OUT,
    )
    assert history.rollbacks == 1
    assert "weights became non-finite" in watch.events[0]
    assert finite(state(model))


class Spoiled(Fixed):
    """Gives one batch of NaN, in the second epoch."""

    def batch(self, indices: torch.Tensor) -> Batch:
        batch = super().batch(indices)
        return Batch(batch.x * math.nan) if self.reads == 7 else batch


def test_nan_in_the_data_does_not_stay_in_running_statistics() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))
    decoder = AmortizedBernoulli(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1))
    model = VAE(AmortizedGaussian(2, SHAPE, encoder), StandardGaussian(2), decoder)
    history = fit(model, one_stage(), Spoiled(), **HELD_OUT)
    assert history.skipped_steps == 1
    assert history.rollbacks == 1
    assert finite(state(model))
    assert math.isfinite(history.epochs[-1]["validation"]["elbo"])
