"""What `fit` does to a model: which parts move, from which data and noise, for how long, and what it leaves alone."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, LearnedGaussian, StandardGaussian
from latentflows.models import VAE, DensityModel
from latentflows.networks import MLP
from latentflows.objectives import ELBO, IWAE, MaximumLikelihood
from latentflows.training import Callback, Options, Stage, fit, learner
from latentflows.training.learner import advance, learning_rate, optimizer_of
from tests.training.tiny import (
    BATCH,
    SHAPE,
    STEPS_PER_EPOCH,
    Crash,
    Fixed,
    Images,
    Poison,
    Watch,
    crash_at,
    moved,
    one_stage,
    same,
    state,
    three_stages,
    two_stages,
    vae,
)


def losses(history: Any) -> list[float]:
    return [line["train"]["loss"] for line in history.epochs]


# -- stages --------------------------------------------------------------------------------------------------


def test_one_stage_moves_all_parts() -> None:
    model = vae("iaf", "real_nvp")
    before = state(model)
    history = fit(model, one_stage(), Images())
    assert moved(before, state(model)) == {"posterior", "prior", "likelihood"}
    assert history.status == "finished"
    assert history.steps == 3 * STEPS_PER_EPOCH
    assert losses(history)[-1] < losses(history)[0] - 1


def test_each_stage_moves_its_parts_and_leaves_the_others_bit_identical() -> None:
    watch = Watch()
    fit(vae("iaf", "real_nvp"), three_stages(), Images(), callbacks=[watch])
    stages = [line["stage"] for line in watch.lines]
    assert stages == ["autoencoder"] * 3 + ["prior"] * 2 + ["together"] * 2
    first, second, third = watch.weights[3], watch.weights[5], watch.weights[7]
    assert moved(watch.weights[0], first) == {"posterior", "likelihood"}
    # The first stage ends by putting its moving average in place: compare from the second stage's first epoch on.
    assert moved(watch.weights[4], second) == {"prior"}
    assert moved(second, third) == {"posterior", "prior", "likelihood"}


def test_a_frozen_encoder_stays_in_eval_mode_and_gets_no_gradient() -> None:
    model = vae(prior="real_nvp")
    seen = []

    class Mode(Callback):
        def on_epoch(self, line: dict[str, Any]) -> None:
            frozen = [*model.posterior.parameters(), *model.likelihood.parameters()]
            seen.append(
                (model.posterior.training, model.prior.training, any(p.grad is not None for p in frozen))
            )

    fit(model, [two_stages()[1]], Images(), callbacks=[Mode()])
    assert seen == [(False, True, False)] * 2


def test_the_priors_stage_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vae(prior="real_nvp")
    calls = []
    model.likelihood.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(VAE, "check_data", lambda *_: None)  # the only reader of the likelihood is the check
    fit(model, [two_stages()[1]], Images(), validation=Images(8, seed=1))
    assert calls == []


def test_the_priors_stage_draws_z_anew_each_epoch_from_the_same_posterior() -> None:
    model, data = vae(prior="real_nvp"), Fixed()
    drawn: list[Tensor] = []
    means: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], q: Any) -> None:
        means.append(q.mean.clone())

    model.posterior.register_forward_hook(keep)
    prior_log_prob = model.prior.register_forward_hook(
        lambda module, inputs, p: _spy(p, drawn)  # what the prior is asked to score
    )
    stage = two_stages(batch_size=32, ema_decay=None)[1]
    fit(model, [stage], data)
    prior_log_prob.remove()
    one, two = drawn[-2], drawn[-1]
    assert one.shape == two.shape == (1, 32, 2)
    epochs = [means[-2].sort(0).values, means[-1].sort(0).values]
    torch.testing.assert_close(epochs[0], epochs[1])  # a frozen encoder, all points once per epoch
    noise_of = [one[0] - means[-2], two[0] - means[-1]]
    assert not torch.isclose(noise_of[0].sort(0).values, noise_of[1].sort(0).values).any()


def _spy(p: Any, drawn: list[Tensor]) -> None:
    original = p.log_prob

    def log_prob(z: Tensor) -> Tensor:
        drawn.append(z.detach().clone())
        return original(z)

    p.log_prob = log_prob


def test_the_priors_stage_improves_the_prior_and_logs_it() -> None:
    model = vae(prior="real_nvp")
    stages = two_stages()
    stages[1] = Stage(
        "prior", stages[1].objective, ("prior",), max_epochs=30, batch_size=BATCH, learning_rate=1e-2
    )
    history = fit(model, stages, Images(), validation=Images(16, seed=1))
    prior = [line for line in history.epochs if line["stage"] == "prior"]
    assert {"loss", "prior_nll"} <= prior[0]["train"].keys()
    assert "elbo" not in prior[0]["train"]
    assert prior[-1]["validation"]["prior_nll"] < prior[0]["validation"]["prior_nll"] - 0.1


def test_a_prior_without_parameters_has_no_stage_of_its_own() -> None:
    with pytest.raises(CombinationError, match="no trainable parameters"):
        fit(vae(), two_stages(), Images())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "one or more"),
        ([*one_stage(), *one_stage()], "different names"),
        (one_stage(batch_size=9, accumulate_grad_batches=2), "multiple of 2"),
        (one_stage(batch_size=64, accumulate_grad_batches=64), "got 32"),
    ],
)
def test_stages_that_cannot_run_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(vae(), stages, Images())


def test_empty_and_gray_data_are_refused() -> None:
    with pytest.raises(DataError, match="`validation` must hold at least one"):
        fit(vae(), one_stage(), Images(), validation=Images(0))
    gray = Fixed()
    gray.x = gray.gray
    with pytest.raises(DataError, match="binary"):
        fit(vae(), one_stage(), gray)


# -- length --------------------------------------------------------------------------------------------------


def test_max_steps_is_exact_and_an_epoch_cut_short_is_written_down() -> None:
    history = fit(vae(), one_stage(max_steps=STEPS_PER_EPOCH + 1), Images())
    assert history.steps == STEPS_PER_EPOCH + 1
    assert [line["step"] for line in history.epochs] == [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1]
    assert history.epochs[1]["samples"] == (STEPS_PER_EPOCH + 1) * BATCH


def test_a_batch_larger_than_the_data_takes_all_of_it() -> None:
    history = fit(vae(), one_stage(batch_size=1000), Images())
    assert history.steps == 3
    assert history.epochs[-1]["samples"] == 3 * 32


def test_an_epoch_reads_every_point_once_and_in_another_order_than_the_last() -> None:
    seen: list[list[int]] = []

    class Source(Fixed):
        def batch(self, indices: Tensor) -> Batch:
            seen.append(indices.tolist())
            return super().batch(indices)

    fit(vae(), one_stage(max_epochs=2), Source(), options=Options(diagnose=0))
    steps = seen[-2 * STEPS_PER_EPOCH :]
    first, second = (list(chain(*part)) for part in (steps[:STEPS_PER_EPOCH], steps[STEPS_PER_EPOCH:]))
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second


# -- schedules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {0: 1.0, 50: 1.0, 99: 1.0}),
        ("cosine", 0, {0: 1.0, 50: 0.5, 99: 0.5 * (1 + math.cos(0.99 * math.pi))}),
        ("linear", 0, {0: 1.0, 50: 0.5, 99: 0.01}),
        ("constant", 10, {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 99: 1.0}),
        ("cosine", 10, {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5}),
        ("linear", 10, {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 1 / 90}),
    ],
)
def test_learning_rate_at_start_middle_and_end(
    schedule: Any, warmup: int, expected: dict[int, float]
) -> None:
    stage = Stage("s", ELBO(), learning_rate=0.02, schedule=schedule, warmup_steps=warmup)
    for step, factor in expected.items():
        assert learning_rate(stage, step, 100) == pytest.approx(0.02 * factor), step


def test_the_logged_learning_rate_is_the_one_of_the_epochs_last_step() -> None:
    (stage,) = one_stage(schedule="linear", warmup_steps=2)
    history = fit(vae(), [stage], Images())
    logged = [line["learning_rate"] for line in history.epochs]
    assert logged == [learning_rate(stage, last, 12) for last in (3, 7, 11)]


def test_the_learning_rate_reaches_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    def noted(optimizer: torch.optim.Optimizer) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        advance(optimizer)

    monkeypatch.setattr(learner, "advance", noted)
    (stage,) = one_stage(schedule="cosine", warmup_steps=3)
    fit(vae(), [stage], Images())
    assert rates == [learning_rate(stage, i, 12) for i in range(12)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["adam", "adamw", "adamax"])
def test_advancing_is_the_optimizers_own_step(name: Any, count: int) -> None:
    stage = Stage("s", ELBO(), optimizer=name, weight_decay=0.1)
    vectors = [[nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(count)] for _ in range(2)]
    optimizers = [optimizer_of(list(own), stage) for own in vectors]
    for step in range(4):
        for own, optimizer in zip(vectors, optimizers, strict=True):
            for vector in own:
                vector.grad = torch.linspace(0.5, -2, 5) * (step - 1.5)
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        advance(optimizers[0])
        optimizers[1].step()
    for first, second in zip(*vectors, strict=True):
        assert torch.equal(first, second)
        states = [optimizer.state[v] for optimizer, v in zip(optimizers, (first, second), strict=True)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_beta_warms_up_in_the_loss_and_is_one_in_validation() -> None:
    history = fit(
        vae(), one_stage(ELBO(warmup_epochs=2.0), max_epochs=3), Images(), validation=Images(16, seed=1)
    )
    assert [line["train"]["beta"] for line in history.epochs] == [0.5, 1.0, 1.0]
    for line in history.epochs:
        train, held_out = line["train"], line["validation"]
        assert train["elbo"] == pytest.approx(train["reconstruction"] - train["kl"])
        assert held_out["elbo"] == pytest.approx(held_out["reconstruction"] - held_out["kl"])
        assert held_out["loss"] == pytest.approx(
            -held_out["elbo"]
        )  # the same objective, its schedule at the end
    assert history.epochs[0]["train"]["loss"] < -history.epochs[0]["train"]["elbo"]


# -- early stopping ------------------------------------------------------------------------------------------


class Judge(ELBO):
    """Scores epochs by a list, whatever the figures."""

    def __init__(self, scores: list[float], warmup_epochs: float = 0.0) -> None:
        super().__init__(warmup_epochs=warmup_epochs)
        object.__setattr__(self, "scores", iter(scores))

    def score(self, figures: dict[str, float]) -> float:
        return next(self.scores)  # type: ignore[attr-defined]


def test_early_stopping_keeps_the_weights_of_the_best_epoch() -> None:
    watch = Watch()
    objective = Judge([1.0, 5.0, 4.0, 3.0, 9.0])
    model = vae()
    history = fit(
        model,
        one_stage(objective, max_epochs=9, patience=2),
        Images(),
        validation=Images(8, seed=1),
        callbacks=[watch],
    )
    assert len(history.epochs) == 4
    assert same(state(model), watch.weights[2])
    assert not same(state(model), watch.weights[4])
    assert any("stopped early" in event for event in watch.events)


def test_patience_is_counted_after_the_warm_up() -> None:
    objective = Judge([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], warmup_epochs=3.0)
    history = fit(
        vae(), one_stage(objective, max_epochs=9, patience=2), Images(), validation=Images(8, seed=1)
    )
    assert len(history.epochs) == 5


def test_without_patience_the_best_weights_are_still_kept() -> None:
    watch, model = Watch(), vae()
    fit(
        model,
        one_stage(Judge([1.0, 9.0, 2.0])),
        Images(),
        validation=Images(8, seed=1),
        callbacks=[watch],
    )
    assert same(state(model), watch.weights[2])


def test_the_best_epoch_is_chosen_by_the_objectives_own_bound() -> None:
    history = fit(vae(), one_stage(IWAE(3)), Images(), validation=Images(8, seed=1))
    for line in history.epochs:
        assert line["validation"]["iwae"] >= line["validation"]["elbo"]


# -- what a run is a function of -----------------------------------------------------------------------------


def test_one_seed_one_run_another_seed_another() -> None:
    runs = []
    for seed in (3, 3, 4):
        model = vae("iaf", "real_nvp")
        torch.rand(seed)  # whatever the caller drew before
        history = fit(model, one_stage(), Images(), validation=Images(8, seed=1), seed=seed)
        runs.append((state(model), losses(history)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


def test_callbacks_and_validation_do_not_influence_the_weights() -> None:
    class Noisy(Callback):
        def on_step(self, line: dict[str, Any]) -> None:
            torch.manual_seed(1)

        def on_epoch(self, line: dict[str, Any]) -> None:
            torch.randn(100)

    plain, watched, validated = vae(), vae(), vae()
    fit(plain, one_stage(), Images())
    fit(watched, one_stage(), Images(), callbacks=[Noisy()])
    epochs = Watch()
    fit(validated, one_stage(), Images(), validation=Images(8, seed=1), callbacks=[epochs])
    assert same(state(plain), state(watched))
    assert same(state(plain), epochs.weights[-1])


def test_the_loss_does_not_depend_on_the_size_of_the_batch() -> None:
    model = vae()
    x = Fixed().x
    trace = model.trace(x)
    doubled = type(trace)(
        *(torch.cat([getattr(trace, name)] * 2, dim) for name, dim in [("x", 0), ("z", 1)]),
        *(torch.cat([getattr(trace, f"log_{name}")] * 2, 1) for name in ("likelihood", "prior", "posterior")),
        levels=trace.levels,
    )
    for objective in (ELBO(), IWAE(1)):
        torch.testing.assert_close(objective(doubled).loss, objective(trace).loss)


def test_logged_figures_are_means_over_points() -> None:
    """The same point 8 times per batch or 16 times: the same loss of an untrained deterministic model."""
    model = vae()
    one = fit(model, one_stage(learning_rate=1e-30, batch_size=8, max_epochs=1), Fixed())
    two = fit(model, one_stage(learning_rate=1e-30, batch_size=16, max_epochs=1), Fixed())
    assert losses(one)[0] == pytest.approx(losses(two)[0], rel=0.02)


def test_validation_is_a_mean_over_points_and_repeats_itself() -> None:
    model = vae()
    small = fit(model, one_stage(learning_rate=1e-30, max_epochs=2), Images(), validation=Fixed(700, seed=1))
    first, second = (line["validation"] for line in small.epochs)
    assert first == pytest.approx(second)
    with torch.no_grad():
        trace = model.trace(Fixed(700, seed=1).x, 50)
    assert first["reconstruction"] == pytest.approx(float(trace.log_likelihood.mean()), abs=0.1)


# -- what is left alone --------------------------------------------------------------------------------------


def test_generators_and_signal_handlers_are_given_back() -> None:
    torch.manual_seed(5)
    random.seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(vae(), one_stage(), Images())
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    with pytest.raises(Crash):
        fit(vae(), one_stage(), Images(on_read=crash_at(5)))
    assert torch.equal(torch.get_rng_state(), before)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("read", [5, 10_000])
def test_requires_grad_is_given_back_and_what_the_caller_froze_stays(read: int) -> None:
    model = vae(prior="real_nvp")
    frozen = next(model.posterior.parameters())
    frozen.requires_grad_(False)
    flags, before = [p.requires_grad for p in model.parameters()], frozen.clone()
    try:
        fit(model, two_stages(ema_decay=0.5), Images(on_read=crash_at(read)))
    except Crash:
        assert read == 5
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(frozen, before)
    assert not model.training


def test_on_end_is_called_however_the_run_ends() -> None:
    watch = Watch()
    with pytest.raises(Crash):
        fit(vae(), one_stage(), Images(on_read=crash_at(5)), callbacks=[watch])
    fit(vae(), one_stage(), Images(), callbacks=[watch])
    assert watch.statuses == ["interrupted", "finished"]


def test_a_network_with_batch_statistics_trains() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))
    model = VAE(
        AmortizedGaussian(2, SHAPE, encoder),
        StandardGaussian(2),
        AmortizedBernoulli(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1)),
    )
    history = fit(model, one_stage(), Images())
    assert history.status == "finished"
    assert model.state_dict()["posterior.network.1.num_batches_tracked"] == 12


def test_nothing_is_written_without_a_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(vae(), one_stage(), Images(), options=Options(checkpoint_every=1))
    assert list(tmp_path.iterdir()) == []


IMPORTS = """
import sys
from latentflows.training import Callback, fit
from tests.training.tiny import Images, one_stage, vae

class Look(Callback):
    def on_start(self, model, stages):
        self.before = set(sys.modules)
    def on_end(self, history):
        print(len(set(sys.modules) - self.before))

fit(vae(), one_stage(max_epochs=1), Images(), validation=Images(24), callbacks=[Look()])
"""


def test_seconds_hold_no_imports() -> None:
    """The clock starts after `on_start`: of a run that is the first of its process, too, it measures training."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10


def test_an_objective_of_ones_own_needs_only_a_call() -> None:
    assert fit(vae(), one_stage(Poison()), Images()).status == "finished"


def test_one_stage_needs_no_list():
    assert fit(vae(), one_stage(max_epochs=1)[0], Images()).status == "finished"


@pytest.mark.parametrize(
    ("stages", "train", "said"),
    [
        (one_stage(), torch.zeros(8, 1, 2, 2), "`train` must be a `DataSource`.*got a `Tensor`"),
        ([ELBO()], Images(), "`stages` must be a list of `Stage`"),
    ],
)
def test_what_is_no_stage_and_no_data_is_refused(stages, train, said):
    with pytest.raises(ConfigurationError, match=said):
        fit(vae(), stages, train)


def test_data_of_another_type_train_where_the_model_takes_them():
    class Doubles(Images):
        def batch(self, indices):
            return Batch(super().batch(indices).x.double())

    model = DensityModel(LearnedGaussian(Images().event_shape))
    stage = Stage("density", MaximumLikelihood(), max_epochs=1, batch_size=8)
    assert fit(model, stage, Doubles()).status == "finished"


def test_parameters_and_data_of_two_types_are_refused():
    with pytest.raises(ConfigurationError, match=r"parameters are torch\.float64 and the data"):
        fit(vae().double(), one_stage(), Images())
