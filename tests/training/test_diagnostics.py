"""Figures that say whether posterior and prior go wrong together, against distributions where they are known."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from latentflows.bijections import Permutation
from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.distributions import (
    AmortizedDelta,
    AmortizedGaussian,
    EnergyPrior,
    Flow,
    LearnedGaussian,
    StandardGaussian,
)
from latentflows.models import VAE
from latentflows.networks import MLP
from latentflows.training import Options, fit, session
from latentflows.training.diagnostics import _discrepancy, diagnose, faults, impossible
from tests.training.tiny import Images, one_stage, vae

DIM = 3


class Encoder(nn.Module):
    """Mean `gain` x, the same scale everywhere."""

    def __init__(self, gain: float, scale: float) -> None:
        super().__init__()
        self.gain = gain
        self.raw = nn.Parameter(torch.tensor(math.log(scale) / (1 - abs(math.log(scale)) / 7)))  # soft bound

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.gain * x, self.raw.expand(len(x), DIM)], 1)


def known(gain: float, scale: float, prior=None) -> VAE:
    posterior = AmortizedGaussian(DIM, DIM, Encoder(gain, scale))
    likelihood = AmortizedGaussian(DIM, DIM, nn.Identity(), scale=1.0)
    return VAE(posterior, prior or StandardGaussian(DIM), likelihood)


def batch(count=2000) -> Batch:
    return Batch(torch.randn(count, DIM, generator=torch.Generator().manual_seed(0)))


def test_scales_and_units_are_those_of_a_known_posterior():
    figures = diagnose(known(0.8, 0.6), batch(), seed=1)
    assert figures["posterior_scale"] == pytest.approx(0.6, rel=0.02)
    assert figures["latent_scale"] == pytest.approx(1.0, rel=0.03)  # 0.64 + 0.36
    assert figures["active_units"] == DIM
    assert abs(figures["mmd"]) < 5e-3
    assert faults(figures) == {}


def test_the_discrepancy_sees_a_prior_of_another_scale():
    prior = LearnedGaussian(DIM)
    with torch.no_grad():
        prior.raw_scale.fill_(1.0)
    assert diagnose(known(0.8, 0.6, prior), batch(500), seed=1)["mmd"] > 0.05


@pytest.mark.parametrize("count", [50, 200])
@pytest.mark.parametrize("closed_form", [True, False])
def test_a_collapse_is_named_and_draws_alone_do_not_hide_it(count: int, closed_form: bool):
    # of a flow the mean of 10 draws varies by scale^2 / 10, which is far above the threshold, and varies itself
    dim = 32
    posterior = AmortizedGaussian(dim, DIM, nn.Linear(DIM, 2 * dim))
    nn.init.zeros_(posterior.network.weight)
    model = VAE(
        posterior if closed_form else Flow(posterior, Permutation(dim, torch.arange(dim).flip(0))),
        StandardGaussian(dim),
        AmortizedGaussian(DIM, dim, nn.Linear(dim, DIM), scale=1.0),
    )
    for seed in range(5):
        figures = diagnose(model, batch(count), seed)
        assert figures["active_units"] == 0
        assert list(faults(figures)) == ["collapse"]


def test_draws_find_the_moments_that_have_no_closed_form():
    model = known(0.8, 0.6)
    exact = diagnose(model, batch(200), seed=1)
    model.posterior = Flow(model.posterior, Permutation(DIM, torch.arange(DIM).flip(0)))
    drawn = diagnose(model, batch(200), seed=1)
    for name, tolerance in {
        "posterior_scale": 0.01,
        "latent_scale": 0.02,
        "active_units": 0,
        "largest_share": 0.06,
    }.items():
        assert drawn[name] == pytest.approx(exact[name], abs=tolerance)


def test_needles_are_named_in_a_part_of_the_dimensions_too():
    model = known(1.0, 0.5)
    with torch.no_grad():
        model.posterior.network.raw = nn.Parameter(model.posterior.network.raw.expand(DIM).clone())
        model.posterior.network.raw[1] = math.log(0.002) / (1 - abs(math.log(0.002)) / 7)
    figures = diagnose(model, batch(200), seed=1)
    assert figures["needle_units"] == 1
    assert "needle-sharp in 1 latent dimension:" in faults(figures)["needle"]


def test_a_divergence_below_zero_is_told():
    assert impossible(None) == impossible(0.3) == impossible(-0.5) == {}
    prior = EnergyPrior(StandardGaussian(2), MLP((2,), (1,), width=4, depth=1))
    first = vae()
    model = VAE(first.posterior, prior, first.likelihood)
    with torch.no_grad():
        for parameter in prior.energy.parameters():
            parameter.zero_()
    prior.energy.register_forward_hook(lambda module, inputs, out: out - 50 * (inputs[0][:, :1] > 6))
    with torch.no_grad():
        model.posterior.network.last.linear.bias[0] = 9.0  # where N(0, I) never draws
    epochs = fit(model, one_stage(max_epochs=2), Images()).epochs
    assert epochs[0]["train"]["kl"] < 0
    [told] = [event for line in epochs for event in line["events"] if "no density makes it negative" in event]
    assert "misses mass there" in told


def test_latents_of_a_small_scale_have_not_collapsed():
    figures = diagnose(known(0.05, 0.005), batch(200), seed=1)  # a learned prior may be as narrow
    assert figures["active_units"] == 0
    assert figures["largest_share"] == pytest.approx(0.99, abs=0.005)
    assert faults(figures) == {}


def test_latents_that_never_move_have_collapsed():
    model = VAE(
        AmortizedDelta(DIM, DIM, nn.Linear(DIM, DIM)), StandardGaussian(DIM), known(0.8, 0.6).likelihood
    )
    nn.init.zeros_(model.posterior.network.weight)
    assert list(faults(diagnose(model, batch(50), seed=1))) == ["collapse"]


def test_needles_are_named():
    figures = diagnose(known(1.0, 0.005), batch(200), seed=1)
    assert list(faults(figures)) == ["needle"]
    assert "needle-sharp" in faults(figures)["needle"]


def test_the_point_of_an_autoencoder_is_no_needle():
    model = VAE(AmortizedDelta(DIM, DIM, nn.Identity()), StandardGaussian(DIM), known(0.8, 0.6).likelihood)
    figures = diagnose(model, batch(50), seed=1)
    assert figures["posterior_scale"] == 0
    assert figures["latent_scale"] > 0.5
    assert faults(figures) == {}


def test_a_diverged_posterior_has_not_collapsed():
    figures = diagnose(known(math.nan, 1.0), batch(50), seed=1)
    assert math.isnan(figures["active_units"])
    assert faults(figures) == {}


def test_a_flow_posterior_that_has_diverged_ends_no_run():
    model = vae("iaf", "real_nvp")
    with torch.no_grad():
        for parameter in model.posterior.parameters():
            parameter.fill_(1e30)
    figures = diagnose(model, Images().batch(torch.arange(8)), seed=1)
    assert math.isnan(figures["posterior_scale"])
    assert faults(figures) == {}


def test_the_discrepancy_has_no_bias():
    with noise.stream(0):
        values = torch.tensor(
            [_discrepancy(*noise.standard_normal((2, 20, 2), like=torch.zeros(()))) for _ in range(400)]
        )
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20
    assert float(values.min()) < 0


def test_a_diagnosis_changes_nothing_and_repeats_itself():
    model = known(0.8, 0.6).train()
    torch.manual_seed(0)
    first = diagnose(model, batch(50), seed=1)
    assert model.training
    state = torch.random.get_rng_state()
    assert diagnose(model, batch(50), seed=1) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert diagnose(model, batch(50), seed=2) != first


def test_every_line_has_the_figures(tmp_path):
    fit(vae(), one_stage(max_epochs=3), Images(), out=tmp_path, options=Options(diagnose=16))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [set(line["diagnostics"]) for line in lines] == [
        {"posterior_scale", "latent_scale", "active_units", "largest_share", "needle_units", "mmd"}
    ] * 3


def test_a_fault_is_told_once_in_a_stage_and_not_before_its_last_epoch_or_200_steps(monkeypatch):
    monkeypatch.setattr(session, "look", lambda *_: {"largest_share": 0.0})
    short = [line["events"] for line in fit(vae(), one_stage(max_epochs=3), Images()).epochs]
    assert [len(events) for events in short] == [0, 0, 1]
    assert "After epoch 3 of stage 'joint': The posterior has collapsed" in short[2][0]
    monkeypatch.setattr(session, "_SETTLED", 8)  # steps; an epoch has 4
    long = [line["events"] for line in fit(vae(), one_stage(max_epochs=5), Images()).epochs]
    assert [len(events) for events in long] == [0, 1, 0, 0, 0]


def test_it_can_be_switched_off():
    history = fit(vae(), one_stage(max_epochs=1), Images(), options=Options(diagnose=0))
    assert history.epochs[0]["diagnostics"] == {}


@pytest.mark.parametrize(
    ("given", "training", "expected"),
    [(None, 32, 50), (None, 1792, 112), (None, 60_000, 200), (500, 32, 500), (0, 60_000, 0)],
)
def test_the_look_is_a_small_part_of_an_epoch(given: int | None, training: int, expected: int) -> None:
    assert Options(diagnose=given).points_to_diagnose(training) == expected
