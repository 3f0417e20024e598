"""Runs of one shape that train together: each ends as its lone run and leaves the others when it is in trouble."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.models import VAE, Trace
from latentflows.objectives import ELBO, IWAE, Objective, Value
from latentflows.training import (
    Callback,
    History,
    Job,
    Options,
    Stage,
    fit,
    fit_together,
    stacked,
    stacked_step,
)
from latentflows.training.record import Record
from latentflows.training.stacked_program import Inputs
from tests.training.tiny import (
    Images,
    Watch,
    assert_same_run,
    one_stage,
    same,
    state,
    two_stages,
    vae,
)

SEEDS = (0, 1, 2)
Make = Callable[[int], nn.Module]


def seeded(seed: int, posterior: Any = "gaussian", prior: Any = "standard") -> VAE:
    """A tiny VAE whose weights differ from seed to seed."""
    model = vae(posterior, prior)
    with noise.stream(seed, 99), torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * noise.standard_normal(tuple(parameter.shape), like=parameter)
    return model


def flowed(seed: int) -> VAE:
    return seeded(seed, "gaussian", "real_nvp")


def together(
    stages: Sequence[Stage], make: Make = seeded, out: Path | None = None, **settings: Any
) -> tuple[list[Any], list[History]]:
    jobs = [
        Job(make(seed), stages, Images(), Images(24, seed=5), out and out / str(seed), seed) for seed in SEEDS
    ]
    settings.setdefault("way", "together")
    histories = fit_together(jobs, **settings)
    for history in histories:
        if isinstance(history, Exception):
            raise history
    return [job.model for job in jobs], histories  # type: ignore[return-value]


def alone(
    stages: Sequence[Stage], make: Make = seeded, out: Path | None = None, **settings: Any
) -> tuple[list[Any], list[History]]:
    models = [make(seed) for seed in SEEDS]
    histories = [
        fit(
            model,
            stages,
            Images(),
            validation=Images(24, seed=5),
            out=out and out / str(seed),
            seed=seed,
            **settings,
        )
        for seed, model in zip(SEEDS, models, strict=True)
    ]
    return models, histories


def close(one: nn.Module, other: nn.Module, tolerance: float = 1e-4) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(
        torch.allclose(first[name].double(), second[name].double(), rtol=tolerance, atol=tolerance)
        for name in first
    )


CASES: dict[str, tuple[Callable[[], list[Stage]], Make]] = {
    "standard prior": (one_stage, seeded),
    "flow prior, adamw": (lambda: one_stage(optimizer="adamw", weight_decay=0.1), flowed),
    "flow posterior": (one_stage, lambda seed: seeded(seed, "iaf")),
    "two stages, moving average, warm-up, adamax": (two_stages, flowed),
    "clipping": (lambda: one_stage(gradient_clip_val=3.0), seeded),
    "linear schedule with warm-up, L2, cut short": (
        lambda: one_stage(schedule="linear", warmup_steps=3, weight_decay=0.05, max_steps=10),
        flowed,
    ),
    "moving average of clipped steps, warm-up of beta": (
        lambda: one_stage(ELBO(warmup_epochs=1.3), ema_decay=0.7, gradient_clip_val=3.0, schedule="cosine"),
        flowed,
    ),
    "importance weighted, early stop, moving average": (
        lambda: one_stage(IWAE(3), ema_decay=0.5, patience=1, max_epochs=6, learning_rate=0.05),
        seeded,
    ),
    "frozen encoder": (lambda: one_stage(train=("prior", "likelihood")), flowed),
}


@pytest.mark.parametrize("case", CASES)
def test_each_ends_as_its_lone_run(case: str) -> None:
    stages, make = CASES[case]
    models, histories = together(stages(), make)
    lone, expected = alone(stages(), make)
    for model, other, history, wanted in zip(models, lone, histories, expected, strict=True):
        assert [entry["together"] for entry in history.together] == [True] * len(stages()), history.together
        assert close(model, other)
        assert history.steps == wanted.steps
        for line, reference in zip(history.epochs, wanted.epochs, strict=True):
            assert line["train"] == pytest.approx(reference["train"], rel=1e-4, abs=1e-4)
            assert line["validation"] == pytest.approx(reference["validation"], rel=1e-4, abs=1e-4)
            assert line["learning_rate"] == reference["learning_rate"]
    assert not close(models[0], models[1])


def test_draws_are_those_of_the_lone_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: what the program is given is what each run alone reads and draws in its last step."""
    given: list[Inputs] = []
    write = stacked_step.write_program

    def watched(*arguments: Any, **settings: Any) -> Any:
        program = write(*arguments, **settings)

        def run(rows: Tensor, inputs: Inputs) -> Any:
            given.append(inputs)
            return program(rows, inputs)

        return run

    monkeypatch.setattr(stacked_step, "write_program", watched)
    stages = one_stage(max_epochs=1)
    jobs = [Job(seeded(seed), stages, Images(), seed=seed) for seed in SEEDS]
    fit_together(jobs, options=Options(diagnose=0), way="together")
    last = given[-1]
    for row, seed in enumerate(SEEDS):
        drawn: list[Tensor] = []
        source = Images()
        reads: list[Tensor] = []

        def read(indices: Tensor, source: Images = source, reads: list[Tensor] = reads) -> Batch:
            reads.append(Images.batch(source, indices).x)
            return Batch(reads[-1])

        monkeypatch.setattr(source, "batch", read)

        def kept(draw: noise.Draw, drawn: list[Tensor] = drawn) -> Tensor:
            drawn.append(draw.take())
            return drawn[-1]

        with noise._watched(kept):
            fit(seeded(seed), stages, source, seed=seed, options=Options(diagnose=0))
        assert torch.equal(last.x[row], reads[-1])
        assert len(last.draws) == 1
        assert torch.equal(last.draws[0][row], drawn[-1])


def test_who_stops_early_waits_for_the_next_stage() -> None:
    first, second = two_stages()
    stages = [*one_stage(train=first.train, max_epochs=6, learning_rate=0.05, patience=1), second]
    models, histories = together(stages, flowed)
    lone, expected = alone(stages, flowed)
    lengths = [sum(line["stage"] == "joint" for line in history.epochs) for history in histories]
    assert len(set(lengths)) > 1, "the seeds were to stop at different epochs"
    assert lengths == [sum(line["stage"] == "joint" for line in history.epochs) for history in expected]
    for model, other, history in zip(models, lone, histories, strict=True):
        assert history.together[-1] == history.together[-1] | {"stage": "prior", "runs": 3, "together": True}
        assert close(model, other, 1e-3)


@dataclass(frozen=True)
class Fragile(Objective):
    """ELBO, and NaN for a batch that holds a white image."""

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        value = ELBO()(trace, epoch)
        white = trace.x.flatten(1).amin(1).amax()
        return Value(value.loss + torch.where(white > 0, torch.nan, 0.0), value.metrics)


def images(seed: int) -> Images:
    """The second seed's have a white one among them."""
    source = Images()
    if seed == 1:
        source.gray[5] = 1.0
    return source


def test_a_step_that_is_not_finite_concerns_one_run_alone() -> None:
    stages = one_stage(Fragile(), ema_decay=0.9, max_epochs=4)
    models = [seeded(seed) for seed in SEEDS]
    watches = [Watch() for _ in SEEDS]
    jobs = [
        Job(model, stages, images(seed), seed=seed, callbacks=(watch,))
        for seed, model, watch in zip(SEEDS, models, watches, strict=True)
    ]
    histories = fit_together(jobs, way="together")
    for seed, model, history, watch in zip(SEEDS, models, histories, watches, strict=True):
        lone, reference = seeded(seed), Watch()
        expected = fit(lone, stages, images(seed), seed=seed, callbacks=(reference,))
        assert isinstance(history, History)
        assert history.skipped_steps == expected.skipped_steps == (4 if seed == 1 else 0)
        assert [event.split(":")[0] for event in watch.events] == [e.split(":")[0] for e in reference.events]
        assert close(model, lone)


def test_weights_that_blow_up_are_restored_in_one_run_alone() -> None:
    """A rate at which the second seed's data, and only they, drive the steps over the limit again and again."""
    stages, options = one_stage(Fragile(), max_epochs=3), Options(max_bad_steps=1, max_rollbacks=2)
    models = [seeded(seed) for seed in SEEDS]
    jobs = [Job(model, stages, images(seed), seed=seed) for seed, model in zip(SEEDS, models, strict=True)]
    histories = fit_together(jobs, options=options, way="together")
    for seed, model, history in zip(SEEDS, models, histories, strict=True):
        lone = seeded(seed)
        expected = fit(lone, stages, images(seed), seed=seed, options=options)
        assert isinstance(history, History)
        assert (history.status, history.reason, history.rollbacks) == (
            expected.status,
            expected.reason,
            expected.rollbacks,
        )
        assert history.status == ("diverged" if seed == 1 else "finished")
        assert close(model, lone)


def test_an_error_ends_one_run_and_the_others_go_on(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_epoch(self, line: dict[str, Any]) -> None:
            raise ValueError("the tracker is gone")

    stages = one_stage()
    models = [seeded(seed) for seed in SEEDS]
    jobs = [
        Job(model, stages, Images(), seed=seed, callbacks=[Broken()] if seed == 1 else [])
        for seed, model in zip(SEEDS, models, strict=True)
    ]
    histories = fit_together(jobs, way="together")
    assert isinstance(histories[1], ValueError)
    for seed in (0, 2):
        lone = seeded(seed)
        fit(lone, stages, Images(), seed=seed)
        assert close(models[seed], lone)


class Killed(BaseException):
    """The process is gone: nothing more is written."""


def killed_at(save: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die before the n-th checkpoint."""
    count, whole = 0, Record.save

    def save_or_die(self: Record, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count >= save:
            raise Killed
        whole(self, *arguments)

    monkeypatch.setattr(Record, "save", save_or_die)


@pytest.mark.parametrize(("save", "way"), [(5, "together"), (11, "together"), (8, "fit")])
def test_a_killed_run_goes_on_either_way(
    save: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two checkpoints of different runs, so that they stand at different steps; and once more."""
    stages, options = two_stages(), Options(checkpoint_every=3)
    for resume in (False, True):
        with monkeypatch.context() as patch:
            killed_at(save, patch)
            with pytest.raises(Killed):
                together(stages, flowed, out=tmp_path, options=options, resume=resume)
    go_on = together if way == "together" else alone
    models, histories = go_on(stages, flowed, out=tmp_path, options=options, resume=True)
    lone, expected = alone(stages, flowed, options=options)
    for model, other, history, reference in zip(models, lone, histories, expected, strict=True):
        assert close(model, other)
        assert len(history.epochs) == len(reference.epochs) == 5
        assert [line["step"] for line in history.epochs] == [line["step"] for line in reference.epochs]


def test_a_lone_run_goes_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, options = two_stages(), Options(checkpoint_every=3)
    with monkeypatch.context() as patch:
        killed_at(3, patch)
        with pytest.raises(Killed):
            alone(stages, flowed, out=tmp_path, options=options)
    models, _ = together(stages, flowed, out=tmp_path, options=options, resume=True)
    for model, other in zip(models, alone(stages, flowed)[0], strict=True):
        assert close(model, other)


def test_a_signal_stops_all_resumably(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch(self, line: dict[str, Any]) -> None:
            if line["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    stages = one_stage()
    jobs = [
        Job(seeded(seed), stages, Images(), None, tmp_path / str(seed), seed, [Stop()] if seed == 1 else [])
        for seed in SEEDS
    ]
    for history in fit_together(jobs, way="together"):
        assert isinstance(history, History)
        assert history.status == "interrupted"
        assert history.steps in (4, 5)  # those whose turn came before the signal have begun the next step
    jobs = [replace(job, callbacks=()) for job in jobs]
    for job, history in zip(jobs, fit_together(jobs, way="together", resume=True), strict=True):
        assert isinstance(history, History)
        assert history.status == "finished"
        lone = seeded(job.seed)
        fit(lone, stages, Images(), seed=job.seed)
        assert close(job.model, lone)


def test_runs_that_train_alone_keep_their_bits(tmp_path: Path) -> None:
    """Too short to gain: the same folders as those of `fit`."""
    _, histories = together(two_stages(), flowed, out=tmp_path / "group", way="auto")
    alone(two_stages(), flowed, out=tmp_path / "lone")
    for seed, history in zip(SEEDS, histories, strict=True):
        assert [entry["together"] for entry in history.together] == [False, False]
        assert "too few" in history.together[0]["text"]
        assert_same_run(tmp_path / "group" / str(seed), tmp_path / "lone" / str(seed))


def test_measuring_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are measured, found slower together, and every run then trains as if nothing had been tried."""
    monkeypatch.setattr(stacked, "_WORTH", 1)
    monkeypatch.setattr(stacked, "_GAIN", 0.0)
    told: list[str] = []
    _, histories = together(two_stages(), flowed, out=tmp_path / "group", way="auto", announce=told.append)
    alone(two_stages(), flowed, out=tmp_path / "lone")
    assert len(told) == 2
    for seed, history in zip(SEEDS, histories, strict=True):
        assert all(entry["step_ms_alone"] > 0 and entry["step_ms_together"] > 0 for entry in history.together)
        assert "one after another" in told[0]
        assert_same_run(tmp_path / "group" / str(seed), tmp_path / "lone" / str(seed))


def test_what_is_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "_WORTH", 1)
    monkeypatch.setattr(stacked, "_WORTH_BLOCKS", 1)
    monkeypatch.setattr(stacked, "_GAIN", math.inf)
    models, histories = together(one_stage(), way="auto")
    assert all(history.together[0]["together"] for history in histories)
    for model, other in zip(models, alone(one_stage())[0], strict=True):
        assert close(model, other)


@dataclass(frozen=True)
class TurnTaking(ELBO):
    """ELBO in every turn."""

    def at(self, step: int) -> Objective:
        return self


class Flips(nn.Module):
    """Draws by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape) < 0.9)


class Counts(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Decides(nn.Module):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum().detach()) < 1e9 else -x


class Scales(nn.Module):
    """Multiplies by a number that each model has of its own, and that nobody sees."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        Scales.count += 1
        self.factors = [1 + Scales.count % 3]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors[0]


def with_layer(layer: Callable[[], nn.Module]) -> Make:
    def make(seed: int) -> VAE:
        model = seeded(seed)
        network = model.posterior.network  # type: ignore[attr-defined]
        network.hidden.append(layer())
        return model

    return make


def wider(seed: int) -> VAE:
    model = seeded(seed)
    if seed == 1:
        network = model.posterior.network  # type: ignore[attr-defined]
        network.hidden.append(nn.Tanh())
    return model


REFUSED: dict[str, tuple[Callable[[], list[Stage]], Make, str]] = {
    "pieces": (lambda: one_stage(accumulate_grad_batches=2), seeded, "accumulated in pieces"),
    "own draws": (one_stage, with_layer(Flips), "random"),
    "buffers": (one_stage, with_layer(Counts), "buffers"),
    "decisions": (one_stage, with_layer(Decides), "depends on values"),
    "other models": (one_stage, wider, "differ in more than their numbers"),
    "hidden settings": (one_stage, with_layer(Scales), "other numbers than alone"),
    "turns": (lambda: one_stage(TurnTaking()), seeded, "take turns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_one_program_trains_alone_with_the_reason(case: str) -> None:
    stages, make, reason = REFUSED[case]
    told: list[str] = []
    models, histories = together(stages(), make, announce=told.append)
    assert len(told) == 1
    assert reason in told[0]
    assert not histories[0].together[0]["together"]
    if case != "own draws":  # nothing seeds those
        for model, other in zip(models, alone(stages(), make)[0], strict=True):
            assert same(state(model), state(other))
