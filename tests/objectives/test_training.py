"""Every objective through `fit`: it trains, its auxiliary module learns and is saved, and a run resumes exactly."""

import pytest
import torch

from latentflows.core.errors import CombinationError
from latentflows.distributions.delta import AmortizedDelta
from latentflows.models import VAE
from latentflows.networks import MLP
from latentflows.objectives import ELBO, GECO, Autoencoder, FactorVAE, PriorLikelihood, WassersteinAutoencoder
from latentflows.training import Options, Stage, fit
from latentflows.training.checkpoint import load_tensors
from tests.objectives.cases import OBJECTIVES
from tests.training.tiny import Crash, Fixed, Images, assert_same_run, crash_at, one_stage, state
from tests.training.tiny import vae as tiny_vae

TRAINED = {name: objective for name, objective in OBJECTIVES.items() if not objective.prior_only}


def ready(objective, *names) -> VAE:
    model = tiny_vae(*names)
    torch.manual_seed(0)
    model.auxiliary = objective.auxiliary(model)
    return model


@pytest.mark.parametrize("name", TRAINED)
def test_every_objective_trains_and_its_loss_falls(name):
    objective = TRAINED[name]
    model = ready(objective)
    stage = one_stage(objective, max_epochs=12, batch_size=16)
    history = fit(model, stage, Fixed(), validation=Fixed(8, seed=1))
    assert history.status == "finished"
    assert history.skipped_steps == 0
    first, last = history.epochs[0]["train"], history.epochs[-1]["train"]
    assert set(objective.metrics) <= set(last)
    assert last["reconstruction"] > first["reconstruction"]
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_patience_waits_for_the_last_cycle():
    objective = ELBO(warmup_epochs=1.0, cycle_epochs=2.0, num_cycles=3)
    stage = one_stage(objective, max_epochs=20, patience=1, learning_rate=1e-30)
    history = fit(tiny_vae(), stage, Fixed(), validation=Fixed(8, seed=1))
    assert len(history.epochs) == objective.schedule_epochs + 1


@pytest.mark.parametrize("name", ["iwae_doubly", "regularized"])
def test_losses_that_hold_a_derivative_are_not_compiled(name):
    """`torch.compile` gave the first a wrong gradient without a word (torch 2.13), and refuses the second."""
    objective = TRAINED[name]
    with pytest.raises(
        CombinationError, match=r"holds a derivative, which `torch\.compile` does not differentiate"
    ):
        fit(ready(objective), one_stage(objective), Fixed(), options=Options(compile=True))


@pytest.mark.parametrize(
    "objective", [GECO(0.4), FactorVAE(width=6, depth=2)], ids=lambda o: type(o).__name__
)
def test_the_auxiliary_module_learns_is_saved_and_resumes_bit_by_bit(objective, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = ready(objective)
    before = state(model)
    fit(model, one_stage(objective), Images(), out=whole)
    moved = [name for name, value in state(model).items() if not torch.equal(value, before[name])]
    assert any(name.startswith("auxiliary") for name in moved)
    saved, _ = load_tensors(whole / "checkpoint" / "model.safetensors")
    assert {name for name in before if name.startswith("auxiliary")} <= saved.keys()
    options, dying = Options(checkpoint_every=1), Images(on_read=crash_at(11))
    with pytest.raises(Crash):
        fit(ready(objective), one_stage(objective), dying, out=parts, options=options)
    fit(ready(objective), one_stage(objective), Images(), out=parts, resume=True)
    assert_same_run(whole, parts)


def autoencoder(prior="real_nvp") -> VAE:
    model = tiny_vae("gaussian", prior)
    posterior = AmortizedDelta(2, (1, 8, 8), MLP((1, 8, 8), (2,), width=8, depth=1))
    return VAE(posterior, model.prior, model.likelihood)


@pytest.mark.parametrize(
    "objective", [Autoencoder(), WassersteinAutoencoder()], ids=lambda o: type(o).__name__
)
def test_an_autoencoder_trains_in_two_stages_the_second_being_its_density(objective):
    model = autoencoder()
    stages = [
        Stage(
            "autoencoder",
            objective,
            ("posterior", "likelihood"),
            standard_prior=True,
            max_epochs=3,
            batch_size=16,
            learning_rate=1e-2,
        ),
        Stage("density", PriorLikelihood(), ("prior",), max_epochs=10, batch_size=16, learning_rate=1e-2),
    ]
    history = fit(model, stages, Fixed())
    nll = [line["train"]["prior_nll"] for line in history.epochs if line["stage"] == "density"]
    assert nll[-1] < nll[0] - 0.1
    assert history.status == "finished"
