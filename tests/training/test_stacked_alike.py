"""What is rarely reached: each of several runs ends as its lone run there too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentflows.bijections import Chain, Sigmoid
from latentflows.distributions import Flow
from latentflows.models import VAE, Trace
from latentflows.objectives import ELBO, Objective, Value
from latentflows.training import History, Job, Options, Stage, fit, fit_together, learner, session, stacked
from tests.training.test_stacked import Fragile, Killed, close, flowed, images, killed_at, seeded
from tests.training.tiny import Images, one_stage, two_stages

SEEDS = (0, 1, 2, 3)


def near(one: dict[str, Any] | None, other: dict[str, Any] | None, tolerance: float) -> bool:
    """Whether figures are equal up to rounding; those that are null must be null in both."""
    if one is None or other is None or None in [*one.values(), *other.values()]:
        return one == other
    return one == pytest.approx(other, rel=tolerance, abs=tolerance)


def assert_alike(
    stages: Sequence[Stage],
    sources: Callable[[int], Images] = lambda seed: Images(),
    *,
    make: Callable[[int], VAE] = flowed,
    validation: Images | None = None,
    out: Path | None = None,
    tolerance: float = 1e-4,
    **settings: Any,
) -> list[History]:
    """Train together, and fail unless every run is what `fit` makes of it; return what happened."""
    settings.setdefault("way", "together")
    jobs = [
        Job(make(seed), stages, sources(seed), validation, out and out / str(seed), seed) for seed in SEEDS
    ]
    told = fit_together(jobs, **settings)
    for name in ("way", "resume", "announce"):
        settings.pop(name, None)
    for job, history in zip(jobs, told, strict=True):
        assert isinstance(history, History), history
        assert history.together[0]["together"], history.together
        lone = make(job.seed)
        wanted = fit(lone, stages, sources(job.seed), validation=validation, seed=job.seed, **settings)
        assert close(job.model, lone, tolerance), job.seed
        for key in ("status", "reason", "steps", "skipped_steps", "rollbacks"):
            assert getattr(history, key) == getattr(wanted, key), key
        for line, other in zip(history.epochs, wanted.epochs, strict=True):
            assert line["learning_rate"] == other["learning_rate"]
            for part in ("train", "validation"):
                assert near(line[part], other[part], 10 * tolerance), (line["epoch"], part)
    return [history for history in told if isinstance(history, History)]


def test_validation_data_in_blocks_of_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_VALIDATION_BLOCK", 10)
    stages = two_stages(ema_decay=0.6)
    for history in assert_alike(stages, validation=Images(24, seed=5)):
        for entry in history.together:
            assert [block["text"].split(": ", 1)[1] for block in entry["validation"]] == [
                "4 runs measure blocks of 10 validation data points together: as asked for.",
                "4 runs measure blocks of 4 validation data points together: as asked for.",
            ]


@dataclass(frozen=True)
class Blind(Objective):
    """ELBO, and NaN for validation data while the first images of a batch are gray enough."""

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        value = ELBO()(trace, epoch)
        if isinstance(epoch, Tensor) or epoch != math.inf:
            return value
        dark = trace.x.flatten(1).mean(1) > 0.6
        return Value(value.loss, {name: torch.where(dark, torch.nan, m) for name, m in value.metrics.items()})


def test_validation_that_is_not_finite_concerns_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_VALIDATION_BLOCK", 12)
    validation = Images(24, seed=5)
    validation.gray[3] = 0.99
    histories = assert_alike(one_stage(Blind()), validation=validation)
    assert all(line["validation"]["loss"] is None for history in histories for line in history.epochs)


@dataclass(frozen=True)
class Deciding(Objective):
    """ELBO, which looks at values of validation data."""

    def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
        value = ELBO()(trace, epoch)
        if isinstance(epoch, float) and epoch == math.inf and float(trace.x.sum()) < 0:
            raise ValueError("negative data")
        return value


def test_why_validation_data_are_measured_one_after_another_is_said() -> None:
    told: list[str] = []
    for history in assert_alike(one_stage(Deciding()), validation=Images(24, seed=5), announce=told.append):
        (entry,) = history.together
        (block,) = entry["validation"]
        assert entry["together"]
        assert not block["together"]
        assert block["text"] == told[1]
    assert len(told) == 2
    assert told[1] == (
        "Stage 'joint': 4 runs measure blocks of 24 validation data points one after another: a decision depends on "
        "values."
    )


def test_validation_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "_WORTH", 1)
    monkeypatch.setattr(stacked, "_GAIN", math.inf)
    for enough in (1, 1000):
        monkeypatch.setattr(stacked, "_WORTH_BLOCKS", enough)
        (history, *_) = assert_alike(one_stage(), validation=Images(24, seed=5), way="auto")
        (block,) = history.together[0]["validation"]
        assert block["together"] is (enough == 1)
        assert ("block_ms_alone" in block) is (enough == 1)
        assert ("epochs are too few to gain from it" in block["text"]) is (enough > 1)


def troubled(**settings: Any) -> list[Stage]:
    """A first stage that one run must restore again and again, and a second one."""
    first, second = two_stages(**settings)
    return [replace(first, objective=Fragile(), ema_decay=0.8, gradient_clip_val=3.0), second]


@pytest.mark.parametrize("vector", [True, False], ids=["small model", "large model"])
def test_a_run_that_is_restored_goes_on_by_itself_and_joins_the_next_stage(
    vector: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters of a small model are views of one vector, those of a large one stand for themselves."""
    monkeypatch.setattr(learner, "_SMALL", 2**18 if vector else 0)
    histories = assert_alike(
        troubled(max_epochs=4), images, validation=Images(24, seed=5), options=Options(max_bad_steps=1)
    )
    assert [history.rollbacks for history in histories] == [0, 4, 0, 0]
    for history in histories:
        assert history.together[-1] == history.together[-1] | {"stage": "prior", "runs": 4, "together": True}


@pytest.mark.parametrize("save", [7, 18, 30])
def test_a_group_with_a_restored_run_is_resumed(
    save: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(max_bad_steps=1, checkpoint_every=3)
    stages = troubled(max_epochs=4)
    jobs = [Job(flowed(seed), stages, images(seed), None, tmp_path / str(seed), seed) for seed in SEEDS]
    with monkeypatch.context() as patch:
        killed_at(save, patch)
        with pytest.raises(Killed):
            fit_together(jobs, way="together", options=options)
    assert_alike(stages, images, out=tmp_path, options=options, resume=True)


def test_of_runs_that_stop_early_the_rest_make_a_smaller_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "_WORTH", 1)
    monkeypatch.setattr(stacked, "_GAIN", math.inf)
    stages = one_stage(max_epochs=14, batch_size=16, patience=1, schedule="cosine", ema_decay=0.5)
    histories = assert_alike(stages, validation=Images(24, seed=5), way="auto", tolerance=1e-3)
    assert len({len(history.epochs) for history in histories}) == 4, (
        "the seeds were to stop at different epochs"
    )
    assert sorted(len(history.together) for history in histories) == [1, 1, 2, 2]
    assert {entry["runs"] for history in histories for entry in history.together[1:]} == {2}


def test_networks_in_half_precision() -> None:
    assert_alike(
        one_stage(max_epochs=1, learning_rate=1e-3),
        make=seeded,
        validation=Images(24, seed=5),
        options=Options(precision="bf16-mixed"),
        tolerance=5e-3,
    )


def bounded(seed: int) -> VAE:
    """The prior has no density outside of an interval, which training takes for its border and validation refuses."""
    model = flowed(seed)
    prior = model.prior
    assert isinstance(prior, Flow)
    prior.bijection = Chain([prior.bijection, Sigmoid(2, lower=-3.0, upper=3.0)])
    return model


@pytest.mark.filterwarnings("ignore:Validation figures of stage")
def test_validation_that_a_part_refuses_is_nan_together_too() -> None:
    histories = assert_alike(one_stage(), make=bounded, validation=Images(24, seed=5))
    refused = [[line["validation"]["loss"] is None for line in history.epochs] for history in histories]
    assert any(map(any, refused))
    assert not all(map(all, refused))
    assert histories[0].together[0]["validation"][0]["together"]
