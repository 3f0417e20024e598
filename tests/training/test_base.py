"""Settings that make no sense are refused when they are written down."""

from __future__ import annotations

from typing import Any

import pytest

from latentflows.core.errors import ConfigurationError
from latentflows.objectives import ELBO, PriorLikelihood
from latentflows.training import Options, Stage
from latentflows.training.base import Progress
from tests.training.tiny import vae


@pytest.mark.parametrize(
    "settings",
    [
        {"train": ()},
        {"train": ("decoder",)},
        {"train": ("prior", "prior")},
        {"max_epochs": 0},
        {"max_steps": 0},
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 10.0},
        {"batch_size": True},
        {"max_epochs": 2.5},
        {"learning_rate": float("inf")},
        {"weight_decay": float("inf")},
        {"optimizer": "sgd"},
        {"schedule": "step"},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
        {"gradient_clip_val": 0.0},
        {"gradient_clip_val": float("nan")},
        {"accumulate_grad_batches": 0},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
        {"ema_decay": float("nan")},
        {"patience": 0},
    ],
    ids=str,
)
def test_a_stage_refuses(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"`{name}` must"):
        Stage("s", ELBO(), **settings)


def test_all_parts_learn_where_none_is_named() -> None:
    assert Stage("s", ELBO()).parts(vae()) == ("posterior", "prior", "likelihood")
    assert Stage("s", ELBO(), ("likelihood",)).parts(vae()) == ("likelihood",)
    with pytest.raises(
        ConfigurationError, match=r"must name some of .*'prior', 'likelihood'.*got .'density'"
    ):
        Stage("s", ELBO(), ("density",)).check(vae())
    with pytest.raises(ConfigurationError, match="leave it out of `train`"):
        Stage("s", ELBO(), standard_prior=True)


def test_the_priors_objective_trains_the_prior_alone() -> None:
    with pytest.raises(ConfigurationError, match=r'give `train=\("prior",\)`'):
        Stage("s", PriorLikelihood())
    assert Stage("s", PriorLikelihood(), ("prior",)).train == ("prior",)


@pytest.mark.parametrize(
    "settings",
    [
        {"accelerator": "tpu"},
        {"precision": "16-mixed"},
        {"checkpoint_every": 0},
        {"max_bad_steps": 0},
        {"max_rollbacks": 0},
    ],
    ids=str,
)
def test_options_refuse(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"`{name}` must"):
        Options(**settings)


def test_the_next_stage_starts_from_nothing_but_the_totals() -> None:
    progress = Progress(
        stage=0, epoch=5, batch=3, stage_steps=20, steps=20, samples=99, skipped_steps=4, rollbacks=2
    )
    progress.best, progress.rate_scale, progress.stage_rollbacks = 1.0, 0.25, 2
    progress.next_stage()
    assert progress == Progress(stage=1, steps=20, samples=99, skipped_steps=4, rollbacks=2)
