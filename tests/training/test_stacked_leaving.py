"""Who leaves a stack goes on from numbers of its own, for whatever reason it leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentflows.models import Trace
from latentflows.objectives import ELBO, Objective, Value
from latentflows.training import History, Job, Stage, fit, fit_together, stacked, stacked_step
from latentflows.training.learner import Outcome
from latentflows.training.stacked_member import Member
from latentflows.training.stacked_program import Inputs, Result
from latentflows.training.stacked_step import Together
from tests.training.test_stacked import Fragile, close, images, seeded, together, with_layer
from tests.training.tiny import Images, one_stage

SEEDS = (0, 1, 2)


def assert_as_alone(models: Sequence[nn.Module], stages: Sequence[Stage], sources: Sequence[Images]) -> None:
    for seed, (model, source) in enumerate(zip(models, sources, strict=True)):
        lone = seeded(seed)
        fit(lone, stages, source, seed=seed)
        assert close(model, lone), seed


def test_an_error_in_the_middle_lets_all_go_on_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    count, whole = 0, Together.step

    def step(self: Together, ready: Sequence[Member]) -> list[Outcome | None]:
        nonlocal count
        count += 1
        if count == 4:
            raise MemoryError("no room")
        return whole(self, ready)

    monkeypatch.setattr(Together, "step", step)
    stages = one_stage(max_epochs=3)
    models = [seeded(seed) for seed in SEEDS]
    jobs = [Job(model, stages, Images(), seed=seed) for seed, model in enumerate(models)]
    histories = fit_together(jobs, way="together")
    for history in histories:
        assert isinstance(history, History)
        assert [entry["together"] for entry in history.together] == [True, False]
    assert_as_alone(models, stages, [Images() for _ in SEEDS])


def test_those_who_are_left_may_be_faster_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the runs leave; the rest are measured anew, and train alone from then on."""
    whole, found = stacked._measured, iter([(1.0, 0.5), (1.0, 2.0)])

    def measured(*arguments: Any) -> tuple[float, float]:
        whole(*arguments)
        return next(found)

    monkeypatch.setattr(stacked, "_WORTH", 1)
    monkeypatch.setattr(stacked, "_measured", measured)
    stages = one_stage(Fragile(), max_epochs=4)
    models = [seeded(seed) for seed in range(4)]
    sources = [images(seed % 2) for seed in range(4)]
    jobs = [
        Job(model, stages, source, seed=seed)
        for seed, (model, source) in enumerate(zip(models, sources, strict=True))
    ]
    histories = fit_together(jobs)
    assert isinstance(histories[0], History)
    assert [entry["together"] for entry in histories[0].together] == [True, False]
    assert_as_alone(models, stages, sources)


def test_a_step_that_is_finite_alone_is_one_of_the_run_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where rounding decides whether a norm overflows: the run takes that step, and all that follow, alone."""
    count, write = 0, stacked_step.write_program

    def watched(*arguments: Any, **settings: Any) -> Any:
        program = write(*arguments, **settings)

        def run(rows: Tensor, inputs: Inputs) -> Result:
            nonlocal count
            count += 1
            result = program(rows, inputs)
            if count == 4:
                result = result._replace(losses=result.losses.index_fill(0, torch.tensor([1]), math.nan))
            return result

        return run

    monkeypatch.setattr(stacked_step, "write_program", watched)
    stages = one_stage(max_epochs=3)
    models = [seeded(seed) for seed in SEEDS]
    jobs = [Job(model, stages, Images(), seed=seed) for seed, model in enumerate(models)]
    fit_together(jobs, way="together")
    assert_as_alone(models, stages, [Images() for _ in SEEDS])


class Plain(Objective):
    """ELBO, without a repr of its own."""

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        return ELBO()(trace, epoch)


def test_stages_are_compared_beyond_their_objective() -> None:
    (stage,) = one_stage(Plain())
    rates = [replace(stage, learning_rate=rate, objective=Plain()) for rate in (1e-3, 1e-3, 1e-2)]
    for count, expected in ((2, True), (3, False)):
        jobs = [Job(seeded(seed), [each], Images(), seed=seed) for seed, each in enumerate(rates[:count])]
        history = fit_together(jobs, way="together")[0]
        assert isinstance(history, History)
        assert history.together[0]["together"] is expected
        assert expected or "stages or sizes of the data differ" in history.together[0]["text"]


class Steep(nn.Module):
    """Changes no value; scales its gradient by a number that each model has of its own, and that nobody sees."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        Steep.count += 1
        self.factors = [0.01 * (Steep.count % 3)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factors[0] * (x - x.detach())


def test_a_gradient_is_judged_by_its_own_size() -> None:
    told: list[str] = []
    together(one_stage(max_epochs=1), with_layer(Steep), announce=told.append)
    assert "other numbers than alone" in told[0]
