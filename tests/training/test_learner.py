"""One step: clipping, optimizer, moving average, precision, compilation."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from latentflows.bijections import Radial, Sigmoid
from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.distributions import Flow, StandardGaussian
from latentflows.models import VAE, Trace
from latentflows.objectives import ELBO, PriorLikelihood, Value
from latentflows.training import Options, Stage, fit
from latentflows.training.learner import Learner
from latentflows.training.parallel import World
from tests.training.tiny import Fixed, Images, Watch, finite, one_stage, same, state, vae

WORLD = World(0, 1, torch.device("cpu"))


def learner_of(model: VAE, options: Options | None = None, **settings: Any) -> Learner:
    (stage,) = one_stage(**settings)
    return Learner(model, stage, options or Options(), WORLD, frozenset(model.parameters()))


def gradients(model: VAE) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def one_step(learner: Learner, count: int = 1) -> Any:
    pieces = Fixed(8).x.tensor_split(count)
    with noise.stream(5):
        return learner.step([Batch(x) for x in pieces], count, math.inf)


# -- clipping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6])
def test_clipping_bounds_the_global_norm_as_torch_does(limit: float) -> None:
    model, reference = vae(), vae()
    outcome = one_step(learner := learner_of(model, gradient_clip_val=limit))
    with noise.stream(5):
        ELBO()(reference.trace(Fixed(8).x)).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), limit)
    learner.move(outcome, 1e-3)
    assert outcome.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    clipped = torch.cat([vector.grad.flatten() for vector in learner.vectors])
    torch.testing.assert_close(clipped, gradients(reference), rtol=1e-5, atol=1e-8)
    assert float(clipped.norm()) <= limit * (1 + 1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamax", "adamw"])
def test_a_step_is_the_optimizers_own(optimizer: Any) -> None:
    model, reference = vae(), vae()
    learner = learner_of(model, optimizer=optimizer, weight_decay=0.1, gradient_clip_val=1.0)
    kind = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax, "adamw": torch.optim.AdamW}[optimizer]
    manual = kind(reference.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(3):
        learner.move(one_step(learner), 0.02)
        manual.zero_grad()
        with noise.stream(5):
            ELBO()(reference.trace(Fixed(8).x)).loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        manual.step()
    for name, value in state(model).items():
        torch.testing.assert_close(value, state(reference)[name], rtol=1e-4, atol=1e-6)


def test_pieces_of_a_batch_add_up_to_its_gradient() -> None:
    class Deterministic(ELBO):
        def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
            q = trace.levels[0][0]
            points = (q.mean**2).sum(-1)
            return Value(points.mean(), {name: points.detach() for name in self.metrics})

    whole, cut = vae(), vae()
    one = one_step(learner_of(whole, objective=Deterministic()))
    two = one_step(learner_of(cut, objective=Deterministic()), count=4)
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    assert one.gradient_norm == pytest.approx(two.gradient_norm, rel=1e-5)
    torch.testing.assert_close(gradients(whole), gradients(cut), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(one.sums, two.sums)


# -- moving average ------------------------------------------------------------------------------------------


def test_the_moving_average_is_what_is_validated_and_kept() -> None:
    """Against the recursion a <- d a + (1 - d) w over the weights after every step (one step per epoch)."""
    watch, model = Watch(), vae()
    settings = {"batch_size": 32, "max_epochs": 5, "ema_decay": 0.7}
    history = fit(model, one_stage(**settings), Images(), validation=Fixed(16, seed=1), callbacks=[watch])
    averages = [watch.weights[0]]
    for weights in watch.weights[1:]:
        averages.append({name: 0.7 * averages[-1][name] + 0.3 * weights[name] for name in weights})
    best = max(range(5), key=lambda i: history.epochs[i]["validation"]["elbo"]) + 1
    for name, value in state(model).items():
        torch.testing.assert_close(value, averages[best][name], rtol=1e-5, atol=1e-6)
    assert not same(state(model), watch.weights[best])
    # The figure of the last epoch is the average's: recompute it from the recursion.
    judge = vae()
    judge.load_state_dict(averages[-1])
    with torch.no_grad(), noise.stream(0, 3, 0):
        figure = float(judge.trace(Fixed(16, seed=1).x).log_weight.mean())
    assert history.epochs[-1]["validation"]["elbo"] == pytest.approx(figure, rel=1e-5)


def test_without_validation_the_last_moving_average_is_kept() -> None:
    watch, model = Watch(), vae()
    fit(model, one_stage(batch_size=32, max_epochs=3, ema_decay=0.7), Images(), callbacks=[watch])
    average = watch.weights[0]
    for weights in watch.weights[1:]:
        average = {name: 0.7 * average[name] + 0.3 * weights[name] for name in weights}
    for name, value in state(model).items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)


def test_a_snapshot_is_a_copy_and_comes_back_whole() -> None:
    model = vae()
    learner = learner_of(model, ema_decay=0.5)
    learner.move(one_step(learner), 0.1)
    kept, before = learner.snapshot(), learner.snapshot()
    learner.move(one_step(learner), 0.1)
    assert same(kept, before)
    assert not same(learner.snapshot(), before)
    learner.restore(kept)
    assert same(learner.snapshot(), before)
    learner.move(one_step(learner), 0.1)
    assert same(kept, before)  # a restored state does not share memory with its snapshot


# -- precision and compilation -------------------------------------------------------------------------------


def test_in_bfloat16_every_term_of_a_density_is_float32() -> None:
    seen: list[tuple[torch.dtype, ...]] = []
    networks: list[torch.dtype] = []

    class Dtypes(ELBO):
        def __call__(self, trace: Trace, epoch: float | Tensor = math.inf) -> Value:
            terms = (trace.z, trace.log_likelihood, trace.log_prior, trace.log_posterior)
            value = super().__call__(trace, epoch)
            seen.append(tuple(term.dtype for term in (*terms, value.loss)))
            return value

    model = vae("iaf", "real_nvp")
    for part in (model.posterior.embed, model.likelihood.network):
        part.register_forward_hook(lambda module, inputs, output: networks.append(output.dtype))  # type: ignore[union-attr]
    options = Options(precision="bf16-mixed")
    fit(model, one_stage(Dtypes(), max_epochs=1), Images(), options=options, validation=Images(8, seed=1))
    assert set(seen) == {(torch.float32,) * 5}
    assert torch.bfloat16 in networks
    assert {value.dtype for value in state(model).values() if value.is_floating_point()} == {torch.float32}


def test_bfloat16_learns_what_float32_learns() -> None:
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        model = vae("iaf", "real_nvp")
        history = fit(model, one_stage(), Images(), options=Options(precision=precision))  # type: ignore[arg-type]
        curves.append([line["train"]["loss"] for line in history.epochs])
        assert finite(state(model))
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("c++") is None, reason="needs a C compiler")
def test_compiled_training_gives_eager_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiled.append(1) or original(*a, **k))
    curves = []
    for flag in (False, True):
        stages = one_stage(ELBO(warmup_epochs=2.0), max_epochs=2, ema_decay=0.5)
        history = fit(vae(), stages, Images(), options=Options(compile=flag), validation=Images(8, seed=1))
        curves.append([line[part]["loss"] for line in history.epochs for part in ("train", "validation")])
    assert compiled == [1]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_part_with_a_single_parameter_learns() -> None:
    parts = vae()
    dim = parts.latent_shape
    model = VAE(parts.posterior, Flow(StandardGaussian(dim), Radial(dim[0], num_layers=2)), parts.likelihood)
    before = model.prior.bijection.source.raw.detach().clone()
    history = fit(model, [Stage("prior", PriorLikelihood(), max_epochs=1, train=("prior",))], Fixed(8))
    assert history.status == "finished"
    assert not torch.equal(model.prior.bijection.source.raw, before)


def test_frozen_parameters_do_not_learn() -> None:
    model = vae()
    trainable = frozenset(model.likelihood.parameters())
    stage = Stage("s", ELBO(), ("posterior", "likelihood"))
    learner = Learner(model, stage, Options(), WORLD, trainable)
    assert set(learner.parameters) == trainable
    one_step(learner)
    assert all(p.grad is None for p in model.posterior.parameters())


# -- validation ----------------------------------------------------------------------------------------------


def test_a_latent_outside_the_priors_interval_costs_the_figures_and_not_the_run() -> None:
    model = vae()
    model.prior = Flow(StandardGaussian(2), Sigmoid(2, lower=-1e-3, upper=1e-3))
    with pytest.warns(
        RuntimeWarning, match=r"stage 'joint' are NaN. The inverse of `Sigmoid` expects values between"
    ):
        history = fit(model, one_stage(max_epochs=1), Fixed(), validation=Fixed(8))
    assert history.status == "finished"
    assert set(history.epochs[0]["validation"].values()) == {None}  # NaN, as it is written
